"""What `check` and `prepare` advise: for each refusal what helps, and something for every remark of the documents."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from medical_diffusion_components.preflight.advice import advice_for


def test_every_remark_of_the_documents_has_its_advice():
    text = (Path(__file__).parents[3] / "docs" / "own_data.md").read_text()
    tables = [part.split("\n\n")[0] for part in text.split("| remark | meaning |\n")[1:]]
    names = [name for table in tables for name in re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)]
    assert len(names) > 12
    for name in names:
        assert advice_for(name) != advice_for("nobody knows this one"), name


@pytest.mark.parametrize(
    ("refusal", "advice"),
    [
        ("expected one slice a file, got 30 frames of an enhanced or multi-frame object: convert to", "dcm2niix"),
        ("cannot be read as a NIfTI volume, it may be damaged: it is compressed twice: unpack it once", "unpack"),
        ("cannot be read as a NIfTI volume, it may be damaged: expected real numbers, got complex64", "magnitude"),
        ("cannot be read as a NIfTI volume, it may be damaged or incomplete: CRC check failed", "fetch"),
        ("a.nii: expected one 3D volume, got shape (28, 34): a single slice", "put it elsewhere"),
        ("a.nii: expected one 3D volume, got shape (4, 4, 4, 3): a time series or several channels", "split the file"),
        (
            "c0.nii.gz: the label lies elsewhere than its image c0.nii.gz: their corners are up to 9 mm apart",
            "grid of its image",
        ),
        ("c0.nii.gz: label values must be whole numbers, got nan: was it resampled", "nearest neighbour"),
        ("c0.nii.gz: label values outside the expected classes {0: background}: 7 (3 voxels)", "--classes"),
        ("a.nii.gz: every voxel is 7: the volume holds no image", "leave the scan out"),
        ("ImagePositionPatient is missing in file 1 of the folder", "export the series again"),
        (
            "expected RescaleSlope and RescaleIntercept in all slices (in CT) or in none; some lack them",
            "export the series",
        ),
        ("expected one MONOCHROME2 sample a pixel, got 1 of MONOCHROME1", "export the series again"),
        ("3 slices missing in 1 gaps, the first between 54.000 and 66.000 mm", "slices are missing"),
        ("a.nii.gz: the file is empty", "fetch the file again"),
        ("the pixel data of a file cannot be decoded", "fetch the file again"),
        ("24 slices repeat a position, first at 0.000 mm along the slice normal", "time points"),
    ],
)
def test_the_advice_fits_the_refusal(refusal, advice):
    assert advice in advice_for(refusal)
