"""A copy of a scan is known again whatever was done to it short of resampling; two scans are never one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from small_preparations import prepare

from medical_diffusion_components.cohorts import resolve_dataset
from medical_diffusion_components.preparation import same_scan
from medical_diffusion_components.preparation.same_scan import in_two_splits, landmarks, same_scans, to_text

SIZE = (30, 26, 28)


def scan(seed: int) -> np.ndarray:
    """A smooth body with texture of its own."""
    rng = np.random.default_rng(seed)
    body = ndimage.gaussian_filter(rng.normal(size=SIZE), 6) * 200
    return (body + ndimage.gaussian_filter(rng.normal(size=SIZE), 0.8) * 5).astype(np.float32)


def to_whole(volume: np.ndarray, levels: int) -> np.ndarray:
    return np.round((volume - volume.min()) / np.ptp(volume) * levels).astype(np.int16)


COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "another format": lambda volume: volume.astype(np.float64),
    "mirrored": lambda volume: volume[::-1],
    "turned": lambda volume: np.rot90(volume, axes=(0, 2)),
    "upside down": lambda volume: volume[:, ::-1, ::-1],
    "cut": lambda volume: volume[4:, :22, 3:25],
    "rescaled": lambda volume: volume * 3.7 - 1024,
    "whole numbers": lambda volume: to_whole(volume, 4000),
    "mirrored, cut and rescaled": lambda volume: to_whole(volume[:, ::-1, 5:], 2000),
    "a time series of one": lambda volume: volume[..., None],
}


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_in_another_split_is_found(kind: str, tmp_path: Path) -> None:
    volumes = [*(scan(seed) for seed in range(5)), COPIES[kind](scan(2))]
    for number, volume in enumerate(volumes):
        nib.save(nib.Nifti1Image(np.ascontiguousarray(volume), np.eye(4)), tmp_path / f"{number}.nii.gz")
    files = [f"{number}.nii.gz" for number in range(6)]
    listing = {"training": files[:3], "validation": files[3:4], "test": files[4:]}
    (tmp_path / "dataset.json").write_text(json.dumps(listing))
    with pytest.raises(
        ValueError, match=r"1 pair\(s\) .* the same scan in two splits, the first is 2 and 5 .*mirrored"
    ):
        resolve_dataset(str(tmp_path), str(tmp_path / "out"), 3, SIZE)
    (tmp_path / "dataset.json").write_text(
        json.dumps(listing | {"training": files[:3] + files[5:], "test": files[4:5]})
    )
    assert resolve_dataset(str(tmp_path), str(tmp_path / "out"), 3, SIZE) == str(tmp_path), "in one split it may be"


def test_scans_are_compared_again_only_when_a_file_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        spacing = np.diag([1.0 + number, 1, 1, 1])
        nib.save(nib.Nifti1Image(scan(number), spacing), tmp_path / f"{number}.nii.gz")
    listing = {split: [f"{number}.nii.gz"] for number, split in enumerate(("training", "validation", "test"))}
    (tmp_path / "dataset.json").write_text(json.dumps(listing))
    compared = []
    monkeypatch.setattr(same_scan, "in_two_splits", lambda *args: compared.append(1) or in_two_splits(*args))

    def remarked() -> int:
        caplog.clear()
        resolve_dataset(str(tmp_path), str(tmp_path / "out"), 3, SIZE)
        return caplog.text.count("voxels are of several sizes")

    assert [remarked(), remarked(), len(compared)] == [1, 1, 1], "said each time, read once"
    nib.save(nib.Nifti1Image(scan(7), np.diag([2.0, 1, 1, 1])), tmp_path / "1.nii.gz")
    assert [remarked(), remarked(), len(compared)] == [1, 1, 2]
    [memory] = (tmp_path / "out").iterdir()
    memory.write_text("{")
    assert [remarked(), len(compared)] == [1, 3]
    nib.save(nib.Nifti1Image(scan(0)[::-1].copy(), np.eye(4)), tmp_path / "2.nii.gz")
    for _ in range(2):
        with pytest.raises(ValueError, match="the first is 0 and 2"):
            resolve_dataset(str(tmp_path), str(tmp_path / "out"), 3, SIZE)


@pytest.mark.parametrize("kind", ["mirrored", "cut", "rescaled"])
def test_preparation_takes_copies_for_one_patient_and_says_so(kind: str, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    for name, volume in {"a": scan(0), "b": scan(1), "c": scan(2), "x": COPIES[kind](scan(1))}.items():
        nib.save(nib.Nifti1Image(np.ascontiguousarray(volume), np.eye(4)), tmp_path / "raw" / f"{name}.nii.gz")
    report = prepare(tmp_path)
    there = {result.case_id: result for result in report.results}
    if there["x"].status == "aside":  # rescaled, it is the same volume once it is prepared
        assert kind == "rescaled" and "the same volume as case b" in there["x"].text
        return
    assert there["x"].patient_id == there["b"].patient_id and len({r.patient_id for r in report.results}) == 3
    assert "b and x are one scan, perhaps mirrored, cut or rescaled" in (tmp_path / "out" / "report.md").read_text()


def test_scans_of_different_people_are_different() -> None:
    places = {str(seed): landmarks(scan(seed)) for seed in range(30)}
    assert min(map(len, places.values())) >= 40 and same_scans(places) == []


def test_smooth_pictures_and_what_all_have_in_common_say_nothing() -> None:
    assert len(landmarks(np.full(SIZE, 7.0))) == len(landmarks(ndimage.gaussian_filter(scan(0), 12)[::12])) == 0
    stamp = scan(99)[:14]
    places = {}
    for seed in range(8):
        volume = scan(seed)
        volume[:14] = stamp * 20  # brighter than the rest
        places[str(seed)] = landmarks(volume)
    assert same_scans(places) == []


def test_landmarks_survive_as_text_and_none_is_none() -> None:
    one = landmarks(scan(0))
    assert same_scans({"a": to_text(one), "b": landmarks(scan(0)[::-1]), "c": "", "d": one[:0]}) == [("a", "b")]
    assert same_scans({}) == same_scans({"a": ""}) == []


def test_a_file_that_cannot_be_read_is_left_to_whoever_loads_it(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(b"no image")
    (tmp_path / "b.nii").write_bytes(b"no image")
    cases = {name: [{"image": tmp_path / f"{name}.nii", "case_id": name}] for name in "ab"}
    assert in_two_splits(cases) == [("a", "b")], "their bytes are equal all the same"
