from __future__ import annotations

import pytest
import torch

from medical_diffusion_components.losses import total


def test_total_is_the_sum_from_the_first_to_the_last() -> None:
    terms = [torch.tensor(value, requires_grad=True) for value in (1e8, 1.0, -1e8, 0.25)]
    whole = total(iter(terms))
    assert whole.item() == 0.25  # in float32 the 1 is lost between the two large ones; in another order it is not
    whole.backward()
    assert [term.grad.item() for term in terms] == [1.0] * 4


def test_no_terms_have_no_total() -> None:
    with pytest.raises(TypeError):
        total([])
