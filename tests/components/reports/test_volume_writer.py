"""Synthetic volumes never lie where a training would take them for patients."""

from __future__ import annotations

import errno
import itertools
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from torch import nn, zeros

from medical_diffusion_components.data import is_synthetic
from medical_diffusion_components.data.volume_notes import note_path, noted_scale
from medical_diffusion_components.reports import SyntheticVolumeWriter, drawing
from medical_diffusion_components.reports.volume_writer import NiftiVolumes
from medical_diffusion_components.weights import save_weights


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return save_weights(nn.Linear(1, 1), tmp_path / "models" / "model.pt", {"data": "patients"})


def sample(folder: Path, weights: Path, seeds: tuple[int, ...] = (3,), release: Any = None) -> SyntheticVolumeWriter:
    """What an evaluation with one volume for each seed writes to ``folder``."""
    evaluator = Engine(lambda engine, seed: None)
    writer = SyntheticVolumeWriter(folder, weights, {"sampler": "ddim"}, release=release)
    writer.attach(evaluator)

    def predict(engine: Engine) -> None:
        engine.state.output = [{"pred": MetaTensor(zeros(1, 2, 3, 4), affine=np.eye(4))}]
        engine.state.batch = [{"seed": engine.state.batch}]

    evaluator.add_event_handler(Events.ITERATION_STARTED, predict)
    evaluator._process_function = lambda engine, batch: engine.state.output
    evaluator.run(list(seeds), max_epochs=1)
    return writer


def test_every_volume_has_a_note_by_which_it_is_known_as_synthetic(tmp_path: Path, weights: Path) -> None:
    writer = sample(tmp_path / "samples", weights, (3, 5))
    assert [path.name for path in writer.written] == ["synthetic_000003.nii.gz", "synthetic_000005.nii.gz"]
    assert all(is_synthetic(path) for path in writer.written)
    assert json.loads((tmp_path / "samples" / "synthetic_000005.json").read_text())["seed"] == 5


def test_a_volume_is_written_as_it_is_and_its_note_says_its_scale(tmp_path: Path) -> None:
    trained = save_weights(nn.Linear(1, 1), tmp_path / "model.pt", {"data": "patients", "window": [-1000.0, 400.0]})
    writer = SyntheticVolumeWriter(tmp_path / "samples", trained, {"sampler": "ddim"}, window=(5.0, 205.0))
    writer.prepare()
    voxels = np.random.default_rng(0).uniform(5, 205, (2, 3, 4)).astype(np.float32)
    affine = np.array([[-2.0, 0, 0, 7], [0, 0, 3, 8], [0, 4, 0, 9], [0, 0, 0, 1]])
    writer.write(12, MetaTensor(voxels[None], affine=affine), 1.23456)
    image = nib.load(tmp_path / "samples" / "synthetic_000012.nii.gz")
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), voxels)
    np.testing.assert_array_equal(image.affine, affine)
    assert image.header.get_xyzt_units()[0] == "mm"
    note = json.loads((tmp_path / "samples" / "synthetic_000012.json").read_text())
    assert {"seed": 12, "sampler": "ddim", "seconds": 1.235, "trained_on": "patients"}.items() <= note.items()
    assert noted_scale(image.get_filename()) == {"intensity_range": [5.0, 205.0], "window": [-1000.0, 400.0]}


