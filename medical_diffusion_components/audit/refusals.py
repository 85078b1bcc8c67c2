"""When an audit would say something false, it is refused, with the reason."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from torch import Tensor

from medical_diffusion_components.audit.conformal import smallest_calibration
from medical_diffusion_components.audit.volumes import AuditedVolumes, one_place_per_patient
from medical_diffusion_components.data.datasets import median_spacing
from medical_diffusion_components.data.training_of_weights import trained_on
from medical_diffusion_components.data.volume_notes import note_beside
from medical_diffusion_components.files import file_hash
from medical_diffusion_components.metrics.turned import turned_against
from medical_diffusion_components.preparation.same_scan import scans_among
from medical_diffusion_components.weights import RELEASED, provenance

__all__ = [
    "AuditError",
    "check_calibration_size",
    "check_disjoint",
    "check_orientation",
    "check_preprocessed_alike",
    "check_spacing",
    "check_training_data",
    "check_weights",
    "remarks_on_samples",
]

# of the test that training and held-out volumes have the same intensities, all statistics together
SIGNIFICANCE = 1.0e-3
STATISTICS = ("mean intensity", "standard deviation of the intensity", "share of background")
TOLERANCE = 1.1  # factor by which a median spacing may lie outside the training volumes' range


class AuditError(ValueError):
    """The volumes at hand do not allow an audit."""


def check_training_data(weights: str | os.PathLike, data: Mapping[str, Any]) -> bool:
    """Refuse training volumes that the weights have never seen: a copy of those they have seen would not be found.

    Args:
        weights: path of those audited.
        data: of the volumes at hand, as ``describe_data`` gives it.

    Returns:
        whether the note beside the weights confirms it; False for weights without a note.

    Raises:
        AuditError: the note names other training volumes.
    """
    known = trained_on(weights, data)
    if known is False:
        note = provenance(weights)
        where = "came with the bundle and " if Path(weights).parent.name == RELEASED else ""
        raise AuditError(
            f"the weights {where}were trained on {_in_words(note)}, and the training volumes at hand are "
            f"{_in_words(data)}: this generator has never seen them, so no copy of what it has seen could be found; audit "
            "it with the volumes that it was trained on, or train on these first"
        )
    return bool(known)


def _in_words(data: Mapping[str, Any]) -> str:
    count = data.get("cases", {}).get("training", "an unknown number of")
    name = data.get("data", "unknown data")
    digest = str(data.get("training_sha256", data["data_sha256"]))[:16]
    return f"{count} volumes of {name if name.startswith('the ') else f'the {name}'} (SHA-256 {digest}...)"


def check_calibration_size(patients: int, alpha: float) -> None:
    """Refuse a calibration set with which nothing could ever be flagged.

    Raises:
        AuditError: fewer held-out patients than 1/alpha - 1.
    """
    needed = smallest_calibration(alpha)
    if patients < needed:
        raise AuditError(
            f"the audit needs at least {needed} held-out patients, got {patients}: with {patients}, the smallest p is "
            f"1/{patients + 1}, so p <= {alpha:g} cannot happen and every copy would be released; give more patients under "
            "validation and test, or further ones that were never trained on"
        )


def check_disjoint(training: AuditedVolumes, held_out: AuditedVolumes) -> None:
    """Refuse held-out volumes that are training volumes.

    Raises:
        AuditError: a patient or a file is on both sides.
    """
    both = {case["patient_id"] for case in training.cases} & {case["patient_id"] for case in held_out.cases}
    if both:
        raise AuditError(
            f"{len(both)} patient(s) are in the training split and among the held-out patients: what resembles them "
            "would count as innocent; all volumes of a patient must be on one side"
        )
    same = set(training.hashes) & set(held_out.hashes)
    if same:
        raise AuditError(
            f"{len(same)} file(s) are in the training split and among the held-out volumes under other names, such as "
            f"SHA-256 {min(same)[:16]}...: what resembles them would count as innocent; remove them from one side"
        )


def check_preprocessed_alike(training: AuditedVolumes, held_out: AuditedVolumes) -> None:
    """Refuse training and held-out volumes whose intensities differ as sets.

    Patients are split at random, so mean, standard deviation and share of background of their volumes have one
    distribution on both sides; if a Kolmogorov-Smirnov test says otherwise, one side was prepared in another way. One
    volume of each patient counts, since scans of one patient are not independent.

    Raises:
        AuditError: the distributions differ.
    """
    if training.reduced.shape[1:] != held_out.reduced.shape[1:]:
        raise AuditError(
            f"training volumes are {tuple(training.reduced.shape[1:])} after reduction, held-out ones "
            f"{tuple(held_out.reduced.shape[1:])}: one side was prepared in another way"
        )
    sides = [_statistics(some.reduced[one_place_per_patient(some.cases)]) for some in (training, held_out)]
    for name, one, other in zip(STATISTICS, *sides):
        p = stats.ks_2samp(one, other).pvalue
        if p < SIGNIFICANCE / len(STATISTICS):
            raise AuditError(
                f"held-out volumes were prepared in another way than the training volumes: the {name} is "
                f"{np.median(one):.3g} in training and {np.median(other):.3g} in held-out volumes (medians; "
                f"Kolmogorov-Smirnov p = {p:.1e}); prepare all of them with the same settings"
            )


def _statistics(reduced: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    flat = reduced.flatten(1)
    return flat.mean(1).numpy(), flat.std(1).numpy(), (flat < -0.9).float().mean(1).numpy()


def check_orientation(training: Tensor, synthetic: Tensor, flip_axis: int | None = None) -> list[str]:
    """Remark on synthetic volumes that are turned, mirrored or inverted against the training volumes, or refuse them.

    Args:
        training, synthetic: reduced volumes, (N, C, h, w, d) and (M, C, h, w, d).
        flip_axis: spatial axis that the generator's training mirrors, along which its volumes may lie either way.

    Raises:
        AuditError: volumes of another size, or more than half of them were changed so. Copies among them would be released.
    """
    if training.shape[1:] != synthetic.shape[1:]:
        raise AuditError(
            f"training volumes are {tuple(training.shape[1:])} after reduction, synthetic ones {tuple(synthetic.shape[1:])}"
        )
    found = turned_against(training, synthetic, flip_axis)
    if found is None:
        return []
    text = f"{found.number} of {len(synthetic)} synthetic volumes {found}: copies among them are not found"
    if 2 * found.number > len(synthetic):
        raise AuditError(f"{text}; give the volumes as the generator writes them")
    return [text]


def check_spacing(training: Sequence[dict], others: Sequence[dict], axcodes: str, what: str) -> None:
    """Refuse volumes on another grid than the training volumes.

    Args:
        training, others: cases with ``image``.
        axcodes: where H, W and D point.
        what: names ``others`` in the message.

    Raises:
        AuditError: their median spacing lies more than a tenth outside the range of the training volumes' spacing.
    """
    ranges = np.array([median_spacing([case], axcodes) for case in training])
    lowest, highest = ranges.min(axis=0), ranges.max(axis=0)
    found = np.array(median_spacing(others, axcodes))
    if (found < lowest / TOLERANCE).any() or (found > highest * TOLERANCE).any():
        raise AuditError(
            f"{what} have voxels of {_millimetres(found)} mm, training volumes from {_millimetres(lowest)} to "
            f"{_millimetres(highest)} mm: they were prepared in another way, or are of another model"
        )


def check_weights(samples: Sequence[dict], weights_sha256: str) -> None:
    """Refuse synthetic volumes whose notes name other weights than those audited; volumes without a note pass.

    Raises:
        AuditError: at least one such volume.
    """
    foreign = 0
    for case in samples:
        if note_beside(case["image"]).get("weights_sha256", weights_sha256) != weights_sha256:
            foreign += 1
    if foreign:
        raise AuditError(
            f"{foreign} of {len(samples)} synthetic volumes were made by other weights than the audited ones (SHA-256 "
            f"{weights_sha256[:16]}...), as their notes say: audit each model's volumes with its own weights"
        )


def remarks_on_samples(samples: Sequence[dict], training: Sequence[dict], held_out: Sequence[dict]) -> list[str]:
    """What a careful reader would want to know of the volumes that are audited.

    Raises:
        AuditError: a held-out patient's scan is among them. It would pass: it is no copy of a training volume.
    """
    if real := scans_among(samples, held_out):
        raise AuditError(
            f"{len(real)} of {len(samples)} synthetic volumes are scans of held-out patients, the first is {real[0]}: no "
            "generator made them, and they would be released; move them out of samples_dir"
        )
    found, hashes = [], [file_hash(case["image"]) for case in samples]
    if real := scans_among(samples, training):
        found.append(f"{len(real)} of {len(samples)} synthetic volumes are scans of training patients themselves")
    if repeated := len(hashes) - len(set(hashes)):
        found.append(f"{repeated} of {len(samples)} synthetic volumes are the same file as another one")
    if unknown := sum("weights_sha256" not in note_beside(case["image"]) for case in samples):
        found.append(
            f"{unknown} of {len(samples)} synthetic volumes have no note that says who made them: they are taken for "
            "volumes of these weights"
        )
    return found


def _millimetres(spacing: np.ndarray) -> str:
    return " x ".join(f"{length:.3g}" for length in spacing)
