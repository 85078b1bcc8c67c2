"""Build a manifest of the segmentation masks of Duke-Breast-Cancer-MRI from your own download.

The masks (breast, fibroglandular tissue, vessels; 100 patients) are a supplement of the collection, drawn on
the fat-saturated series before contrast (Lew et al., Scientific Reports 14, 5383, 2024). The label values
change from file to file, so what each file's header says is recorded. The series and the split come from
``duke.json``: a patient who trained the generator must not test the segmentation. Run ``python
data_manifests/build_duke_fgt.py --masks FOLDER --out duke_fgt.json``.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from builders import builder_arguments, finish

from medical_diffusion_components.preparation.manifests import Manifest, manifest_hash, read_manifest
from medical_diffusion_components.preparation.segments import read_segments

MASKS_FOLDER = "Segmentation_Masks_NRRD"
PARTS = ("Breast", "Dense_and_Vessels")
_PATIENT = re.compile(r"Breast_MRI_\d{3}")


def read_labels(root: Path, patient_folder: Path) -> list[dict[str, Any]]:
    """Every segment in the two mask files of a patient, with paths relative to ``root``.

    Raises:
        ValueError: a file is missing or unreadable, or a segment's name stands in both.
    """
    labels: list[dict[str, Any]] = []
    for part in PARTS:
        path = patient_folder / f"Segmentation_{patient_folder.name}_{part}.seg.nrrd"
        if not path.is_file():
            raise ValueError(f"{patient_folder.name}: expected the file {path.relative_to(root)}")
        table = read_segments(path)
        for segment in table.segments:
            if segment.name in {label["name"] for label in labels}:
                raise ValueError(f"{patient_folder.name}: both files have a segment {segment.name!r}")
            labels.append(
                {
                    "name": segment.name,
                    "path": path.relative_to(root).as_posix(),
                    "value": segment.value,
                    "layer": segment.layer,
                    "num_layers": table.num_layers,
                    "shape": list(table.shape),
                }
            )
    return labels


def build(root: Path, images: Path) -> Manifest:
    """The manifest of the masks under ``root/Segmentation_Masks_NRRD``.

    Args:
        root: the folder that holds ``Segmentation_Masks_NRRD``.
        images: the manifest ``duke.json``.

    Raises:
        ValueError: no such folder or no patient in it, a patient that ``images`` does not have, a mask file
            that is missing or cannot be understood, or a split that none of the patients belongs to.
    """
    masks = root / MASKS_FOLDER
    folders = sorted(p for p in masks.glob("*") if p.is_dir() and _PATIENT.fullmatch(p.name))
    if not folders:
        raise ValueError(f"expected folders Breast_MRI_NNN in {masks}, found none")
    image_manifest = read_manifest(images)
    image_cases = {case["patient_id"]: case for case in image_manifest.cases}
    cases = []
    for folder in folders:
        if folder.name not in image_cases:
            raise ValueError(f"{folder.name}: not a patient of {images}")
        image = image_cases[folder.name]
        study_uid = image["source"]["study_uid"]
        cases.append(
            {
                "case_id": folder.name,
                "patient_id": folder.name,
                "split": image["split"],
                "source": {"study_uid": study_uid, **image["dynamic_pre"]},
                "labels": read_labels(root, folder),
            }
        )
    return Manifest(
        {
            "name": f"{image_manifest.metadata['name']} segmentation masks",
            "description": (
                "Masks of breast, fibroglandular tissue and vessels with the fat-saturated series before "
                "contrast on which they were drawn. 'labels' has paths relative to the folder that holds "
                f"{MASKS_FOLDER}; a segment is the voxels of 'layer' with the value 'value'."
            ),
            "version": "1",
            "licence": image_manifest.metadata["licence"],
            "access": image_manifest.metadata["access"],
            "reference": (
                "Lew et al., Scientific Reports 14, 5383 (2024), doi:10.1038/s41598-024-54048-2; "
                f"{image_manifest.metadata['reference']}"
            ),
            "built_from": [MASKS_FOLDER, f"{images.name}, hash {manifest_hash(image_manifest)}"],
            "split": f"that of {images.name}",
        },
        tuple(cases),
    )


def main(argv: list[str] | None = None) -> int:
    parser = builder_arguments(__doc__, None)
    parser.add_argument("--masks", type=Path, required=True, help=f"the folder that holds {MASKS_FOLDER}")
    parser.add_argument("--images", type=Path, default=Path(__file__).with_name("duke.json"), help="default: duke.json")
    arguments = parser.parse_args(argv)
    manifest = build(arguments.masks, arguments.images)
    names = Counter(label["name"] for case in manifest.cases for label in case["labels"])
    print("cases with each segment:", ", ".join(f"{name}: {number}" for name, number in sorted(names.items())))
    return finish(manifest, arguments.out, arguments.check)


if __name__ == "__main__":
    sys.exit(main())
