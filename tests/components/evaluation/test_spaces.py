from __future__ import annotations

import numpy as np
import pytest
import torch

from medical_diffusion_components.evaluation import AnatomySpace, NetworkSpace, SliceSpace, default_spaces
from medical_diffusion_components.evaluation.spaces import check_judges
from medical_diffusion_components.losses import EfficientNetLite0Features
from medical_diffusion_components.networks import EfficientNetFeatures


def test_a_judge_that_was_the_teacher_is_refused() -> None:
    teacher = EfficientNetLite0Features()
    check_judges(default_spaces((16, 16, 16)), [teacher])
    judge = SliceSpace(EfficientNetFeatures("lite0", blocks=(1, 3)))
    with pytest.raises(ValueError, match="the space pupil judges with the network that the perceptual loss"):
        check_judges({"pupil": judge}, [teacher])
    check_judges({"pupil": SliceSpace(EfficientNetFeatures("lite0"), counts=False)}, [teacher])
    check_judges({"pupil": SliceSpace(EfficientNetFeatures("lite0", seed=0))}, [teacher])
    with pytest.raises(ValueError, match="the space network judges with the network that the perceptual loss"):
        check_judges(default_spaces((16, 16, 16), kinds=["anatomy"], network=EfficientNetLite0Features()), [teacher])


def test_random_weights_follow_from_their_seed_and_leave_the_state_alone() -> None:
    x, before = torch.rand(2, 1, 32, 32), torch.get_rng_state()
    one, same, other = (EfficientNetFeatures("lite2", seed=seed)(x)[0] for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, same) and not torch.allclose(one, other)


def test_empty_slices_do_not_count() -> None:
    space = SliceSpace(EfficientNetFeatures("lite2", blocks=(0,)), axes=(2,), every=1)
    volume = torch.rand(1, 16, 16, 4)
    padded = torch.cat([torch.full((1, 16, 16, 3), -1.0), volume], dim=3)
    np.testing.assert_allclose(space(padded), space(volume), rtol=1e-4)
    assert np.isfinite(space(torch.full((1, 16, 16, 4), -1.0))).all()


def test_anatomy_is_blind_to_brightness_and_contrast() -> None:
    volume = torch.rand(1, 32, 16, 8)
    space = AnatomySpace(side=8)
    assert space(volume).shape == (8 * 8 * 8,)
    np.testing.assert_allclose(space(0.3 * volume - 0.5), space(volume), atol=1e-5)
    expected = volume[0].reshape(8, 4, 8, 2, 8, 1).mean(dim=(1, 3, 5)).flatten().double().numpy()
    np.testing.assert_allclose(space(volume), (expected - expected.mean()) / expected.std(ddof=1), atol=1e-5)


@pytest.mark.parametrize(("space", "least"), [(SliceSpace, 1e-6), (AnatomySpace, 0.05), (NetworkSpace, 1e-6)])
def test_features_are_in_units_of_the_training_volumes(space: type, least: float) -> None:
    training, features = np.array([[1.0, 10.0], [3.0, 10.0]]), np.array([[2.0, 10.0], [6.0, 11.0]])
    expected = [[0, 0], [4 / (1 + least), 1 / least]]
    np.testing.assert_allclose(space.standardise(features, training), expected, rtol=1e-9)


def test_planes_whose_slices_are_too_small_are_left_out() -> None:
    assert set(default_spaces((32, 32, 8))) == {"slices_xy", "anatomy", "slices_random", "slices_lite0"}
    assert {"slices_yz", "slices_zx", "slices_xy"} <= set(default_spaces((16, 32, 16)))


def pooled(weights: float) -> torch.nn.Module:
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 1), torch.nn.AdaptiveAvgPool3d(1), torch.nn.Flatten())
    torch.nn.init.constant_(network[0].weight, weights)
    torch.nn.init.zeros_(network[0].bias)
    return network


def test_anybodys_network_is_a_space_that_knows_its_weights() -> None:
    spaces = default_spaces((16, 16, 16), kinds=["anatomy"], network=pooled(3.0))
    assert list(spaces) == ["anatomy", "network"] and spaces["network"].counts
    volume = torch.rand(1, 16, 16, 16)
    np.testing.assert_allclose(spaces["network"](volume), [3 * volume.mean()] * 2, rtol=1e-5)
    # features are kept by this text: another network, or the same with other weights, must not find them
    texts = [NetworkSpace(pooled(weights)).description for weights in (3.0, 3.0, 4.0)]
    assert texts[0] == texts[1] != texts[2]
    with pytest.raises(ValueError, match=r"expected finite features \(1, F\).*got shape \(1, 2, 16, 16, 16\)"):
        NetworkSpace(torch.nn.Conv3d(1, 2, 1))(volume)
    with pytest.raises(ValueError, match="finite: False"):
        NetworkSpace(pooled(float("nan")))(volume)


def test_spaces_are_chosen_by_name() -> None:
    assert list(default_spaces((16, 16, 16), kinds=["anatomy"])) == ["anatomy"]
    assert list(default_spaces((16, 16, 4), kinds=["slices", "anatomy"])) == ["slices_xy", "anatomy"]
    with pytest.raises(ValueError, match="expected spaces of slices, anatomy, checks, radiomics, got radomics"):
        default_spaces((16, 16, 16), kinds=["anatomy", "radomics"])
    with pytest.raises(ValueError, match="anatomy must be among the spaces"):
        default_spaces((16, 16, 16), kinds=["slices"])
