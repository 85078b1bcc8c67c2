from __future__ import annotations

import plain_denoiser as plain
import pytest
import torch

from medical_diffusion_components.networks.attention import (
    DepthAttention,
    DepthPosition,
    LinearSpatialAttention,
    SpatialAttention,
    rotate,
)


def drawn(module):
    """The module in float64, every parameter drawn at random so that none is idle in the comparison."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module.double()


def position(num_heads=3, head_channels=4, **knobs):
    torch.manual_seed(1)
    return DepthPosition(num_heads, head_channels, **knobs).double()


def volume(channels, height=6, width=4, depth=3):
    torch.manual_seed(2)
    return torch.randn(2, channels, height, width, depth, dtype=torch.float64)


def folded(x):
    """(B, C, H, W, D) -> (D, B, H, W, C)"""
    return x.permute(4, 0, 2, 3, 1).contiguous()


@pytest.mark.parametrize("channels", [5, 7])
def test_linear_attention_equals_plain_einsum_form_on_large_and_small_slices(channels):
    module, x = drawn(LinearSpatialAttention(channels, num_heads=3, head_channels=4)), volume(channels)
    torch.testing.assert_close(module(folded(x)), folded(plain.linear_spatial_attention(module, x)))


def test_linear_attention_equals_explicit_matrix_of_positions():
    module, x = drawn(LinearSpatialAttention(5, num_heads=1, head_channels=4)), volume(5)
    slice_ = folded(x)[1, 0].flatten(0, 1)
    query_weight, key_weight = module.to_queries_keys.weight.chunk(2)
    normed = module.norm(slice_)
    matrix = (normed @ query_weight.T).softmax(1) / 2 @ (normed @ key_weight.T).softmax(0).T  # positions x positions
    expected = slice_ + module.to_out(matrix @ module.to_values(normed))
    torch.testing.assert_close(module(folded(x))[1, 0].flatten(0, 1), expected)


def test_spatial_attention_equals_plain_einsum_form():
    module, x = drawn(SpatialAttention(5, num_heads=3, head_channels=4)), volume(5)
    torch.testing.assert_close(module(folded(x)), folded(plain.spatial_attention(module, x)))


@pytest.mark.parametrize("module_type", [LinearSpatialAttention, SpatialAttention])
def test_spatial_attention_keeps_slices_apart(module_type):
    module, x = drawn(module_type(5, num_heads=3, head_channels=4)), folded(volume(5))
    torch.testing.assert_close(module(x)[1:2], module(x[1:2]))


@pytest.mark.parametrize("channels", [5, 9, 60])
def test_depth_attention_equals_plain_loops_in_pieces_and_when_weights_and_when_activations_are_turned(channels):
    module, x, where = drawn(DepthAttention(channels, num_heads=3, head_channels=4)), volume(channels), position()
    torch.testing.assert_close(module(folded(x), where(3)), folded(plain.depth_attention(module, x, where)))


def test_depth_attention_keeps_positions_in_the_plane_apart():
    module, x, where = drawn(DepthAttention(5, num_heads=3, head_channels=4)), folded(volume(5)), position()(3)
    torch.testing.assert_close(module(x, where)[:, :, 2:3, 1:2], module(x[:, :, 2:3, 1:2], where))


def test_depth_attention_of_few_channels_keeps_nothing_wider_than_its_input():
    module, x, kept = DepthAttention(5, num_heads=3, head_channels=4), folded(volume(5)).float(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        module(x, position().float()(3))
    assert max(kept) == x.numel()  # queries are 12 / 5 as wide


@pytest.mark.parametrize("max_fused_columns", [4, 10])
def test_fused_kernel_and_plain_products_attend_alike(max_fused_columns):
    module = DepthAttention(5, num_heads=3, head_channels=4)
    module.max_fused_columns = max_fused_columns
    q, k, v = torch.randn(3, 7, 10, 12, dtype=torch.float64)
    bias = torch.randn(3, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(module._attend(q, k, v, bias, fused=True), module._attend(q, k, v, bias, fused=False))


def test_bias_distinguishes_the_slices_in_front_from_those_behind():
    bias = position()(5)[2]
    assert not torch.isclose(bias[:, 3, 1], bias[:, 1, 3]).any()
    assert torch.equal(bias[:, 3, 1], bias[:, 4, 2])


def test_near_distances_have_buckets_of_their_own_and_far_ones_share_the_last():
    buckets = position().relative_buckets(80)
    assert buckets[40, 33:41].tolist() == list(range(7, -1, -1))
    assert buckets[40, 41:48].tolist() == list(range(17, 24))
    assert (buckets[79, : 79 - 31] == 15).all()
    assert (buckets[0, 32:] == 31).all()


def test_far_distances_have_logarithmically_growing_buckets():
    row = position().relative_buckets(80)[79].flip(0)  # by distance to the slices in front
    assert (row.diff() >= 0).all()
    assert row[[8, 16, 32]].tolist() == [8, 12, 15]  # 8 + 8 log(n / 8) / log(4), at most 15
    assert row.tolist() == [plain.bucket_of(-distance, 32, 32) for distance in range(80)]


@pytest.mark.parametrize("offset", [-70, -17, -8, -3, 0, 1, 5, 11, 19, 64])
@pytest.mark.parametrize("buckets, distance", [(32, 32), (32, 128), (8, 20)])
def test_buckets_follow_the_formula_of_t5(offset, buckets, distance):
    where = position(buckets=buckets, max_distance=distance)
    assert where.relative_buckets(80)[max(-offset, 0), max(offset, 0)] == plain.bucket_of(offset, buckets, distance)


def test_rotated_product_depends_on_the_relative_position_only():
    cosine, sine, _ = position(1, 6)(9)
    q, k = torch.randn(2, 1, 1, 6, dtype=torch.float64)
    q, k = rotate(q, cosine, sine, 6)[:, 0], rotate(k, cosine, sine, 6)[:, 0]  # the same vector at each of 9 positions
    product = q @ k.T
    for offset in range(-8, 9):
        diagonal = product.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert product[0].std() > 1e-3


def test_rotation_keeps_lengths_and_leaves_channels_beyond_32_alone():
    cosine, sine, _ = position(2, 40)(5)
    x = torch.randn(5, 3, 80, dtype=torch.float64)
    turned = rotate(x, cosine, sine, 40).unflatten(-1, (2, 40))
    x = x.unflatten(-1, (2, 40))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[..., 32:], x[..., 32:])
    assert not torch.isclose(turned[1:, ..., :8], x[1:, ..., :8]).any()


@pytest.mark.parametrize("knobs, message", [
    ({"head_channels": 5}, "even.*got 5"),
    ({"buckets": 10}, "multiple of 4, got 10"),
    ({"buckets": 32, "max_distance": 8}, "exceed 8, got 8"),
])  # fmt: skip
def test_impossible_position_layout_is_refused(knobs, message):
    with pytest.raises(ValueError, match=message):
        position(**knobs)


def test_the_bias_of_positions_starts_with_a_standard_deviation_of_one() -> None:
    torch.manual_seed(0)
    weights = torch.cat([DepthPosition(num_heads=8, head_channels=32).bias.weight.flatten() for _ in range(40)])
    assert abs(weights.mean()) < 0.04 and abs(weights.std() - 1) < 0.03  # 10,240 numbers: four standard errors
