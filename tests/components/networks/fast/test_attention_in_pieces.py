from __future__ import annotations

import pytest
import torch

from medical_diffusion_components.networks.fast import attention_in_pieces
from medical_diffusion_components.networks.fast.attention_in_pieces import attend_along_first

DEPTH, COLUMNS, CHANNELS, HEADS, SIZE = 4, 7, 5, 3, 2


def drawn(dtype=torch.float64):
    torch.manual_seed(0)
    weight = HEADS, DEPTH, CHANNELS, SIZE
    shapes = (DEPTH, COLUMNS, CHANNELS), weight, weight, (HEADS, CHANNELS, CHANNELS + 1), (HEADS, DEPTH, DEPTH)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def whole(x, w_queries, w_keys, mix, bias):
    """All heads and columns at once."""
    q, k = (torch.einsum("dnc,hdcs->hnds", x, w) for w in (w_queries, w_keys))
    weight = (torch.einsum("hnis,hnjs->hnij", q, k) + bias[:, None]).softmax(-1)
    return torch.einsum("hnij,jnc,hce->ine", weight, x, mix)


@pytest.fixture(params=[1, 3, 7])
def columns_in_a_piece(request, monkeypatch):
    monkeypatch.setattr(attention_in_pieces, "ELEMENTS", request.param * DEPTH * SIZE)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    return request.param


@pytest.mark.usefixtures("columns_in_a_piece")
def test_pieces_and_their_gradients_equal_the_whole():
    inputs = drawn()
    ours, theirs = attend_along_first(*inputs), whole(*inputs)
    torch.testing.assert_close(ours, theirs)
    grad = torch.randn_like(ours)
    for mine, expected in zip(torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, inputs, grad)):
        torch.testing.assert_close(mine, expected)


def test_gradients_equal_finite_differences():
    assert torch.autograd.gradcheck(attend_along_first, drawn())


def test_pieces_are_as_wide_as_the_threads_can_share(monkeypatch, columns_in_a_piece):
    def widths(threads):
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        slices = attention_in_pieces._pieces(COLUMNS, DEPTH * SIZE)
        return [len(range(COLUMNS)[s]) for s in slices]

    assert widths(1)[0] == columns_in_a_piece and sum(widths(1)) == COLUMNS
    assert widths(2)[0] == min(2 * columns_in_a_piece, COLUMNS) and sum(widths(2)) == COLUMNS


def test_bfloat16_input_is_computed_in_float32_under_autocast():
    x, *weights = drawn(torch.float32)
    x = x.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = attend_along_first(x, *weights)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, whole(x.float(), *weights).bfloat16(), atol=0, rtol=0.01)
    grad_x, *grads = torch.autograd.grad(y.float().square().sum(), [x, *weights])
    assert grad_x.dtype == torch.bfloat16 and {g.dtype for g in grads} == {torch.float32}


def test_only_the_input_and_weights_are_kept_for_the_backward_pass():
    inputs, kept = drawn(), []

    def keep(tensor):
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attend_along_first(*inputs)
    assert kept == [t.data_ptr() for t in inputs]
