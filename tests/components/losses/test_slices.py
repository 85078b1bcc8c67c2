from __future__ import annotations

import torch

from medical_diffusion_components.losses.slices import random_slices


def depth_of(slices: torch.Tensor) -> list[int]:
    """Which depth was taken, where every voxel holds its depth."""
    assert (slices.flatten(1) == slices.flatten(1)[:, :1]).all()
    return slices.flatten(1)[:, 0].int().tolist()


def test_slices_are_those_of_the_same_depth_in_every_batch():
    real, fake = torch.randn(3, 2, 4, 5, 6), torch.randn(3, 2, 4, 5, 6)
    fake_slices, real_slices = random_slices(fake, real)
    assert real_slices.shape == (3, 2, 4, 5)
    for row in range(3):
        [depth] = [d for d in range(6) if torch.equal(real[row, ..., d], real_slices[row])]
        assert torch.equal(fake[row, ..., depth], fake_slices[row])


def test_depths_differ_within_a_batch_and_all_of_them_come_up_alike():
    volumes = torch.arange(6.0).expand(600, 1, 2, 3, 6)
    depths = depth_of(random_slices(volumes)[0])
    counts = torch.bincount(torch.tensor(depths), minlength=6)
    assert (counts - 100).abs().max() < 40  # 4.4 standard deviations


def test_gradient_reaches_the_chosen_slice_alone():
    volume = torch.randn(2, 1, 3, 4, 5, requires_grad=True)
    random_slices(volume)[0].sum().backward()
    assert sorted(volume.grad.sum((1, 2, 3)).flatten().tolist()) == [0.0] * 8 + [12.0] * 2
