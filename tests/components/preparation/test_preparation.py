from __future__ import annotations

import functools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_fuzzing import malformed_copy
from dicom_writing import write_series
from filelock import FileLock
from scipy import ndimage
from scipy.spatial.transform import Rotation

from medical_diffusion_components.data.datasets import load_cases
from medical_diffusion_components.data.splits import SPLITS, split_patients
from medical_diffusion_components.preparation import preparation as module
from medical_diffusion_components.preparation.case import start_worker
from medical_diffusion_components.preparation.duplicates import Checked
from medical_diffusion_components.preparation.manifests import Manifest, write_manifest
from medical_diffusion_components.preparation.preparation import Preparation, TooManyRefused, run_or_exit
from medical_diffusion_components.preparation.steps.load_scan import LoadScand
from medical_diffusion_components.preparation.steps.load_slice_stack import LoadSliceStack
from medical_diffusion_components.preparation.steps.resample import Resampled
from medical_diffusion_components.preparation.steps.scale_to_range import ScaleToRanged

SIZE = (6, 5, 4)
THREADS = functools.partial(ThreadPoolExecutor, 2)
OBLIQUE = np.eye(4)  # left, posterior, superior, tilted
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", (8, -5, 12), degrees=True).as_matrix() @ np.diag([-0.8, -1.4, 3.1])
OBLIQUE[:3, 3] = -20, 7, 100


class Trouble:
    """A step that misbehaves on the cases named for it."""

    def __call__(self, data):
        case = data["case_id"]
        if "crash" in case:
            os._exit(9)
        if "raise" in case:
            raise KeyError("nobody expected this")
        if "slow" in case:
            time.sleep(1.0)
        return data


class Halve:
    def __call__(self, data):
        return [{**data, "part": part} for part in ("right", "left")]


def steps(size=SIZE, *more):
    return [LoadScand("image"), Trouble(), Resampled("image", size=size), ScaleToRanged("image"), *more]


