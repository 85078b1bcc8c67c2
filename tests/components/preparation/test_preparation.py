from __future__ import annotations

import errno
import functools
import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from small_preparations import SIZE, THREADS, Halve, prepare, raw_folder, stamps, statuses, steps, write_scan

from medical_diffusion_components.data.datasets import load_cases
from medical_diffusion_components.data.splits import SPLITS, split_patients
from medical_diffusion_components.files import unfinished_folder
from medical_diffusion_components.preparation.preparation import Preparation, TooManyRefused, run_or_exit


def test_what_is_made_can_be_trained_on_and_lies_where_the_raw_scan_lay(tmp_path):
    raw_folder(tmp_path)
    prepare(tmp_path)
    cases = [{**case, "split": split} for split in SPLITS for case in load_cases(tmp_path / "out", split)]
    assert {case["case_id"]: case["split"] for case in cases} == split_patients("abcd")
    for case in cases:
        raw, made = nib.load(tmp_path / "raw" / f"{case['case_id']}.nii.gz"), nib.load(case["image"])
        assert (
            made.shape == SIZE and made.get_data_dtype() == np.float32 and nib.aff2axcodes(made.affine) == tuple("RAS")
        )
        (sform, scode), (qform, qcode) = made.get_sform(coded=True), made.get_qform(coded=True)
        assert scode == qcode == 1  # readers that look at one of them only find the same place
        np.testing.assert_allclose(sform, qform, atol=1e-4)
        voxels = made.get_fdata()
        assert voxels.min() == -1 and voxels.max() == 1
        index = np.indices(SIZE).reshape(3, -1)
        there = np.linalg.inv(raw.affine) @ made.affine @ np.vstack([index, np.ones(index.shape[1])])
        expected = ndimage.map_coordinates(ndimage.uniform_filter(raw.get_fdata(), 2), there[:3] + 0.0, order=1)
        assert np.corrcoef(expected, voxels.ravel())[0, 1] > 0.8


def test_a_second_run_leaves_everything_as_it_is(tmp_path):
    raw_folder(tmp_path)
    prepare(tmp_path)
    before, listed = stamps(tmp_path), (tmp_path / "out" / "dataset.json").read_bytes()
    assert set(statuses(prepare(tmp_path)).values()) == {"skipped"}
    assert stamps(tmp_path) == before and (tmp_path / "out" / "dataset.json").read_bytes() == listed


def test_changed_sources_settings_and_results_are_prepared_again_and_nothing_else(tmp_path, capsys):
    raw = raw_folder(tmp_path)
    prepare(tmp_path)
    write_scan(raw / "b.nii.gz", seed=9)
    (tmp_path / "out" / "images" / "c.nii.gz").write_bytes(b"cut short")
    (tmp_path / "out" / "cases" / "d.json").unlink()
    assert statuses(prepare(tmp_path)) == {"a": "skipped", "b": "made", "c": "made", "d": "made"}
    assert set(statuses(prepare(tmp_path, size=(4, 5, 6))).values()) == {"made"}
    assert "4 cases were prepared with other settings" in capsys.readouterr().out
    assert nib.load(tmp_path / "out" / "images" / "a.nii.gz").shape == (4, 5, 6)


def test_a_source_of_the_same_size_and_another_time_is_prepared_again(tmp_path):
    raw = raw_folder(tmp_path, names=("a",))
    path = write_scan(raw / "e.nii", seed=5)
    prepare(tmp_path)
    size = path.stat().st_size
    write_scan(path, seed=9)
    assert path.stat().st_size == size
    assert statuses(prepare(tmp_path)) == {"a": "skipped", "e": "made"}


def test_the_same_scan_gives_the_same_bytes(tmp_path):
    raw_folder(tmp_path)
    prepare(tmp_path)
    path = tmp_path / "out" / "images" / "a.nii.gz"
    first = path.read_bytes()
    path.unlink()
    prepare(tmp_path)
    assert path.read_bytes() == first


def test_bad_cases_are_refused_with_their_reasons_and_the_others_made(tmp_path):
    raw = raw_folder(tmp_path, ("a", "b", "c", "raise"))
    (raw / "empty.nii.gz").write_bytes(b"")
    (raw / "text.nii").write_text("no image")
    (raw / "d.npy").write_bytes(b"")
    report = prepare(tmp_path)
    assert {r.case_id for r in report.results if r.status == "made"} == {"a", "b", "c"}
    reasons = {r.case_id: r.reason for r in report.results if r.reason}
    assert reasons == {"raise": "failed", "empty": "unusable_volume", "text": "unusable_volume", "d": "unusable_volume"}
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["counts"] == {"made": 3, "skipped": 0, "refused": 4, "absent": 0, "aside": 0}
    assert written["refused_share"] == 4 / 7 and written["reasons"] == {"unusable_volume": 3, "failed": 1}
    table = (tmp_path / "out" / "report.md").read_text()
    assert "| raise | refused | failed: KeyError: 'nobody expected this'" in table and str(tmp_path) not in table


