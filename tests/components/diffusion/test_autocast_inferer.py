from __future__ import annotations

import torch
from monai.inferers import DiffusionInferer
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor, nn

from medical_diffusion_components.diffusion.autocast_inferer import AutocastDiffusionInferer


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 2, 3, padding=1)
        self.seen: list[torch.dtype] = []

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None) -> Tensor:
        predicted = self.conv(x)
        self.seen += [x.dtype, predicted.dtype]
        return predicted * (1 + timesteps.view(-1, 1, 1, 1, 1))


def predictions(inferer: DiffusionInferer) -> tuple[Tensor, list[torch.dtype]]:
    torch.manual_seed(0)
    network, latents, noise = Network(), torch.randn(2, 2, 3, 4, 5), torch.randn(2, 2, 3, 4, 5)
    predicted = inferer(inputs=latents, diffusion_model=network, noise=noise, timesteps=torch.tensor([1, 8]))
    return predicted, network.seen


def test_without_amp_it_equals_the_inferer_of_monai():
    scheduler = DDPMScheduler(10, schedule="cosine")
    ours, seen = predictions(AutocastDiffusionInferer(scheduler))
    assert torch.equal(ours, predictions(DiffusionInferer(scheduler))[0])
    assert set(seen) == {torch.float32}


def test_with_amp_the_network_works_in_bfloat16_and_the_prediction_is_float32():
    scheduler = DDPMScheduler(10, schedule="cosine")
    ours, seen = predictions(AutocastDiffusionInferer(scheduler, amp=True))
    exact = predictions(DiffusionInferer(scheduler))[0]
    assert seen == [torch.float32, torch.bfloat16] and ours.dtype == torch.float32
    assert 0 < (ours - exact).abs().max() < 0.02 * exact.abs().max()
    assert not torch.is_autocast_enabled("cpu")
