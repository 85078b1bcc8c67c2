"""Rebuild ``duke.json``: the T1 series of each of the 922 patients of Duke-Breast-Cancer-MRI.

The collection has 5,034 MR series and no tag that says which is which, so the series are told apart by their
descriptions. Run ``python data_manifests/build_duke.py``, with ``--check`` to compare only.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from builders import Series, builder_arguments, finish, package_version, read_series_index, the_only

from medical_diffusion_components.data.splits import split_patients
from medical_diffusion_components.preparation.manifests import Manifest

T1_KINDS = ("pre-contrast non-fat-sat", "post-contrast", "IDEAL")
DYNAMIC_PRE, DYNAMIC_POST = "dynamic pre-contrast", "dynamic post-contrast"
_POST_PHASE = re.compile(r"^ph\d+/|1st|2nd|3rd|4th")
_DYNAMIC = re.compile(r"dyn|vibrant|^ax 3d pre$")
_T1 = re.compile(r"t1|non fs|bilateral")


class Chosen(NamedTuple):
    """The two series of a patient that the manifest names."""

    t1: Series
    dynamic_pre: Series


def series_kind(description: str) -> str:
    """What a series is, from its description: the first rule that holds.

    Raises:
        ValueError: no rule holds.
    """
    text = description.strip().lower()
    if "+c" in text:
        return "post-contrast"
    if "ideal" in text:
        return "IDEAL"
    if _POST_PHASE.search(text):
        return DYNAMIC_POST
    if _DYNAMIC.search(text):
        return DYNAMIC_PRE
    if _T1.search(text):
        return "pre-contrast non-fat-sat"
    raise ValueError(f"no rule for the series description {description!r}")


def choose_series(series: list[Series]) -> Chosen:
    """A patient's T1 series and the fat-saturated series before contrast.

    Where several series bear the name of the pre-contrast one, the first acquired (lowest series number) is
    it, and the rest are later phases.

    Raises:
        ValueError: not exactly one T1 series, no pre-contrast dynamic one, or no way to tell which is first.
    """
    patient = series[0].patient_id
    t1 = [one for one in series if series_kind(one.description) in T1_KINDS]
    if len(t1) != 1:
        raise ValueError(f"{patient}: expected one T1 series, got {[one.description for one in t1]}")
    pre = [one for one in series if series_kind(one.description) == DYNAMIC_PRE]
    if len(pre) > 1:
        by_number = {one.number: one for one in pre if one.number is not None}
        if len(by_number) < len(pre):
            numbers = [one.number for one in pre]
            raise ValueError(f"{patient}: which of the dynamic series is first? Their numbers are {numbers}")
        pre = [by_number[min(by_number)]]
    if not pre:
        raise ValueError(f"{patient}: no dynamic series before contrast")
    return Chosen(t1[0], pre[0])


def build() -> Manifest:
    """The manifest, from the series list of ``idc-index-data``."""
    series = read_series_index("duke_breast_cancer_mri", "MR")
    by_patient: dict[str, list[Series]] = defaultdict(list)
    for one in series:
        by_patient[one.patient_id].append(one)
    splits = split_patients(by_patient)
    cases = []
    for patient in sorted(by_patient):
        t1, pre = choose_series(by_patient[patient])
        case = {
            "case_id": patient,
            "patient_id": patient,
            "split": splits[patient],
            "kind": series_kind(t1.description),
            "description": t1.description,
            "source": t1.source(),
            "dynamic_pre": {key: value for key, value in pre.source().items() if key != "study_uid"},
        }
        if pre.study_uid != t1.study_uid:
            raise ValueError(f"{patient}: the T1 and the dynamic series are of different studies")
        cases.append(case)
    bucket = the_only((one.bucket for one in series), "bucket")
    return Manifest(
        {
            "name": "Duke-Breast-Cancer-MRI",
            "description": (
                "Breast MRI of 922 patients with invasive cancer: the T1-weighted series without fat "
                "saturation of each patient. 'kind' is read from the series description: 'post-contrast' and "
                "'IDEAL' stand in for the pre-contrast series where a patient has none. 'dynamic_pre' is the "
                "fat-saturated series before contrast, on which the segmentation masks of the collection are "
                "drawn."
            ),
            "version": "1",
            "licence": the_only((one.licence for one in series), "licence"),
            "access": (
                "Open download: https://doi.org/10.7937/TCIA.e3sv-re93. The same files lie under "
                f"s3://{bucket}/{{idc_uuid}}/ (Imaging Data Commons, no account). No commercial use."
            ),
            "reference": (
                "Saha et al., Dynamic contrast-enhanced magnetic resonance images of breast cancer patients "
                "with tumor locations, The Cancer Imaging Archive (2021), doi:10.7937/TCIA.e3sv-re93; Saha "
                "et al., British Journal of Cancer 119, 508-516 (2018), doi:10.1038/s41416-018-0185-8"
            ),
            "built_from": [package_version("idc-index-data")],
            "split": "by patient, from a hash of the patient id (split_patients, shares 0.8 / 0.1 / 0.1)",
        },
        tuple(cases),
    )


def main(argv: list[str] | None = None) -> int:
    parser = builder_arguments(__doc__, Path(__file__).with_name("duke.json"))
    arguments = parser.parse_args(argv)
    return finish(build(), arguments.out, arguments.check)


if __name__ == "__main__":
    sys.exit(main())
