"""A cohort of invented brains made from one template, for trying things out where there are no images.

Every subject is the skull-stripped MNI152 T1 template under a random smooth deformation, with its own tissue
contrast, bias field and noise. Template and tissue maps lie inside nilearn's wheel; nothing is downloaded.

Template: Fonov et al., "Unbiased average age-appropriate brain templates from birth to adulthood",
NeuroImage 47, 2009.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import torch
from scipy.ndimage import binary_erosion, gaussian_filter

from medical_diffusion_components.chance import numpy_generator
from medical_diffusion_components.cohorts.variation import (
    PLAIN,
    Lesion,
    Variation,
    draw_lesions,
    lesion_intensity,
    variation_rng,
    varied_appearance,
    varied_contrast,
)
from medical_diffusion_components.cohorts.warps import Diffeomorphism, random_velocity, sample, smooth_noise
from medical_diffusion_components.cohorts.writing import (
    checked_size,
    save_case,
    split_entries,
    with_conditions,
    write_cohort,
    write_subjects,
)
from medical_diffusion_components.data.splits import split_patients
from medical_diffusion_components.threads import one_thread

__all__ = ["TEMPLATE_COHORT_NOTICE", "TemplateSubject", "brain_conditions", "template_subject", "write_template_cohort"]

TEMPLATE_COHORT_NOTICE = (
    "These are not patients: every volume is a randomly warped copy of ONE brain, the MNI152 template. "
    "Models made from them show that the software works and have no scientific or clinical meaning."
)
TEMPLATE_COHORT_LICENCE = (
    "Template: MNI152 nonlinear symmetric 2009a, as distributed with nilearn (BSD-3-Clause). "
    "Copyright (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, "
    "McGill University. Permission to use, copy, modify, and distribute this software and its documentation "
    "for any purpose and without fee is hereby granted, provided that the above copyright notice appear in "
    "all copies. The authors and McGill University make no representations about the suitability of this "
    'software for any purpose. It is provided "as is" without express or implied warranty. The authors are '
    "not responsible for any data loss, equipment damage, property loss, or injury to subjects or patients "
    "resulting from the use or misuse of this software package."
)
LABELS = {
    "0": "background",
    "1": "cerebrospinal fluid and other brain",
    "2": "grey matter",
    "3": "white matter",
}
LESION = 4
LABELS_WITH_LESIONS = {**LABELS, str(LESION): "lesion"}
LESION_RADIUS_MM = (5.0, 11.0)

# Changing what follows makes other volumes: count up, so that cohorts written before are not taken for them.
COHORT_VERSION = 1
VELOCITY_MM = {35.0: 2.5, 16.0: 1.8, 9.0: 0.9}  # smoothing sigma -> standard deviation
SYMMETRY = 0.9  # correlation of the deformation between the halves of the brain
GRID_MM = 6.0  # grid of the deformation and of the bias field
MARGIN_MM = 20.0  # of that grid around the template's brain
LOG_SCALE = (0.03, 0.025)  # standard deviation of log size: of the whole brain, of each axis alone
ROTATION_DEGREES = 3.0
SHEAR = 0.03
CONTRAST = {"other": (0.5, 1.1), "grey": (0.88, 1.08), "white": (0.95, 1.08)}  # range of the factors
BIAS = {60.0: 0.08}  # smoothing sigma in mm -> standard deviation of the log
T1 = {"grey": 0.66, "white": 0.9}  # the template's intensities, share of its maximum
NOISE = (0.01, 0.03)  # range of the Rician noise's sigma, as share of the template's maximum


class TemplateSubject(NamedTuple):
    """One invented subject; both volumes are (H, W, D) on RAS axes.

    ``image`` is float32 in [-1, 1], the background exactly -1. ``label`` is uint8: 0 background,
    1 cerebrospinal fluid and other brain, 2 grey matter, 3 white matter; in varied cohorts 4 lesion. ``affine`` maps
    voxels to mm.
    """

    image: np.ndarray
    label: np.ndarray
    affine: np.ndarray


class _Template(NamedTuple):
    channels: torch.Tensor  # (4, X, Y, Z) in [0, 1]: T1, grey, white, brain
    origin: torch.Tensor  # (3,) mm, of the first voxel
    spacing: torch.Tensor  # (3,) mm


def template_subject(
    index: int, size: Sequence[int] = (64, 64, 64), seed: int = 0, variation: Variation = PLAIN
) -> TemplateSubject:
    """Make invented subject number ``index`` of the cohort ``seed``.

    The volume is the brain's bounding box padded to a cube and sampled at ``size``. Anatomy, contrast and
    bias field are the same at every size and whatever the number of subjects.

    Args:
        index: number of the subject, from 0.
        size: voxels (H, W, D).
        seed: number of the cohort, from 0.
        variation: of contrast, bias field, noise and sharpness, and lesions; none by default.

    Raises:
        ValueError: negative index or seed, a size that is not three numbers of at least 8, or a negative variation.
    """
    size = checked_size(size)
    if index < 0 or seed < 0:
        raise ValueError(f"index and seed start at 0, got index {index}, seed {seed}")
    with one_thread():
        more = variation_rng(index, seed, anatomy=0) if variation != PLAIN else None
        return _make_subject(numpy_generator(seed, index), size, variation.checked(), more)


def brain_conditions(label: np.ndarray) -> dict[str, float]:
    """True values of an invented brain, counted on its label map (H, W, D) and rounded to six decimal places.

    ``brain_share`` is the brain's share of the volume's voxels. Every volume is cut to its own brain, so it says how
    round the head is, not how large. ``parenchymal_fraction`` is grey and white matter as a share of the brain
    (Rudick et al., "Use of the brain parenchymal fraction", Neurology 53, 1999).
    """
    brain, tissue = int((label > 0).sum()), int((label >= 2).sum())
    return {"brain_share": round(brain / label.size, 6), "parenchymal_fraction": round(tissue / brain, 6)}


def write_template_cohort(
    folder: str | os.PathLike,
    num_subjects: int = 40,
    size: Sequence[int] = (64, 64, 64),
    seed: int = 0,
    variation: Variation = PLAIN,
) -> Path:
    """Write a cohort as ``images/<case>.nii.gz``, ``labels/<case>.nii.gz`` and MONAI's ``dataset.json``.

    Every entry of ``dataset.json`` holds the subject's true values under ``conditions``, see :func:`brain_conditions`.
    A finished cohort of the same parameters is taken as it is. What is written lies under another name until
    it is complete, so an interrupted call leaves no half cohort and two processes may call at once.

    Args:
        folder: where the cohort goes; missing parents are made.
        num_subjects: at least 3, one for each split.
        size: voxels (H, W, D).
        seed: number of the cohort.
        variation: of the subjects' appearance, and lesions; none by default.

    Returns:
        ``folder``.

    Raises:
        ValueError: fewer than 3 subjects, or a bad size, seed or variation.
        FileExistsError: the folder holds something else, or has lost files.
    """
    parameters = {
        "num_subjects": int(num_subjects),
        "size": list(checked_size(size)),
        "seed": int(seed),
        "version": COHORT_VERSION,
    }
    if variation != PLAIN:  # plain cohorts that were written before stay known
        parameters["variation"] = variation.checked()._asdict()
    cases = [_case(index) for index in range(num_subjects)]
    split_patients(cases)  # refuses too few before anything is written

    def fill(unfinished: Path) -> dict:
        labels = LABELS_WITH_LESIONS if variation.lesions else LABELS
        return _datalist(cases, _write_volumes(unfinished, parameters), labels)

    return write_cohort(folder, "template cohort", parameters, cases, fill)


def _make_subject(
    rng: np.random.Generator, size: tuple[int, int, int], variation: Variation, more: np.random.Generator | None
) -> TemplateSubject:
    """``more`` is the stream of the variation; None: there is none."""
    to_template, bias = _random_anatomy(rng)
    factors = {tissue: rng.uniform(*limits) for tissue, limits in CONTRAST.items()}
    sigma = rng.uniform(*NOISE)
    lesions: list[tuple[Lesion, np.ndarray]] = []
    if more is not None:
        factors = varied_contrast(more, factors, variation)
        lesions = _place_lesions(more, variation)

    corner, side = _bounding_cube(to_template)
    spacing = side / np.array(size)
    axes = [torch.tensor(corner[a] + spacing[a] * (np.arange(size[a]) + 0.5), dtype=torch.float32) for a in range(3)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)  # (H, W, D, 3), mm
    template = _template(size)
    position = (to_template.forward(points) - template.origin) / template.spacing
    inside = sample(template.channels[3:], position)[0] >= 0.5
    t1, grey, white, brain = sample(template.channels, position[inside]).numpy()  # (voxels inside,) each
    bias_at = sample(bias, (points[inside] - _grid_origin()) / GRID_MM, padding_mode="border")[0].numpy()

    other = np.clip(brain - grey - white, 0, 1)
    signal = t1 * (factors["grey"] * grey + factors["white"] * white + factors["other"] * other)
    tissue = 1 + np.argmax([other, grey, white], axis=0)
    for lesion, centre in lesions:
        offset = (to_template.forward(points[inside]).numpy() - centre) / lesion.radii
        there = (np.square(offset).sum(axis=1) <= 1) & (tissue >= 2)
        signal[there] = lesion_intensity(lesion, [T1[kind] * factors[kind] for kind in ("grey", "white")])
        tissue[there] = LESION
    signal = signal * np.exp(bias_at)
    if more is not None:
        whole = np.zeros(size, dtype=np.float32)
        whole[inside.numpy()] = signal
        signal = varied_appearance(more, whole, spacing.tolist(), variation)[inside.numpy()]
    # magnitude of a complex signal with Gaussian noise in both parts: Rician, positive everywhere
    real, imaginary = sigma * rng.standard_normal((2, len(signal)))
    signal = np.hypot(signal + real, imaginary)
    image = np.full(size, -1, dtype=np.float32)
    image[inside.numpy()] = 2 * signal / signal.max() - 1
    label = np.zeros(size, dtype=np.uint8)
    label[inside.numpy()] = tissue
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = corner + spacing / 2
    return TemplateSubject(image, label, affine)


def _case(index: int) -> str:
    return f"template_{index:04d}"


def _write_volumes(folder: Path, parameters: dict) -> dict[str, dict[str, float]]:
    """Writes every subject; returns case id -> true values of its conditions."""
    conditions: dict[str, dict[str, float]] = {}

    def write(index: int) -> None:
        variation = Variation(**parameters.get("variation", {}))
        subject = template_subject(index, parameters["size"], parameters["seed"], variation)
        save_case(folder, _case(index), *subject, "warped MNI152 template, not a patient")
        conditions[_case(index)] = brain_conditions(subject.label)

    _template(checked_size(parameters["size"]))  # once, before several subjects ask for it at the same time
    write_subjects(write, parameters["num_subjects"], "template cohort")
    return conditions


def _datalist(cases: Sequence[str], conditions: dict[str, dict[str, float]], labels: dict[str, str]) -> dict:
    return {
        "name": "template cohort",
        "description": TEMPLATE_COHORT_NOTICE,
        "licence": TEMPLATE_COHORT_LICENCE,
        "labels": labels,
        **with_conditions(split_entries({case: case for case in cases}), conditions),
    }


def _place_lesions(rng: np.random.Generator, variation: Variation) -> list[tuple[Lesion, np.ndarray]]:
    """Lesions and their centres in white matter, mm in the template's space."""
    full = _full_template()
    white = np.argwhere(full.channels[2] > 0.9)
    lesions = draw_lesions(rng, variation, LESION_RADIUS_MM)
    return [(lesion, white[rng.integers(len(white))] + full.box[0].numpy()) for lesion in lesions]


