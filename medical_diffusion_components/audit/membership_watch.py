"""Watch during training whether the denoiser has begun to know its training volumes from held-out ones.

How long a diffusion model trains before it remembers grows with the number of its training volumes; how long it takes to
make good volumes does not (Bonnaire et al., "Why Diffusion Models Don't Memorize", NeurIPS 2025). So a training can be
stopped in between.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from ignite.engine import Engine, Events

from medical_diffusion_components.audit.latent_share import latent_holdout_share
from medical_diffusion_components.audit.membership import area_under_curve, denoising_losses, membership_scores
from medical_diffusion_components.chance import numpy_generator
from medical_diffusion_components.data import read_latents
from medical_diffusion_components.diffusion import LatentDiffusionGenerator, NoiseLatent
from medical_diffusion_components.distributed import gathered
from medical_diffusion_components.metrics import Estimate

__all__ = ["MembershipWatch"]

logger = logging.getLogger(__name__)
ERRORS = 2  # of the area, by which it must exceed 0.5: a few held-out volumes are not to stop a training by chance


class MembershipWatch:
    """At each validation, the area under the curve of the denoiser's loss on training against validation volumes.

    It becomes the metric ``membership_auc``. Beside it stands ``holdout_share``, of latents that are sampled for it (see
    ``latent_share.py``), which ends nothing: of so few, it is known to a tenth or two. Attach the watch to the evaluator,
    before handlers that write metrics down, give it to the checkpoint as one of its objects, and to ``StopWhenConverged``
    as what ends the training.

    Args:
        generator: with the averaged denoiser.
        training: entries of ``cache_latents``; the plain latent of each is used, under its ``conditions`` if it has any.
        held_out: entries of patients that the denoiser is not trained on.
        stop_at: area in (0.5, 1] at which training ends, if it also exceeds 0.5 by two of its standard errors; None: never,
            and nothing is computed.
        num_training: training latents that are used, at most; a random choice.
        num_samples: latents that are sampled for the holdout share.
        seed: of the choice and of the noise.

    Raises:
        ValueError: ``stop_at`` outside (0.5, 1], or fewer than two patients on a side to compare.
    """

    def __init__(
        self,
        generator: LatentDiffusionGenerator,
        training: Sequence[dict],
        held_out: Sequence[dict],
        stop_at: float | None = None,
        num_training: int = 200,
        num_samples: int = 32,
        seed: int = 0,
    ) -> None:
        if stop_at is not None and not 0.5 < stop_at <= 1:
            raise ValueError(f"stop_at_membership_auc must be above 0.5, which is chance, and at most 1; got {stop_at}")
        if stop_at is not None:
            counts = [len(set(_patients(entries))) for entries in (training, held_out)]
            if min(counts) < 2:
                raise ValueError(
                    "stop_at_membership_auc compares volumes of two or more patients for training with those of two or "
                    f"more for validation, got {counts[0]} and {counts[1]} patients"
                )
        self.generator = generator
        self.training = list(training)
        self.held_out = list(held_out)
        self.stop_at = stop_at
        self.num_training = num_training
        self.num_samples = num_samples
        self.seed = seed
        self.found: Estimate | None = None

    def attach(self, evaluator: Engine) -> None:
        evaluator.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, evaluator: Engine) -> None:
        if self.stop_at is None:
            return
        chosen = numpy_generator(self.seed).permutation(len(self.training))[: self.num_training]
        members = [self.training[place] for place in sorted(chosen)]
        scores = membership_scores(self._losses(members), self._losses(self.held_out))
        area = area_under_curve(*scores, (_patients(members), _patients(self.held_out)))
        self.found = gathered(area)[0]  # all processes are to stop or none, whatever their last digits are
        evaluator.state.metrics["membership_auc"] = self.found.value
        evaluator.state.metrics["holdout_share"] = gathered(self._holdout_share())[0]

    def _losses(self, entries: Sequence[dict]) -> np.ndarray:
        found = []
        for start in range(0, len(entries), 8):  # not all of a large data set at once
            batch = entries[start : start + 8]
            latents = torch.stack([views[0] for views in read_latents(batch)])
            found.append(denoising_losses(self.generator, latents, self.seed, conditions=_conditions(batch)))
        return np.concatenate(found)

    def _holdout_share(self) -> float:
        size = min(len(self.training), len(self.held_out), self.num_training)
        sides, asked = [], []
        for place, entries in enumerate((self.training, self.held_out)):
            chosen = [entries[number] for number in numpy_generator(self.seed, place).permutation(len(entries))[:size]]
            sides.append(torch.stack([latents[:2] for latents in read_latents(chosen)]))  # (size, 2, C, h, w, d)
            asked.append(_conditions(chosen))
        noise, device = NoiseLatent(sides[0].shape[2:], self.seed), self.generator.alphas_cumprod.device
        samples = []
        for number in range(self.num_samples):
            # under conditions of training and held-out patients in turn, or samples would be nearer to one side
            rows = asked[number % 2]
            row = None if rows is None else rows[[number // 2 % size]].to(device)
            samples.append(self.generator.sample_latent(noise(number)[None].to(device), row).cpu())
        return latent_holdout_share(torch.cat(samples), *sides).share

    @property
    def reached(self) -> bool:
        """Whether training is to end."""
        if self.stop_at is None or self.found is None:
            return False
        return self.found.value >= self.stop_at and self.found.value - 0.5 > ERRORS * self.found.error

    @property
    def reason(self) -> str:
        """Why it is."""
        area = self.found or Estimate(0.5, 0.0)
        return (
            f"the denoiser tells training from validation volumes, area under the curve {area.value:.3f} ± {area.error:.3f}"
            f" (stop_at_membership_auc is {self.stop_at})"
        )

    def state_dict(self) -> dict[str, list[float]]:
        """What a checkpoint keeps, so that a training that has ended does not train on when it is started again."""
        return {"found": [] if self.found is None else [float(self.found.value), float(self.found.error)]}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """What the last validation had found."""
        self.found = Estimate(*state["found"]) if state["found"] else None


def _patients(entries: Sequence[dict]) -> list[str]:
    return [entry["patient_id"] for entry in entries]


def _conditions(entries: Sequence[dict]) -> torch.Tensor | None:
    """(n, V), where the training declares conditions."""
    return torch.stack([entry["conditions"] for entry in entries]) if entries and "conditions" in entries[0] else None
