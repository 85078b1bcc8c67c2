"""Training and evaluation loops of inpainting."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from monai.engines import Evaluator, Trainer
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from medical_diffusion_components.engines.plain_images import plain_images
from medical_diffusion_components.losses.inpainting import InpaintingLoss
from medical_diffusion_components.weights import unwrap

__all__ = ["InpaintingEvaluator", "InpaintingTrainer"]


class _Batch(NamedTuple):
    """Volumes (B, C, H, W, D) with holes, as they were, and the mask (B, 1, H, W, D): 1 is removed, 0 is kept."""

    image: Tensor
    target: Tensor
    mask: Tensor


def _on_device(batchdata: dict, device: torch.device, non_blocking: bool) -> _Batch:
    return _Batch(*(plain_images(batchdata, device, non_blocking, key) for key in _Batch._fields))


class InpaintingTrainer(Trainer):
    """Trains a network to paint in what a mask has removed.

    ``engine.state.output`` is a dict of detached scalars, the terms of the loss
    (:class:`~medical_diffusion_components.losses.inpainting.InpaintingTerms`).

    Args:
        device: where to train.
        max_epochs: epochs in total, including those before a resume.
        train_data_loader: batches with ``image``, ``target``, ``mask``, as ``RandMaskPatchesd`` makes them.
        network: volume with holes -> volume, possibly distributed.
        optimizer: optimiser of ``network``.
        loss_function: the weighted terms.
        gradient_clip: largest norm of the gradient; None for any.
        amp: bfloat16 autocast.
        train_handlers: MONAI or Ignite handlers.
    """

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Iterable | DataLoader,
        network: nn.Module,
        optimizer: Optimizer,
        loss_function: InpaintingLoss,
        gradient_clip: float | None = None,
        amp: bool = False,
        train_handlers: Sequence | None = None,
    ) -> None:
        super().__init__(device, max_epochs, train_data_loader, handlers=train_handlers, decollate=False)
        self.network = network
        self.optimizer = optimizer
        self.loss_function = loss_function
        self.gradient_clip = gradient_clip
        self.autocast = torch.autocast(self.state.device.type, dtype=torch.bfloat16, enabled=amp)

    def _iteration(self, engine: Trainer, batchdata: dict) -> dict[str, Tensor]:
        batch = _on_device(batchdata, engine.state.device, self.non_blocking)
        self.network.train()
        with self.autocast:
            pred = self.network(batch.image)
        terms = self.loss_function(pred, batch.target, batch.mask)
        self.optimizer.zero_grad(set_to_none=True)
        terms.loss.backward()
        if self.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.gradient_clip)
        self.optimizer.step()
        return {name: term.detach() for name, term in terms._asdict().items()}


class InpaintingEvaluator(Evaluator):
    """Paints in held-out volumes.

    ``engine.state.output`` holds ``image`` (with holes), ``target``, ``pred``, ``mask``, and one value per volume (B,)
    of: the terms of the loss, ``ms_ssim`` of the whole prediction, ``ms_ssim_masked`` of the prediction pasted into the
    holes of the true volume, so that the rest cannot lower it, and ``ms_ssim_rest`` of the reverse.

    Args:
        device: where to evaluate.
        val_data_loader: batches as for :class:`InpaintingTrainer`.
        network: the network, possibly distributed.
        loss_function: the weighted terms.
        inferer: how the network is applied, such as MONAI's ``SlidingWindowInferer`` for whole volumes.
        amp: bfloat16 autocast.
        kwargs: further arguments of MONAI's ``Evaluator``: ``key_val_metric``, the one metric that decides which weights
            are best, ``additional_metrics``, ``metric_cmp_fn``, ``val_handlers``.
    """

    def __init__(
        self,
        device: torch.device | str,
        val_data_loader: Iterable | DataLoader,
        network: nn.Module,
        loss_function: InpaintingLoss,
        inferer: Inferer | None = None,
        *,
        amp: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(device, val_data_loader, decollate=False, **kwargs)
        self.network = network
        self.loss_function = loss_function
        self.inferer = SimpleInferer() if inferer is None else inferer
        self.autocast = torch.autocast(self.state.device.type, dtype=torch.bfloat16, enabled=amp)

    def _iteration(self, engine: Evaluator, batchdata: dict) -> dict[str, Tensor]:
        batch = _on_device(batchdata, engine.state.device, self.non_blocking)
        network = unwrap(self.network)
        network.eval()
        with torch.no_grad():
            with self.autocast:
                pred = self.inferer(batch.image, network)
            pred = pred.float()
            return {**batch._asdict(), "pred": pred, **self._judge(pred, batch.target, batch.mask)}

    def _judge(self, pred: Tensor, target: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """One value per volume, (B,) each."""
        triples = zip(pred.split(1), target.split(1), mask.split(1))
        terms = [self.loss_function(*triple)._asdict() for triple in triples]
        values = {name: torch.stack([one[name] for one in terms]) for name in terms[0]}
        similarity = self.loss_function.ms_ssim.similarity
        holes = mask > 0
        return values | {
            "ms_ssim": similarity(pred, target),
            "ms_ssim_masked": similarity(torch.where(holes, pred, target), target),
            "ms_ssim_rest": similarity(torch.where(holes, target, pred), target),
        }