def _random_anatomy(rng: np.random.Generator) -> tuple[Diffeomorphism, torch.Tensor]:
    """The map from the subject's space to the template's, and the log of the bias field (1, X, Y, Z)."""
    shape = _grid_shape()
    velocity = random_velocity(rng, shape, GRID_MM, VELOCITY_MM, SYMMETRY)
    log_scale = LOG_SCALE[0] * rng.standard_normal() + LOG_SCALE[1] * rng.standard_normal(3)
    tilt = np.radians(ROTATION_DEGREES) * rng.standard_normal(3)
    cross = np.array([[0, -tilt[2], tilt[1]], [tilt[2], 0, -tilt[0]], [-tilt[1], tilt[0], 0]])
    rotation = torch.linalg.matrix_exp(torch.from_numpy(cross)).numpy()
    shear = np.eye(3) + np.diag(SHEAR * rng.standard_normal(2), k=1)
    matrix = rotation @ shear @ np.diag(np.exp(-log_scale))
    bias = sum(std * smooth_noise(rng, shape, sigma / GRID_MM) for sigma, std in BIAS.items())
    warp = Diffeomorphism(velocity, _grid_origin().tolist(), GRID_MM, matrix)
    return warp, torch.from_numpy(bias).float().unsqueeze(0)


def _bounding_cube(to_template: Diffeomorphism) -> tuple[np.ndarray, float]:
    """First corner and side in mm of the cube around the subject's brain, with the box's centre."""
    surface = to_template.inverse(_full_template().surface).numpy()
    low, high = surface.min(axis=0) - 0.5, surface.max(axis=0) + 0.5  # the template's voxels are 1 mm wide
    side = float((high - low).max())
    return (low + high - side) / 2, side


