from __future__ import annotations

import torch
from monai.inferers import SlidingWindowInferer
from torch import nn

from medical_diffusion_components.engines.autocast import AutocastInferer


def seen_by(amp: bool) -> tuple[torch.dtype, torch.Tensor]:
    """Type inside the network, and what comes out, of a 1x1x1 convolution over windows."""
    torch.manual_seed(0)
    network, types = nn.Conv3d(1, 2, 1), []
    network.register_forward_hook(lambda _, __, output: types.append(output.dtype))
    inferer = AutocastInferer(SlidingWindowInferer(roi_size=[4, 5, 6]), amp)
    return types, inferer(torch.randn(1, 1, 6, 10, 7), network)


def test_the_network_runs_in_bfloat16_and_the_prediction_comes_back_in_float32() -> None:
    types, half = seen_by(True)
    assert set(types) == {torch.bfloat16} and len(types) > 1 and half.dtype == torch.float32
    types, full = seen_by(False)
    assert set(types) == {torch.float32} and full.dtype == torch.float32
    torch.testing.assert_close(half, full, atol=0.03, rtol=0.03)
    assert not torch.equal(half, full)
