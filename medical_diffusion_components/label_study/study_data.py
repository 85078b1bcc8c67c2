"""The data of a label study, read before its first training: what cannot be used is named now, not hours later."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from medical_diffusion_components.data import SPLITS, labelled_cases, load_cases
from medical_diffusion_components.files import file_hash
from medical_diffusion_components.transforms import CheckLabelsd, CheckVolumed, LoadVolumed

__all__ = ["check_study_data"]

logger = logging.getLogger(__name__)


def check_study_data(
    dataset_dir: str,
    classes: Mapping[str, int],
    axcodes: str = "RAS",
    image_channels: int = 1,
    synthetic_dir: str | None = None,
    unlabelled_dir: str | None = None,
) -> None:
    """Read every volume and every label map that the arms will need.

    Args:
        dataset_dir: with labels in all splits.
        classes: name -> value in the labels. A warning names those of which no training label has a voxel.
        axcodes: where H, W and D point.
        image_channels: of every volume.
        synthetic_dir: volumes to pre-train on; a warning counts those that are files of the labelled data. None: none.
        unlabelled_dir: others; None: none.

    Raises:
        FileNotFoundError, ValueError: as ``labelled_cases`` and ``load_cases`` raise them.
        VolumeError: a volume or a label map that training would refuse.
    """
    image = [LoadVolumed("image", axcodes), CheckVolumed("image", num_channels=image_channels)]
    label = [LoadVolumed("label", axcodes), CheckLabelsd("label", "image", classes)]
    labelled = {split: labelled_cases(dataset_dir, split) for split in SPLITS}
    absent = dict(classes)
    for case in tqdm([case for cases in labelled.values() for case in cases], "labelled volumes", unit="volume"):
        # not by MONAI's Compose, which puts an error of its own in place of theirs
        read = _read(case, [*image, *label])
        if case in labelled["training"]:
            there = set(read["label"].unique().tolist())
            absent = {name: value for name, value in absent.items() if value not in there}
    if absent:
        logger.warning(f"no voxel of {', '.join(absent)} is in any of {len(labelled['training'])} training labels")
    own = {file_hash(case["image"]) for cases in labelled.values() for case in cases}
    for name, folder in (("synthetic_dir", synthetic_dir), ("unlabelled_dir", unlabelled_dir)):
        others = [case for split in SPLITS for case in load_cases(folder, split)] if folder is not None else []
        for case in tqdm(others, f"volumes of {name}", unit="volume", disable=not others):
            _read(case, image)
        real = [case["case_id"] for case in others if name == "synthetic_dir" and file_hash(case["image"]) in own]
        if real:
            logger.warning(
                f"{len(real)} of {len(others)} volumes in --synthetic_dir {folder} are files of the labelled data, the "
                f"first is {real[0]}: no generator made them, and the arm is rather one of real volumes"
            )


def _read(case: Mapping[str, Any], transforms: Sequence[Callable]) -> dict[str, Any]:
    read = dict(case)
    for transform in transforms:
        read = transform(read)
    return read