def _grid_origin() -> torch.Tensor:
    low, _ = _full_template().box
    return low - MARGIN_MM


def _grid_shape() -> tuple[int, ...]:
    low, high = _full_template().box
    return tuple(int(n) for n in torch.ceil((high - low + 2 * MARGIN_MM) / GRID_MM) + 1)


class _FullTemplate(NamedTuple):
    channels: np.ndarray  # (4, X, Y, Z) float32 in [0, 1]: T1, grey, white, brain; cropped to the brain
    box: tuple[torch.Tensor, torch.Tensor]  # mm, of the brain's first and last voxel
    surface: torch.Tensor  # (N, 3) mm, the brain's outermost voxels


@functools.lru_cache(maxsize=1)
def _full_template() -> _FullTemplate:
    volumes = [_read_template(kind) for kind in ("t1", "gm", "wm")]
    origin = volumes[0].affine[:3, 3]  # the axes are RAS and the voxels 1 mm
    t1, grey, white = (np.asarray(volume.dataobj, dtype=np.float32) / 255 for volume in volumes)
    brain = t1 > 0
    low, high = np.argwhere(brain).min(axis=0), np.argwhere(brain).max(axis=0)
    crop = tuple(slice(a, b + 1) for a, b in zip(low, high))
    surface = np.argwhere(brain & ~binary_erosion(brain)) + origin  # (N, 3)
    channels = np.stack([t1[crop], (grey * brain)[crop], (white * brain)[crop], brain[crop]])
    first, last = (torch.tensor(corner + origin, dtype=torch.float32) for corner in (low, high))
    return _FullTemplate(channels.astype(np.float32), (first, last), torch.tensor(surface, dtype=torch.float32))


