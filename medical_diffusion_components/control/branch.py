"""The control branch: a mask decides what a finished, frozen generator draws.

Zhang, Rao and Agrawala, "Adding Conditional Control to Text-to-Image Diffusion Models", ICCV 2023: a second encoder sees
the noisy latent and the mask, and adds to what the frozen encoder hands over to its decoder. Its additions pass through
convolutions that begin at zero, so that training begins with the generator as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch.nn.functional as F
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from medical_diffusion_components.networks.denoiser import Denoiser

__all__ = ["ControlBranch", "ControlledDenoiser"]

DECODER = ("up", "upsample", "last_block", "last")
GROUPS = 8  # of the denoiser's norms; widths are multiples of it


class ControlBranch(nn.Module):
    """A narrower copy of a denoiser's encoder that sees a mask beside the noisy latent.

    A strided convolution brings the mask to the grid on which the denoiser works: one position sees the block of voxels
    that the first stage and the denoiser's patches make one position of, whatever the compression along each axis. What it
    finds is added to the first convolution of the noisy latent.

    Args:
        mask_channels: channels of the mask.
        compression: voxels per latent position along H, W, D.
        in_channels: channels of the latent.
        base_channels: of the denoiser that is controlled.
        channel_multipliers: of that denoiser.
        num_heads: of its attention.
        head_channels: of its attention.
        width: share of the denoiser's channels, above 0; rounded to a multiple of 8, and 8 at least.
        mask_features: channels into which a block of the mask is brought.
        patch_size: of the denoiser.

    Shape:
        latent (B, C, h, w, d), timesteps (B,) or (1,), mask (B, M, H, W, D) -> what is added to the output of the first
        convolution, of each level and of the middle, finest first, in the denoiser's own order (d, B, h', w', C')

    Raises:
        ValueError: a width that is not above 0; a mask whose size is not the latent's times the compression, or whose
            channels are others.
    """

    def __init__(
        self,
        mask_channels: int,
        compression: Sequence[int],
        in_channels: int = 8,
        base_channels: int = 32,
        channel_multipliers: Sequence[int] = (1, 2, 4, 8),
        num_heads: int = 8,
        head_channels: int = 32,
        width: float = 0.5,
        mask_features: int = 64,
        patch_size: Sequence[int] = (1, 1, 1),
    ) -> None:
        super().__init__()
        if not width > 0:
            raise ValueError(f"expected a width above 0, the branch's share of the denoiser's channels, got {width}")
        self.mask_channels = mask_channels
        h, w, d = (int(n) for n in compression)
        self.compression = (h, w, d)
        narrow = max(GROUPS, round(base_channels * width / GROUPS) * GROUPS)
        p, q, r = (int(n) for n in patch_size)
        block = (h * p, w * q, d * r)
        self.embed_mask = nn.Sequential(
            nn.Conv3d(mask_channels, mask_features, block, block),
            nn.SiLU(),
            nn.Conv3d(mask_features, mask_features, kernel_size=3, padding=1),
            nn.SiLU(),
            Rearrange("b c h w d -> d b h w c"),
            nn.Linear(mask_features, narrow),
        )
        self.encoder = Denoiser(
            in_channels,
            narrow,
            channel_multipliers,
            num_heads,
            head_channels,
            norm_groups=GROUPS,
            patch_size=patch_size,
        )
        for part in DECODER:
            delattr(self.encoder, part)
        widths = [1, *channel_multipliers, channel_multipliers[-1]]
        self.additions = nn.ModuleList(nn.Linear(narrow * n, base_channels * n) for n in widths)
        for parameter in self.additions.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, timesteps: Tensor, mask: Tensor) -> list[Tensor]:
        wanted = [x.shape[0], self.mask_channels, *(n * c for n, c in zip(x.shape[2:], self.compression))]
        if list(mask.shape) != wanted:
            raise ValueError(f"expected a mask (B, M, H, W, D) of {wanted}, got {list(mask.shape)}")
        encoder = self.encoder
        embedding = F.silu(encoder.time(timesteps.expand(x.shape[0])))
        patches = encoder.depth_first(x).contiguous()
        position = encoder.position(patches.shape[0])
        found = encoder.encode(patches, embedding, position, self.embed_mask(mask))
        found.append(encoder.middle(found[-1], embedding, position))
        return [layer(h) for layer, h in zip(self.additions, found)]


class ControlledDenoiser(nn.Module):
    """A frozen denoiser and the branch that controls it; called as the denoiser is, with a mask besides.

    A sampler calls the denoiser without a mask; :meth:`asked` holds one for the time of the sampling. Without any mask the
    output is the denoiser's own, bit for bit.

    Args:
        denoiser: of the generator. It is frozen and put into evaluation mode, and stays there.
        branch: is trained.
        strength: factor of the branch's additions; 1 is as trained, 0 is no control.

    Shape:
        as :class:`~medical_diffusion_components.networks.Denoiser`; ``mask`` (B, M, H, W, D), or None

    Raises:
        ValueError: a strength that is not a number of at least 0.
    """

    def __init__(self, denoiser: Denoiser, branch: ControlBranch, strength: float = 1.0) -> None:
        super().__init__()
        if not (math.isfinite(strength) and strength >= 0):
            raise ValueError(f"expected a control_strength of at least 0, where 1 is as trained, got {strength}")
        self.denoiser = denoiser.requires_grad_(False).eval()
        self.branch = branch
        self.strength = strength
        self.mask: Tensor | None = None

    def train(self, mode: bool = True) -> ControlledDenoiser:
        """The branch alone changes its mode."""
        super().train(mode)
        self.denoiser.eval()
        return self

    @contextmanager
    def asked(self, mask: Tensor) -> Iterator[None]:
        """Every call without a mask in this context has this one, (B, M, H, W, D)."""
        self.mask = mask
        try:
            yield
        finally:
            self.mask = None

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        mask = self.mask if mask is None else mask
        if mask is None or self.strength == 0:
            return self.denoiser(x, timesteps, context)
        if len(x) > len(mask):  # guidance asks for each volume twice in one batch
            mask = mask.repeat(len(x) // len(mask), 1, 1, 1, 1)
        *levels, middle = [self.strength * added for added in self.branch(x, timesteps, mask)]
        return self.denoiser(
            x, timesteps, context, down_block_additional_residuals=levels, mid_block_additional_residual=middle
        )
