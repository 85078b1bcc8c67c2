"""The branch begins with the generator as it was, learns what the mask says, and leaves the denoiser frozen."""

from __future__ import annotations

import pytest
import torch

from medical_diffusion_components.control import ControlBranch, ControlledDenoiser, draw_controlled
from medical_diffusion_components.networks import Denoiser

SHAPE = (2, 3, 8, 4, 5)  # (B, C, h, w, d)
COMPRESSION = (2, 4, 1)


def networks(patch: tuple[int, int, int] = (1, 1, 1)) -> ControlledDenoiser:
    torch.manual_seed(0)
    denoiser = Denoiser(3, 8, (1, 2), num_heads=1, head_channels=16, patch_size=patch)
    branch = ControlBranch(4, COMPRESSION, 3, 8, (1, 2), num_heads=1, head_channels=16, patch_size=patch)
    return ControlledDenoiser(denoiser, branch)


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(2, 4, 16, 16, 5, generator=generator)
    return torch.randn(SHAPE, generator=generator), torch.tensor([3, 90]), mask


def with_weights(controlled: ControlledDenoiser) -> ControlledDenoiser:
    for layer in controlled.branch.additions:
        torch.nn.init.normal_(layer.weight, std=0.1)
    return controlled


@pytest.mark.parametrize("patch", [(1, 1, 1), (2, 2, 5)])
def test_an_untrained_branch_changes_no_bit(patch: tuple[int, int, int]) -> None:
    controlled = networks(patch)
    x, t, mask = batch()
    assert torch.equal(controlled(x, t, mask=mask), controlled.denoiser(x, t))


@pytest.mark.parametrize("patch", [(1, 1, 1), (2, 2, 5)])
def test_a_trained_branch_follows_its_mask_and_its_strength(patch: tuple[int, int, int]) -> None:
    controlled = with_weights(networks(patch))
    x, t, mask = batch()
    free, one, other = controlled(x, t), controlled(x, t, mask=mask), controlled(x, t, mask=mask.flip(0))
    assert torch.equal(free, controlled.denoiser(x, t))
    assert (one - free).abs().max() > 1e-3 and (one - other).abs().max() > 1e-3
    controlled.strength = 0.0
    assert torch.equal(controlled(x, t, mask=mask), free)


def test_half_a_strength_is_half_of_everything_that_the_branch_adds() -> None:
    controlled = with_weights(networks())
    x, t, mask = batch()
    controlled.strength = 0.5
    half = controlled(x, t, mask=mask)
    controlled.strength = 1.0
    with torch.no_grad():
        for parameter in controlled.branch.additions.parameters():
            parameter.mul_(0.5)
    torch.testing.assert_close(half, controlled(x, t, mask=mask))


def test_the_generator_has_its_own_denoiser_back_after_drawing() -> None:
    controlled = networks()

    class Generator:
        denoiser: object = controlled.denoiser

        def __call__(self, noise: torch.Tensor, conditions: None) -> torch.Tensor:
            assert self.denoiser is controlled and controlled.mask is mask
            if noise is None:
                raise RuntimeError("out of memory")
            return noise

    made, (x, _, mask) = Generator(), batch()
    assert draw_controlled(made, controlled, x, mask) is x
    with pytest.raises(RuntimeError, match="out of memory"):
        draw_controlled(made, controlled, None, mask)
    assert made.denoiser is controlled.denoiser and controlled.mask is None


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
def test_a_strength_that_is_none_is_refused(strength: float) -> None:
    made = networks()
    with pytest.raises(ValueError, match=f"control_strength of at least 0, where 1 is as trained, got {strength}"):
        ControlledDenoiser(made.denoiser, made.branch, strength)


def test_a_voxel_of_the_mask_reaches_its_own_position_and_those_beside_it() -> None:
    """The block of a position is ``compression`` times ``patch_size`` voxels, here 4 x 8 x 5."""
    branch = networks((2, 2, 5)).branch
    mask = torch.zeros(1, 4, 32, 16, 5)
    changed = mask.clone()
    changed[:, 2, 7, 15, 4] = 1  # the last voxel of position 1, 1, 0
    with torch.no_grad():
        plain, other = branch.embed_mask(mask), branch.embed_mask(changed)
    assert plain.shape == (1, 1, 8, 2, 8)  # (D, B, H, W, C)
    assert (plain != other).any(-1)[0, 0].any(1).tolist() == [True, True, True, *[False] * 5]


def test_a_held_mask_is_that_of_every_call_and_of_both_halves_of_guidance() -> None:
    controlled = with_weights(networks())
    x, t, mask = batch()
    expected = controlled(x, t, mask=mask)
    with controlled.asked(mask):
        assert torch.equal(controlled(x, t), expected)
        twice = controlled(x.repeat(2, 1, 1, 1, 1), t.repeat(2))
    torch.testing.assert_close(twice, expected.repeat(2, 1, 1, 1, 1), rtol=1e-4, atol=1e-5)
    assert torch.equal(controlled(x, t), controlled.denoiser(x, t))


def test_every_part_of_the_branch_is_trained_and_nothing_of_the_denoiser() -> None:
    controlled = with_weights(networks()).train()
    x, t, mask = batch()
    controlled(x, t, mask=mask).square().mean().backward()
    learned = {name: weight for name, weight in controlled.branch.named_parameters() if weight.requires_grad}
    assert [name for name, weight in learned.items() if weight.grad is None] == []
    assert all(weight.grad is None for weight in controlled.denoiser.parameters())
    assert not controlled.denoiser.training and controlled.branch.training


def test_the_branch_is_narrower_by_its_width() -> None:
    def size(width: float) -> int:
        branch = ControlBranch(2, (1, 1, 1), 3, 32, (1, 2), num_heads=1, head_channels=16, width=width)
        return sum(weight.numel() for weight in branch.parameters())

    assert size(0.25) < size(0.5) < size(1.0)
    with pytest.raises(ValueError, match="expected a width above 0"):
        size(0.0)


def test_a_mask_of_another_size_is_refused() -> None:
    x, t, mask = batch()
    with pytest.raises(ValueError, match=r"of \[2, 4, 16, 16, 5\], got \[2, 4, 16, 16, 4\]"):
        networks()(x, t, mask=mask[..., :4])
