"""Membership by losses: areas, their errors, and losses of denoisers that are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose
from sklearn.metrics import roc_auc_score
from torch import nn

from medical_diffusion_components.audit import (
    Preprocessing,
    area_under_curve,
    denoising_losses,
    membership,
    membership_scores,
)
from medical_diffusion_components.audit.membership import true_positives
from medical_diffusion_components.data import Conditions
from medical_diffusion_components.diffusion import LATENT_SCALINGS, LatentDiffusionGenerator, noise_scheduler
from medical_diffusion_components.evaluation import write_reconstructions
from medical_diffusion_components.networks import VQGAN, EMACodebook
from medical_diffusion_components.transforms import LoadVolumed, ScaleAsPreparedd, SpacingAffine


def test_area_is_that_of_scikit_learn_with_ties() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, 23) + 1.0, rng.integers(0, 6, 31) * 1.0
    expected = roc_auc_score([1] * 23 + [0] * 31, [*x, *y])
    assert area_under_curve(x, y).value == pytest.approx(expected)


def test_standard_error_is_delongs_by_hand() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(0.5, 1, 9), rng.normal(0, 1, 13)
    wins = (x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None])
    expected = wins.mean(1).var(ddof=1) / len(x) + wins.mean(0).var(ddof=1) / len(y)
    assert area_under_curve(x, y).error == pytest.approx(expected**0.5)


def test_standard_error_is_the_scatter_of_redraws() -> None:
    rng = np.random.default_rng(2)
    found = [area_under_curve(rng.normal(0.8, 1, 40), rng.normal(0, 1, 60)) for _ in range(400)]
    assert np.std([area.value for area in found]) == pytest.approx(np.mean([area.error for area in found]), rel=0.12)


def test_two_equal_scans_of_each_patient_are_no_more_evidence_than_one() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.normal(0.5, 1, 20), rng.normal(0, 1, 30)
    once, patients = area_under_curve(x, y), ([f"a{n // 2}" for n in range(40)], [f"b{n // 2}" for n in range(60)])
    twice = area_under_curve(x.repeat(2), y.repeat(2), patients)
    assert (twice.value, twice.error) == (pytest.approx(once.value), pytest.approx(once.error))
    assert area_under_curve(x.repeat(2), y.repeat(2)).error < 0.75 * once.error
    with pytest.raises(ValueError, match="two or more patients on each side, got those of 1"):
        area_under_curve(x, y, (["a"] * 20, list("bc" * 15)))


def test_scores_weigh_timesteps_by_the_held_out_scatter() -> None:
    """A timestep at which losses are a thousand times as large must not drown the others."""
    rng = np.random.default_rng(3)
    training = np.stack([rng.normal(0, 1, 50) - 3, 1000 * rng.normal(0, 1, 50)], axis=1)
    held_out = np.stack([rng.normal(0, 1, 50), 1000 * rng.normal(0, 1, 50)], axis=1)
    members, others = membership_scores(training, held_out)
    assert area_under_curve(members, others).value > 0.9


class Knowing(nn.Module):
    """Knows one latent by heart, and so what the target is for it."""

    def __init__(self, latent: torch.Tensor, scheduler, prediction: str) -> None:
        super().__init__()
        self.latent, self.alphas, self.kind = latent, scheduler.alphas_cumprod, prediction

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        a = self.alphas[timesteps[0]]
        x = x * (a.sqrt() + (1 - a).sqrt()) if self.kind == "flow" else x
        noise = (x - a.sqrt() * self.latent) / (1 - a).sqrt()
        velocity = a.sqrt() * noise - (1 - a).sqrt() * self.latent
        targets = {"epsilon": noise, "v_prediction": velocity, "flow": noise - self.latent}
        return targets.get(self.kind, self.latent.expand_as(x))


@pytest.mark.parametrize("scaling", LATENT_SCALINGS)
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow"])
def test_a_latent_known_by_heart_has_no_loss(prediction: str, scaling: str) -> None:
    latents = torch.randn(6, 2, 3, 4, 2)
    scheduler = noise_scheduler(50, prediction)
    stage = nn.Identity()
    generator = LatentDiffusionGenerator(stage, nn.Identity(), scheduler, "ddim", 5, (2, 3, 4, 2))
    generator.latent_scaling.fit(scaling, [latents])
    generator.denoiser = Knowing(generator.latent_scaling(latents[:1]), scheduler, prediction)
    losses = denoising_losses(generator, latents, batch_size=4)
    assert losses.shape == (6, 5)
    assert losses[0].max() < 1e-3
    assert losses[1:].min() > 0.05


class OneVariable(nn.Module):
    """A denoiser whose answer is its condition, or 9 where it is asked without."""

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        asked = torch.full((len(x), 1), 9.0) if context is None else context.nan_to_num(9.0)
        return asked.view(-1, 1, 1, 1, 1).expand_as(x)


def conditional() -> LatentDiffusionGenerator:
    first_stage = VQGAN(base_channels=4, compression=(2, 2, 2), norm_groups=2, codebook=EMACodebook(8, 2))
    return LatentDiffusionGenerator(first_stage, OneVariable(), noise_scheduler(50, "sample"), "ddim", 5, (2, 4, 4, 4))


def test_each_latent_is_denoised_under_its_own_conditions() -> None:
    """Latents of -0.5, 0 and 0.5 whose conditions say exactly that have no loss, in batches of whatever size."""
    values = torch.tensor([[-0.5], [0.0], [0.5]])
    latents = values.view(3, 1, 1, 1, 1).expand(3, 2, 4, 4, 4).contiguous()
    generator = conditional()
    for batch_size in (2, 8):
        losses = denoising_losses(generator, latents, batch_size=batch_size, conditions=values)
        assert losses == pytest.approx(np.zeros((3, 5)), abs=1e-6)
    assert denoising_losses(generator, latents).min() > 8


def scans(tmp_path: Path, name: str, ages: Sequence[float | None]) -> list[dict]:
    made = []
    for number, age in enumerate(ages):
        image = tmp_path / f"{name}_{number}.npy"
        np.save(image, np.random.default_rng([number, len(name)]).uniform(-1, 1, (1, 8, 8, 8)).astype(np.float32))
        made.append(
            {
                "image": str(image),
                "case_id": f"{name} {number}",
                "patient_id": f"{name} {number}",
                "conditions": {"age": age},
            }
        )
    return made


def unchanged(cases: Sequence[dict]) -> list[dict]:
    """A first stage that loses nothing."""
    return list(cases)


def test_losses_are_kept_by_what_they_follow_from(tmp_path: Path) -> None:
    age = Conditions({"age": {"range": [0, 100]}})
    training, held_out = scans(tmp_path, "in", [10, None, 90]), scans(tmp_path, "out", [30, 70])
    generator, read = conditional(), []

    def transform(case: Mapping) -> dict:
        read.append(case["case_id"])
        return {"image": torch.from_numpy(np.load(case["image"]))}

    reading = Preprocessing(transform, "counted")

    def asked(weights: str = "ab", conditions: Conditions | None = age, seed: int = 0, some: list = training) -> tuple:
        before = len(read)
        found = membership(
            generator, weights, some, held_out, reading, unchanged, tmp_path / "kept", conditions, seed=seed
        )
        return found, len(read) - before

    first, count = asked()
    assert count == 10 and (first.training, first.held_out) == (3, 2)
    assert asked() == (first, 0), "interrupted or repeated, nothing is computed twice"
    assert asked(weights="cd")[1] == asked(seed=1)[1] == asked(conditions=None)[1] == 10
    assert asked(some=[*training[:2], {**training[2], "conditions": {"age": 80}}])[1] == 2, "other conditions"


def test_held_out_volumes_without_a_value_of_a_condition_are_refused(tmp_path: Path) -> None:
    """Members would be denoised with what is known of them and the others without: a difference that is no leak."""
    sets = scans(tmp_path, "in", [10, 90]), scans(tmp_path, "out", [None, None])
    reading = Preprocessing(lambda case: {"image": torch.from_numpy(np.load(case["image"]))}, "as they are")
    with pytest.raises(ValueError, match="no case has a value of the declared condition age"):
        age = Conditions({"age": {"range": [0, 100]}})
        membership(conditional(), "ab", *sets, reading, unchanged, tmp_path / "kept", age)


def test_the_same_noise_for_every_latent_whatever_the_batch() -> None:
    latents = torch.randn(1, 2, 3, 4, 2).expand(5, -1, -1, -1, -1)
    generator = SimpleNamespace(
        eval=lambda: None,
        alphas_cumprod=torch.linspace(0.99, 0.01, 20),
        prediction=0,
        denoiser=lambda x, timesteps: 0.5 * x,
        latent_scaling=lambda latent: latent,
    )
    losses = denoising_losses(generator, latents, batch_size=2)
    assert np.ptp(losses, axis=0).max() < 1e-6


def test_training_volumes_that_are_reconstructed_better_make_an_area_of_one(tmp_path: Path) -> None:
    sides = scans(tmp_path, "in", [None] * 3), scans(tmp_path, "out", [None] * 4)

    def darker(cases: Sequence[dict]) -> list[dict]:
        written = []
        for case in cases:
            by = 0.9 if case["case_id"].startswith("in ") else 0.5
            written.append(case | {"image": f"{case['image']}_again.npy"})
            np.save(written[-1]["image"], by * np.load(case["image"]))
        return written

    reading = Preprocessing(lambda case: {"image": torch.from_numpy(np.load(case["image"]))}, "as they are")
    found = membership(conditional(), "ab", *sides, reading, darker, tmp_path / "kept")
    assert found.first_stage.value == 1 and found.true_positives is None


class Fainter(nn.Module):
    """A first stage whose volumes have half of the contrast."""

    def encode_stage_2_inputs(self, image: torch.Tensor) -> torch.Tensor:
        return image

    def decode_stage_2_outputs(self, latent: torch.Tensor) -> torch.Tensor:
        return latent / 2


def test_the_error_is_that_of_decoded_volumes_not_of_stretched_ones(tmp_path: Path) -> None:
    """Stretched to [-1, 1], as volumes are read, those of half the contrast would have no error."""
    cases, volumes = [], np.random.default_rng(5).uniform(-1, 1, (4, 8, 8, 8)).astype(np.float32)
    for number, volume in enumerate(volumes):
        volume.flat[:2] = (-1, 1)
        nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / f"{number}.nii")
        cases.append({"image": str(tmp_path / f"{number}.nii"), "case_id": f"{number}", "patient_id": f"{number}"})
    generator = conditional()
    generator.first_stage = Fainter()
    reading = Preprocessing(Compose([LoadVolumed("image"), ScaleAsPreparedd("image")]), "stretched")
    (tmp_path / "model.pt").write_bytes(b"for its hash alone")
    reconstruct = partial(
        write_reconstructions,
        first_stage=generator.first_stage,
        weights=tmp_path / "model.pt",
        read=reading.volume,
        key=reading.text,
        folder=tmp_path / "again",
        affine=SpacingAffine([1, 1, 1], "RAS"),
    )
    membership(generator, "ab", cases[:2], cases[2:], reading, reconstruct, tmp_path / "kept")
    errors = sorted(np.load(file)[-1] for file in (tmp_path / "kept").glob("*.npy"))
    assert errors == pytest.approx(sorted(np.abs(volumes / 2).mean((1, 2, 3))), rel=1e-4)


def test_true_positives_exceed_all_but_a_hundredth_of_the_others() -> None:
    others = np.linspace(0, 1, 1000)
    assert true_positives(np.array([2.0, 0.995, 0.98, 0.5]), others) == 0.5