@functools.lru_cache(maxsize=2)
def _template(size: tuple[int, int, int]) -> _Template:
    """The template without the detail that a volume of ``size`` voxels cannot show."""
    full = _full_template()
    side = float((full.box[1] - full.box[0]).max()) + 1
    spacing = np.maximum(side / np.array(size), 1)
    sigma = 0.5 * np.sqrt(spacing**2 - 1)
    pad = np.ceil(3 * sigma).astype(int)  # so that blurred edges are not cut off
    steps = np.maximum(spacing // 2, 1).astype(int)
    channels = []
    for channel in full.channels:
        blurred = gaussian_filter(np.pad(channel, [(n, n) for n in pad]), sigma, truncate=3)
        channels.append(blurred[tuple(slice(None, None, n) for n in steps)])
    pad, steps = (torch.from_numpy(n).float() for n in (pad, steps))
    return _Template(torch.from_numpy(np.stack(channels)), full.box[0] - pad, steps)


def _read_template(kind: str) -> nib.Nifti1Image:
    spec = importlib.util.find_spec("nilearn")  # finds the files without importing nilearn, which takes seconds
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the template cohort needs nilearn, which holds the MNI152 template")
    name = f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
    path = Path(spec.origin).parent / "datasets" / "data" / name
    if not path.is_file():
        raise FileNotFoundError(f"this version of nilearn does not hold the MNI152 template: expected {path}")
    return nib.Nifti1Image.from_filename(path)
