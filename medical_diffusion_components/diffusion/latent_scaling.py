"""How latents are scaled before noise is added to them.

The paper scales them to [-1, 1] with the codebook's minimum and maximum (Ge et al., ECCV 2022), which leaves latents with a
standard deviation far below that of the noise. Rombach et al., CVPR 2022, section 3.3, divide by the standard deviation.
Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", CVPR 2024, appendix, standardise each
channel. In volumes that are aligned with each other, most of a channel's variance is between positions and not between
cases; with the mean of each position subtracted, what is left to learn is how the cases differ.
"""

# No `from __future__ import annotations`: TorchScript reads the class's annotations and needs types, not text.

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["LATENT_SCALINGS", "LatentScaling"]

LATENT_SCALINGS = ("min_max", "per_channel", "per_position")


class LatentScaling(nn.Module):
    r"""z = (x - shift) / scale, where x is the first stage's latent in [-1, 1], and back.

    At first z is x, the paper's min-max scaling; :meth:`fit` learns another from the training latents. ``bound`` is the
    largest \|z\| of these latents: the range that samplers clip to. All three are buffers, so the weights of a generator
    bring the scaling that it was trained with.

    Args:
        latent_shape: (C, h, w, d), or ones for what is not known before latents or weights bring it.

    Shape:
        latents (B, C, h, w, d) -> the same. Where ``shift`` is the same at all positions, any size.

    Raises:
        ValueError: a shape that is not of four axes; when called, latents of another size than those that
            the mean of each position was made from.
    """

    shift: Tensor
    scale: Tensor
    bound: Tensor

    def __init__(self, latent_shape: Sequence[int]) -> None:
        super().__init__()
        if len(latent_shape) != 4:
            raise ValueError(f"latent_shape must be (C, h, w, d), got {tuple(latent_shape)}")
        channels = int(latent_shape[0])
        self.register_buffer("shift", torch.zeros([int(size) for size in latent_shape]))  # (C, h, w, d)
        self.register_buffer("scale", torch.ones(channels, 1, 1, 1))
        self.register_buffer("bound", torch.tensor(1.0))

    def forward(self, latent: Tensor) -> Tensor:
        """First stage's latents in [-1, 1] -> what noise is added to."""
        return (latent - self._shift_for(latent)) / self.scale

    @torch.jit.export
    def inverse(self, scaled: Tensor) -> Tensor:
        """What a sampler ends with -> first stage's latents in about [-1, 1]."""
        return scaled * self.scale + self._shift_for(scaled)

    def _shift_for(self, latent: Tensor) -> Tensor:
        if latent.shape[1:] == self.shift.shape:
            return self.shift
        of_channel = self.shift[:, :1, :1, :1]
        if not bool((self.shift == of_channel).all()):
            raise ValueError(
                f"expected latents (B, C, h, w, d) of the size that the mean of each position was made from, "
                f"{list(self.shift.shape)}, got {list(latent.shape)}"
            )
        return of_channel

    @torch.jit.unused
    @torch.no_grad()
    def fit(self, kind: str, latents: Iterable[Tensor]) -> None:
        """Learn shift, scale and bound from the training latents.

        ``min_max`` (the paper's) leaves latents as the first stage gives them and looks at none. ``per_channel`` subtracts
        the mean of each channel and divides by its standard deviation. ``per_position`` subtracts the mean of each channel
        at each position and divides by what standard deviation the channel then has.

        Sums are in float64 and in the order given, so the same latents give the same bits.

        Args:
            kind: ``"min_max"``, ``"per_channel"`` or ``"per_position"``.
            latents: the first stage's latents, (N, C, h, w, d) each.

        Raises:
            ValueError: an unknown kind, no latents, latents of different shapes, or a channel that does not vary.
        """
        if kind not in LATENT_SCALINGS:
            raise ValueError(f'latent_scaling must be "min_max", "per_channel" or "per_position", got {kind!r}')
        if kind == "min_max":
            self._set(torch.zeros_like(self.shift), torch.ones_like(self.scale), torch.ones_like(self.bound))
            return
        count, mean, mean_square, low, high = _statistics(latents)
        positions = (1, 2, 3)
        shift = mean if kind == "per_position" else mean.mean(positions, keepdim=True).expand_as(mean)  # (C, h, w, d)
        variance = (mean_square - 2 * shift * mean + shift.square()).mean(positions, keepdim=True)  # (C, 1, 1, 1)
        if not bool((variance > 1e-16).all()):
            flat = [channel for channel, value in enumerate(variance.flatten().tolist()) if not value > 1e-16]
            raise ValueError(
                f"channels {flat} do not vary over the {count} training latents that the scaling is made from"
            )
        scale = variance.sqrt()
        self._set(shift, scale, torch.maximum(high - shift, shift - low).div(scale).max())

    @torch.jit.unused
    def _set(self, shift: Tensor, scale: Tensor, bound: Tensor) -> None:
        for name, value in (("shift", shift), ("scale", scale), ("bound", bound)):
            setattr(self, name, value.to(getattr(self, name)).contiguous())

    @torch.jit.unused
    def adapt_to_weights(self, state: dict[str, Any], prefix: str) -> None:
        """Take the shape that ``state`` has, and give one from before scalings were chosen (min-max) what it lacks."""
        if f"{prefix}shift" not in state:
            plain = LatentScaling(self.shift.shape)
            state.update({prefix + name: value for name, value in plain.state_dict().items()})
        for name in ("shift", "scale"):
            if prefix + name in state:
                here = getattr(self, name)
                setattr(self, name, torch.zeros_like(state[prefix + name], dtype=here.dtype, device=here.device))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.adapt_to_weights(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


class _Statistics(NamedTuple):
    """Number of latents, and mean, mean square, least and largest value at each position, (C, h, w, d) float64."""

    number: int
    mean: Tensor
    mean_square: Tensor
    low: Tensor
    high: Tensor


def _statistics(latents: Iterable[Tensor]) -> _Statistics:
    found: _Statistics | None = None
    for latent in latents:
        rows = latent.detach().cpu().double()
        new = _Statistics(len(rows), rows.sum(0), rows.square().sum(0), rows.amin(0), rows.amax(0))
        if found is None:
            found = new
        elif found.mean.shape != new.mean.shape:
            raise ValueError(f"expected latents of one shape, got {list(found.mean.shape)} and {list(new.mean.shape)}")
        else:
            sums = found.number + new.number, found.mean + new.mean, found.mean_square + new.mean_square
            found = _Statistics(*sums, torch.minimum(found.low, new.low), torch.maximum(found.high, new.high))
    if found is None:
        raise ValueError("expected training latents to make their scaling from, got none")
    return found._replace(mean=found.mean / found.number, mean_square=found.mean_square / found.number)
