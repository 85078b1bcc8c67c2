from __future__ import annotations

import pytest
import torch
from monai.inferers import DiffusionInferer, Inferer, SlidingWindowInferer
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor, nn

from medical_diffusion_components.engines.autocast import AutocastInferer
from medical_diffusion_components.engines.precision import fast_bfloat16


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


def test_what_the_processor_is_fast_at_says_nothing_of_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert fast_bfloat16("cpu") and not fast_bfloat16("mps") and not fast_bfloat16("xpu:0")


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 2, 3, padding=1)
        self.seen: list[torch.dtype] = []

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None) -> Tensor:
        predicted = self.conv(x)
        self.seen += [x.dtype, predicted.dtype]
        return predicted * (1 + timesteps.view(-1, 1, 1, 1, 1))


def denoised(inferer: Inferer) -> tuple[Tensor, list[torch.dtype]]:
    torch.manual_seed(0)
    network, latents, noise = Denoiser(), torch.randn(2, 2, 3, 4, 5), torch.randn(2, 2, 3, 4, 5)
    return inferer(latents, network, noise=noise, timesteps=torch.tensor([1, 8])), network.seen


def test_without_amp_diffusion_equals_that_of_monai() -> None:
    plain = DiffusionInferer(DDPMScheduler(10, schedule="cosine"))
    ours, seen = denoised(AutocastInferer(plain))
    assert torch.equal(ours, denoised(plain)[0])
    assert set(seen) == {torch.float32}


def test_with_amp_the_denoiser_works_in_bfloat16_and_the_prediction_is_float32() -> None:
    plain = DiffusionInferer(DDPMScheduler(10, schedule="cosine"))
    ours, seen = denoised(AutocastInferer(plain, amp=True))
    exact = denoised(plain)[0]
    assert seen == [torch.float32, torch.bfloat16] and ours.dtype == torch.float32
    assert 0 < (ours - exact).abs().max() < 0.02 * exact.abs().max()
    assert not torch.is_autocast_enabled("cpu")
