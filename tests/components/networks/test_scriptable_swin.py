from __future__ import annotations

import pytest
import torch
from monai.networks.nets import SwinUNETR
from torch import Tensor

from medical_diffusion_components.networks.scriptable_swin import ScriptableSwinUNETR

SMALL = {"in_channels": 2, "out_channels": 3, "feature_size": 12, "num_heads": [1, 2, 2, 4]}


def pair(depths: list[int], window_size: int) -> tuple[SwinUNETR, ScriptableSwinUNETR]:
    made = []
    for kind in (SwinUNETR, ScriptableSwinUNETR):
        torch.manual_seed(0)
        made.append(kind(**SMALL, depths=depths, window_size=window_size).eval())
    with (
        torch.no_grad()
    ):  # a bias that is nearly 0, as at the start, would hide one that is looked up in the wrong place
        for network in made:
            torch.manual_seed(1)
            for name, weight in network.named_parameters():
                if name.endswith("bias_table"):
                    weight.normal_()
    return made[0], made[1]


def assert_close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("depths", "window_size", "size"), [
    ([1, 1, 1, 1], 4, (64, 32, 32)),
    ([2, 2, 1, 2], 4, (64, 32, 96)),  # shifted windows; the last stages are smaller than a window, along one axis or all
    ([2, 1, 2, 1], 5, (32, 64, 32)),  # grids that windows do not fill
])  # fmt: skip
def test_it_is_monais_network(depths: list[int], window_size: int, size: tuple[int, ...]) -> None:
    plain, scriptable = pair(depths, window_size)
    volumes = torch.randn(2, 2, *size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = plain(volumes)
        assert_close(scriptable(volumes), expected)
        assert_close(torch.jit.script(scriptable)(volumes), expected)
        channels_last = scriptable.to(memory_format=torch.channels_last_3d)(volumes)
    torch.testing.assert_close(channels_last, expected, atol=1e-4, rtol=0)  # other kernels
    assert expected.std() > 0.1


def test_weights_go_both_ways_and_begin_the_same() -> None:
    plain, scriptable = pair([2, 1, 1, 1], 4)
    one, other = plain.state_dict(), scriptable.state_dict()
    assert list(one) == list(other), "in one order, by which optimisers know them"
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in scriptable.named_parameters()]
    assert all(torch.equal(one[name], other[name]) for name in one)
    plain.load_state_dict(other)
    scriptable.load_state_dict(one)


def test_it_learns_as_monais_does() -> None:
    plain, scriptable = pair([2, 1, 1, 1], 4)
    volumes = torch.randn(1, 2, 64, 32, 32, generator=torch.Generator().manual_seed(2))
    for network in (plain, scriptable):
        network.train()(volumes).square().mean().backward()
    gradients = dict(plain.named_parameters())
    for name, weight in scriptable.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[name].grad, atol=1e-6, rtol=1e-4)


def test_sides_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="must be divisible by 2"):
        pair([1, 1, 1, 1], 4)[1](torch.zeros(1, 2, 64, 48, 32))