def processes():
    """As the configurations' pool, but from a server that imports what takes seconds only once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(2, mp_context=context, initializer=start_worker, initargs=(8.0,))


def write_scan(path, seed=0, shape=(12, 10, 8), affine=OBLIQUE):
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def raw_folder(tmp_path, names=("a", "b", "c", "d")):
    for seed, name in enumerate(names):
        write_scan(tmp_path / "raw" / f"{name}.nii.gz", seed)
    return tmp_path / "raw"


def prepare(tmp_path, executor=THREADS, size=SIZE, max_refused_share=1.0, more=(), **options):
    folders = (tmp_path / "raw", tmp_path / "out")
    return Preparation(*folders, steps(size, *more), executor, max_refused_share=max_refused_share, **options).run()


def statuses(report):
    return {result.case_id: result.status for result in report.results}


def stamps(tmp_path):
    return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "images").iterdir()}


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


def test_splits_patients_and_licence_of_a_manifest_are_kept_and_absent_cases_counted(tmp_path):
    raw_folder(tmp_path, ("a", "b", "c"))
    keys = ("name", "description", "version", "licence", "access", "reference", "built_from", "split")
    places = zip("abcde", ("test", "training", "validation", "test", "training"))
    cases = [
        {"case_id": f"case_{c}", "patient_id": f"patient_{c}", "split": s, "source": {"path": f"{c}.nii.gz"}}
        for c, s in places
    ]
    write_manifest(Manifest(dict.fromkeys(keys, "CC BY"), tuple(cases)), tmp_path / "manifest.json")
    report = prepare(tmp_path, manifest=tmp_path / "manifest.json")
    assert (
        report.counts == {"made": 3, "skipped": 0, "refused": 0, "absent": 2, "aside": 0}
        and report.refused_share == 0.4
    )
    listed = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert [[case["case_id"] for case in listed[s]] for s in SPLITS] == [["case_b"], ["case_c"], ["case_a"]]
    assert listed["licence"] == "CC BY" and listed["test"][0]["patient_id"] == "patient_a"
    assert prepare(tmp_path, manifest=tmp_path / "manifest.json", allow_absent=True).refused_share == 0


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


def test_two_runs_cannot_write_to_one_folder(tmp_path):
    raw_folder(tmp_path)
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(BlockingIOError, match="another process is preparing"):
        prepare(tmp_path)
    prepare(tmp_path)
    with FileLock(tmp_path / "out" / ".lock", timeout=0):
        assert stamps(tmp_path), "the lock is free again when a run has ended"


def test_a_companion_file_reaches_the_steps_of_its_case_alone(tmp_path):
    seen = {}

    class Look:
        def __call__(self, data):
            seen[data["case_id"]] = data.get("mask")
            return data

    raw_folder(tmp_path, ("a", "b", "c"))
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "b_outline.nii").write_bytes(b"x")
    masks = f"{tmp_path}/masks/{{case_id}}_outline.nii"
    prepare(tmp_path, more=[Look()], companions={"mask": masks, "other": None})
    assert seen == {"a": None, "b": masks.replace("{case_id}", "b"), "c": None}


def test_200_malformed_inputs_are_refused_or_read_as_if_whole(tmp_path, monkeypatch):
    # what was read as if whole is the same volume many times: here all are kept, to be compared
    def keep_all(results, *_):
        return Checked(sorted(results, key=lambda result: result.case_id), None)

    monkeypatch.setattr(module, "leave_duplicates", keep_all)
    rng = np.random.default_rng(0)
    raw, whole = tmp_path / "raw", tmp_path / "whole"
    write_scan(whole / "nifti.nii.gz", shape=(20, 16, 12))
    np.save(whole / "array.npy", rng.integers(0, 255, (9, 12, 10), dtype=np.uint8))
    write_series(whole / "dicom", rng.integers(0, 900, (12, 10, 6)), np.diag([-1.0, -1, 2, 1]), modality="MR")
    raw.mkdir()
    uid = pydicom.dcmread(next((whole / "dicom").iterdir())).SeriesInstanceUID.encode()
    for number in range(200):
        kind = ("nifti.nii.gz", "array.npy", "dicom")[number % 3]
        target = raw / f"{number:03d}-{kind}"
        if kind == "dicom":
            malformed_copy(whole / "dicom", target, rng)
            for file in target.rglob("*"):  # each a series of its own, of the same length
                file.write_bytes(file.read_bytes().replace(uid, uid[:-3] + b"%03d" % number))
            continue
        content = bytearray((whole / kind).read_bytes())
        damage = number // 3 % 4
        if damage == 0:
            content = content[: rng.integers(len(content))]
        elif damage == 1:
            for bit in rng.integers(0, 8 * (len(content) if kind[0] == "n" else 80), size=rng.integers(1, 4)):
                content[bit // 8] ^= 1 << (bit % 8)
        elif damage == 2:
            content = rng.bytes(rng.integers(0, 2000))
        else:
            start = rng.integers(len(content) if kind[0] == "n" else 100)
            content = content[:start] + content[start + 1 :]
        target.write_bytes(content)
    load = LoadScand("image", slice_stack=LoadSliceStack((1, 1, 2), "PSR"))
    chain = [load, Resampled("image", size=SIZE), ScaleToRanged("image")]
    good = Preparation(whole, tmp_path / "good", chain, THREADS).run()
    expected = {result.case_id: result.outputs[0]["sha256"] for result in good.results}
    report = Preparation(raw, tmp_path / "out", chain, THREADS, max_refused_share=1.0).run()
    assert {result.case_id.split("-")[1].split("_")[0] for result in report.results} == {"nifti", "array", "dicom"}
    made = [result for result in report.results if result.status == "made"]
    assert report.counts["refused"] > 150 and report.counts["refused"] + len(made) == len(report.results) >= 200
    for result in made:
        kind = result.case_id.split("-")[1].split("_")[0]
        assert result.outputs[0]["sha256"] == expected[kind], result.case_id
    assert not {"failed", "crashed", "worker_failed"} & {result.reason for result in report.results}


@pytest.mark.slow
def test_a_process_that_dies_takes_only_its_own_case_with_it(tmp_path):
    raw_folder(tmp_path, ("a", "b", "c", "crash", "d", "e", "f", "raise"))
    report = prepare(tmp_path, processes, in_flight=4)
    assert {r.case_id: r.reason for r in report.results if r.status != "made"} == {
        "crash": "crashed",
        "raise": "failed",
    }
    assert report.counts["made"] == 6
    assert 100 < report.peak_mib < 3000
    assert set(report.shares) == {"reading", "resampling", "writing", "other"}
    assert sum(report.shares.values()) == pytest.approx(1)


def run_slowly(folder):
    """What the test below kills."""
    prepare(Path(folder), processes)


@pytest.mark.slow
def test_killed_with_kill_9_it_goes_on_where_it_stopped_and_leaves_no_process_behind(tmp_path):
    raw_folder(tmp_path, [f"slow{n}" for n in range(8)])
    code = f"import test_preparation as t; t.run_slowly({str(tmp_path)!r})"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    run = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, start_new_session=True)
    notes = tmp_path / "out" / "cases"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and (not notes.is_dir() or len(list(notes.glob("[!.]*.json"))) < 2):
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    while time.monotonic() < deadline and _group(run.pid):
        time.sleep(0.1)
    assert not _group(run.pid)
    finished = len(list(notes.glob("[!.]*.json")))
    (tmp_path / "out" / "images" / ".half.gz").write_bytes(b"x")
    report = prepare(tmp_path)
    assert 2 <= finished < 8 and report.counts["skipped"] == finished and report.counts["made"] == 8 - finished
    assert sorted(stamps(tmp_path)) == sorted(f"slow{n}.nii.gz" for n in range(8))


def _group(group):
    """Living processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(stat.parent.name)
    return found


