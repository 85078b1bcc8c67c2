"""One switch between what is fast and what is plain, for all networks; both compute the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from medical_diffusion_components.networks import attention, denoiser, fast, nearest_codes, vqgan
from medical_diffusion_components.networks.codebook import EMACodebook
from medical_diffusion_components.networks.denoiser import Denoiser
from medical_diffusion_components.networks.fast import norm_silu
from medical_diffusion_components.networks.vqgan import VQGAN

# Where the networks call what only buys speed.
FAST = [
    (norm_silu.NormModulateSiLU, "apply"),
    (vqgan, "norm_silu_conv"),
    (attention, "attend_along_first"),
    (nearest_codes, "nearest_by_tree"),
]


def unsettled(network: nn.Module) -> nn.Module:
    """In float64, with gains and offsets that are not one and zero."""
    for parameter in network.parameters():
        if parameter.dim() == 1 and parameter.requires_grad:
            nn.init.normal_(parameter, mean=0.5, std=0.3)
    return network.double()


def first_stage() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    network = unsettled(VQGAN(EMACodebook(30, 3), base_channels=4, compression=(4, 2, 1), norm_groups=4)).eval()
    image = torch.rand(2, 1, 16, 8, 10, dtype=torch.float64) * 2 - 1

    def loss(network: nn.Module) -> Tensor:
        out = network(image)
        return (out.reconstruction - image).square().sum() + out.codebook.commitment_loss

    return network, loss


def second_stage(**knobs: object) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    settings = {"base_channels": 8, "channel_multipliers": (1, 2), "num_heads": 2, "head_channels": 6, "norm_groups": 4}
    network = unsettled(Denoiser(**{**settings, **knobs}))
    latent, timesteps = torch.randn(2, 8, 16, 8, 3, dtype=torch.float64), torch.tensor([3, 251])
    return network, lambda network: network(latent, timesteps).square().sum()


def checkpointed() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    return second_stage(use_checkpointing=True)


def results(network: nn.Module, loss: Callable[[nn.Module], Tensor]) -> list[Tensor]:
    value = loss(network)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return [value, *torch.autograd.grad(value, parameters)]


def calls(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of what is called of ``FAST`` from now on."""
    seen: set[str] = set()
    for owner, name in FAST:
        real = getattr(owner, name)

        def watched(*args, real=real, name=name):  # type: ignore[no-untyped-def]
            seen.add(name)
            return real(*args)

        monkeypatch.setattr(owner, name, watched)
    return seen


@pytest.mark.parametrize(("make", "expected"), [
    (first_stage, {"apply", "norm_silu_conv", "nearest_by_tree"}),
    (second_stage, {"apply", "attend_along_first"}),
    (checkpointed, {"apply", "attend_along_first"}),
])  # fmt: skip
def test_the_plain_form_calls_nothing_fast_and_gives_the_same_outputs_and_gradients(make, expected, monkeypatch):
    network, loss = make()
    seen = calls(monkeypatch)
    with fast.use(False):
        plain = results(network, loss)
    assert seen == set()
    quick = results(network, loss)
    assert seen == expected
    assert len(plain) > 20 and all(gradient.abs().sum() > 0 for gradient in plain)
    torch.testing.assert_close(quick, plain)


def test_a_codebook_learns_the_same_in_both_forms() -> None:
    books, z = [EMACodebook(20, 3), EMACodebook(20, 3)], torch.randn(2, 3, 4, 5, 6)
    for book, is_fast in zip(books, (True, False)):
        torch.manual_seed(1)
        with fast.use(is_fast):
            outputs = book.train()(z), book(z.flip(2))
        assert outputs[1].used_codes > 10
    torch.testing.assert_close(books[0].state_dict(), books[1].state_dict())


def test_the_switch_returns_to_where_it_was_also_after_an_error() -> None:
    assert fast.in_use()
    with fast.use(False):
        with fast.use(True):
            assert fast.in_use()
        assert not fast.in_use()
    with pytest.raises(KeyError), fast.use(False):
        raise KeyError
    assert fast.in_use()


def test_volume_norm_is_exact_far_from_zero_in_the_plain_form() -> None:
    norm, x = denoiser.VolumeNormSiLU(2, 6), torch.randn(3, 2, 5, 4, 6)
    with fast.use(False):
        torch.testing.assert_close(norm(x + 1000), norm(x), atol=1e-3, rtol=1e-3)
        assert norm(x.bfloat16()).dtype == torch.bfloat16
