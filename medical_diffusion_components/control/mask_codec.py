"""Label maps as latents: a first stage that is linear, so that masks are drawn by the diffusion that draws volumes.

The label map becomes a distance to the border of each class. Blocks of these distances are described by their principal
components (Pearson, 1901; Jolliffe, "Principal Component Analysis", 2002): the linear code that loses least. It is found in
closed form and needs no training; of what it loses, a boundary within a voxel is most.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor, nn

from medical_diffusion_components.control.mask_channels import signed_distance
from medical_diffusion_components.data.datasets import data_fingerprint
from medical_diffusion_components.networks.vqgan import check_divisible
from medical_diffusion_components.weights import load_weights, provenance, save_weights

__all__ = ["MaskCodec", "MaskDistancesd", "fitted_codec"]

logger = logging.getLogger(__name__)

NOTHING = 1e-6  # share of the first component's variance below which a component is rounding
AS_LARGE = 1e-6  # share by which two numbers of a component may differ by rounding
MOST_MASKS = 64  # from which the components are made: each has thousands of blocks


class MaskDistancesd(MapTransform):
    """Depth of each voxel in each class, the background among them: positive inside, negative outside.

    Distances are cut off at ``reach`` and divided by it. The class of a voxel is the one with the largest value.

    Args:
        keys: label map (1, H, W, D).
        num_classes: K; values of the label map are 0 to K - 1.
        reach: mm, above 0.
        spacing: mm per voxel along H, W, D.
        output_key: entry for the distances.

    Shape:
        (1, H, W, D) -> (K, H, W, D) float32 in [-1, 1]

    Raises:
        ValueError: a reach that is not above 0.
    """

    def __init__(
        self,
        keys: KeysCollection,
        num_classes: int,
        reach: float,
        spacing: Sequence[float],
        output_key: str = "image",
    ) -> None:
        super().__init__(keys)
        if not reach > 0:
            raise ValueError(f"expected a reach of distances above 0 mm, got {reach}")
        self.num_classes = num_classes
        self.reach = float(reach)
        self.spacing = [float(mm) for mm in spacing]
        self.output_key = output_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        data = dict(data)
        for key in self.key_iterator(data):
            labels = np.asarray(data[key])[0]
            depths = [-signed_distance(labels == value, self.spacing) / self.reach for value in range(self.num_classes)]
            data[self.output_key] = torch.from_numpy(np.stack(depths).clip(-1, 1).astype(np.float32))
        return data


class MaskCodec(nn.Module):
    """Principal components of blocks of voxels; called as a first stage is.

    A block of 4 x 4 x 4 voxels of 3 classes holds 192 numbers. With 48 components, a label map of 64 x 64 x 64 voxels
    becomes a latent of 48 x 16 x 16 x 16, and the distances come back from it by one transposed convolution.

    Args:
        num_classes: K, channels of the distances.
        block: voxels (H, W, D) that become one position.
        channels: components; until :meth:`fit` or weights bring them, they are zero.

    Shape:
        distances (B, K, H, W, D) -> latents (B, ``channels``, h, w, d), and back
    """

    mean: Tensor
    components: Tensor

    def __init__(self, num_classes: int, block: Sequence[int], channels: int) -> None:
        super().__init__()
        self.block = [int(n) for n in block]
        self.register_buffer("mean", torch.zeros(num_classes, *self.block))
        self.register_buffer("components", torch.zeros(channels, num_classes, *self.block))

    @property
    def channels(self) -> int:
        """Components that there are."""
        return len(self.components)

    def latent_shape(self, image_size: Sequence[int]) -> tuple[int, int, int, int]:
        """(``channels``, h, w, d) of a label map of (H, W, D) voxels.

        Raises:
            ValueError: a side is no multiple of the block's.
        """
        check_divisible(image_size, self.block)
        h, w, d = (int(n) // b for n, b in zip(image_size, self.block))
        return self.channels, h, w, d

    def encode_stage_2_inputs(self, distances: Tensor) -> Tensor:
        """Components of each block."""
        check_divisible(distances.shape[2:], self.block)
        bias = -(self.components * self.mean).flatten(1).sum(1)
        return F.conv3d(distances, self.components, bias, stride=self.block)

    def decode_stage_2_outputs(self, latent: Tensor) -> Tensor:
        """The distances that the components make."""
        made = F.conv_transpose3d(latent, self.components, stride=self.block)
        return made + self.mean.repeat(1, *latent.shape[2:])

    @torch.no_grad()
    def fit(self, volumes: Iterable[Tensor], kept_variance: float = 1.0) -> None:
        """Find the components from distances (K, H, W, D).

        Their number is what was asked for, or less: as many as have ``kept_variance`` of the variance, and none that is
        rounding alone.

        Raises:
            ValueError: no volumes, blocks that are all equal, or a share that is not above 0 and at most 1.
        """
        if not 0 < kept_variance <= 1:
            raise ValueError(f"expected a share of the variance above 0 and at most 1, got {kept_variance}")
        size = self.mean.numel()
        count, total, products = 0, torch.zeros(size).double(), torch.zeros(size, size).double()
        for volume in volumes:
            blocks = self._blocks(volume).double()  # (N, size)
            count, total, products = count + len(blocks), total + blocks.sum(0), products + blocks.T @ blocks
        if not count:
            raise ValueError("expected label maps to make components from, got none")
        mean = total / count
        variances, vectors = torch.linalg.eigh(products / count - mean.outer(mean))
        variances, vectors = variances.flip(0), vectors.flip(1).T  # largest first, (size, size)
        if not variances[0] > 0:
            raise ValueError("the label maps are all of one class: there is nothing to learn from them")
        share = variances.cumsum(0) / variances.sum()
        enough = int((share < kept_variance).sum()) + 1
        varying = int((variances > NOTHING * variances[0]).sum())
        kept = vectors[: min(self.channels, enough, varying)]
        # A component's own sign is arbitrary: of its largest numbers the first is made positive. There are several
        # where the distances of two classes are each other's negatives, and which is larger is a matter of rounding.
        largest = kept.abs() > (1 - AS_LARGE) * kept.abs().amax(1, keepdim=True)
        signs = kept.gather(1, largest.int().argmax(1, keepdim=True)).sign()
        self.mean = mean.float().view_as(self.mean)
        self.components = (kept * signs).float().reshape(-1, *self.mean.shape).contiguous()

    def _blocks(self, volume: Tensor) -> Tensor:
        check_divisible(volume.shape[1:], self.block)
        a, b, c = self.block
        cut = volume.unfold(1, a, a).unfold(2, b, b).unfold(3, c, c)  # (K, h, w, d, a, b, c)
        return cut.permute(1, 2, 3, 0, 4, 5, 6).flatten(3).flatten(0, 2)

    def adapt_to_weights(self, state: dict[str, Any], prefix: str) -> None:
        """Take as many components as ``state`` has."""
        if f"{prefix}components" in state:
            self.components = torch.zeros_like(state[f"{prefix}components"], device=self.components.device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.adapt_to_weights(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


def fitted_codec(
    path: str | os.PathLike,
    cases: Sequence[dict],
    preprocessing: Callable[[dict], dict],
    preprocessing_settings: Mapping[str, Any],
    num_classes: int,
    block: Sequence[int],
    channels: int,
    kept_variance: float = 1.0,
) -> MaskCodec:
    """The codec at ``path``, made from the training masks if it is not there or was made from others.

    Args:
        path: of its weights.
        cases: training cases with a label map; 64 of them at most are read.
        preprocessing: case -> dictionary with ``image``, the distances (K, H, W, D).
        preprocessing_settings: what ``preprocessing`` was configured with.
        num_classes: K.
        block: voxels (H, W, D) of a block.
        channels: components at most.
        kept_variance: share of the variance for which components are enough.
    """
    path = Path(path)
    codec = MaskCodec(num_classes, block, channels)
    made_from = {
        "data_sha256": data_fingerprint(cases),
        "preprocessing": dict(preprocessing_settings),
        "most_channels": channels,
        "kept_variance": kept_variance,
        "block": codec.block,
    }
    if path.is_file() and {key: provenance(path).get(key) for key in made_from} == made_from:
        load_weights(codec, path)
        return codec
    chosen = [cases[n * len(cases) // min(len(cases), MOST_MASKS)] for n in range(min(len(cases), MOST_MASKS))]
    codec.fit((torch.as_tensor(preprocessing(case)["image"]) for case in chosen), kept_variance)
    save_weights(codec, path, made_from)
    logger.info(f"masks become latents of {codec.channels} channels, one for {codec.block} voxels")
    return codec
