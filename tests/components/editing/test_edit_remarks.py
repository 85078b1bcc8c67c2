"""What an editing refuses, and what it remarks on, in the console and on its page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scans_to_edit import Edit, save

from medical_diffusion_components.editing import (
    scan_editing,
)

ODD = {  # what is given -> what is remarked
    "a label map": (lambda v, m: (m.astype(np.int16), m), {}, "looks like a label map, not like an image"),
    "CT": (lambda v, m: (np.where(v < 300, -1000, v // 10).astype(np.int16), m), {}, "look like a CT's"),
    "voxels of another size": (lambda v, m: (v, m), {"spacing": (1.0, 1.0, 1.0)}, "but of 2 x 1.5 x 3 mm; it was"),
    "a scrap": (lambda v, m: (v[4:9, 4:11, 6:13], m[4:9, 4:11, 6:13]), {}, "fills 6% of the 16x12x20 voxels that"),
    "a centre for nothing": (
        lambda v, m: (v, m),
        {"centre": [90.0, 0.0, 0.0]},
        "--centre changes nothing: --image has",
    ),
    "limits elsewhere": (lambda v, m: (v, m), {"limits": (5000.0, 6000.0)}, "100% of the voxels of --image are"),
    "an inverted mask": (lambda v, m: (v, m.astype(np.int16) - 1), {}, "the values -1, 0: all but 0 are"),
    "fractions": (lambda v, m: (v, (m * 0.4).astype(np.float32)), {}, "--mask holds fractions, such as 0.4"),
    "several classes": (lambda v, m: (v, m * (1 + v % 3).astype(np.uint8)), {}, "the values 0, 1, 2, 3: all but 0 are"),
    "nothing odd": (lambda v, m: (v, m), {}, ""),
    "a mask of 255": (lambda v, m: (v, m * 255), {}, ""),
}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"centre": [9.0, 0.0]}, r"expected three numbers as centre \(mm in RAS\), got \[9.0, 0.0\]"),
        ({"centre": 3.0}, "expected three numbers as centre"),
        ({"tolerance": 5.0}, r"expected a tolerance in \[0, 1\], got 5.0"),
        ({"limits": (2.0, 1.0)}, "two ascending intensities as limits"),
        ({"blend_length": -1.0}, "expected a positive blend_length"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict, message: str, edit: Edit) -> None:
    with pytest.raises(ValueError, match=message):
        edit(**options)


def test_nothing_to_draw_is_refused_and_one_scan_as_both_is_remarked_on(
    edit: Edit, tmp_path: Path, voxels: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    scan = str(save(tmp_path / "scan.nii.gz", voxels))
    for request, missing in (
        (lambda: edit().vary(scan, [], [0]), "strengths"),
        (lambda: edit().vary(scan, [0.5], []), "seeds"),
        (lambda: edit().interpolate(scan, scan, [], 0.5, [0]), "second_weights"),
    ):
        with pytest.raises(ValueError, match=f"expected at least one of {missing}, got none"):
            request()
    for request in (
        lambda: edit().vary(scan, [0.2, 0.20], [0]),
        lambda: edit().interpolate(scan, scan, [1, 1.0], 0.5, [0]),
    ):
        with pytest.raises(ValueError, match="that differ, or one volume would be drawn twice"):
            request()
    edit().interpolate(scan, scan, [0.5], 0.5, [0])
    assert "--image and --second_image are one file" in caplog.text


@pytest.mark.parametrize("kind", ODD)
def test_what_is_odd_about_a_scan_or_a_mask_is_said_in_the_console_and_on_the_page(
    kind: str, edit: Edit, tmp_path: Path, voxels: np.ndarray, mask: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    change, options, remark = ODD[kind]
    scan, hole = (save(tmp_path / f"{n}.nii.gz", a) for n, a in zip(("scan", "hole"), change(voxels, mask)))
    if kind == "a label map":
        mask[0, 0, 0] = 1
        save(scan, mask), save(hole, (np.indices(mask.shape)[0] > 9).astype(np.uint8))
    editing = edit(modality="MR", **options)
    editing.inpaint(scan, hole, [0])
    page = (tmp_path / "edited" / "page.html").read_text()
    assert ("Remark:" in page) == bool(remark) == bool(caplog.records)
    assert "scan.nii" not in page and "hole.nii" not in page, "a file's name may be a patient's"
    assert remark in caplog.text and remark.replace("'", "&#x27;") in page.replace("&#39;", "&#x27;")


@pytest.mark.parametrize(("limit", "value"), [("UNLIKE", 0.1), ("ALIKE", 0.9)])
def test_a_scan_that_the_first_stage_does_not_know_is_remarked_on(
    limit: str, value: float, edit: Edit, tmp_path: Path, voxels: np.ndarray, caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert getattr(scan_editing, limit) != value, "patched"
    monkeypatch.setattr(scan_editing, limit, value)
    edit().vary(save(tmp_path / "scan.nii.gz", voxels), [0.5], [0])
    assert caplog.text.count("the first stage gives --image back with a mean absolute difference of ") == 1


def test_a_scan_that_was_edited_before_is_said_to_be(
    edit: Edit, tmp_path: Path, voxels: np.ndarray, mask: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    scan, hole = save(tmp_path / "scan.nii.gz", voxels), save(tmp_path / "hole.nii.gz", mask)
    (tmp_path / "scan.json").write_text(json.dumps({"edited_from": {}, "synthetic": False}))
    edit().inpaint(scan, hole, [0])
    assert "--image was edited before" in caplog.text
