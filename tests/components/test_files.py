"""Every JSON file is valid, whatever was measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medical_diffusion_components.files import write_json

NAN, INF = float("nan"), float("inf")


def strictly(path: Path) -> dict:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(path.read_text(), parse_constant=refuse)


def test_what_is_no_number_is_null_with_the_reason_beside_it(tmp_path: Path) -> None:
    content = {"psnr": INF, "ssim": 0.5, "deep": {"dice": np.float64("nan")}, "curve": [1.0, NAN, (-INF,)]}
    found = strictly(write_json(tmp_path / "a.json", content))
    assert found == {
        "psnr": None,
        "psnr_reason": "infinite",
        "ssim": 0.5,
        "deep": {"dice": None, "dice_reason": "not a number"},
        "curve": [1.0, None, [None]],
        "curve_reason": "1: not a number; 2: 0: minus infinite",
    }
    assert list(found)[:2] == ["psnr", "psnr_reason"]


def test_a_reason_that_is_known_better_stays(tmp_path: Path) -> None:
    for content in ({"a": NAN, "a_reason": "no case has it"}, {"a_reason": "no case has it", "a": NAN}):
        found = strictly(write_json(tmp_path / "a.json", content))
        assert found == {"a": None, "a_reason": "no case has it"}


def test_plain_values_come_back_as_they_were(tmp_path: Path) -> None:
    content = {"text": "NaN", "none": None, "flag": True, "list": [1, 2.5, {"x": "ä"}], "empty": {}}
    assert strictly(write_json(tmp_path / "deep" / "a.json", content)) == content
    assert (tmp_path / "deep" / "a.json").read_text().endswith("}\n")


def test_what_json_has_no_form_for_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert strictly(path) == {"a": 1} and [item.name for item in tmp_path.iterdir()] == ["a.json"]


def test_no_module_writes_json_in_a_way_of_its_own() -> None:
    package = Path(__file__).parents[2] / "medical_diffusion_components"
    for file in sorted(package.rglob("*.py")):
        if file.name != "files.py":
            text = file.read_text()
            assert "json.dump(" not in text and "write_text(json.dumps(" not in text, file
