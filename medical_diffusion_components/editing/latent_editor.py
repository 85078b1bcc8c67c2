"""Editing in the latent: a region redrawn around what is known, variations, and the way from one latent to another.

Lugmayr et al., "RePaint: Inpainting using Denoising Diffusion Probabilistic Models", CVPR 2022: after each step of the
reverse diffusion the known part is replaced by the known latent with the noise of that timestep, and every few steps the
chain is taken back and repeated, so that the drawn part comes to agree with it. Meng et al., "SDEdit", ICLR 2022:
variations start from the latent with noise instead of from noise alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from medical_diffusion_components.chance import derive_seed, normal_of_seed
from medical_diffusion_components.diffusion.generator import LatentDiffusionGenerator

__all__ = ["LatentEditor", "jump_schedule"]


def jump_schedule(steps: int, jump_length: int, resamples: int) -> Iterator[tuple[int, int]]:
    """Moves of the chain: from place to place, where 0 is noise and ``steps`` is clean.

    Blocks of ``jump_length`` steps are walked ``resamples`` times each; a move to an earlier place adds noise. With 4
    steps, 2 and 2: 0-1, 1-2, 2-0, 0-1, 1-2, 2-3, 3-4, 4-2, 2-3, 3-4.
    """
    for start in range(0, steps, jump_length):
        end = min(start + jump_length, steps)
        for walk in range(resamples):
            yield from ((place, place + 1) for place in range(start, end))
            if walk + 1 < resamples:
                yield end, start


class LatentEditor:
    """Edits latents with a generator's denoiser, schedule and sampler.

    Latents are the first stage's, (1, C, h, w, d); one seed gives one result.

    Args:
        generator: with its weights; its sampler and its timesteps are used.
        resamples: how often each block of the chain is walked when a region is drawn; 1 never goes back.
        jump_length: steps in a block.

    Raises:
        ValueError: fewer than one walk or step.
    """

    def __init__(self, generator: LatentDiffusionGenerator, resamples: int = 5, jump_length: int = 5) -> None:
        if resamples < 1 or jump_length < 1:
            raise ValueError(f"resamples and jump_length must be at least 1, got {resamples} and {jump_length}")
        self.generator = generator
        self.resamples = int(resamples)
        self.jump_length = int(jump_length)

    @torch.no_grad()
    def inpaint(self, latent: Tensor, free: Tensor, seed: int, report: Callable[[], object] | None = None) -> Tensor:
        """Draw the free positions of a latent given the others, which come back as they were.

        Args:
            latent: (1, C, h, w, d).
            free: (h, w, d) bool, positions to draw.
            seed: of all noise.
            report: called after each move, for a progress bar.

        Raises:
            ValueError: the generator's sampler is of second order: it needs an unbroken chain, and here parts of it are
                replaced and repeated.
        """
        if self.generator.second_order:
            raise ValueError(
                'inpainting goes with the samplers "ddpm" and "ddim"; "dpmpp_2m" extrapolates along an unbroken chain, '
                "and this one is taken back again and again"
            )
        known = self.generator.latent_scaling(latent.float())
        times = self.generator.timesteps
        signals = [*self.generator.alphas_cumprod[times], torch.ones_like(self.generator.alphas_cumprod[0])]
        noise = _Noise(seed, known)
        x = torch.where(free, noise(), _noised(known, signals[0], noise()))
        for here, there in jump_schedule(len(times), self.jump_length, self.resamples):
            if there < here:
                ratio = signals[there] / signals[here]
                x = ratio.sqrt() * x + (1 - ratio).sqrt() * noise()
            else:
                drawn = self._step(x, times[here], signals[here], signals[there], noise)
                x = torch.where(free, drawn, _noised(known, signals[there], noise()))
            if report is not None:
                report()
        return torch.where(free, self.generator.latent_scaling.inverse(x), latent.float())

    def _step(self, x: Tensor, t: Tensor, a_t: Tensor, a_s: Tensor, noise: _Noise) -> Tensor:
        """One step of the generator's own equation, from timestep t to the one with signal a_s."""
        # one step to the end: the estimate of x0
        clean = self.generator.latent_scaling(self.generator.sample_latent(x, timesteps=t[None]))
        direction = (x - a_t.sqrt() * clean) / (1 - a_t).sqrt()
        variance = self.generator.eta**2 * (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)
        x = a_s.sqrt() * clean + (1 - a_s - variance).clamp(min=0).sqrt() * direction
        return x + variance.sqrt() * noise() if self.generator.eta > 0 else x

    @torch.no_grad()
    def vary(self, latent: Tensor, strength: float, seed: int) -> Tensor:
        """Add the noise of timestep ``strength`` T and take it away again.

        Args:
            latent: (1, C, h, w, d).
            strength: in [0, 1]: 0 gives the latent back, 1 keeps next to nothing of it.
            seed: of the noise.
        """
        return self.between(latent, latent, 0.0, strength, seed)

    @torch.no_grad()
    def between(self, one: Tensor, other: Tensor, weight: float, strength: float, seed: int) -> Tensor:
        """A latent on the way from one to another: both get the same noise, meet on the arc between them, and lose it.

        Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985, for the arc; Ho et al., "Denoising
        Diffusion Probabilistic Models", NeurIPS 2020, section 4.3, for meeting in noised latents.

        Args:
            one: (1, C, h, w, d).
            other: likewise.
            weight: of ``other``, in [0, 1].
            strength: in [0, 1], as for :meth:`vary`. At 0 the latents themselves are mixed.
            seed: of the noise.

        Raises:
            ValueError: a weight or a strength outside [0, 1].
        """
        for name, value in (("weight", weight), ("strength", strength)):
            if not 0 <= value <= 1:
                raise ValueError(f"expected a {name} in [0, 1], got {value}")
        scaling, trained = self.generator.latent_scaling, self.generator.alphas_cumprod
        if strength == 0:
            return one.float() if weight == 0 else scaling.inverse(_arc(scaling(one), scaling(other), weight))
        start = max(round(strength * len(trained)) - 1, 0)
        noise = _Noise(seed, one)()
        noised = [_noised(scaling(latent.float()), trained[start], noise) for latent in (one, other)]
        meeting = _arc(noised[0], noised[1], weight)
        times = self.generator.timesteps
        left = torch.cat([times.new_tensor([start]), times[times < start]])
        return self.generator.sample_latent(meeting, timesteps=left)


class _Noise:
    """Standard normal noise like a latent: at each call another, from the seed and the number of the call."""

    def __init__(self, seed: int, like: Tensor) -> None:
        self.seed, self.like, self.drawn = int(seed), like, 0

    def __call__(self) -> Tensor:
        self.drawn += 1
        return normal_of_seed(derive_seed(self.seed, self.drawn), self.like.shape).to(self.like.device)


def _noised(clean: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    return signal.sqrt() * clean + (1 - signal).sqrt() * noise


def _arc(one: Tensor, other: Tensor, weight: float) -> Tensor:
    """Spherical interpolation; straight where the two point the same way."""
    cosine = (one * other).sum() / (one.norm() * other.norm())
    angle = torch.arccos(cosine.clamp(-1, 1))
    if float(angle) < 1e-3:
        return (1 - weight) * one + weight * other
    return (torch.sin((1 - weight) * angle) * one + torch.sin(weight * angle) * other) / torch.sin(angle)
