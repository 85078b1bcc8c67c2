"""``release_dataset.yaml``: one command from a generator to a folder for others, whatever happens on the way."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
import pandas
import pytest
import torchio
from bundle_folders import Trained, for_bundles_with, for_each_kind_with, last_line, run, tree
from monai.data import load_decathlon_datalist
from several_processes import bundle_arguments, environment
from warm_processes import MONAI_BUNDLE, python, torchrun

from medical_diffusion_components.data import load_cases
from medical_diffusion_components.files import file_hash
from medical_diffusion_components.weights import load_tensors, save_tensors

pytestmark = pytest.mark.slow  # all of these train

kinds = for_each_kind_with("release_dataset.yaml")  # one with and one without a layout of BIDS
one = for_bundles_with("release_dataset.yaml", at_most=1)
Train = Callable[[Path], Trained]
DATE = "2026-01-02"


@pytest.fixture
def settings(trained: Train, tmp_path: Path) -> Callable[..., dict]:
    """The overrides of a release of a trained bundle, into a folder of the test's."""

    def make(bundle: Path, **others) -> dict:
        done = trained(bundle)
        known = {**done.overrides, "output_dir": str(tmp_path / "output"), "date_published": DATE, "num_volumes": 4}
        return known | others

    return make


@pytest.fixture
def audited(settings: Callable[..., dict], audited_output: Callable, tmp_path: Path) -> Callable[..., dict]:
    """The same, after an audit in which about half of the volumes pass."""

    def make(bundle: Path, **others) -> dict:
        output = Path(shutil.copytree(audited_output(bundle), tmp_path / "output"))
        state = load_tensors(output / "audit" / "copy_test.pt")
        notes = [json.loads(note.read_text()) for note in (output / "samples").glob("synthetic_*.json")]
        middle = sorted(note["audit"]["similarity"] for note in notes)[1]
        state["calibration"].fill_(middle + 1.0e-6)  # of three volumes, two pass
        save_tensors(state, output / "audit" / "copy_test.pt")
        return settings(bundle, **{"output_dir": str(output), "max_draws": 30, **others})

    return make


def release(bundle: Path, overrides: dict) -> Path:
    run(bundle, "release_dataset.yaml", **overrides)
    return Path(overrides.get("release_dir", Path(overrides["output_dir"]) / "dataset"))


def rows_of(folder: Path) -> list[dict]:
    return list(csv.DictReader((folder / "volumes.csv").open()))


