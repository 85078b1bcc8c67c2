from __future__ import annotations

import socket

import pytest
import torch
from torch import Tensor, nn

from medical_diffusion_components.losses.perceptual import EfficientNetLite0Features, PerceptualLoss


@pytest.fixture(scope="module")
def features() -> EfficientNetLite0Features:
    return EfficientNetLite0Features()


@pytest.fixture
def picture() -> Tensor:
    x = torch.linspace(-3, 3, 48)
    return torch.stack([torch.sin(3 * x)[:, None] * torch.cos(x[:40]), torch.tanh(x)[:, None] * x[:40].sin()])[:, None]


class Two(nn.Module):
    """Two feature maps that can be followed by hand."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [torch.cat([x, 2 * x.square()], 1), torch.cat([x, 1 - x], 1)[:, :, ::2]]


def test_loss_is_the_mean_over_layers_of_the_squared_distance_of_features_normalised_over_channels(picture):
    a, b = picture, picture.roll(3, 2) * 0.7

    def unit(f: Tensor) -> Tensor:
        return f / (f.square().sum(1, True).sqrt() + 1e-6)

    expected = sum((unit(f) - unit(g)).square().sum(1).mean() for f, g in zip(Two()(a), Two()(b))) / 2
    torch.testing.assert_close(PerceptualLoss(Two())(a, b), expected)


def test_loss_of_equal_pictures_is_zero_and_grows_with_noise(features, picture):
    loss, noise = PerceptualLoss(features), torch.randn_like(picture)
    values = [loss(picture + strength * noise, picture).item() for strength in (0, 0.02, 0.1, 0.4)]
    assert values[0] == 0 and values == sorted(values) and values[1] > 1e-4


def test_blur_costs_more_than_an_offset_of_the_same_mean_absolute_error(features, picture):
    texture = picture + 0.3 * torch.randn_like(picture)
    blurred = nn.functional.avg_pool2d(texture, 5, 1, 2)
    offset = texture + (blurred - texture).abs().mean()
    loss = PerceptualLoss(features)
    assert loss(blurred, texture) > 3 * loss(offset, texture)


def test_default_features_have_strides_2_4_8_and_16(features, picture):
    maps = features(picture[..., :32])
    assert [tuple(f.shape[2:]) for f in maps] == [(24, 16), (12, 8), (6, 4), (3, 2)]
    assert torch.equal(maps[0], features(picture[..., :32].repeat(1, 3, 1, 1))[0])  # one channel is seen as grey


def test_features_see_what_imagenet_training_saw(features, picture):
    seen = []
    handle = features.stem.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    colour = torch.cat([picture, -picture, picture / 2], 1).clamp(-1, 1)
    features(colour)
    handle.remove()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = ((colour.movedim(1, -1) + 1) / 2 - mean) / std
    torch.testing.assert_close(seen[0].movedim(1, -1), expected)


def test_features_are_frozen_and_stay_in_evaluation_mode(features, picture):
    state = {name: tensor.clone() for name, tensor in features.state_dict().items()}
    loss = PerceptualLoss(features).train()
    x = picture.clone().requires_grad_()
    loss(x, picture + 0.1).backward()
    assert not any(module.training for module in features.modules())
    assert not any(p.requires_grad or p.grad is not None for p in features.parameters())
    assert all(torch.equal(state[name], tensor) for name, tensor in features.state_dict().items())


def test_gradient_reaches_the_input_but_not_the_target(features, picture):
    x, target = picture.clone().requires_grad_(), (picture + 0.1).requires_grad_()
    PerceptualLoss(features)(x, target).backward()
    assert target.grad is None and x.grad.isfinite().all()
    assert (x.grad != 0).float().mean() > 0.9


def test_gradient_where_all_features_are_zero_is_finite():
    x = torch.zeros(1, 2, 3, 4, requires_grad=True)

    class Same(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [x]

    PerceptualLoss(Same())(x, torch.ones(1, 2, 3, 4)).backward()
    assert x.grad.isfinite().all()


def test_half_precision_features_are_compared_in_float32(picture):
    class Half(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [f.bfloat16() for f in Two()(x)]

    assert PerceptualLoss(Half())(picture, picture + 0.5).dtype == torch.float32


def test_default_features_need_no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert len(EfficientNetLite0Features(blocks=(0, 1))(torch.zeros(1, 1, 16, 16))) == 2


@pytest.mark.parametrize("blocks", [(), (0, 16), (-1,)])
def test_blocks_that_the_network_does_not_have_are_errors(blocks):
    with pytest.raises(ValueError, match=r"numbers in \[0, 15\]"):
        EfficientNetLite0Features(blocks)


def test_pictures_of_two_channels_are_errors(features):
    with pytest.raises(ValueError, match="1 or 3 channels"):
        features(torch.zeros(1, 2, 16, 16))
