from __future__ import annotations

import pytest
import torch

from medical_diffusion_components.losses.inpainting import InpaintingLoss
from medical_diffusion_components.losses.ms_ssim import MSSSIMLoss


@pytest.fixture
def volumes() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Prediction, target (2, 1, 6, 7, 8), and a mask with 12 + 6 removed voxels."""
    mask = torch.zeros(2, 1, 6, 7, 8)
    mask[0, :, 1:3, 2:5, 4:6] = 1
    mask[1, :, 0, 1:4, 2:4] = 1
    return torch.rand(2, 1, 6, 7, 8), torch.rand(2, 1, 6, 7, 8), mask


def test_masked_and_kept_voxels_are_reported_apart(volumes: tuple) -> None:
    pred, target, mask = volumes
    terms = InpaintingLoss()(pred, target, mask)
    error = (pred - target).abs()
    assert terms.l1_masked.item() == pytest.approx(error[mask == 1].mean().item(), rel=1e-5)
    assert terms.l1_rest.item() == pytest.approx(error[mask == 0].mean().item(), rel=1e-5)
    assert terms.l1.item() == pytest.approx(error.mean().item(), rel=1e-5)
    assert terms.ms_ssim_loss.item() == pytest.approx(MSSSIMLoss()(pred, target).item(), rel=1e-5)


def test_the_loss_is_l1_of_all_voxels_and_ms_ssim_with_their_weights(volumes: tuple) -> None:
    terms = InpaintingLoss(l1_weight=3, ms_ssim_weight=5)(*volumes)
    assert terms.loss.item() == pytest.approx(3 * terms.l1.item() + 5 * terms.ms_ssim_loss.item(), rel=1e-5)


@pytest.mark.parametrize("rest_weight", [0.0, 0.25])
def test_kept_voxels_count_less_if_so_wished(volumes: tuple, rest_weight: float) -> None:
    pred, target, mask = volumes
    terms = InpaintingLoss(ms_ssim_weight=0, rest_weight=rest_weight)(pred, target, mask)
    expected = ((pred - target).abs() * torch.where(mask == 1, 1.0, rest_weight)).mean()
    assert terms.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_mask_holds_for_all_channels(volumes: tuple) -> None:
    pred, target, mask = (torch.cat([v, v * 0.5], dim=1) for v in volumes[:2]), None, volumes[2]
    pred, target = pred
    terms = InpaintingLoss()(pred, target, mask)
    both = mask.expand_as(pred) == 1
    assert terms.l1_masked.item() == pytest.approx((pred - target).abs()[both].mean().item(), rel=1e-5)


def test_without_removed_voxels_their_error_is_zero(volumes: tuple) -> None:
    pred, target, mask = volumes
    assert InpaintingLoss()(pred, target, torch.zeros_like(mask)).l1_masked.item() == 0
    assert InpaintingLoss()(pred, target, torch.ones_like(mask)).l1_rest.item() == 0


@pytest.mark.parametrize("weights", [{"l1_weight": -1}, {"rest_weight": -0.1}, {"l1_weight": 0, "ms_ssim_weight": 0}])
def test_impossible_weights_are_refused(weights: dict) -> None:
    with pytest.raises(ValueError, match="weights must be at least 0"):
        InpaintingLoss(**weights)