def check_sums(folder: Path) -> None:
    listed = dict(line.split("  ")[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert listed == {name: file_hash(folder / name) for name in tree(folder) if name != "SHA256SUMS"}


@kinds
def test_a_data_set_without_an_audit_says_so_everywhere(bundle: Path, settings: Callable[..., dict]) -> None:
    overrides = settings(bundle)
    assert "found none: run audit.yaml first" in last_line(bundle, "release_dataset.yaml", **overrides)
    assert not Path(overrides["output_dir"]).exists(), "refused before anything is drawn"
    folder = release(bundle, {**overrides, "audited": False})
    check_sums(folder)
    documents = ["README.md", "datasheet.md", "LICENSE", "croissant.json", "reports/NOT_AUDITED.txt"]
    documents += ["dataset_description.json"] * (folder / "dataset_description.json").is_file()
    for name in documents:
        text = (folder / name).read_text()
        assert "NOT AUDITED" in text, name
        assert "No patient was seen" in text or name.startswith("reports"), name
    assert [row["seed"] for row in rows_of(folder)] == ["0", "1", "2", "3"]


@one
def test_only_volumes_that_passed_are_released_and_loaded_again(bundle: Path, audited: Callable[..., dict]) -> None:
    overrides = audited(bundle)
    folder = release(bundle, overrides)
    check_sums(folder)
    assert not {"NOT AUDITED"} & set(tree(folder)) and (folder / "reports" / "audit.json").is_file()
    rows, samples = rows_of(folder), Path(overrides["output_dir"]) / "dataset_samples"
    withheld = {path.name for path in (samples / "withheld").iterdir()}
    seeds = [int(row["seed"]) for row in rows]
    judged = max(seeds) + 1
    assert len(rows) == 4 and 0 < len([name for name in withheld if int(name[10:16]) < judged]) == judged - 4
    assert f"4 of {judged} drawn" in (folder / "README.md").read_text()
    for row in rows:
        sidecar = json.loads((folder / row["image"]).with_suffix("").with_suffix(".json").read_text())
        assert sidecar["audit"]["verdict"] == "released" and sidecar["synthetic"] is True
        assert f"synthetic_{int(row['seed']):06d}.json" not in withheld
        assert row["sha256"] == file_hash(folder / row["image"])
        drawn = samples / f"synthetic_{int(row['seed']):06d}.nii.gz"
        assert (folder / row["image"]).read_bytes() == drawn.read_bytes()
    check_loading(folder, rows)
    cases = {path.name.split(".")[0] for path in Path(overrides["output_dir"]).glob("*/training/*.nii.gz")}
    sources = load_tensors(Path(overrides["output_dir"]) / "audit" / "copy_test.pt")["sources"]
    texts = {name: content for name, content in tree(folder).items() if not name.endswith((".nii.gz", ".png"))}
    for name, content in texts.items():
        found = [text for text in (*sources, *cases, overrides["output_dir"]) if text.encode() in content]
        assert not found, name


def check_loading(folder: Path, rows: list[dict]) -> None:
    """One line each of MONAI, TorchIO, pandas and Hugging Face gives the volumes of the table."""
    listed = {}
    for split in ("training", "validation", "test"):
        cases = load_decathlon_datalist(folder / "dataset.json", is_segmentation=False, data_list_key=split)
        expected = [str(folder / row["image"]) for row in rows if row["split"] == split]
        assert [case["image"] for case in cases] == expected and expected
        assert [case["image"] for case in load_cases(folder, split)] == expected, "our own training reads it, too"
        listed[split] = expected
    image = torchio.ScalarImage(listed["training"][0])
    np.testing.assert_array_equal(image.numpy()[0], np.asarray(nib.load(listed["training"][0]).dataobj))
    table = pandas.read_csv(folder / "volumes.csv")
    assert table["image"].tolist() == [row["image"] for row in rows] and table["seed"].dtype.kind == "i"
    datasets = pytest.importorskip("datasets", reason="loads data sets of Hugging Face: pip install datasets")
    code = re.search(r"```python\n(.+?)```", (folder / "README.md").read_text(), re.DOTALL)
    loaded: dict = {}
    cache = mock.patch.object(datasets.config, "HF_DATASETS_CACHE", str(folder.parent / "cache_of_hugging_face"))
    with contextlib.chdir(folder), cache:
        exec(code[1], loaded)  # the lines of the card
    assert len(loaded["subjects"]) == len(listed["training"]) and len(loaded["volumes"]) == len(rows)
    found = {name: [str(folder / path) for path in part["image"]] for name, part in loaded["splits"].items()}
    assert found == {"train": listed["training"], "validation": listed["validation"], "test": listed["test"]}


KILLED = """
import os, signal, sys
sys.path[:0] = sys.argv[4:]
from bundle_folders import run
from pathlib import Path
import json
from medical_diffusion_components.reports import volume_writer
from medical_diffusion_components.dataset_release import dataset_release

def killing(owner, name, calls):
    kept, left = getattr(owner, name), [calls]
    def call(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return kept(*args, **kwargs)
    setattr(owner, name, call)

place, calls = sys.argv[3].split(":")
# a volume is written twice: as what the audit judges, then for good
owner = {"save": volume_writer.NiftiVolumes, "draw_montage": volume_writer.SyntheticVolumeWriter}
killing(owner.get(place, dataset_release), place, int(calls))
run(Path(sys.argv[1]), "release_dataset.yaml", **json.loads(sys.argv[2]))
"""


@one
def test_killed_at_any_time_it_ends_with_the_same_bytes(
    bundle: Path, audited: Callable[..., dict], tmp_path: Path
) -> None:
    overrides = audited(bundle)
    whole = release(bundle, {**overrides, "samples_dir": str(tmp_path / "whole"), "release_dir": str(tmp_path / "set")})
    killed, places = {**overrides, "samples_dir": str(tmp_path / "killed")}, [Path(__file__).parent, bundle.parents[1]]
    for moment in ("save:3", "draw_montage:0", "croissant:0", "file_hash:5"):
        command = ["-c", KILLED, str(bundle), json.dumps(killed), moment, *map(str, places)]
        done = python(*command)
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
        assert not (Path(overrides["output_dir"]) / "dataset").exists(), "whole or not at all"
    resumed = release(bundle, killed)
    assert tree(resumed) == tree(whole)
    samples = [tree(tmp_path / name) for name in ("whole", "killed")]
    assert set(samples[0]) == set(samples[1]), "nothing is left lying about"
    assert samples[0]["montage.png"] == samples[1]["montage.png"] == tree(whole)["preview.png"]
    # what is there is not drawn again: a volume that is changed stays so
    first = next((tmp_path / "killed").glob("*.nii.gz"))
    before = first.stat().st_mtime_ns
    assert tree(release(bundle, killed)) == tree(whole) and first.stat().st_mtime_ns == before


@one
def test_a_folder_drawn_otherwise_or_edited_is_refused(
    bundle: Path, settings: Callable[..., dict], tmp_path: Path
) -> None:
    overrides = settings(bundle, audited=False)
    folder = release(bundle, overrides)
    before = tree(folder)
    reason = last_line(bundle, "release_dataset.yaml", **{**overrides, "seed": 7})
    assert "was drawn with other settings: seed was 0, now 7. Give another samples_dir" in reason
    elsewhere = release(bundle, {**overrides, "release_dir": str(tmp_path / "elsewhere")})
    assert tree(elsewhere) == before, "the volumes do not depend on where they are released"
    more = release(bundle, {**overrides, "num_volumes": 6})
    assert before.items() & tree(more).items() and len(rows_of(more)) == 6, "more of the same are added"
    note = tmp_path / "output" / "dataset_samples" / "synthetic_000002.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "edited_from": "a scan"}))
    assert "was edited from a real scan" in last_line(bundle, "release_dataset.yaml", **overrides)
    shutil.copytree(tmp_path / "output" / "dataset_samples", tmp_path / "foreign")
    (tmp_path / "foreign" / "drawn_with.json").unlink()
    reason = last_line(bundle, "release_dataset.yaml", **{**overrides, "samples_dir": str(tmp_path / "foreign")})
    assert "holds volumes that no release drew" in reason


@one
def test_a_setting_of_inference_is_passed_on_and_a_wrong_one_refused(
    bundle: Path, settings: Callable[..., dict]
) -> None:
    folder = release(bundle, settings(bundle, audited=False, intensity_range=[0.0, 1000.0]))
    highest = max(nib.load(folder / row["image"]).get_fdata().max() for row in rows_of(folder))
    assert 255 < highest <= 1000
    assert "--intensity_rage is no setting" in last_line(
        bundle, "release_dataset.yaml", **settings(bundle, audited=False, intensity_rage=[0.0, 1.0])
    )


@one
def test_two_processes_release_what_one_does(bundle: Path, settings: Callable[..., dict], tmp_path: Path) -> None:
    alone = release(bundle, settings(bundle, audited=False, num_volumes=5))
    overrides = settings(bundle, audited=False, num_volumes=5, output_dir=str(tmp_path / "two"))
    arguments = bundle_arguments(bundle, "releasing_dataset", ["release_dataset.yaml"], overrides)
    done = torchrun(2, MONAI_BUNDLE, *arguments, env=environment())
    assert done.returncode == 0, done.stderr[-2000:]
    assert tree(tmp_path / "two" / "dataset") == tree(alone)


@one
def test_dicom_series_are_released_and_read_again(bundle: Path, settings: Callable[..., dict]) -> None:
    pytest.importorskip("pydicom", reason="the extra dicom")
    from medical_diffusion_components.dicom.series import read_series

    folder = release(bundle, settings(bundle, audited=False, output_format="dicom"))
    check_sums(folder)
    for row in rows_of(folder):
        series = read_series(folder / row["image"])
        assert series.array.shape[2] == int(row["images"]) and series.array.std() > 1
    cases = load_decathlon_datalist(folder / "dataset.json", is_segmentation=False, data_list_key="training")
    assert torchio.ScalarImage(cases[0]["image"]).spatial_shape == read_series(cases[0]["image"]).array.shape


@kinds
def test_the_layout_is_bids_where_the_bundle_names_a_suffix(bundle: Path, settings: Callable[..., dict]) -> None:
    folder = release(bundle, settings(bundle, audited=False))
    if not (folder / "dataset_description.json").is_file():
        assert {row["image"].split("/")[0] for row in rows_of(folder)} == {"images"}
        return
    validator = shutil.which("bids-validator-deno", path=os.fspath(Path(sys.executable).parent)) or shutil.which(
        "bids-validator-deno"
    )
    if validator is None:
        pytest.skip("validates BIDS: pip install bids-validator-deno")
    done = subprocess.run([validator, str(folder), "--json"], capture_output=True, text=True, timeout=300)
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []
    assert len(issues) > 0, "it warns of what is only recommended: it has looked"
