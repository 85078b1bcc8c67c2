"""What MONAI's ``SwinUNETR`` can take in.

Hatamizadeh et al., "Swin UNETR: Swin transformers for semantic segmentation of brain tumors in MRI images", BrainLes 2021.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["checked_window"]

STRIDE = 32  # five times by 2: patch embedding and four stages


def checked_window(size: Sequence[int]) -> list[int]:
    """``size`` (H, W, D) of the volumes that a ``SwinUNETR`` is to take in, if it can.

    Its coarsest features have a voxel for every 32; of a single one they would be normalised to nothing.

    Raises:
        ValueError: not three multiples of 32, or none of them is at least 64.
    """
    window = [int(n) for n in size]
    if len(window) != 3 or any(n < STRIDE or n % STRIDE for n in window) or max(window) < 2 * STRIDE:
        raise ValueError(
            f"roi_size must be three multiples of {STRIDE}, at least one of them {2 * STRIDE} or more, for a SwinUNETR; "
            f"got {list(size)}"
        )
    return window
