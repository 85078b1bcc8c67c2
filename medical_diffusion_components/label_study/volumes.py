"""Volumes to pre-train on that a label study makes itself: others brought to its grid, and copies of the labelled ones."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
from monai.transforms import Compose
from nibabel.processing import resample_from_to
from nibabel.spatialimages import SpatialImage
from scipy.ndimage import gaussian_filter

from medical_diffusion_components.chance import derive_seed
from medical_diffusion_components.data import SPLITS, data_fingerprint, labelled_cases, labelled_subset, load_cases
from medical_diffusion_components.data.datasets import fixed_window
from medical_diffusion_components.data.volume_notes import note_path
from medical_diffusion_components.files import write_folder_atomically, write_json
from medical_diffusion_components.orientation import centre_of_box, grid_around
from medical_diffusion_components.requirements import SEGMENTATION_TRAINING, check_packages
from medical_diffusion_components.transforms import LoadVolumed, RandTorchIOd, ScaleAsPreparedd
from medical_diffusion_components.transforms.scale_as_prepared import fixed_scale
from medical_diffusion_components.workflow import changes

__all__ = ["on_grid_of", "smallest_training_split", "write_copies"]

logger = logging.getLogger(__name__)

SAME = 1e-3  # relative difference of spacings that is rounding


def on_grid_of(volumes_dir: str | None, dataset_dir: str, folder: str | Path) -> str:
    """Volumes with the size and spacing of a data set: the folder itself if they have them, or copies in ``folder``.

    A generator may have learned another grid than the labelled volumes have. A coarser axis is interpolated linearly; along
    a finer one the volume is blurred first, so that nothing is folded back. The middles lie on each other: of a larger
    volume only the middle is kept, and a smaller one is continued by its outermost voxels. Notes beside the volumes are
    copied: synthetic stays synthetic. A scale that preparation fixed stays the volumes' own.

    Args:
        volumes_dir: folder of NIfTI files or with a ``dataset.json``.
        dataset_dir: the data set, of which the first training case has the grid.
        folder: where copies go, complete or not at all.

    Raises:
        FileNotFoundError, ValueError: as ``load_cases`` raises them, no folder was given, or the copies in ``folder`` are
            of other volumes.
    """
    if volumes_dir is None:
        raise ValueError(
            "--synthetic_dir was not given: a folder of volumes, such as inference.json of an *_ldm bundle writes"
        )
    grid = cast(SpatialImage, nib.load(load_cases(dataset_dir, "training")[0]["image"]))
    cases = {split: load_cases(volumes_dir, split) for split in SPLITS}
    every = [case for split in SPLITS for case in cases[split]]
    if all(_same_grid(nib.load(case["image"]), grid) for case in every):
        return str(volumes_dir)
    wanted = {"size": list(grid.shape), "spacing": _spacing(grid), **_named(every, "cases")}

    def write(unfinished: Path) -> None:
        logger.info(f"label study: {len(every)} volumes of {volumes_dir} are brought to the grid {wanted['size']}")
        (unfinished / "images").mkdir()
        for case in every:
            nib.save(_resampled(nib.load(case["image"]), grid), unfinished / _file(case["case_id"]))
            note = note_path(case["image"])
            if note.is_file():
                (unfinished / "images" / f"{case['case_id']}.json").write_text(note.read_text())
        listed = {split: [_entry(case) for case in cases[split]] for split in SPLITS}
        write_json(unfinished / "dataset.json", {**listed, "made_from": wanted})

    return _written_once(Path(folder), wanted, write)


def write_copies(
    dataset_dir: str, num_labelled: int, seed: int, copies: int, folder: str | Path, axcodes: str = "RAS"
) -> str:
    """Augmented copies of the volumes of the labelled patients, to pre-train on where there are no others.

    The control of a pre-training on synthetic volumes: as many volumes, and nothing in them that the labelled ones have
    not. They are deformed, moved and turned more than the fine-tuning augments, and vary in contrast and shading. Where
    preparation fixed what intensities mean, -1 and 1 mean the same in every copy.

    Args:
        dataset_dir: the labelled data.
        num_labelled: how many patients have labels.
        seed: which those are, as of ``labelled_subset``, and of what is drawn.
        copies: how many volumes.
        folder: where they go, complete or not at all.
        axcodes: where H, W and D point.

    Returns:
        ``folder``, with validation and test volumes of ``dataset_dir`` as they are.

    Raises:
        ValueError: the copies in ``folder`` are of other volumes, or of another number or seed.
    """
    check_packages(SEGMENTATION_TRAINING)
    originals = labelled_subset(labelled_cases(dataset_dir, "training"), num_labelled, seed)
    wanted = {**_named(originals, "copies_of"), "copies": copies, "seed": seed}

    def write(unfinished: Path) -> None:
        (unfinished / "images").mkdir()
        load = Compose([LoadVolumed("image", axcodes=axcodes), ScaleAsPreparedd("image", minv=-1.0, maxv=1.0)])
        loaded = [load({key: case[key] for key in case if key != "label"}) for case in originals]
        vary = _copying()
        made = []
        for number in range(copies):
            name = f"copy_{number:05d}"
            vary.set_random_state(seed=derive_seed(seed, num_labelled, number))
            original = loaded[number % len(loaded)]
            copy = vary({**original, "image": original["image"].clone(), "case_id": name, "patient_id": name})
            voxels, affine = copy["image"][0].numpy(), copy["image"].affine.numpy()
            nib.save(nib.Nifti1Image(voxels, affine), unfinished / _file(name))
            made.append(_entry(copy))
        listed = {"training": made} | {split: load_cases(dataset_dir, split) for split in SPLITS[1:]}
        write_json(unfinished / "dataset.json", {**listed, "made_from": wanted})

    return _written_once(Path(folder), wanted, write)


def _copying() -> Compose:
    import torchio  # an extra of the package, which takes seconds to import

    elastic = torchio.RandomElasticDeformation(num_control_points=6, max_displacement=8.0, locked_borders=1)
    transforms = [
        torchio.RandomFlip(axes=(0, 1, 2), flip_probability=0.3),
        torchio.RandomAffine(scales=0.15, degrees=15, translation=8, default_pad_value="minimum"),
        elastic,
        torchio.RandomBiasField(coefficients=0.3),
        torchio.RandomGamma(log_gamma=0.3),
        torchio.RandomBlur(p=0.3, std=(0.0, 1.0)),
        torchio.RandomNoise(p=0.5, std=(0.0, 0.05)),
    ]
    scale = ScaleAsPreparedd("image", minv=-1.0, maxv=1.0, clip=True)
    return Compose([*(RandTorchIOd("image", transform) for transform in transforms), scale])


def _written_once(folder: Path, wanted: Mapping[str, Any], write: Callable[[Path], None]) -> str:
    """``folder``, which ``write`` fills unless it is there already.

    Raises:
        ValueError: it was made from something else.
    """
    if folder.is_dir():
        found = json.loads((folder / "dataset.json").read_text()).get("made_from", {})
        if found != wanted:
            raise ValueError(f"{folder} was made from other volumes: {changes(found, wanted)}; remove it")
    else:
        write_folder_atomically(folder, write)
    return str(folder)


def _named(cases: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any]:
    """What copies were made from: case names, their window, and a hash, since volumes drawn again have the same names."""
    images = [{name: case[name] for name in case if name != "label"} for case in cases]
    hashed = {"volumes_sha256": data_fingerprint(images), **fixed_window(cases)}
    return {key: sorted(case["case_id"] for case in cases), **hashed}


def _file(case: str) -> str:
    return f"images/{case}.nii.gz"


def _entry(case: Mapping[str, Any]) -> dict[str, Any]:
    """What ``dataset.json`` says of a case that was written."""
    named = {key: case[key] for key in ("case_id", "patient_id")}
    return {"image": _file(case["case_id"]), **named, **fixed_scale(case)}


def _spacing(volume: Any) -> list[float]:
    return [round(float(size), 4) for size in nib.affines.voxel_sizes(volume.affine)]


def _same_grid(volume: Any, grid: Any) -> bool:
    same_axes = nib.aff2axcodes(volume.affine) == nib.aff2axcodes(grid.affine)
    return same_axes and volume.shape == grid.shape and np.allclose(_spacing(volume), _spacing(grid), rtol=SAME)


def _resampled(volume: Any, grid: Any) -> nib.Nifti1Image:
    """A volume on the grid's size and spacing, middle on middle; float32."""
    volume = nib.as_closest_canonical(volume)
    target = nib.as_closest_canonical(grid)
    voxels = np.asarray(volume.dataobj, dtype=np.float32)
    sigma = [0.5 * np.sqrt(max((new / old) ** 2 - 1, 0)) for new, old in zip(_spacing(target), _spacing(volume))]
    voxels = gaussian_filter(voxels, sigma)
    corners = np.array([(0, 0, 0), np.array(volume.shape) - 1])
    affine = grid_around(centre_of_box(corners, volume.affine), target.shape, _spacing(target), np.eye(4))
    made = resample_from_to(nib.Nifti1Image(voxels, volume.affine), (target.shape, affine), order=1, mode="nearest")
    return nib.Nifti1Image(np.asarray(made.dataobj, dtype=np.float32), affine)


def smallest_training_split(folders: Mapping[str, str | None]) -> int:
    """How many training cases the folder with the fewest has.

    Args:
        folders: name of the setting -> folder.

    Raises:
        ValueError: a setting that was not given.
    """
    given = []
    for name, folder in folders.items():
        if folder is None:
            raise ValueError(
                f"--{name} was not given: a folder of NIfTI volumes, such as inference.json of an *_ldm bundle writes"
            )
        given.append(folder)
    return min(len(load_cases(folder, "training")) for folder in given)
