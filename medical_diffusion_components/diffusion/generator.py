"""The generator: starting noise in, synthetic volume out.

Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020 (ancestral sampling), Song et al., "Denoising
Diffusion Implicit Models", ICLR 2021 (fewer steps), and Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of
Diffusion Probabilistic Models", 2022 (second order), in the latent space of a first stage (Rombach et al., CVPR 2022).
"""

# No `from __future__ import annotations`: TorchScript reads the class's annotations and needs types, not text.

import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.schedulers.scheduler import Scheduler
from torch import Tensor, nn

from medical_diffusion_components.chance import counter_normal, seeds_from_noise
from medical_diffusion_components.diffusion.latent_scaling import LatentScaling
from medical_diffusion_components.diffusion.timesteps import evenly_in_log_snr, evenly_in_time, half_log_snr
from medical_diffusion_components.networks.vqgan import VQGAN

__all__ = ["LatentDiffusionGenerator"]

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "flow")  # the place is what the weights hold
SAMPLERS = ("ddpm", "ddim", "dpmpp_2m")


class LatentDiffusionGenerator(nn.Module):
    r"""First stage, denoiser and noise schedule in one module that turns a noise latent into a volume.

    Let a_t be the cumulative product of alphas (``alphas_cumprod``), e(x_t, t) the predicted noise and z new normal noise.
    One step from timestep t to s < t is equation 12 of Song et al.:

        x0 = clip((x_t - sqrt(1 - a_t) e(x_t, t)) / sqrt(a_t), -m, m)
        e' = (x_t - sqrt(a_t) x0) / sqrt(1 - a_t)
        x_s = sqrt(a_s) x0 + sqrt(1 - a_s - sigma^2) e' + sigma z,
        sigma^2 = eta^2 ((1 - a_s) / (1 - a_t)) (1 - a_t / a_s)

    x0 is the estimate of the clean latent, clipped to [-m, m]; m is the bound of the scaled latents, 1 with the paper's
    scaling. e' is the noise that this estimate implies. The first line is for a denoiser that predicts the noise, as the
    paper's does. One that predicts the clean latent gives x0 directly; one that predicts
    v = sqrt(a_t) e - sqrt(1 - a_t) x0 (Salimans and Ho, ICLR 2022) gives x0 = sqrt(a_t) x_t - sqrt(1 - a_t) v. The denoiser
    of a rectified flow gets x_t / (sqrt(a_t) + sqrt(1 - a_t)) as its input (see ``rectified_flow.py``).

    eta = 1 over all steps is ancestral sampling with the posterior of Ho et al. (equations 6 and 7), eta = 0 is DDIM.

    DPM-Solver++(2M) is the DDIM step with x0 extrapolated along the line through its last two values (algorithm 2 of Lu
    et al.). Let r > t be the timestep before t, and l = log(a / (1 - a)) / 2 half the log-SNR. In e' and in x_s, x0 is
    replaced by

        D = x0(t) + (x0(t) - x0(r)) (l_s - l_t) / (2 (l_t - l_r))

    except in the first step, which has nothing before it, and in the last, which ends where l is infinite. Each x0 is
    clipped, D is not. The sampler calls the denoiser once per step, as DDIM does, and its error falls with the square of
    the step. Its timesteps are evenly spaced in l, those of DDIM in t.

    The volume is a function of the starting noise and the conditions: z is drawn from a seed that is a hash of the noise.

    With conditions c and a guidance scale w other than 1, the prediction is e(x_t, t) + w (e(x_t, t, c) - e(x_t, t)), both
    from one batch (Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022); outside of the guidance interval it is
    e(x_t, t, c) (Kynkäänniemi et al., "Applying Guidance in a Limited Interval", NeurIPS 2024).

    Args:
        first_stage: decodes latents.
        denoiser: called as ``denoiser(x, timesteps)``, or ``denoiser(x, timesteps, conditions)`` if any are given.
        scheduler: MONAI scheduler whose ``alphas_cumprod`` and ``prediction_type`` the denoiser was trained with.
        sampler: ``"ddpm"``, ancestral over all steps; ``"ddim"``, deterministic with any number of steps, of first order;
            or ``"dpmpp_2m"``, of second order, too: the best with few steps.
        num_inference_steps: how many steps; None is all of them.
        latent_shape: (C, h, w, d) of the latents, for their scaling (see :class:`LatentScaling`, attribute
            ``latent_scaling``); None leaves the size open until weights or training latents bring one.
        guidance_scale: w, at least 0; 1 is the model's own conditional distribution and half of the work.
        guidance_interval: the part of the schedule in which w applies, two shares t / T in [0, 1].

    Shape:
        noise (B, latent_channels, h, w, d) -> volume (B, C, H, W, D) in about [-1, 1]; ``conditions`` (B, V), NaN where
        missing, or None

    Raises:
        ValueError: a scheduler with an unknown prediction type, an unknown sampler, ancestral sampling with fewer
            steps than trained, a number of steps outside [1, T], a negative guidance scale, or an interval that is not one.
    """

    alphas_cumprod: Tensor
    prediction: Tensor
    timesteps: Tensor

    def __init__(
        self,
        first_stage: VQGAN,
        denoiser: nn.Module,
        scheduler: Scheduler,
        sampler: str = "ddpm",
        num_inference_steps: int | None = None,
        latent_shape: Sequence[int] | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: Sequence[float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        total = int(scheduler.num_train_timesteps)
        steps = total if num_inference_steps is None else int(num_inference_steps)
        prediction = str(getattr(scheduler, "prediction_type", "epsilon"))
        if prediction not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type must be one of {', '.join(PREDICTION_TYPES)}, got {prediction!r}")
        if sampler not in SAMPLERS:
            raise ValueError(f'sampler must be "ddpm", "ddim" or "dpmpp_2m", got {sampler!r}')
        if not 1 <= steps <= total:
            raise ValueError(f"num_inference_steps must be in [1, {total}], got {steps}")
        if sampler == "ddpm" and steps != total:
            raise ValueError(
                f"ancestral sampling (ddpm) takes all {total} steps, got {steps}; for fewer steps use dpmpp_2m or ddim"
            )
        if not 0 <= guidance_scale < math.inf:
            raise ValueError(f"guidance_scale must be at least 0, and 1 for no guidance; got {guidance_scale}")
        if len(guidance_interval) != 2 or not 0 <= guidance_interval[0] <= guidance_interval[1] <= 1:
            raise ValueError(f"guidance_interval must be two ascending shares in [0, 1], got {list(guidance_interval)}")
        self.first_stage = first_stage
        self.denoiser = denoiser
        self.latent_scaling = LatentScaling(latent_shape or (1, 1, 1, 1))
        self.eta = 1.0 if sampler == "ddpm" else 0.0
        self.second_order = sampler == "dpmpp_2m"
        self.guidance_scale = float(guidance_scale)
        self.guided_from, self.guided_to = float(guidance_interval[0]), float(guidance_interval[1])
        # in the state dict, so that weights bring the schedule and the prediction type that they were trained with
        self.register_buffer("alphas_cumprod", scheduler.alphas_cumprod.detach().clone().float())
        self.register_buffer("prediction", torch.tensor(PREDICTION_TYPES.index(prediction)))
        self.register_buffer("timesteps", torch.zeros(steps, dtype=torch.long), persistent=False)
        self._choose_timesteps()
        self.register_load_state_dict_post_hook(LatentDiffusionGenerator._choose_timesteps)  # of the loaded schedule
        self.progress: Any = None

    def forward(self, noise: Tensor, conditions: Tensor | None = None) -> Tensor:
        """Synthesise one volume per noise latent, under its row of the conditions."""
        # None by hand: TorchScript knows no defaults of methods of the module that it compiles
        latent = self.sample_latent(noise, conditions, None)
        return self.first_stage.decode_stage_2_outputs(latent).float()

    @torch.jit.export
    def sample_latent(self, noise: Tensor, conditions: Tensor | None = None, timesteps: Tensor | None = None) -> Tensor:
        """Reverse diffusion from ``noise`` to the first stage's latent, (B, latent_channels, h, w, d) both; no gradient.

        ``timesteps`` (S,), falling, take the place of the generator's own; ``noise`` is then a latent with the noise of the
        first of them.
        """
        if timesteps is None:
            timesteps = self.timesteps
        seeds = seeds_from_noise(noise)
        x = noise.float()
        steps = timesteps.shape[0]
        one = torch.ones_like(self.alphas_cumprod[0])
        prediction = int(self.prediction)
        bound = float(self.latent_scaling.bound)
        before = x  # the last step's x0, from the second step on
        with torch.no_grad():  # a graph through every step would not fit in memory
            for i in range(steps):
                t = timesteps[i]
                a_t = self.alphas_cumprod[t]
                a_s = self.alphas_cumprod[timesteps[i + 1]] if i + 1 < steps else one
                seen = x if prediction != 3 else x / (a_t.sqrt() + (1.0 - a_t).sqrt())
                predicted = self._predict(seen, t.expand(x.shape[0]), conditions)
                x0 = self._clean(prediction, seen, predicted, a_t).clamp(-bound, bound)
                target = x0
                if self.second_order and 0 < i < steps - 1:
                    a_r = self.alphas_cumprod[timesteps[i - 1]]
                    h, h_before = half_log_snr(a_s) - half_log_snr(a_t), half_log_snr(a_t) - half_log_snr(a_r)
                    target = x0 + (x0 - before) * (h / (2.0 * h_before))
                before = x0
                direction = (x - a_t.sqrt() * target) / (1.0 - a_t).sqrt()
                variance = self.eta * self.eta * (1.0 - a_s) / (1.0 - a_t) * (1.0 - a_t / a_s)
                x = a_s.sqrt() * target + (1.0 - a_s - variance).clamp(min=0.0).sqrt() * direction
                if self.eta > 0.0 and i + 1 < steps:
                    x = x + variance.sqrt() * counter_normal(seeds, i, x)
                if not torch.jit.is_scripting():
                    self._report_step()
        return self.latent_scaling.inverse(x)

    def _predict(self, x: Tensor, timesteps: Tensor, conditions: Tensor | None) -> Tensor:
        if conditions is None:
            return self.denoiser(x, timesteps).float()
        share = float(timesteps[0]) / max(self.alphas_cumprod.shape[0] - 1, 1)
        if self.guidance_scale == 1.0 or not self.guided_from <= share <= self.guided_to:
            return self.denoiser(x, timesteps, conditions).float()
        both = torch.cat((conditions, torch.full_like(conditions, math.nan)))  # as asked for, and all missing
        asked, free = self.denoiser(x.repeat(2, 1, 1, 1, 1), timesteps.repeat(2), both).float().chunk(2)
        return free + self.guidance_scale * (asked - free)

    def _clean(self, prediction: int, x: Tensor, predicted: Tensor, a_t: Tensor) -> Tensor:
        if prediction == 1:  # sample
            return predicted
        if prediction == 2:  # v_prediction
            return a_t.sqrt() * x - (1.0 - a_t).sqrt() * predicted
        if prediction == 3:  # flow, at time t = sqrt(1 - a_t) / (sqrt(a_t) + sqrt(1 - a_t))
            return x - (1.0 - a_t).sqrt() / (a_t.sqrt() + (1.0 - a_t).sqrt()) * predicted
        return (x - (1.0 - a_t).sqrt() * predicted) / a_t.sqrt()

    @torch.jit.unused
    def _choose_timesteps(self, _: Any = None) -> None:
        evenly = evenly_in_log_snr if self.second_order else evenly_in_time
        self.timesteps.copy_(evenly(self.alphas_cumprod, len(self.timesteps)))

    @torch.jit.unused
    def _report_step(self) -> None:
        if self.progress is not None:
            self.progress()