def test_volumes_of_a_batch_share_its_time(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, evaluator, seconds = SyntheticVolumeWriter(tmp_path / "samples", weights, {}), Engine(lambda *_: None), []
    monkeypatch.setattr(writer, "write", lambda seed, volume, took, conditions: seconds.append(took))
    monkeypatch.setattr(time, "perf_counter", iter((10.0, 16.0)).__next__)
    evaluator.state.batch = [{"seed": seed} for seed in range(3)]
    evaluator.state.output = [{"pred": zeros(1)}] * 3
    writer._start_clock(evaluator)
    writer(evaluator)
    assert seconds == [2.0] * 3


def test_the_montage_shows_the_first_volumes_as_they_lie(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(drawing, "montage", lambda *given, **named: shown.append((given, named)))
    monkeypatch.setattr(drawing, "save_montage", lambda *_: None)
    writer = SyntheticVolumeWriter(tmp_path / "samples", weights, {}, window=(5.0, 205.0), num_in_montage=2)
    writer.prepare()
    with pytest.raises(ValueError, match=r"no synthetic volume was written to .*samples, so there is none to draw"):
        writer.draw_montage()
    for seed in (8, 4, 6):
        writer.write(seed, MetaTensor(zeros(1, 2, 3, 4) + seed, affine=np.diag([-2.0, 3, 4, 1])), 0.0)
    writer.draw_montage()
    ((rows, spacing, window), named) = shown[0]
    assert [float(volume.max()) for volume in rows["synthetic volumes"]] == [4, 6]
    assert (list(spacing), window, named) == ([2, 3, 4], (5.0, 205.0), {"axcodes": "LAS"})


class EverySecond:
    """A filter that withholds volumes of even seeds and is content with two."""

    def __call__(self, path: Path) -> dict[str, Any] | None:
        return {} if int(path.name.split("_")[1][:6]) % 2 else None

    def enough(self, released: Sequence[Path]) -> bool:
        return len(released) >= 2


@pytest.mark.parametrize(("release", "shown"), [(None, "6/6"), (EverySecond(), "4volume")])
def test_progress_counts_volumes_and_ends_with_the_last(
    release: Any, shown: str, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture
) -> None:
    sample(tmp_path / "samples", weights, (2,))
    writer = sample(tmp_path / "samples", weights, (2, 3, 4, 5, 6, 7), release)
    left = {path.name for path in (tmp_path / "samples").iterdir()}
    assert ("synthetic_000002.nii.gz" in left) == ("synthetic_000002.json" in left) == (release is None)
    last = capsys.readouterr().err.rstrip().split("\r")[-1]
    assert last.startswith("sampling: ") and shown in last and writer.bar is None
    assert len(writer.written) == (6 if release is None else 2)


def test_series_to_which_more_are_added_are_not_said_to_be_left_out(
    tmp_path: Path, weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    series = tmp_path / "samples" / "synthetic_000003"
    series.mkdir(parents=True)
    (series / "0001.dcm").write_bytes(b"looked at by its name alone")
    note_path(series).write_text(json.dumps({"weights_sha256": "ab"}))
    formats = {"dicom": NiftiVolumes()}
    SyntheticVolumeWriter(tmp_path / "samples", weights, {}, output_format="dicom", formats=formats).prepare()
    assert caplog.text == ""


def test_a_folder_of_synthetic_volumes_may_take_more(tmp_path: Path, weights: Path) -> None:
    sample(tmp_path / "samples", weights)
    sample(tmp_path / "samples", weights, (3, 4))
    assert len(list((tmp_path / "samples").glob("*.nii.gz"))) == 2


def test_volumes_of_other_weights_in_the_folder_are_counted(tmp_path: Path, weights: Path, capsys) -> None:
    sample(tmp_path / "samples", weights, (3, 4))
    note = tmp_path / "samples" / "synthetic_000004.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "versions": "of last year"}))
    sample(tmp_path / "samples", weights, (3,)).draw_montage()
    assert "other weights" not in capsys.readouterr().out
    other = save_weights(nn.Linear(1, 1), tmp_path / "other" / "model.pt", {"data": "patients"})
    sample(tmp_path / "samples", other, (3,)).draw_montage()
    assert "remark: 2 volumes there were of other weights or settings; those of equal seeds" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["head.nii", "images/head.nii.gz"])
def test_a_folder_with_other_volumes_is_refused_before_anything_is_written(
    tmp_path: Path, weights: Path, place: str
) -> None:
    file = tmp_path / "prepared" / place
    file.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.ones((2, 3, 4), np.float32), np.eye(4)), file)
    with pytest.raises(
        ValueError, match=f"prepared holds volumes that no note names as synthetic, the first is {file}"
    ):
        sample(tmp_path / "prepared", weights)
    assert [path for path in (tmp_path / "prepared").rglob("*") if path.is_file()] == [file]


def test_a_killed_process_leaves_no_volume_without_a_note(tmp_path: Path, weights: Path, monkeypatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(nib, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        sample(tmp_path / "samples", weights)
    monkeypatch.undo()
    assert list((tmp_path / "samples").iterdir()) == []
    sample(tmp_path / "samples", weights)


def test_a_process_killed_at_any_moment_leaves_no_volume_with_the_note_of_another(
    tmp_path: Path, weights: Path, monkeypatch
) -> None:
    samples, shapes = tmp_path / "samples", {"ddim": (2, 3, 4), "ddpm": (3, 4, 2)}
    volume, note = samples / "synthetic_000003.nii.gz", samples / "synthetic_000003.json"
    replace, found = os.replace, []

    def draw(sampler: str) -> None:
        writer = SyntheticVolumeWriter(samples, weights, {"sampler": sampler})
        writer.prepare()
        writer.write(3, MetaTensor(zeros(1, *shapes[sampler]), affine=np.eye(4)), 1.0)

    def draw_until(number: int, after: bool) -> None:
        """Ends the process before or after its ``number``-th renaming, without any tidying up."""
        renamed = 0

        def counted(source: Path, target: Path) -> None:
            nonlocal renamed
            renamed += 1
            if renamed < number or after:
                replace(source, target)
            if renamed == number:
                os._exit(9)

        monkeypatch.setattr(os, "replace", counted)
        draw("ddpm")
        os._exit(0)

    for number, after in itertools.product(range(1, 7), (False, True)):
        draw("ddim")
        child = os.fork()
        if child == 0:
            try:
                draw_until(number, after)
            finally:
                os._exit(1)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert ended in (0, 9)
        killed = ended == 9
        made = json.loads(note.read_text())["sampler"]  # a note is always there, since it says less than a volume
        found.append((killed, made, volume.exists()))
        if volume.exists():
            assert nib.load(volume).shape == shapes[made]
            assert killed or made == "ddpm"
    assert {(True, "ddim", True), (True, "ddpm", False), (False, "ddpm", True)} <= {*found}


def test_on_a_full_disk_earlier_volumes_keep_their_notes_and_no_note_stands_alone(
    tmp_path: Path, weights: Path, monkeypatch
) -> None:
    sample(tmp_path / "samples", weights, (3,))
    before = {path.name: path.read_bytes() for path in (tmp_path / "samples").iterdir()}
    other = save_weights(nn.Linear(1, 1), tmp_path / "other" / "model.pt", {"data": "patients"})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nib, "save", full)
    for seed in (3, 4):
        with pytest.raises(OSError, match=f"cannot write .*synthetic_00000{seed}.nii.gz .* No space left on device"):
            sample(tmp_path / "samples", other, (seed,))
    assert {path.name: path.read_bytes() for path in (tmp_path / "samples").iterdir()} == before
    monkeypatch.undo()
    sample(tmp_path / "samples", other, (3,))
    notes = json.loads((tmp_path / "samples" / "synthetic_000003.json").read_text())
    assert notes["weights_sha256"] != json.loads(before["synthetic_000003.json"])["weights_sha256"]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == sorted(before)
