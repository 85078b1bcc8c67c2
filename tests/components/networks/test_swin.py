from __future__ import annotations

import pytest
import torch
from monai.networks.nets import SwinUNETR

from medical_diffusion_components.networks.swin import checked_window


@pytest.mark.parametrize("size", [(64, 32, 32), (32, 96, 32)])
def test_sizes_that_pass_run_through_the_network(size: tuple) -> None:
    assert checked_window(size) == list(size)
    network = SwinUNETR(1, 1, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), window_size=2)
    with torch.no_grad():
        assert network(torch.randn(1, 1, *size)).shape == (1, 1, *size)


@pytest.mark.parametrize("size", [(32, 32, 32), (64, 48, 32), (64, 0, 32), (64, 64), (64, 64, -32)])
def test_other_sizes_are_refused_with_what_came(size: tuple) -> None:
    with pytest.raises(ValueError, match="multiples of 32, at least one of them 64 or more") as error:
        checked_window(size)
    assert str(list(size)) in str(error.value)