def test_the_run_fails_only_beyond_the_allowed_share_and_after_everything_is_written(tmp_path):
    raw_folder(tmp_path, ("a", "b", "c", "raise"))
    with pytest.raises(TooManyRefused, match=r"25.0% of the cases were refused, 24.0% are allowed"):
        prepare(tmp_path, max_refused_share=0.24)
    assert load_cases(tmp_path / "out", "training")
    assert prepare(tmp_path, max_refused_share=0.25).refused_share == 0.25


def test_from_a_configuration_errors_of_the_user_end_the_program_with_one_line(tmp_path):
    with pytest.raises(SystemExit, match="prepare needs --raw_dir"):
        run_or_exit(functools.partial(Preparation, None, None, steps(), THREADS))
    inside = functools.partial(Preparation, tmp_path, tmp_path / "out", steps(), THREADS)
    with pytest.raises(SystemExit, match="must lie outside raw_dir"):
        run_or_exit(inside)


def test_two_results_of_a_case_are_two_entries_of_one_patient_and_old_results_go(tmp_path):
    raw_folder(tmp_path)
    prepare(tmp_path)
    prepare(tmp_path, more=[Halve()])
    listed = [case for split in SPLITS for case in load_cases(tmp_path / "out", split)]
    assert len(listed) == 8 and {case["patient_id"] for case in listed} == set("abcd")
    assert {case["case_id"] for case in listed if case["part"] == "left"} == {"a_left", "b_left", "c_left", "d_left"}
    assert not (tmp_path / "out" / "images" / "a.nii.gz").exists()


def test_nobody_can_train_on_an_unfinished_folder(tmp_path, monkeypatch):
    raw_folder(tmp_path)
    preparation = Preparation(tmp_path / "raw", tmp_path / "out", steps(), THREADS)
    monkeypatch.setattr(preparation, "_write_datalist", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        preparation.run()
    assert len(stamps(tmp_path)) == 4
    with pytest.raises(ValueError, match="lists no cases"):
        load_cases(tmp_path / "out", "training")


def test_a_full_disk_ends_the_run_at_once_names_the_file_and_keeps_what_is_finished(tmp_path, monkeypatch):
    raw_folder(tmp_path)
    sync, written = os.fsync, []

    def full(handle):
        name = Path(os.readlink(f"/proc/self/fd/{handle}")).name
        if name.endswith("c.nii.gz"):
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(name)
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SystemExit, match=r"^prepare: c: cannot write .*images/c.nii.gz .*No space left on device"):
        run_or_exit(lambda: Preparation(tmp_path / "raw", tmp_path / "out", steps(), THREADS, in_flight=1))
    assert not any(name.endswith("d.nii.gz") for name in written), "nothing is tried after it"
    monkeypatch.undo()
    assert statuses(prepare(tmp_path)) == {"a": "skipped", "b": "skipped", "c": "made", "d": "made"}
    assert not [path.name for path in (tmp_path / "out").rglob(".*") if path.name != ".lock"]


def test_what_a_killed_run_has_left_goes_and_hidden_files_of_the_user_stay(tmp_path):
    raw_folder(tmp_path)
    prepare(tmp_path)
    with unfinished_folder(tmp_path / "out" / "images" / "gone.nii.gz") as folder:
        (folder / "gone.nii.gz").write_bytes(b"half")
        left = tmp_path / "out" / "images" / folder.parent.name
        shutil.copytree(left, tmp_path / "copy")
    (tmp_path / "copy").rename(left)  # as a killed process leaves it
    own = [tmp_path / "out" / ".gitignore", tmp_path / "out" / "images" / ".notes"]
    for file in own:
        file.write_text("of the user")
    prepare(tmp_path)
    assert not left.exists() and all(file.read_text() == "of the user" for file in own)


def test_a_result_folder_that_cannot_be_made_is_named(tmp_path):
    raw_folder(tmp_path)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(SystemExit, match=rf"^prepare: .*File exists: '{tmp_path}/out'"):
        run_or_exit(lambda: Preparation(tmp_path / "raw", tmp_path / "out", steps(), THREADS))
