"""Features of files: the same from one process or several, each file once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose, Lambdad

from medical_diffusion_components.evaluation import (
    AnatomySpace,
    FeatureReader,
    GeneratorEvaluation,
    features,
    process_pool,
)
from medical_diffusion_components.transforms import LoadVolumed

COUNT = 19  # not a multiple of what a worker gets at once


@pytest.fixture
def cases(tmp_path: Path) -> list[dict]:
    found = []
    for number in range(COUNT):
        volume = np.random.default_rng(number).normal(size=(8, 9, 10)).astype(np.float32)
        file = tmp_path / f"{number}.nii.gz"
        nib.save(nib.Nifti1Image(volume, np.eye(4)), file)
        found.append({"image": str(file), "case_id": str(number)})
    return found


def reader(folder: Path) -> FeatureReader:
    return FeatureReader(Compose([LoadVolumed(keys="image")]), "loaded", {"anatomy": AnatomySpace(4)}, folder)


def files(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("*.npz")}


@pytest.mark.slow
def test_two_processes_find_what_one_finds_and_leave_the_same_files(cases: list[dict], tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    alone = reader(one)(cases, "alone")
    pool = process_pool(2)
    assert pool is not None
    with pool:
        together = reader(two)(cases, "together", pool)
    assert alone.keys() == together.keys() and alone["anatomy"].shape[0] == COUNT
    for name, array in alone.items():
        np.testing.assert_array_equal(array, together[name], err_msg=name)
    assert files(one).keys() == files(two).keys() and len(files(one)) == COUNT


def test_no_process_writes_before_all_have_looked(
    cases: list[dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that looks later would find less to do, share another list than the others, and miss volumes."""
    written: list[int] = []
    monkeypatch.setattr(features, "gathered", lambda _: written.append(len(files(tmp_path / "f"))))
    reader(tmp_path / "f")(cases[:3], "some")
    assert written == [0, 3]


def test_what_is_there_is_not_computed_again(cases: list[dict], tmp_path: Path) -> None:
    reader(tmp_path / "f")(cases[:5], "some")
    before = files(tmp_path / "f")
    found = reader(tmp_path / "f")(cases[:7], "more")
    after = files(tmp_path / "f")
    assert len(after) == 7 and {name: after[name] for name in before} == before
    assert len(found["anatomy"]) == 7
    Path(cases[0]["image"]).write_bytes(Path(cases[6]["image"]).read_bytes())
    np.testing.assert_array_equal(reader(tmp_path / "f")(cases[:1], "changed")["anatomy"], found["anatomy"][6:])


def test_features_of_other_preprocessing_or_spaces_are_not_taken(cases: list[dict], tmp_path: Path) -> None:
    def found(text: str, sign: int, side: int) -> np.ndarray:
        preprocessing = Compose([LoadVolumed(keys="image"), Lambdad(keys="image", func=lambda image: sign * image)])
        read = FeatureReader(preprocessing, text, {"anatomy": AnatomySpace(side)}, tmp_path / "f")
        return read(cases[:1], "one")["anatomy"]

    loaded = found("loaded", 1, 4)
    np.testing.assert_allclose(found("negated", -1, 4), -loaded, rtol=1e-6)
    assert found("loaded", 1, 2).shape != loaded.shape


def test_no_workers_are_this_process() -> None:
    assert process_pool(0) is None


def test_workers_end_with_the_features_whatever_happens(tmp_path: Path) -> None:
    """Left to the end of Python, processes of a pool that is not closed may wait for ever in one that was forked."""
    some = [{"image": f"{number}.nii.gz", "patient_id": number} for number in range(5)]
    unreadable: Any = SimpleNamespace(spaces={}, check=lambda *_: None)  # to be called with cases is an error
    pool = ThreadPoolExecutor(1)
    evaluation = GeneratorEvaluation(
        unreadable, some, some, lambda: some, tmp_path, {"reference": "test"}, executor=pool
    )
    with pytest.raises(TypeError, match="not callable"):
        evaluation.run()
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(print)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 the first half", b"no archive"])
def test_damaged_features_are_named(content: bytes, cases: list[dict], tmp_path: Path) -> None:
    made = reader(tmp_path / "cache")
    made(cases[:1], "first")
    [file] = (tmp_path / "cache").glob("*.npz")
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file.name} holds no features .*: delete it, and it is made again"):
        made(cases[:1], "again")
