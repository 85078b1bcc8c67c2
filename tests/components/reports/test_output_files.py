from __future__ import annotations

from pathlib import Path

import pytest
from ignite.engine import Engine

from medical_diffusion_components.reports import OutputFiles


def start(folder: Path, *cases: dict) -> None:
    """Attached to an engine whose first iteration writes every file."""

    def write(engine: Engine, case: dict) -> None:
        (folder / "out").mkdir(exist_ok=True)
        (folder / "out" / f"{case['case_id'].replace('/', '_')}_seg.nii.gz").write_text(Path(case["image"]).read_text())

    engine = Engine(write)
    OutputFiles(folder / "out", cases, ["seg"]).attach(engine)
    engine.run(cases)


def case(folder: Path, name: str, content: str) -> dict:
    path = folder / f"{name.replace('/', '-')}-{content}.txt"
    path.write_text(content)
    return {"image": str(path), "case_id": name}


def test_the_same_input_may_be_written_again_and_another_may_not(tmp_path: Path) -> None:
    first = case(tmp_path, "T1", "one")
    start(tmp_path, first)
    start(tmp_path, first)
    with pytest.raises(ValueError, match=r"T1_seg\.nii\.gz is there already, made from another input"):
        start(tmp_path, case(tmp_path, "T1", "two"))
    assert (tmp_path / "out" / "T1_seg.nii.gz").read_text() == "one"
    start(tmp_path, case(tmp_path, "T2", "two"))
    start(tmp_path, first)  # still known after a run on others


def test_a_file_that_nobody_recorded_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "T1_seg.nii.gz").write_text("drawn by hand")
    with pytest.raises(ValueError, match="made by what .*outputs.json does not say"):
        start(tmp_path, case(tmp_path, "T1", "one"))
    assert (tmp_path / "out" / "T1_seg.nii.gz").read_text() == "drawn by hand"


@pytest.mark.parametrize("pair", [("a/b", "a_b"), ("T1", "t1")])
def test_two_cases_of_one_name_are_refused_before_the_first_is_written(tmp_path: Path, pair: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="would both be written as"):
        start(tmp_path, *(case(tmp_path, name, str(number)) for number, name in enumerate(pair)))
    assert not (tmp_path / "out").exists()
