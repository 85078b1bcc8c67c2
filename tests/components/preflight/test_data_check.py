"""`check` on folders whose content is known, against counts, against files, and against `prepare` itself."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from dicom_writing import write_series
from folders_to_check import GRID, LPS, SECRET, all_kinds, good_heads, head, nifti, plant_outliers
from matplotlib.image import imread
from monai.bundle import ConfigParser, ConfigWorkflow

from medical_diffusion_components.preflight import data_check, look, prepared, read_facts, warn_of_absent_classes
from medical_diffusion_components.preflight.advice import advice_for
from medical_diffusion_components.preflight.headers import without_identifiers
from medical_diffusion_components.preflight.rehearsal import Estimate
from medical_diffusion_components.preparation import take_inventory
from medical_diffusion_components.preparation.case_ids import short_hash
from medical_diffusion_components.preparation.same_scan import in_two_splits
from medical_diffusion_components.preparation.steps import LoadScan
from medical_diffusion_components.transforms import LoadVolume

ROOT = Path(__file__).parents[3]
THREADS = {"_target_": "concurrent.futures.ThreadPoolExecutor", "_mode_": "callable", "max_workers": 1}


def run(folder, run_id="check", file="prepare.yaml", bundle="adni_ldm", **settings):
    workflow = ConfigWorkflow(
        config_file=str(ROOT / "bundles" / bundle / "configs" / file),
        meta_file=None,
        logging_file=False,
        run_id=run_id,
        **({"report_dir": str(folder / "report")} if run_id == "check" else {}),
        **settings,
    )
    workflow.initialize()
    workflow.run()
    return json.loads((folder / "report" / "check.json").read_text()) if run_id == "check" else None


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if "report" not in path.parts and path.exists()}


def in_red(path):
    picture = imread(path)[..., :3]
    return ((picture[..., 0] > 0.9) & (picture[..., 1] < 0.4)).sum()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    written = all_kinds(folder / "raw")
    before = snapshot(folder)
    report = run(folder, raw_dir=str(folder / "raw"), image_size=[16, 16, 16], look_seconds=60.0)
    return folder, written, before, report


def test_what_is_found_is_what_was_written(mixed):
    folder, written, _, report = mixed
    found = report["found"]
    assert {key: found[key] for key in written} == written
    files = [path for path in (folder / "raw").rglob("*") if path.is_symlink() or path.is_file()]
    assert found["files seen"] == len(files) == found["files of scans"] + sum(found["files left aside"].values())
    assert found["files left aside"] == {
        "series of fewer than 3 slices (localiser, screenshot)": 2,
        "DICOM without a scan (RT Structure Set)": 1,
        "archive, not opened": 1,
        "broken link": 1,
        "hidden": 1,
        "label map": 1,
        "other file (text, table, picture)": 1,
    }
    assert report["tables"]["format"]["values"] == {"NIfTI": 7, "DICOM": 3}
    assert report["tables"]["size (voxels right x front x up)"]["values"] == {"28x34x24": 10}


def test_nothing_is_written_but_the_report(mixed):
    folder, _, before, _ = mixed
    assert snapshot(folder) == before
    assert {p.name for p in (folder / "report").iterdir()} == {"check.json", "check.md", "contact_sheet.png"}


def test_no_identifier_of_a_header_is_in_the_report(mixed):
    text = "".join((mixed[0] / "report" / name).read_text() for name in ("check.json", "check.md"))
    for identifier in (SECRET, "MILLER", "SMITH", "1.2.826.0.1.9", str(mixed[0])):
        assert identifier not in text


@pytest.mark.slow
def test_what_prepare_refuses_is_refused_beforehand_with_the_knob_to_set(mixed, tmp_path):
    folder, _, _, report = mixed
    settings = {"raw_dir": str(folder / "raw"), "image_size": [16, 16, 16], "executor": THREADS}
    run(folder, "prepare", dataset_dir=str(tmp_path / "out"), max_refused_share=1.0, **settings)
    cases = json.loads((tmp_path / "out" / "report.json").read_text())["cases"]
    assert set(report["refused"]) == {c["case_id"] for c in cases if c["status"] == "refused"} == {"contradiction"}
    assert "--affine_from" in report["refused"]["contradiction"]["advice"]
    last = (folder / "report" / "check.md").read_text().splitlines()[-1]
    assert last.startswith("To do: ") and "contradiction" in last and not report["ready"]
    assert "1 links point nowhere" in last and "10.0% of the scans would be refused, 5.0% may be" in last
    assert imread(tmp_path / "out" / "contact_sheet.png").any(), "prepare draws what it made"


@pytest.mark.slow
def test_a_head_on_its_side_and_a_spacing_in_metres_are_named_and_framed(tmp_path):
    good_heads(tmp_path / "raw", 8)
    run(tmp_path, raw_dir=str(tmp_path / "raw"), look_seconds=30.0)
    assert in_red(tmp_path / "report" / "contact_sheet.png") == 0
    plant_outliers(tmp_path / "raw")
    report = run(tmp_path, raw_dir=str(tmp_path / "raw"), look_seconds=30.0)
    assert set(report["outliers"]) == {"sub-90_T1w", "sub-91_T1w"}
    assert any("fits the others better when turned" in why for why in report["outliers"]["sub-90_T1w"])
    assert "0.006 mm (median 6)" in report["outliers"]["sub-91_T1w"][0]
    assert in_red(tmp_path / "report" / "contact_sheet.png") > 1000
    assert report["refused"].keys() == {"sub-91_T1w"}


def test_a_folder_without_fault_is_ready(tmp_path):
    good_heads(tmp_path / "raw", 8)
    report = run(tmp_path, raw_dir=str(tmp_path / "raw"), look_seconds=30.0)
    assert report["ready"] and report["outliers"] == report["refused"] == {}
    assert (tmp_path / "report" / "check.md").read_text().splitlines()[-1] == "Ready."


def test_disk_is_needed_for_what_is_prepared(tmp_path):
    def check():
        report = run(tmp_path, raw_dir=str(tmp_path / "raw"), look_seconds=30.0)
        return report["room"]["disk for the result"].partition(" MiB")[0], len(report["refused"]), len(report["aside"])

    good_heads(tmp_path / "raw", 4)
    needed, *_ = check()
    assert float(needed) > 1
    for seed in (10, 11):  # their headers are good
        cut, empty = (tmp_path / "raw" / f"sub-{number}_T1w.nii.gz" for number in (seed, seed + 5))
        nifti(cut, head(seed))
        cut.write_bytes(cut.read_bytes()[:-2000])
        nifti(empty, np.full_like(head(seed), 7))
    assert check() == (needed, 2, 2)


def test_too_few_patients_too_little_memory_and_a_report_among_the_scans_are_said(tmp_path):
    good_heads(tmp_path / "raw", 2)
    report = run(tmp_path, raw_dir=str(tmp_path / "raw"), worker_memory_gib=0.1)
    assert report["to_do"][0].startswith("2 patient(s)") and "--worker_memory_gib" in report["to_do"][1]
    with pytest.raises(SystemExit, match="outside raw_dir"):
        run(tmp_path / "raw", raw_dir=str(tmp_path / "raw"))


def test_header_facts_are_those_of_the_volume_that_is_read(tmp_path):
    oblique = nib.affines.from_matvec(np.array([[0, 0, 3.0], [-1, 0, 0], [0, 2, 0]]), (5, 6, 7))
    nifti(tmp_path / "raw" / "a.nii.gz", head(1), oblique)
    axial = np.diag([-1.0, -2.0, 4.0, 1.0])
    write_series(tmp_path / "raw" / "b", head(2), axial, modality="MR", patient_id="x")
    load = LoadScan()
    for case in take_inventory(tmp_path / "raw").cases:
        facts = read_facts(case, load, tmp_path / "raw")
        volume = load(case.scan)
        assert facts.shape == tuple(volume.shape[1:])
        assert facts.spacing == pytest.approx(np.linalg.norm(np.asarray(volume.affine)[:3, :3], axis=0))
    assert (facts.plane, facts.modality, facts.orientation) == ("axial", "MR", "LPS")


@pytest.mark.slow
def test_a_thousand_files_are_checked_in_ten_seconds_of_processor_time(tmp_path):
    good_heads(tmp_path / "raw", 20)
    for number in range(20, 1000):
        (tmp_path / "raw" / f"sub-{number}_T1w.nii.gz").hardlink_to(
            tmp_path / "raw" / f"sub-{number % 20:02d}_T1w.nii.gz"
        )
    started = time.process_time()
    report = run(tmp_path, raw_dir=str(tmp_path / "raw"))
    assert time.process_time() - started < 10
    assert report["found"]["scans"] == 1000


def test_a_folder_to_train_on_is_checked_for_the_size_that_training_wants(tmp_path):
    for seed in range(7):
        nifti(tmp_path / "data" / f"c{seed}.nii.gz", head(seed).astype(np.float32), GRID)
    nifti(tmp_path / "data" / "small.nii.gz", head(8)[:20].astype(np.float32), GRID)
    settings = {"file": "train.yaml", "dataset_dir": str(tmp_path / "data"), "look_seconds": 30.0}
    report = run(tmp_path, image_size=[28, 34, 24], **settings)
    assert set(report["refused"]) == {"small"} and "20 x 34 x 24" in report["refused"]["small"]["why"]
    assert sum(report["found"]["volumes"].values()) == 8
    assert list(report["room"])[1:] == [f"peak memory of a training step, {s}" for s in ("first stage", "diffusion")]
    swin = run(tmp_path, bundle="swin_unetr_pretrain", roi_size=[64, 32, 32], **settings)
    assert len(swin["refused"]) == 8


def test_one_volume_in_two_splits_is_named(tmp_path):
    volumes = {}
    for number, name in enumerate("abcd"):
        volumes[name] = tmp_path / f"{name}.nii"
        nib.save(nib.Nifti1Image(np.full((6, 5, 4), number % 3, np.int16), np.eye(4)), volumes[name])
    splits = {"training": "ab", "validation": "c", "test": "d"}  # d holds what a does
    cases = {split: [{"image": str(volumes[n]), "case_id": n} for n in names] for split, names in splits.items()}
    assert in_two_splits(cases) == [("a", "d")]


def test_a_class_of_which_no_label_has_a_voxel_is_named(tmp_path, caplog):
    cases = []
    for value in (0, 1, 5):
        label = np.zeros((4, 5, 6), np.uint8)
        label[1:3] = value
        nib.save(nib.Nifti1Image(label, np.eye(4)), tmp_path / f"{value}.nii")
        cases.append({"image": "", "label": str(tmp_path / f"{value}.nii")})
    classes = {"background": 0, "liver": 1, "vessel": 2, "lesion": 3}
    warn_of_absent_classes(cases[:2], classes)
    assert "no voxel of vessel, lesion is in any of 2 training labels" in caplog.text
    caplog.clear()
    warn_of_absent_classes([*cases[:2], {"label": "never read"}], {"background": 0, "liver": 1})
    with pytest.raises(ValueError, match="classes must be names with their numbers"):
        warn_of_absent_classes(cases, ["background", "liver"])
    assert not caplog.records


def test_labels_are_looked_at_for_no_longer_than_there_is_time(tmp_path, monkeypatch):
    for number in range(6):
        nifti(tmp_path / f"{number}.nii.gz", head(number), LPS)
        nifti(tmp_path / f"{number}_seg.nii.gz", np.full(head(number).shape, number % 2, np.uint8), LPS)
    splits = ["training"] * 4 + ["validation", "test"]
    listed = {split: [] for split in splits}
    for number, split in enumerate(splits):
        case = {"image": f"{number}.nii.gz", "label": f"{number}_seg.nii.gz", "patient_id": f"p{number}"}
        listed[split].append(case)
    (tmp_path / "dataset.json").write_text(json.dumps(listed))
    read, clock = [], SimpleNamespace(now=0.0)

    class Slow(LoadVolume):
        def __call__(self, path):
            clock.now += 1.0
            read.append(Path(path).name)
            return super().__call__(path)

    monkeypatch.setattr(prepared, "LoadVolume", Slow)
    monkeypatch.setattr(look, "time", SimpleNamespace(monotonic=lambda: clock.now))
    classes = {"background": 0, "organ": 1, "liver": 2}
    check = prepared.TrainingCheck(tmp_path, tmp_path / "report", classes=classes, look_seconds=2.5)
    assert list(check.run().remarks) == ["no voxel of liver is in any of the 2 of 4 training labels looked at"]
    assert read == ["0_seg.nii.gz", "1_seg.nii.gz"]


def test_training_on_no_folder_has_nothing_to_check(tmp_path):
    with pytest.raises(SystemExit, match="dataset_dir"):
        run(tmp_path, file="train.yaml")


def test_a_series_with_a_gap_is_refused_by_its_headers_without_its_identifiers(tmp_path):
    uid = "1.2.826.0.1.9.5"
    paths = write_series(tmp_path / "raw" / "a", head(1), GRID, modality="MR", patient_id=SECRET, series_uid=uid)
    paths[9].unlink()
    (case,) = take_inventory(tmp_path / "raw").cases
    facts = read_facts(case, LoadScan(), tmp_path / "raw")
    assert uid not in facts.refused and SECRET not in facts.refused
    said = without_identifiers(f"{tmp_path}/raw/a: series {uid} has spacing 0.5 mm", tmp_path / "raw")
    assert said == f"a: series {short_hash(uid)} has spacing 0.5 mm"
    assert advice_for(facts.refused) == "fetch the series again: slices are missing"


def test_every_bundle_that_prepares_checks_in_the_same_way():
    configs = [ConfigParser.load_config_file(file) for file in sorted(ROOT.glob("bundles/*/configs/prepare.yaml"))]
    for id in ("data_check", "check", "report_dir", "look_seconds"):
        assert all(config[id] == configs[0][id] for config in configs), id
    assert all(config["preparation"]["draw"] == "$preflight.draw_prepared" for config in configs) and len(configs) > 4


@pytest.mark.slow
def test_empty_masks_and_copies_are_counted_as_prepare_counts_them(tmp_path):
    good_heads(tmp_path / "raw", 6)
    nifti(tmp_path / "raw" / "empty.nii.gz", np.zeros((20, 20, 20), np.uint8))
    write_series(tmp_path / "raw" / "again", head(0), GRID, modality="MR", patient_id="A")
    settings = {"raw_dir": str(tmp_path / "raw"), "image_size": [16, 16, 16]}
    report = run(tmp_path, look_seconds=60.0, **settings)
    assert (report["refused"], set(report["aside"])) == ({}, {"empty"}) and "every voxel is 0" in report["aside"][
        "empty"
    ]
    assert report["ready"] and report["found"]["scans"] == 7, "what is no scan neither hinders nor counts"
    assert report["found"]["files left aside"] == {"one value": 1} and report["found"]["files seen"] == 6 + 1 + 24
    (remark,) = (r for r in report["remarks"] if "are one scan" in r)
    assert remark.startswith("again and sub-00_T1w are one scan")
    run(tmp_path, "prepare", dataset_dir=str(tmp_path / "out"), executor=THREADS, **settings)
    account = json.loads((tmp_path / "out" / "report.json").read_text())
    assert account["files"]["aside"] == {"one value": 1, "same volume": 1} and account["files"]["refused"] == 0


def test_a_training_with_labels_is_checked_for_absent_ones_classes_and_spacings(tmp_path):
    datalist = {}
    for number, split in enumerate(("training", "training", "validation", "test")):
        spacing = LPS * np.array([6.0, 6, 6 if number else 9, 1])
        volume = np.pad(head(number), ((18, 18), (15, 15), (4, 4)))
        nifti(tmp_path / "data" / f"{number}.nii.gz", volume, spacing)
        nifti(tmp_path / "data" / f"{number}_seg.nii.gz", (volume > 0).astype(np.uint8), spacing)
        case = {"image": f"{number}.nii.gz", "label": f"{number}_seg.nii.gz", "case_id": f"c{number}"}
        datalist.setdefault(split, []).append(case | {"patient_id": f"p{number}"})
    del datalist["validation"][0]["label"]
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(datalist))
    settings = {"dataset_dir": str(tmp_path / "data"), "classes": {"background": 0, "head": 1, "liver": 2}}
    report = run(tmp_path, file="train.yaml", bundle="swin_unetr_finetune", look_seconds=60.0, **settings)
    assert [remark.split(",")[0] for remark in report["remarks"]] == [
        "voxels are of several sizes",
        "no voxel of liver is in any of 2 training labels: nothing is learned of it",
    ]
    assert report["refused"]["c2"] == {
        "why": "dataset.json lists no label for it",
        "advice": "list a label for every case in dataset.json",
    }
    assert any("1 of 1 validation cases have no label" in what for what in report["to_do"])
    assert any("expected volumes of one spacing" in what for what in report["to_do"])


def test_a_file_that_is_no_nrrd_is_refused_without_the_names_of_a_librarys_files(tmp_path):
    pytest.importorskip("itk")
    good_heads(tmp_path / "raw", 3)
    (tmp_path / "raw" / "junk.nrrd").write_bytes(b"hello")
    refused = run(tmp_path, raw_dir=str(tmp_path / "raw"))["refused"]["junk"]
    assert refused["why"].startswith("junk.nrrd: cannot be read: ") and ".cxx" not in refused["why"]
    assert refused["advice"] == "fetch the file again"


def test_room_time_and_memory_are_what_the_trial_says_of_all(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(data_check, "fresh_process_mib", lambda: 600.0)
    usage = SimpleNamespace(free=100 * 2**20)
    monkeypatch.setattr(data_check.shutil, "disk_usage", lambda path: asked.append(path) or usage)
    monkeypatch.setattr(data_check.os, "cpu_count", lambda: 2)
    (tmp_path / "disk").mkdir()
    check = data_check.DataCheck(None, tmp_path, tmp_path / "disk" / "new" / "data", num_workers=4, worker_memory_gib=1)
    room, short = check._room(Estimate((None,) * 3, 600.0, 2.0, 500.0, 1000.0), num_cases=30, kept=60)
    assert asked == [tmp_path / "disk"]
    sample = "(from 3 of 30 prepared for trial)"
    assert room == {
        "disk for the result": f"120.0 MiB {sample}, 100 MiB free",
        "time": f"5 min with 4 processes {sample}",
        "peak memory of a process": "1,500 MiB",
    }
    assert short == [
        "make room: 120 MiB are needed, 100 are free",
        "--worker_memory_gib 2: the largest case needs 1,500 MiB",
    ]
    assert check._room(Estimate((None,) * 3, 600.0, 2.0, 24.0, 1000.0), 30, 50)[1] == [], "what is there is enough"


def test_what_a_notebook_holds_is_not_asked_for_its_workers(tmp_path, monkeypatch):
    """Of 3,600 MiB, 3,100 were held before; a worker will hold 400."""
    check = data_check.DataCheck(None, tmp_path, worker_memory_gib=1)
    estimate = Estimate((None,), 1.0, 1.0, 3100.0, 500.0)
    monkeypatch.setattr(data_check, "fresh_process_mib", lambda: 400.0)
    room, short = check._room(estimate, 1, 1)
    assert (room["peak memory of a process"], short) == ("900 MiB", [])
    room, short = check._room(estimate._replace(growth_mib=700.0), 1, 1)
    assert short == ["--worker_memory_gib 2: the largest case needs 1,100 MiB"]
    _, short = check._room(estimate._replace(growth_mib=1550.0), 1, 1)
    assert short == ["--worker_memory_gib 3: the largest case needs 1,950 MiB"], "a tenth is to spare"


def test_a_training_step_is_among_what_is_needed(tmp_path):
    check = data_check.DataCheck(None, tmp_path, training={"first stage": 2.04})
    assert check._room(None, 0, 0) == (
        {"peak memory of a training step, first stage": "2.0 GB (on a CPU, in float32)"},
        [],
    )


@pytest.mark.parametrize(("seconds", "said"), [(119, "119 s"), (120, "2 min"), (7199, "120 min"), (9000, "2.5 h")])
def test_a_duration_is_said_in_the_unit_that_fits(seconds, said):
    assert data_check._duration(seconds) == said
