"""The same volume twice, under whatever names and in whatever formats."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medical_diffusion_components.preparation.case import CaseResult
from medical_diffusion_components.preparation.inventory import Inventory
from medical_diffusion_components.preparation.patients import SIGNS
from medical_diffusion_components.preparation.same_scan import same_scans

__all__ = ["Checked", "leave_duplicates"]

_SAME = 1e-3  # largest difference of block means, of intensities in [-1, 1]: rounding by a converter stays below


class Checked(NamedTuple):
    """Results by case id, and why they cannot be trained on, or None."""

    results: list[CaseResult]
    contradiction: str | None


def leave_duplicates(results: Sequence[CaseResult], inventory: Inventory, dataset_dir: Path) -> Checked:
    """Keep one of each volume that was made more than once.

    Without a manifest, a DICOM series is kept before a file, then the lower case id; the other's files are removed. With a
    manifest both stay, and it is a contradiction if they are in two splits.

    One volume under two patients is a sign that they are one: unless the user has told whose scans are whose, they are
    taken for one. Under three or more it is rather a template, and they are not; a remark says either.

    A copy that was mirrored, cut or rescaled is another volume: both stay, and a remark names them. It counts for patients
    and for splits as the volume itself does.
    """
    results = sorted(results, key=lambda result: result.case_id)
    is_dicom = {case.case_id: bool(case.scan and case.scan.files) for case in inventory.cases}
    order = sorted(results, key=lambda result: (not is_dicom[result.case_id], result.case_id))
    replaced: dict[str, CaseResult] = {}
    contradiction = None
    kept: list[tuple[CaseResult, np.ndarray]] = []
    patients: dict[str, set[str]] = defaultdict(set)  # of the volume that was kept as this case
    for result in order:
        signature = np.array([value for output in result.outputs for value in output.get("signature", ())])
        twin = next((other for other, known in kept if _same(known, signature)), None)
        if twin is None:
            if len(signature):
                kept.append((result, signature))
        elif result.split is None:
            text = f"the same volume as case {twin.case_id}"
            patients[twin.case_id] |= {twin.patient_id, result.patient_id}
            replaced[result.case_id] = result._replace(status="aside", reason="same_volume", text=text, outputs=())
            for output in result.outputs:
                for key in ("image", "label"):
                    if key in output:
                        (dataset_dir / output[key]).unlink(missing_ok=True)
        else:
            text = f"{twin.case_id} ({twin.split}) and {result.case_id} ({result.split}) are the same volume"
            inventory.remarks.append(text)
            if twin.split != result.split:
                contradiction = contradiction or f"{text}: the manifest must put them into one split, or leave one out"
    results = [replaced.get(result.case_id, result) for result in results]
    by_id = {result.case_id: result for result in results if result.outputs}
    for one, other in same_scans({case: by_id[case].outputs[0].get("landmarks", "") for case in by_id}):
        text = f"{one} and {other} are one scan, perhaps mirrored, cut or rescaled"
        if by_id[one].split != by_id[other].split:
            contradiction = contradiction or f"{text}: the manifest must put them into one split, or leave one out"
        patients[one] |= {by_id[one].patient_id, by_id[other].patient_id}
        inventory.remarks.append(text)
    return Checked(_joined(results, patients, inventory), contradiction)


def _joined(results: list[CaseResult], patients: Mapping[str, set[str]], inventory: Inventory) -> list[CaseResult]:
    """The results, with one patient in the place of two that have a volume in common; a remark says so."""
    told = bool(inventory.decided_by.keys() & {SIGNS["table"], SIGNS["pattern"]})
    for case_id, same in sorted(patients.items()):
        with_scans = sorted(same & {result.patient_id for result in results if result.outputs})
        if len(with_scans) < 2:
            continue
        text = f"case {case_id} is the same volume as scans of other patients ({', '.join(with_scans[:4])})"
        if told or len(with_scans) > 2:
            inventory.remarks.append(
                f"{text}: a template, or a scan that was filed twice. They stay different patients"
            )
            continue
        inventory.remarks.append(
            f"{text}: they are taken for one patient. If they are two, remove the scan that is not theirs, or say so with "
            "--patients"
        )
        one, other = with_scans
        results = [r._replace(patient_id=one) if r.patient_id == other else r for r in results]
        patients = {key: {one if name == other else name for name in names} for key, names in patients.items()}
    return results


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool(np.abs(one - other).max() < _SAME)
