"""What the benchmark of the first stage compares must be the same mathematics."""

from __future__ import annotations

import pytest
import torch
from plain_first_stage import PlainCodebook, plain_step
from torch import Tensor, nn

from medical_diffusion_components.engines.vqgan_trainer import VQGANTrainer
from medical_diffusion_components.losses.adversarial import AdversarialSchedule
from medical_diffusion_components.losses.vqgan import VQGANLoss
from medical_diffusion_components.networks.codebook import EMACodebook
from medical_diffusion_components.networks.discriminators import PatchDiscriminator
from medical_diffusion_components.networks.vqgan import VQGAN

COMPRESSION = (4, 2, 1)


def image() -> Tensor:
    return torch.rand(2, 1, 16, 8, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 2 - 1


def trainer(codebook: type[EMACodebook], dtype: torch.dtype = torch.float64) -> VQGANTrainer:
    torch.manual_seed(0)
    network = VQGAN(codebook(30, 3), base_channels=4, compression=COMPRESSION, norm_groups=4).to(dtype)
    discriminators = nn.ModuleList([PatchDiscriminator(2, channels=2), PatchDiscriminator(3, channels=2)]).to(dtype)
    with torch.no_grad():  # the codes of a first batch; running means that are not those of new codes
        network.train()(image().to(dtype)), network(image().to(dtype).flip(2))
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1) for module in (network, discriminators)]
    data = [{"image": image().to(dtype)}]
    schedule = AdversarialSchedule(0, 0, 0)
    return VQGANTrainer("cpu", 1, data, network, *discriminators, *optimizers, VQGANLoss(nn.MSELoss()), schedule, 1e9)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_step_leaves_the_weights_and_codes_of_the_plain_step(seed):
    fast, plain = trainer(EMACodebook), trainer(PlainCodebook)
    before = {name: p.detach().clone() for name, p in fast.network.named_parameters()}
    torch.manual_seed(seed)
    fast.run()
    torch.manual_seed(seed)
    terms = plain_step(plain, image())
    # in float64, but for the discriminators' losses and the codebook, which the trainer takes in float32
    for name in ("network", "slice_discriminator", "volume_discriminator"):
        ours, theirs = (dict(getattr(part, name).named_parameters()) for part in (fast, plain))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fast.network.codebook.state_dict(), plain.network.codebook.state_dict())
    seen = {name: fast.state.output[name] for name in terms}
    torch.testing.assert_close(seen, terms, check_dtype=False, rtol=1e-5, atol=1e-6)
    assert all(not torch.equal(before[name], p) for name, p in fast.network.named_parameters())


def test_plain_codebook_finds_and_counts_what_the_fast_one_does():
    torch.manual_seed(0)
    fast, plain, z = EMACodebook(20, 3), PlainCodebook(20, 3), torch.randn(2, 3, 4, 5, 6)
    for codebook in (fast, plain):
        torch.manual_seed(1)
        codebook.train()(z), codebook(z.flip(2))
    torch.testing.assert_close(fast.state_dict(), plain.state_dict())
    assert torch.equal(fast.nearest(z), plain.nearest(z))
    torch.testing.assert_close(fast.quantise(z), plain.quantise(z))
