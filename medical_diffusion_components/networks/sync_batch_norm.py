"""Batch norm with the statistics of the global batch, on GPUs and CPUs.

Ioffe and Szegedy, "Batch Normalization", ICML 2015. torch's ``SyncBatchNorm`` does it on GPUs only. For CPUs here is the
plain formula: there, speed matters less than that several processes compute what one would.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from medical_diffusion_components.distributed import world_size

__all__ = ["GlobalBatchNorm", "sync_batch_norms"]


class _SumOverProcesses(torch.autograd.Function):
    """Sum of a tensor over all processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """torch's ``SyncBatchNorm`` for CPUs and any backend; arguments and state are the same.

    Calls in training are collective: all processes make the same calls in the same order, forward and backward.

    Shape:
        (B, C, ...) -> the same; each process has its share of the batch
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise by mean and variance over the global batch and all positions; in evaluation, by the running ones."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        rows = x.float().movedim(1, -1).flatten(0, -2)  # (N, C)
        count = _SumOverProcesses.apply(rows.new_tensor(float(rows.shape[0])))
        mean = _SumOverProcesses.apply(rows.sum(0)) / count
        variance = _SumOverProcesses.apply((rows - mean).square().sum(0)) / count
        self._track(mean.detach(), variance.detach() * count / (count - 1))
        shape = (1, -1, *[1] * (x.dim() - 2))
        normalised = (x.float() - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
        return (normalised * self.weight.view(shape) + self.bias.view(shape)).to(x.dtype)

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 3:
            raise ValueError(f"expected (B, C, ...) with at least one axis of positions, got {list(x.shape)}")

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.num_batches_tracked is not None and self.momentum is not None
        assert self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


def sync_batch_norms(module: nn.Module) -> nn.Module:
    """Exchange every batch norm inside ``module`` for one of the global batch with its parameters, in place.

    That is torch's ``SyncBatchNorm`` for what is on a GPU and :class:`GlobalBatchNorm` for what is on a CPU. Names in the
    state dict stay, so checkpoints of one process and of several are the same.

    Raises:
        ValueError: a batch norm without affine parameters or running statistics at a fixed momentum.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            if not (child.affine and child.track_running_stats and child.momentum is not None):
                raise ValueError(
                    f"{name}: expected a batch norm with parameters, running statistics, momentum: {child}"
                )
            kind = GlobalBatchNorm if child.weight.device.type == "cpu" else nn.SyncBatchNorm
            synced = kind(child.num_features, child.eps, child.momentum).to(child.weight.device)
            synced.load_state_dict(child.state_dict())
            setattr(module, name, synced)
        else:
            sync_batch_norms(child)
    return module
