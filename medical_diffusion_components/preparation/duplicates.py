"""The same volume twice, under whatever names and in whatever formats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medical_diffusion_components.preparation.case import CaseResult
from medical_diffusion_components.preparation.inventory import Inventory

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
    """
    results = sorted(results, key=lambda result: result.case_id)
    is_dicom = {case.case_id: bool(case.scan and case.scan.files) for case in inventory.cases}
    order = sorted(results, key=lambda result: (not is_dicom[result.case_id], result.case_id))
    replaced: dict[str, CaseResult] = {}
    contradiction = None
    kept: list[tuple[CaseResult, np.ndarray]] = []
    for result in order:
        signature = np.array([value for output in result.outputs for value in output.get("signature", ())])
        twin = next((other for other, known in kept if _same(known, signature)), None)
        if twin is None:
            if len(signature):
                kept.append((result, signature))
        elif result.split is None:
            text = f"the same volume as case {twin.case_id}"
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
    return Checked([replaced.get(result.case_id, result) for result in results], contradiction)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool(np.abs(one - other).max() < _SAME)
