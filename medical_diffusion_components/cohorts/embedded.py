"""The cohort that a bundle trains on when it is given no data."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medical_diffusion_components.data.datasets import load_cases
from medical_diffusion_components.data.splits import SPLITS
from medical_diffusion_components.data.volume_notes import is_edited, is_synthetic
from medical_diffusion_components.distributed import process_rank, wait_for_all
from medical_diffusion_components.files import write_json
from medical_diffusion_components.requirements import check_packages
from medical_diffusion_components.transforms.volume_error import times
from medical_diffusion_components.weights import EMBEDDED

__all__ = ["more_held_out_cases", "resolve_dataset"]

logger = logging.getLogger(__name__)

VARIED = "varied_"  # before a cohort's name: the same with another appearance for each subject, and lesions
_COMPARED = "splits_compared.json"  # in the output folder
_RULE = "=" * 100
# what a downloaded bundle may lack, as setup.cfg has it -> what is imported; so what needs it is imported in functions
TO_COMPARE = {"scipy>=1.11,<2": "scipy", "tqdm>=4.65,<5": "tqdm"}
TO_WARP = {"nilearn>=0.10,<0.15": "nilearn", **TO_COMPARE}
_HELD_OUT_SEED = 1  # of the cohort that is never trained on; training's is 0


def resolve_dataset(
    dataset_dir: str | None,
    output_dir: str,
    num_subjects: int,
    size: tuple[int, int, int],
    cohort: str | None = "template",
    allow_synthetic: bool = False,
    seed: int = 0,
) -> str:
    """The folder to train on: ``dataset_dir``, or, where none is given, the bundle's embedded cohort.

    The cohort is written below ``output_dir`` once and announced in a banner, once by the first process.
    Volumes of several kinds in a folder that is given are remarked on in the log. They are read for that once; a file in
    ``output_dir`` remembers it, as long as no file changes.

    Args:
        dataset_dir: the user's folder, or None.
        output_dir: where the bundle writes.
        num_subjects: how many subjects the cohort has.
        size: voxels (H, W, D) of each.
        cohort: ``template`` (warped copies of a brain template), an anatomy that ``write_phantom_cohort`` draws, or None
            for a bundle that has no cohort. ``varied_template`` and ``varied_breast`` are harder: subjects differ in
            contrast, bias field, noise and sharpness, too, and have lesions, a class more.
        allow_synthetic: whether volumes in ``dataset_dir`` may be those that a generator made.
        seed: number of the cohort.

    Raises:
        ModuleNotFoundError: packages are missing, as beside a downloaded bundle.
        FileNotFoundError, NotADirectoryError, ValueError: a folder that is given and cannot be used, which nothing
            replaces; or none is given and there is no cohort; or it holds synthetic volumes, which were not asked for,
            or edited ones, which never are; or two splits hold the same scan.
    """
    if dataset_dir is not None:
        _check_folder(dataset_dir, Path(output_dir), allow_synthetic)
        return str(dataset_dir)
    if cohort is None:
        raise ValueError(
            "no dataset_dir was given, and this bundle has no embedded cohort to take its place: give --dataset_dir, a "
            "folder that the bundle's `prepare` made, or one of NIfTI files of one size"
        )
    return _write_cohort(cohort, Path(output_dir), num_subjects, size, seed)


def _check_folder(dataset_dir: str, output_dir: Path, allow_synthetic: bool) -> None:
    """Refuse volumes that are synthetic, edited, or in two splits; the first process compares the splits."""
    splits = {split: load_cases(dataset_dir, split) for split in SPLITS}
    cases = [case for split in SPLITS for case in splits[split]]
    synthetic = [] if allow_synthetic else [case["image"] for case in cases if is_synthetic(case["image"])]
    if synthetic:
        raise ValueError(
            f"{len(synthetic)} of the {len(cases)} volumes in {dataset_dir} are synthetic, first {synthetic[0]}: "
            "move them out of the folder, or give --allow_synthetic True if they are meant"
        )
    if edited := [case["image"] for case in cases if is_edited(case["image"])]:
        raise ValueError(
            f"{len(edited)} of the {len(cases)} volumes in {dataset_dir} were edited from real scans, first "
            f"{edited[0]}: they are neither what a scanner saw nor synthetic; move them out of the folder"
        )
    if process_rank() == 0:
        _compare_splits(dataset_dir, splits, output_dir / _COMPARED)
    wait_for_all()


def _write_cohort(cohort: str, output_dir: Path, num_subjects: int, size: tuple[int, int, int], seed: int) -> str:
    """The folder of an embedded cohort, which the first process announces and writes unless it is there."""
    anatomy = cohort.removeprefix(VARIED)
    try:
        check_packages(TO_WARP if anatomy == "template" else TO_COMPARE)  # phantoms need no template
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "no dataset_dir was given: give --dataset_dir, your own volumes; for the embedded cohort in their place "
            f"{error}"
        ) from error
    from medical_diffusion_components.cohorts.phantoms import PHANTOM_NOTICE, write_phantom_cohort
    from medical_diffusion_components.cohorts.template import TEMPLATE_COHORT_NOTICE, write_template_cohort
    from medical_diffusion_components.cohorts.variation import PLAIN, TEST_BED

    variation = TEST_BED if cohort.startswith(VARIED) else PLAIN
    name, notice = f"{cohort} phantom cohort", PHANTOM_NOTICE
    if anatomy == "template":
        name, notice = f"{cohort} cohort", TEMPLATE_COHORT_NOTICE
    folder = output_dir / f"{name.replace(' ', '_')}_{num_subjects}_{times(size)}_{seed}"
    if process_rank() == 0:
        if seed != _HELD_OUT_SEED:  # beside which the training's is announced
            _announce(name, notice, str(output_dir))
        if anatomy == "template":
            write_template_cohort(folder, num_subjects, size, seed, variation)
        else:
            write_phantom_cohort(folder, anatomy, num_subjects, size, seed=seed, variation=variation)
    wait_for_all()
    return str(folder)


@functools.cache
def _announce(name: str, notice: str, output_dir: str) -> None:
    """Once for both stages of a training; a run of another bundle, as in a notebook, has another ``output_dir``."""
    print(f"{_RULE}\nNo dataset_dir was given: using the {EMBEDDED}{name}.\n{notice}\n{_RULE}", flush=True)
    logger.info(f"using the {EMBEDDED}{name}")


def _compare_splits(dataset_dir: str, splits: Mapping[str, Sequence[Mapping[str, Any]]], memory: Path) -> None:
    """Refuse one scan in two splits and log what is odd about the volumes, unread if ``memory`` is of these files."""
    check_packages(TO_COMPARE)
    from medical_diffusion_components.preparation.same_scan import in_two_splits
    from medical_diffusion_components.preparation.scan_remarks import Mixture

    files = [(split, case["case_id"], case["image"]) for split in SPLITS for case in splits[split]]
    states = [(*file, state.st_size, state.st_mtime_ns) for file in files for state in [os.stat(file[-1])]]
    digest = hashlib.sha256(repr(states).encode()).hexdigest()
    try:
        known = json.loads(memory.read_bytes())
    except (FileNotFoundError, ValueError):
        known = {}
    if known.get("files") != digest:
        mixture = Mixture()
        if pairs := in_two_splits(splits, mixture.look):
            raise ValueError(
                f"{dataset_dir}: {len(pairs)} pair(s) of cases hold the same scan in two splits, the first is "
                f"{pairs[0][0]} and {pairs[0][1]} (perhaps mirrored, cut or rescaled): remove one of each, or give both "
                "one patient_id in a dataset.json, or the test repeats the training"
            )
        known = {"files": digest, "remarks": mixture.remarks()}
        write_json(memory, known)
    for remark in known["remarks"]:
        logger.warning(f"{dataset_dir}: {remark}")


def more_held_out_cases(
    dataset_dir: str | None,
    output_dir: str,
    num_subjects: int,
    size: tuple[int, int, int],
    cohort: str | None = "template",
) -> list[dict]:
    """Further subjects of the embedded cohort that no training has seen; the user's own data cannot be extended so.

    Args:
        dataset_dir: the user's folder, or None.
        output_dir: where the bundle writes.
        num_subjects: how many.
        size: voxels (H, W, D) of each.
        cohort: as for :func:`resolve_dataset`.

    Returns:
        cases as ``load_cases`` lists them; their ids are those of no case of the training cohort.
    """
    if dataset_dir is not None:
        return []
    folder = resolve_dataset(None, output_dir, num_subjects, size, cohort, seed=_HELD_OUT_SEED)
    cases = [case for split in SPLITS for case in load_cases(folder, split)]
    return [{**case, **{id: f"held_out_{case[id]}" for id in ("case_id", "patient_id")}} for case in cases]
