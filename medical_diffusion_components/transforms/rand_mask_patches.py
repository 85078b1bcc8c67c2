"""Remove random cuboids from a volume, for a network that is to paint them in."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable, Transform
from monai.transforms.utils import TransformBackends

__all__ = ["MaskedVolume", "RandMaskPatches", "RandMaskPatchesd"]


class MaskedVolume(NamedTuple):
    """A volume with holes, and where they are."""

    image: torch.Tensor  # (C, H, W, D)
    mask: torch.Tensor  # (1, H, W, D): 1 is removed, 0 is kept


class RandMaskPatches(Randomizable, Transform):
    """Draw a mask of random cuboids, and fill them. In the mask 1 is removed, 0 is kept.

    Every patch lies inside the volume, has a size of its own if a range is given, and may overlap others. Given a share,
    patches are added until it is reached, and of the last one only as many voxels (in memory order) are taken as are
    missing: exactly ``round(share * H * W * D)`` voxels are removed. All channels share one mask.

    Args:
        patch_size: voxels along H, W, D; each a number, or a pair (shortest, longest) to draw from.
        share: share of the voxels to remove, in (0, 1); None if ``num_patches`` is given.
        num_patches: how many patches to remove; None if ``share`` is given.
        fill: intensity of removed voxels, or ``"noise"`` for uniform noise in [-1, 1].

    Shape:
        (C, H, W, D) -> (C, H, W, D) and its mask (1, H, W, D)

    Raises:
        ValueError: no share or number of patches, or both; a value out of range; a patch larger than the volume; a share
            that rounds to no voxel.
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        patch_size: Sequence[int | Sequence[int]],
        share: float | None = None,
        num_patches: int | None = None,
        fill: float | Literal["noise"] = 0.0,
    ) -> None:
        if (share is None) == (num_patches is None):
            raise ValueError(f"give either share or num_patches, got share {share}, num_patches {num_patches}")
        if share is not None and not 0 < share < 1:
            raise ValueError(f"share must be between 0 and 1, got {share}")
        if num_patches is not None and num_patches < 1:
            raise ValueError(f"num_patches must be at least 1, got {num_patches}")
        if isinstance(fill, str) and fill != "noise":
            raise ValueError(f'fill must be a number or "noise", got {fill!r}')
        self.ranges = [
            tuple(int(n) for n in side) if isinstance(side, Sequence) else (int(side),) * 2 for side in patch_size
        ]
        if len(self.ranges) != 3 or not all(len(r) == 2 and 1 <= r[0] <= r[1] for r in self.ranges):
            raise ValueError(f"patch_size must be three numbers or pairs (shortest, longest), got {list(patch_size)}")
        self.share = share
        self.num_patches = num_patches
        self.fill = fill

    def __call__(self, img: torch.Tensor) -> MaskedVolume:
        """Return a masked copy and the mask; ``img`` stays as it is."""
        mask = torch.from_numpy(self._draw(tuple(img.shape[1:])))[None].to(img.device)
        if self.fill == "noise":
            noise = self.R.uniform(-1.0, 1.0, size=tuple(img.shape))
            filling = torch.from_numpy(noise).to(img.device, img.dtype)
        else:
            filling = torch.full_like(img, self.fill)
        return MaskedVolume(torch.where(mask, filling, img), mask.to(img.dtype))

    def _draw(self, size: tuple[int, ...]) -> np.ndarray:
        """Boolean mask (H, W, D), True where removed."""
        if any(longest > n for (_, longest), n in zip(self.ranges, size)):
            raise ValueError(
                f"expected patches that fit into the volume of {size} voxels, got a patch_size of {self.ranges}"
            )
        mask, patches = np.zeros(size, dtype=bool), self._patches(size)
        if self.share is None:
            for patch in islice(patches, self.num_patches):
                mask[patch] = True
            return mask
        missing = round(self.share * mask.size)
        if missing == 0:
            raise ValueError(
                f"a share of {self.share} is less than one of the {mask.size} voxels of a volume of {size}"
            )
        while missing > 0:
            view = mask[next(patches)]
            new = np.flatnonzero(~view)[:missing]
            view[np.unravel_index(new, view.shape)] = True
            missing -= new.size
        return mask

    def _patches(self, size: Sequence[int]) -> Iterator[tuple[slice, ...]]:
        """Random cuboids inside the volume, without end; drawn many at a time, since single draws are slow."""
        shortest, longest = np.array(self.ranges).T
        while True:
            lengths = self.R.randint(shortest, longest + 1, size=(64, 3))
            starts = self.R.randint(0, np.array(size) - lengths + 1)
            for begin, end in zip(starts.tolist(), (starts + lengths).tolist()):
                yield tuple(slice(*ends) for ends in zip(begin, end))


class RandMaskPatchesd(Randomizable, MapTransform):
    """Dictionary form of :class:`RandMaskPatches`: the volume is masked, ``target_key`` keeps it whole.

    Args:
        keys: the volume; one key.
        patch_size, share, num_patches, fill: see :class:`RandMaskPatches`.
        target_key: entry that receives the volume as it was.
        mask_key: entry that receives the mask (1, H, W, D): 1 is removed, 0 is kept.

    Raises:
        ValueError: more than one key.
    """

    backend = RandMaskPatches.backend

    def __init__(
        self,
        keys: KeysCollection,
        patch_size: Sequence[int | Sequence[int]],
        share: float | None = None,
        num_patches: int | None = None,
        fill: float | Literal["noise"] = 0.0,
        target_key: str = "target",
        mask_key: str = "mask",
    ) -> None:
        super().__init__(keys)
        if len(self.keys) != 1:
            raise ValueError(f"expected one key, since there is one target and one mask; got {list(self.keys)}")
        self.mask = RandMaskPatches(patch_size, share, num_patches, fill)
        self.target_key = target_key
        self.mask_key = mask_key

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandMaskPatchesd:
        self.mask.set_random_state(seed, state)
        super().set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        data = dict(data)
        for key in self.key_iterator(data):
            data[self.target_key] = data[key].clone()
            data[key], data[self.mask_key] = self.mask(data[key])
        return data
