"""Controls of the copy audit on cohorts that are no template's: plants are found, innocents are not, and mutations show.

The same at full size, with all plants, is ``benchmarks/audit.py``.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from plants import planted
from scipy.ndimage import gaussian_filter

from medical_diffusion_components.audit import (
    ContrastiveEncoder,
    ContrastiveTraining,
    RandomViews,
    TrainingBank,
    area_under_curve,
    conformal_p,
    denoising_losses,
    embed,
    flagged_share,
    holdout_share,
    membership_scores,
    trained_encoder,
)
from medical_diffusion_components.diffusion import LatentDiffusionGenerator, noise_scheduler
from medical_diffusion_components.networks import VQGAN, EMACodebook

SIZE, TRAINING, HELD_OUT, SOURCES = (12, 10, 14), 40, 200, 20
TIMESTEPS = 100
BLURS = 3  # of volumes with so few voxels, more would leave little
# benchmarks/audit.py has all of them; blurred and moved by whole voxels, volumes of so few are hardly copies any more
SMALL = ("identity", "right-left flip", "noise 0.1", "warp 1.5", "rotation 5 degrees", "gamma 0.7", "scale 0.75")


def subject(number: int) -> np.ndarray:
    """An ellipsoid with smooth random inside, no symmetry, and a little noise, in [-1, 1]."""
    rng = np.random.default_rng([7, number])
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in SIZE), indexing="ij")
    body = sum((axis / radius) ** 2 for axis, radius in zip(axes, rng.uniform(0.6, 0.9, 3))) < 1
    texture = gaussian_filter(rng.normal(size=SIZE), 2) * 8
    volume = np.where(body, texture, -3.0) + 0.05 * rng.normal(size=SIZE)
    return (2 * (volume - volume.min()) / np.ptp(volume) - 1).astype(np.float32)


@cache
def cohort() -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.from_numpy(np.stack([subject(number) for number in range(TRAINING + HELD_OUT)]))[:, None]
    return made[:TRAINING], made[TRAINING:]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> ContrastiveEncoder:
    steps = ContrastiveTraining(steps=200, volumes_per_step=32)
    return trained_encoder(cohort()[0], {}, tmp_path_factory.mktemp("encoder"), RandomViews(0, blurs=BLURS), steps)[0]


def bank(encoder: ContrastiveEncoder, training: torch.Tensor, mirrored: bool = True) -> TrainingBank:
    views = [training, training.flip(2)] if mirrored else [training]
    return TrainingBank(torch.stack([embed(encoder, view) for view in views], 1), torch.arange(len(training)))


def found(encoder: ContrastiveEncoder, some: TrainingBank, name: str) -> tuple[float, float]:
    """Recall at alpha = 0.05 of plants of one kind, and the share whose source is right."""
    plants = some.nearest(embed(encoder, planted(cohort()[0][:SOURCES], name)))
    calibration = some.nearest(embed(encoder, cohort()[1][:100])).similarity
    right = plants.source == np.arange(SOURCES)
    return float((conformal_p(plants.similarity, calibration) <= 0.05).mean()), float(right.mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_planted_copies_are_found_with_their_source(encoder: ContrastiveEncoder, name: str) -> None:
    recall, right = found(encoder, bank(encoder, cohort()[0]), name)
    assert recall >= 0.95 and right >= 0.95


def through_a_poor_first_stage(volumes: torch.Tensor) -> torch.Tensor:
    """What is left of volumes when they are blurred and all share a pattern, as with few codes and a short training."""
    pattern = torch.from_numpy(gaussian_filter(np.random.default_rng(0).normal(size=SIZE), 1).astype(np.float32))
    blurred = np.stack([gaussian_filter(one, 1, mode="nearest") for one in volumes[:, 0].numpy()])
    made = (torch.from_numpy(blurred) + pattern / 2)[:, None]
    low, high = made.amin((1, 2, 3, 4), True), made.amax((1, 2, 3, 4), True)
    return 2 * (made - low) / (high - low) - 1


@pytest.mark.slow
def test_copies_that_went_through_a_poor_first_stage_are_found_if_training_volumes_did(
    encoder: ContrastiveEncoder, tmp_path: Path
) -> None:
    """A generator gives back what its first stage makes of a volume, and may change that as well."""
    plants = ("identity", "right-left flip", "warp 1.5", "rotation 5 degrees", "scale 0.75")
    training, others = (through_a_poor_first_stage(some) for some in cohort())

    def recalls(network: ContrastiveEncoder, some: TrainingBank) -> list[float]:
        calibration = some.nearest(embed(network, others[:100])).similarity
        copies = [some.nearest(embed(network, planted(training[:SOURCES], name))) for name in plants]
        return [float((conformal_p(copy.similarity, calibration) <= 0.05).mean()) for copy in copies]

    assert max(recalls(encoder, bank(encoder, cohort()[0]))) < 0.8, "the volumes as they are do not do"
    steps = ContrastiveTraining(steps=400, volumes_per_step=32)
    taught, _ = trained_encoder(cohort()[0], {}, tmp_path, RandomViews(0), steps, through=training)
    both = torch.cat([bank(taught, some).points for some in (cohort()[0], training)], dim=1)
    known = TrainingBank(both, torch.arange(TRAINING))
    assert min(recalls(taught, known)) >= 0.95
    innocent = known.nearest(embed(taught, others)).similarity
    shares = []
    for seed in range(40):
        order = np.random.default_rng(seed).permutation(HELD_OUT)
        shares.append((conformal_p(innocent[order[:100]], innocent[order[100:]]) <= 0.05).mean())
    assert np.mean(shares) == pytest.approx(0.05, abs=0.02)


@pytest.mark.slow
def test_innocents_are_flagged_as_often_as_alpha_says(encoder: ContrastiveEncoder) -> None:
    similarities = bank(encoder, cohort()[0]).nearest(embed(encoder, cohort()[1])).similarity
    shares = []
    for seed in range(40):
        order = np.random.default_rng(seed).permutation(HELD_OUT)
        shares.append((conformal_p(similarities[order[:100]], similarities[order[100:]]) <= 0.05).mean())
    assert np.mean(shares) == pytest.approx(0.05, abs=0.02)


@pytest.mark.slow
def test_lack_of_diversity_is_no_copy(encoder: ContrastiveEncoder) -> None:
    """The mean of the training volumes with noise resembles all of them: no source stands out."""
    mean = cohort()[0].mean(0, keepdim=True) + 0.05 * torch.randn(20, 1, *SIZE)
    assert bank(encoder, cohort()[0]).nearest(embed(encoder, mean)).ratio.min() > 1 / 3


@pytest.mark.slow
@pytest.mark.parametrize("dose", [0, 5, 10, 20, 50])
def test_the_dose_of_copies_lies_in_its_interval(encoder: ContrastiveEncoder, dose: int) -> None:
    some = bank(encoder, cohort()[0])
    calibration = some.nearest(embed(encoder, cohort()[1][:100])).similarity
    sources = cohort()[0].repeat(2, 1, 1, 1, 1)[:dose]
    copies = [planted(sources, "noise 0.1")] if dose else []
    volumes = torch.cat([*copies, cohort()[1][100 : 200 - dose]])
    share = flagged_share(
        conformal_p(some.nearest(embed(encoder, volumes)).similarity, calibration), 0.05, len(calibration)
    )
    # one calibration set: its false alarms scatter by some hundredths beside the interval's own chance
    assert share.copies_interval[0] - 0.05 <= dose / 100 <= share.copies_interval[1]
    assert dose in (5, 10) or (share.p_value < 0.01) == (dose >= 20)


@pytest.mark.slow
def test_an_untrained_encoder_misses_plants() -> None:
    torch.manual_seed(1)
    untrained = ContrastiveEncoder((1, *SIZE)).eval()
    recalls = [found(untrained, bank(untrained, cohort()[0]), name)[0] for name in SMALL]
    assert min(recalls) < 0.95, "the bar that the trained one passes"


@pytest.mark.slow
def test_without_mirror_images_in_the_bank_mirrored_copies_are_missed(tmp_path: Path) -> None:
    blind = ContrastiveTraining(steps=200, volumes_per_step=32)
    plain = trained_encoder(cohort()[0], {}, tmp_path, RandomViews(None, blurs=BLURS), blind)[0]
    assert found(plain, bank(plain, cohort()[0], mirrored=False), "right-left flip")[0] < 0.5
    assert found(plain, bank(plain, cohort()[0]), "right-left flip")[0] == 1


@pytest.mark.slow
def test_held_out_volumes_that_leak_into_training_hide_all_copies(encoder: ContrastiveEncoder) -> None:
    leaky = bank(encoder, torch.cat(cohort()))
    calibration = leaky.nearest(embed(encoder, cohort()[1][:100])).similarity
    copies = leaky.nearest(embed(encoder, planted(cohort()[0][:SOURCES], "noise 0.1"))).similarity
    assert (conformal_p(copies, calibration) <= 0.05).mean() == 0


class Dense(torch.nn.Module):
    """A denoiser that can learn a few volumes by heart in seconds."""

    def __init__(self) -> None:
        super().__init__()
        voxels = int(np.prod(SIZE))
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(voxels + 1, 512), torch.nn.SiLU(), torch.nn.Linear(512, 512), torch.nn.SiLU(),
            torch.nn.Linear(512, voxels),
        )  # fmt: skip

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        share = timesteps[:, None].to(x) / TIMESTEPS
        return self.layers(torch.cat([x.flatten(1), share], dim=1)).view(x.shape)


def trained_generator(volumes: torch.Tensor, steps: int) -> LatentDiffusionGenerator:
    """A diffusion model that predicts the clean volume, trained on these alone; volumes are their own latents."""
    torch.manual_seed(0)
    unused = VQGAN(base_channels=4, compression=(2, 2, 2), norm_groups=2, codebook=EMACodebook(8, 2))
    generator = LatentDiffusionGenerator(
        unused, Dense(), noise_scheduler(TIMESTEPS, "sample"), "dpmpp_2m", 20, (1, *SIZE)
    )
    optimiser = torch.optim.Adam(generator.denoiser.parameters(), lr=1e-3)
    for _ in range(steps):
        clean = volumes[torch.randint(len(volumes), (32,))]
        timesteps = torch.randint(TIMESTEPS, (32,))
        a = generator.alphas_cumprod[timesteps].view(-1, 1, 1, 1, 1)
        noisy = a.sqrt() * clean + (1 - a).sqrt() * torch.randn_like(clean)
        loss = (generator.denoiser(noisy, timesteps) - clean).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return generator.eval()


def flagged_samples(encoder: ContrastiveEncoder, generator: LatentDiffusionGenerator) -> tuple[float, torch.Tensor]:
    """Share of 60 samples with p <= 0.05, and the samples as points."""
    noise = torch.randn((60, 1, *SIZE), generator=torch.Generator().manual_seed(1))
    points = embed(encoder, generator.sample_latent(noise).clamp(-1, 1))
    some = bank(encoder, cohort()[0][:SOURCES])
    calibration = some.nearest(embed(encoder, cohort()[1][:100])).similarity
    return float((conformal_p(some.nearest(points).similarity, calibration) <= 0.05).mean()), points


@pytest.mark.slow
def test_smooth_samples_of_a_generator_that_has_hardly_begun_are_no_copies(encoder: ContrastiveEncoder) -> None:
    assert flagged_samples(encoder, trained_generator(cohort()[0][:SOURCES], steps=60))[0] <= 0.1


@pytest.mark.slow
def test_a_generator_that_was_trained_until_it_remembers_is_found_by_every_number(encoder: ContrastiveEncoder) -> None:
    training, held_out = cohort()[0][:SOURCES], cohort()[1][:100]
    generator = trained_generator(training, steps=1500)
    flagged, points = flagged_samples(encoder, generator)
    some, others = bank(encoder, training), bank(encoder, held_out)
    losses = [denoising_losses(generator, volumes) for volumes in (training, held_out)]
    assert flagged > 0.5
    assert area_under_curve(*membership_scores(*losses)).value > 0.9
    to_both = (side.similarities(points).double().numpy() for side in (some, others))
    assert holdout_share(*to_both).share > 0.8
