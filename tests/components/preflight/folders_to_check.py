"""Folders of invented heads, with what is to be noticed planted among them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from dicom_writing import stable_uid, write_series

SHAPE, SPACING = (28, 34, 24), 6.0
LPS = np.diag([-1.0, -1, 1, 1])
GRID = LPS * np.array([SPACING, SPACING, SPACING, 1])
SECRET = "MILLER^ANNA"


def head(seed: int) -> np.ndarray:
    """An ellipsoid with a dark place towards the back and above, 0 outside."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    sides = np.array([0.6, 0.8, 0.75]) * (1 + 0.03 * rng.standard_normal(3))
    inside = sum((a / s) ** 2 for a, s in zip((x, y, z), sides)) < 1
    dark = (y - 0.3) ** 2 + (z - 0.2) ** 2 < 0.08
    values = 600 + 150 * z - 250 * dark + 60 * np.cos(4 * y) + 20 * rng.standard_normal(inside.shape)
    return (inside * values).clip(0).astype(np.int16)


def nifti(path: Path, volume: np.ndarray, affine: np.ndarray = GRID) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume, affine), path)


def good_heads(raw: Path, number: int, first: int = 0) -> None:
    for seed in range(first, first + number):
        nifti(raw / f"sub-{seed:02d}_T1w.nii.gz", head(seed))


def plant_outliers(raw: Path) -> None:
    """A head that lies on its side, and one whose spacing is in metres."""
    nifti(raw / "sub-90_T1w.nii.gz", np.ascontiguousarray(np.swapaxes(head(90), 0, 2)))
    nifti(raw / "sub-91_T1w.nii.gz", head(91), LPS * np.array([0.006, 0.006, 0.006, 1]))


def all_kinds(raw: Path) -> dict[str, int]:
    """Write one of nearly everything; returns what is there."""
    good_heads(raw, 6)
    for seed, patient in ((20, SECRET), (21, SECRET), (22, "SMITH^JOHN")):
        uids = {"study_uid": stable_uid("study", patient), "series_uid": f"1.2.826.0.1.9.{seed}"}
        write_series(raw / f"scan{seed}", head(seed), GRID, modality="MR", patient_id=patient, **uids)
    write_series(
        raw / "scout", head(23)[..., :2], GRID, modality="MR", patient_id=SECRET, series_uid="1.2.826.0.1.9.77"
    )
    (path,) = write_series(raw / "objects", head(0)[..., :1], GRID, patient_id=SECRET, names=["rt"])
    dataset = pydicom.dcmread(path)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    del dataset.Rows, dataset.Columns, dataset.PixelData
    dataset.save_as(path)
    image = nib.Nifti1Image(head(30), GRID)
    image.set_sform(GRID, 1)
    image.set_qform(np.diag([SPACING, -SPACING, SPACING, 1.0]), 1)
    nib.save(image, raw / "contradiction.nii.gz")
    nifti(raw / "sub-00_T1w_seg.nii.gz", (head(0) > 600).astype(np.uint8))
    with zipfile.ZipFile(raw / "more.zip", "w") as archive:
        archive.writestr("a", "b")
    (raw / "report.pdf").write_bytes(b"%PDF-1.4")
    (raw / ".DS_Store").write_bytes(b"x")
    (raw / "gone").symlink_to(raw / "nowhere")
    return {"patients": 6 + 2 + 1, "scans": 6 + 3 + 1, "DICOM studies": 3, "DICOM series": 4}
