"""Softmax attention on processors, one head and some columns at a time, so that all of it stays in the cache.

Queries, keys and scores of all heads are many times wider than the activations they come from: reading and writing them
takes longer than the arithmetic, and keeping them for the backward pass is most of a network's memory. Dao et al.,
"FlashAttention: fast and memory-efficient exact attention with IO-awareness", NeurIPS 2022, compute them piece by piece,
and once more in the backward pass. This module does the same for sequences so short that a softmax is never split.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["attend_along_first"]

# Numbers in the queries of one head and one piece, for each thread: 0.5 MB in float32. Not a power of two, or the rows of a
# matrix would compete for the same places in the cache.
ELEMENTS = 136 * 1024


def attend_along_first(x: Tensor, w_queries: Tensor, w_keys: Tensor, mix: Tensor, bias: Tensor) -> Tensor:
    """``sum_h softmax(q_h k_h^T + bias_h) x mix_h`` along the first axis, at least in float32 under any autocast.

    Args:
        x: input.
        w_queries: weight of the queries for each head and position of the first axis.
        w_keys: as ``w_queries``.
        mix: product of a head's weights of values and output.
        bias: added to the scores (query, key).

    Shape:
        ``x (D, N, C)``, ``w_queries`` and ``w_keys`` ``(heads, D, C, size)``, ``mix (heads, C, C')``,
        ``bias (heads, D, D)`` -> ``(D, N, C')``
    """
    with torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(x.dtype, torch.float32)
        weights = [t.to(dtype).contiguous() for t in (w_queries, w_keys, mix, bias)]
        return _AttendAlongFirst.apply(x, *weights)


class _AttendAlongFirst(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w_queries: Tensor, w_keys: Tensor, mix: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, w_queries, w_keys, mix, bias)
        heads, depth, _, size = w_queries.shape
        y = x.new_empty(*x.shape[:2], mix.shape[2])
        for columns in _pieces(x.shape[1], depth * size):
            part = x[:, columns].to(mix.dtype)  # (D, n, C)
            by_column = part.transpose(0, 1).contiguous()  # (n, D, C)
            out = by_column.new_zeros(by_column.shape[0] * depth, mix.shape[2])
            for head in range(heads):
                *_, weight = _attention(part, w_queries[head], w_keys[head], bias[head])
                out.addmm_(torch.bmm(weight, by_column).flatten(0, 1), mix[head])
            y[:, columns] = out.view(-1, depth, mix.shape[2]).transpose(0, 1)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, w_queries, w_keys, mix, bias = ctx.saved_tensors
        heads, depth, _, size = w_queries.shape
        grad_x = torch.empty_like(x)
        sums = [torch.zeros_like(t) for t in (w_queries, w_keys, mix, bias)]
        grad_queries, grad_keys, grad_mix, grad_bias = sums
        for columns in _pieces(x.shape[1], depth * size):
            part = x[:, columns].to(mix.dtype)  # (D, n, C)
            by_column = part.transpose(0, 1).contiguous()  # (n, D, C)
            grad_y = grad[:, columns].to(mix.dtype).transpose(0, 1).reshape(-1, mix.shape[2])  # (n*D, C')
            grad_part, grad_by_column = torch.zeros_like(part), torch.zeros_like(by_column)
            for head in range(heads):
                q, k, weight = _attention(part, w_queries[head], w_keys[head], bias[head])
                grad_mix[head].addmm_(torch.bmm(weight, by_column).flatten(0, 1).t(), grad_y)
                grad_gathered = (grad_y @ mix[head].t()).view_as(by_column)
                grad_by_column.baddbmm_(weight.transpose(1, 2), grad_gathered)
                grad_weight = torch.bmm(grad_gathered, by_column.transpose(1, 2))
                grad_score = torch.ops.aten._softmax_backward_data(grad_weight, weight, -1, weight.dtype)
                grad_bias[head] += grad_score.sum(0)
                grad_q = torch.bmm(grad_score, k).transpose(0, 1)  # (D, n, size)
                grad_k = torch.bmm(grad_score.transpose(1, 2), q).transpose(0, 1)
                grad_queries[head].baddbmm_(part.transpose(1, 2), grad_q)
                grad_keys[head].baddbmm_(part.transpose(1, 2), grad_k)
                grad_part.baddbmm_(grad_q, w_queries[head].transpose(1, 2))
                grad_part.baddbmm_(grad_k, w_keys[head].transpose(1, 2))
            grad_x[:, columns] = grad_part.add_(grad_by_column.transpose(0, 1))
        return grad_x, *sums


def _pieces(length: int, width: int) -> Iterator[slice]:
    """Slices of an axis of ``length`` whose every entry makes ``width`` elements."""
    step = max(1, ELEMENTS * torch.get_num_threads() // width)
    return (slice(start, start + step) for start in range(0, length, step))


def _attention(x: Tensor, w_queries: Tensor, w_keys: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys ``(n, D, size)`` and attention weights ``(n, D, D)`` of one head."""
    q = torch.bmm(x, w_queries).transpose(0, 1)
    k = torch.bmm(x, w_keys).transpose(0, 1)
    return q, k, torch.baddbmm(bias, q, k.transpose(1, 2)).softmax(-1)
