from __future__ import annotations

import pytest
import torch
from scipy import stats

from medical_diffusion_components.transforms.rand_scale_intensity import (
    RandScaleAboveBackground,
    RandScaleAboveBackgroundd,
)


def test_the_background_stays_and_the_rest_is_scaled_by_one_factor() -> None:
    image = torch.rand(1, 3, 4, 5) * 2 - 1
    image[0, 0] = -1.0
    scaled = RandScaleAboveBackground((0.5, 0.5))(image)
    torch.testing.assert_close(scaled, (image + 1) / 2 - 1)
    assert (scaled[0, 0] == -1).all()


def test_factors_are_uniform_in_their_range() -> None:
    transform = RandScaleAboveBackground((0.7, 1.0)).set_random_state(seed=0)
    factors = [float(transform(torch.zeros(1, 1, 1, 1)).squeeze()) + 1 for _ in range(400)]
    assert stats.kstest(factors, stats.uniform(0.7, 0.3).cdf).pvalue > 1e-3


def test_by_default_nothing_changes_to_the_bit() -> None:
    image = torch.randn(1, 3, 4, 5)
    assert RandScaleAboveBackground()(image) is image


def test_the_dictionary_form_follows_its_seed() -> None:
    transform = RandScaleAboveBackgroundd("image", (0.7, 1.0))
    image = {"image": torch.rand(1, 2, 3, 4), "case_id": "a"}
    one, again, other = (transform.set_random_state(seed=seed)(image)["image"] for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)


@pytest.mark.parametrize("factors", [(0.0, 1.0), (1.0, 0.7), (-1.0, 1.0)])
def test_factors_that_are_no_range_are_refused(factors: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="two positive factors, the smaller first"):
        RandScaleAboveBackground(factors)
