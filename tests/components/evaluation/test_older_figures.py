"""MMD as older papers computed it."""

from __future__ import annotations

import pytest
import torch

from medical_diffusion_components.evaluation.older_figures import older_figures, published_mmd


def drawn(seed: int, count: int) -> torch.Tensor:
    return torch.rand(count, 1, 2, 3, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_it_is_the_biased_estimate_with_a_linear_kernel_over_batches_of_four() -> None:
    x, y = drawn(0, 9), drawn(1, 8)
    expected = []
    for batch in (slice(0, 4), slice(4, 8)):
        one, other = x[batch].flatten(1), y[batch].flatten(1)
        kernels = (one @ one.T).sum() + (other @ other.T).sum() - 2 * (one @ other.T).sum()
        expected.append(float(kernels) / 16)
    found = published_mmd(x, y)
    assert found["batches"] == 2 and found["value"] == pytest.approx(sum(expected) / 2, rel=1e-5)
    assert found["sd"] == pytest.approx(abs(expected[0] - expected[1]) / 2, rel=1e-4)


def test_halves_of_one_set_stand_beside_it() -> None:
    held_out = drawn(2, 11)
    found = older_figures(drawn(3, 6) + 1, held_out)
    assert found["held_out_halves"] == published_mmd(held_out[::2], held_out[1::2])
    assert found["synthetic"]["value"] > 5 * found["held_out_halves"]["value"] > 0
    assert older_figures(drawn(3, 3), held_out) == older_figures(drawn(3, 6), held_out[:7]) == {}


def test_more_than_ten_batches_are_not_read() -> None:
    assert published_mmd(drawn(0, 60), drawn(1, 60))["batches"] == 10
    with pytest.raises(ValueError, match="expected 4 or more volumes of each, got 3 and 60"):
        published_mmd(drawn(0, 3), drawn(1, 60))