@pytest.mark.slow
def test_a_dask_cluster_of_two_workers_gives_the_same_bytes(tmp_path):
    distributed = pytest.importorskip("distributed")
    raw_folder(tmp_path, ("a", "b", "c", "d", "raise"))
    here = prepare(tmp_path)
    (tmp_path / "out").rename(tmp_path / "threads")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        there = prepare(tmp_path, client.get_executor)
    assert {r.case_id: (r.status, r.outputs) for r in there.results} == {
        r.case_id: (r.status, r.outputs) for r in here.results
    }


def test_companions_that_no_case_has_are_an_error_and_those_that_some_lack_a_remark(tmp_path):
    raw_folder(tmp_path, ("a", "b", "c"))
    with pytest.raises(ValueError, match="mask: none of the 3 cases has the file"):
        prepare(tmp_path, companions={"mask": f"{tmp_path}/maks/{{case_id}}.nii"})
    with pytest.raises(ValueError, match="the same file for every case"):
        prepare(tmp_path, companions={"mask": str(tmp_path / "raw" / "a.nii.gz")})
    write_scan(tmp_path / "raw" / "b_outline.nii.gz", 8)
    report = prepare(tmp_path, companions={"mask": f"{tmp_path}/raw/{{case_id}}_outline.nii.gz"})
    assert set(statuses(report)) == {"a", "b", "c"}  # the companion is no case
    assert "mask: 1 of 3 cases have one, 2 have none" in report.inventory.remarks
    assert report.files["aside"] == {"companion of a case (mask)": 1}


def test_a_volume_that_is_there_twice_is_kept_once(tmp_path):
    raw_folder(tmp_path)
    shutil.copy(tmp_path / "raw" / "a.nii.gz", tmp_path / "raw" / "z_copy.nii.gz")
    image = nib.load(tmp_path / "raw" / "b.nii.gz")
    turned = image.as_reoriented([[1, -1], [0, 1], [2, -1]])
    nib.save(nib.Nifti1Image(turned.get_fdata(), turned.affine), tmp_path / "raw" / "y_turned.nii.gz")  # float64
    report = prepare(tmp_path)
    assert {r.case_id: r.text for r in report.results if r.status == "aside"} == {
        "y_turned": "the same volume as case b",
        "z_copy": "the same volume as case a",
    }
    assert set(stamps(tmp_path)) == {f"{name}.nii.gz" for name in "abcd"} and report.refused_share == 0


def manifest_of(tmp_path, splits):
    keys = ("name", "description", "version", "licence", "access", "reference", "built_from", "split")
    cases = [
        {"case_id": name, "patient_id": f"patient_{name}", "split": split, "source": source}
        for name, split, source in splits
    ]
    write_manifest(Manifest(dict.fromkeys(keys, "x"), tuple(cases)), tmp_path / "manifest.json")
    return tmp_path / "manifest.json"


def test_the_same_volume_in_two_splits_of_a_manifest_is_an_error_that_names_both(tmp_path):
    raw_folder(tmp_path, ("a", "b", "c"))
    shutil.copy(tmp_path / "raw" / "a.nii.gz", tmp_path / "raw" / "d.nii.gz")
    places = zip("abcd", ("training", "validation", "test", "test"))
    manifest = manifest_of(tmp_path, [(name, split, {"path": f"{name}.nii.gz"}) for name, split in places])
    with pytest.raises(ValueError, match=r"a \(training\) and d \(test\) are the same volume"):
        prepare(tmp_path, manifest=manifest)
    with pytest.raises(ValueError, match="lists no cases"):
        load_cases(tmp_path / "out", "training")


def test_one_study_in_two_splits_of_a_manifest_is_an_error_that_names_both(tmp_path):
    rng = np.random.default_rng(0)
    splits = []
    for number, split in enumerate(("training", "validation", "test", "test")):
        volume = rng.integers(0, 99, (6, 5, 4))
        options = {"patient_id": str(number), "series_uid": f"1.2.{number}", "study_uid": f"1.9.{number % 3}"}
        write_series(tmp_path / "raw" / str(number), volume, np.diag([1.0, 1, 2, 1]), **options)
        splits.append((f"c{number}", split, {"series_uid": f"1.2.{number}"}))
    with pytest.raises(ValueError, match=r"c0 \(training\) and c3 \(test\) are of one study"):
        prepare(tmp_path, manifest=manifest_of(tmp_path, splits))


def test_broken_links_above_the_allowed_share_are_an_error_before_anything_is_made(tmp_path):
    raw = raw_folder(tmp_path)
    (raw / "gone").symlink_to(raw / "nowhere")
    with pytest.raises(ValueError, match="1 links in .* point nowhere, beside 4 cases"):
        prepare(tmp_path, max_refused_share=0.1)
    assert not (tmp_path / "out" / "images").exists()
    assert prepare(tmp_path, max_refused_share=0.2).files["aside"] == {"broken link": 1}


@pytest.mark.parametrize("value", [20231101, 2023.5, True, ["a"]])
def test_a_folder_that_the_command_line_took_for_something_else_is_explained(tmp_path, value):
    with pytest.raises(ValueError, match=r"Write \./ before the name"):
        Preparation(value, tmp_path / "out", steps(), THREADS)
