from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medical_diffusion_components.evaluation.slice_features import SliceFeatures
from medical_diffusion_components.losses.perceptual import EfficientNetLite0Features

VOLUMES = torch.rand(2, 1, 10, 21, 30, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Moments(nn.Module):
    """Two maps, the second of other size."""

    def forward(self, x: Tensor) -> list[Tensor]:
        assert x.ndim == 4
        return [torch.cat([x, x.square()], dim=1), x[:, :, ::2, ::2].exp()]


def test_features_are_means_over_slices_and_positions_plane_by_plane():
    found = SliceFeatures(Moments(), every=4, smallest=10)(VOLUMES)
    for b in range(2):
        expected = []
        for slices in (VOLUMES[b, 0, 2::4], VOLUMES[b, 0, :, 2::4], VOLUMES[b, 0, :, :, 2::4]):
            axis = [s != v for s, v in zip(slices.shape, (10, 21, 30))].index(True)
            maps = [slices.select(axis, i) for i in range(slices.shape[axis])]
            expected += [torch.stack(maps).mean(), torch.stack(maps).square().mean()]
            expected += [torch.stack([m[::2, ::2].exp().mean() for m in maps]).mean()]
        torch.testing.assert_close(found[b], torch.stack(expected))


def test_chosen_axes_alone_are_cut_and_a_thin_one_is_cut_once():
    found = SliceFeatures(Moments(), every=50, axes=(2,), smallest=10)(VOLUMES[..., :5])
    torch.testing.assert_close(found[:, 0], VOLUMES[:, 0, :, :, 4].mean(dim=(1, 2)))
    assert found.shape == (2, 3)


def test_features_of_the_network_tell_blurred_volumes_from_sharp_ones():
    features = SliceFeatures(EfficientNetLite0Features(), every=8)
    sharp = torch.rand(2, 1, 20, 33, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    blurred = nn.functional.avg_pool3d(sharp, 3, 1, 1)
    one, other, far = features(sharp), features(sharp.flip(0)).flip(0), features(blurred)
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert one.shape == (2, 3 * (16 + 24 + 40 + 112))
    assert (one - far).norm(dim=1).min() > 2 * (one[0] - one[1]).norm()


@pytest.mark.parametrize("settings", [{"every": 0}, {"axes": ()}, {"axes": (0, 3)}])
def test_cuts_that_do_not_exist_are_refused(settings):
    with pytest.raises(ValueError, match="axes among 0, 1, 2"):
        SliceFeatures(Moments(), **settings)


def test_slices_too_small_for_the_network_are_refused():
    with pytest.raises(ValueError, match="across axis 1 have 10x30 voxels, the network wants 16"):
        SliceFeatures(Moments(), axes=(1,))(VOLUMES)
