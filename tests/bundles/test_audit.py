"""``audit.yaml``: copies planted among the samples are found, written down and withheld; nobody is named."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from bundle_folders import Trained, for_bundles_with, for_each_kind_with, last_line, read, run, workflow
from PIL import Image

from medical_diffusion_components.data import describe_data, load_cases
from medical_diffusion_components.files import file_hash
from medical_diffusion_components.weights import load_tensors, save_tensors

audited = for_bundles_with("audit.yaml")
one = for_bundles_with("audit.yaml", at_most=1)
Train = Callable[[Path], Trained]


class Audit(NamedTuple):
    """Samples with two training volumes among them, and their audit."""

    settings: dict[str, Any]
    sources: list[Path]  # the training volumes
    printed: str

    @property
    def samples(self) -> Path:
        return Path(self.settings["samples_dir"])

    @property
    def output(self) -> Path:
        return Path(self.settings["output_dir"])

    def copied(self, folder: Path) -> dict[str, Any]:
        """The settings of a copy that may be changed."""
        samples, output = folder / "samples", folder / "output"
        shutil.copytree(self.samples, samples)
        shutil.copytree(self.output, output)
        return {**self.settings, "samples_dir": str(samples), "output_dir": str(output)}


@pytest.fixture(scope="module")
def planted(trained: Train, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Audit]:
    """Bundle -> its audit, which must not be changed."""
    done: dict[Path, Audit] = {}

    def audit(bundle: Path) -> Audit:
        if bundle not in done:
            made, folder = trained(bundle), tmp_path_factory.mktemp("planted")
            sources = with_plants(made, folder / "samples")
            # what training left stays where it is; what the audit keeps goes elsewhere
            output = shutil.copytree(made.output, folder / "output")
            settings = {**made.overrides, "samples_dir": str(folder / "samples"), "output_dir": str(output)}
            done[bundle] = Audit(settings, sources, run(bundle, "audit.yaml", **settings))
        return done[bundle]

    return audit


def training_volumes(done: Trained) -> list[Path]:
    cohort = next(done.output.glob("*/dataset.json"))
    return [cohort.parent / case["image"] for case in json.loads(cohort.read_text())["training"]]


def with_plants(done: Trained, folder: Path) -> list[Path]:
    """The samples and two training volumes among them."""
    shutil.copytree(done.output / "samples", folder)
    sources = training_volumes(done)[:2]
    for number, source in enumerate(sources):
        packed = gzip.compress(gzip.decompress(source.read_bytes()), mtime=1)  # the same voxels in other bytes
        (folder / f"planted_{number}.nii.gz").write_bytes(packed)
    return sources


def hashes_that_tell(done: Trained, output: Path) -> set[str]:
    """Beginnings of the hashes by which somebody could recognise a training file, or the set of them."""
    facts = load_tensors(output / "audit" / "copy_test.pt")["facts"]
    data = describe_data(None, str(next(output.glob("*/dataset.json")).parent))
    found = {file_hash(path) for path in training_volumes(done)}
    return {digest[:12] for digest in found | {data["data_sha256"], data["training_sha256"], facts["encoder"]}}


def verdict_of(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if "anonymous" in line]


@audited
def test_a_folder_without_samples_is_refused_before_the_cohort_is_made(bundle: Path, tmp_path: Path) -> None:
    assert "draw some with inference.json" in last_line(bundle, "audit.yaml", output_dir=str(tmp_path / "output"))
    assert not (tmp_path / "output").exists()


@pytest.mark.slow
@for_each_kind_with("audit.yaml")
def test_planted_training_volumes_are_found_and_withheld(bundle: Path, planted: Callable[[Path], Audit]) -> None:
    audit = planted(bundle)
    folder = audit.output / "audit"
    report = json.loads((folder / "audit.json").read_text())
    assert report["volumes"]["copy"] == report["memorised"]["count"] == 2
    with (folder / "at_home" / "training_volumes.csv").open(newline="") as file:
        ids = {row["sha256"]: row["id"] for row in csv.DictReader(file)}
    assert set(report["memorised"]["sources"]) == {ids[file_hash(source)] for source in audit.sources}
    assert report["flagged"]["volumes"] == 5 and report["facts"]["held_out_patients"] >= 22
    assert "strata" not in report, "nobody asked for anything"
    assert (
        report["headline"] in audit.printed
        and "2 of 5 synthetic volumes are copies of 2 training" in report["headline"]
    )
    for number, source in enumerate(audit.sources):
        note = json.loads((audit.samples / f"planted_{number}.json").read_text())["audit"]
        assert (note["verdict"], note["nearest_training_volume"]) == ("copy", ids[file_hash(source)])
        assert note["similarity"] == pytest.approx(1, abs=1e-3) and note["p"] <= 0.05
    synthetic = json.loads((audit.samples / "synthetic_000000.json").read_text())
    assert synthetic["seed"] == 0 and 0 < synthetic["audit"]["p"] <= 1, "the note keeps what inference wrote"

    rows = list(csv.DictReader((folder / "audit.csv").open()))
    assert [row["volume"] for row in rows if row["verdict"] == "copy"] == ["planted_0.nii.gz", "planted_1.nii.gz"]
    released = (folder / "released.txt").read_text().split()
    assert released == [row["volume"] for row in rows if row["verdict"] == "released"]
    assert np.asarray(Image.open(folder / "closest_pairs.png").convert("L")).std() > 10


@pytest.mark.slow
@one
def test_what_the_first_stage_makes_of_a_training_volume_is_a_copy_of_it(
    bundle: Path, trained: Train, audited_output: Callable, tmp_path: Path
) -> None:
    """As a generator gives it back that remembers: two training volumes, from the audit's own reconstructions."""
    done = trained(bundle)
    output = Path(shutil.copytree(audited_output(bundle), tmp_path / "output"))
    settings = {**done.overrides, "samples_dir": str(tmp_path / "samples"), "output_dir": str(output)}
    parser = workflow(bundle, "audit.yaml", **settings).parser
    training = load_cases(parser.get_parsed_content("data_dir"), "training")[:2]
    kept = set((output / "audit" / "cache" / "reconstructions").iterdir())
    for number, case in enumerate(parser.get_parsed_content("reconstruct")(training)):
        assert Path(case["image"]) in kept, "made by the audit"
        (tmp_path / "samples").mkdir(exist_ok=True)
        shutil.copy(case["image"], tmp_path / "samples" / f"remembered_{number}.nii.gz")
    run(bundle, "audit.yaml", **settings)
    report = json.loads((output / "audit" / "audit.json").read_text())
    with (output / "audit" / "at_home" / "training_volumes.csv").open(newline="") as file:
        ids = {row["sha256"]: row["id"] for row in csv.DictReader(file)}
    assert report["volumes"]["copy"] == 2
    assert set(report["memorised"]["sources"]) == {ids[file_hash(case["image"])] for case in training}


@pytest.mark.slow
@one
def test_no_output_names_a_case_and_all_say_what_the_test_cannot(
    bundle: Path, trained: Train, planted: Callable[[Path], Audit], tmp_path: Path
) -> None:
    done, audit = trained(bundle), planted(bundle)
    output = audit.output
    cases = {path.name.split(".")[0] for path in training_volumes(done)}
    texts = {path: path.read_text() for path in audit.samples.glob("*.json")}
    texts |= {
        path: path.read_text() for path in (output / "audit").iterdir() if path.suffix in (".json", ".md", ".csv")
    }
    hashes = hashes_that_tell(done, output)
    for path, text in texts.items():
        assert not [case for case in cases if case in text], path
        assert not [digest for digest in hashes if digest in text], path
        assert path.suffix == ".csv" or "anonymous" in text, path
    assert "anonymous" in audit.printed
    again = run(bundle, "audit.yaml", **audit.copied(tmp_path))
    assert verdict_of(again) == verdict_of(audit.printed), "from the cache, the same"


@for_bundles_with("audit.yaml")
def test_the_filter_reads_volumes_as_the_audit_does(bundle: Path) -> None:
    filtering, auditing = (read(bundle / "configs" / file) for file in ("inference.json", "audit.yaml"))
    assert filtering["volume_preprocessing"] == auditing["preprocessing"]


@pytest.mark.slow
@one
def test_withheld_volumes_are_not_written_and_others_are_drawn(
    bundle: Path, trained: Train, audited_output: Callable, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(audited_output(bundle), tmp_path / "output"))
    settings = {**trained(bundle).overrides, "output_dir": str(output)}
    # a calibration under which about one in three of this generator's volumes passes
    state = load_tensors(output / "audit" / "copy_test.pt")
    nearest = [json.loads(note.read_text())["audit"]["similarity"] for note in (output / "samples").glob("*.json")]
    similarities = sorted(nearest)
    state["calibration"] = torch.full_like(state["calibration"], sum(similarities[:2]) / 2)  # only the lowest passes
    save_tensors(state, output / "audit" / "copy_test.pt")
    settings |= {"audit_filter": True, "samples_dir": str(tmp_path / "released"), "num_volumes": 2, "max_draws": 30}
    printed = run(bundle, "inference.json", **settings)
    notes = [json.loads(note.read_text()) for note in sorted((tmp_path / "released").glob("*.json"))]
    assert len(notes) == len(list((tmp_path / "released").glob("*.nii.gz"))) == 2
    for note in notes:
        assert note["audit"]["verdict"] == "released" and note["audit"]["similarity"] <= sum(similarities[:2]) / 2
    drawn = 1 + max(note["seed"] for note in notes)
    assert drawn > 2 and f"released 2 of {drawn} volumes, withheld {drawn - 2}" in printed


@pytest.mark.slow
@one
def test_too_few_released_volumes_are_an_error(
    bundle: Path, trained: Train, audited_output: Callable, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(audited_output(bundle), tmp_path / "output"))
    settings = {**trained(bundle).overrides, "output_dir": str(output)}
    state = load_tensors(output / "audit" / "copy_test.pt")
    state["calibration"].fill_(-1)  # every volume is more similar than all held-out ones
    save_tensors(state, output / "audit" / "copy_test.pt")
    settings |= {"audit_filter": True, "samples_dir": str(tmp_path / "released"), "num_volumes": 1, "max_draws": 2}
    assert "expected 1 released volumes, got 0 of 2 drawn" in last_line(bundle, "inference.json", **settings)
    assert not list((tmp_path / "released").glob("*.nii.gz")) and not list((tmp_path / "released").glob("*.json"))


@one
def test_the_filter_without_an_audit_ends_with_the_reason(bundle: Path, trained: Train, tmp_path: Path) -> None:
    done = trained(bundle)
    settings = {**done.overrides, "output_dir": str(tmp_path), "audit_filter": True}
    assert "run audit.yaml first" in last_line(bundle, "inference.json", **settings)


@one
def test_too_few_held_out_patients_end_with_the_reason(bundle: Path, trained: Train, tmp_path: Path) -> None:
    done = trained(bundle)
    settings = {**done.overrides, "num_calibration_subjects": 5, "output_dir": str(tmp_path / "output")}
    settings["samples_dir"] = str(done.output / "samples")
    assert "at least 19 held-out patients, got" in last_line(bundle, "audit.yaml", **settings)


@one
def test_an_empty_folder_of_samples_ends_with_the_reason(bundle: Path, trained: Train, tmp_path: Path) -> None:
    done = trained(bundle)
    settings = {**done.overrides, "output_dir": str(tmp_path / "output"), "samples_dir": str(tmp_path / "none")}
    assert "expected volumes (.nii, .nii.gz)" in last_line(bundle, "audit.yaml", **settings)


@pytest.mark.slow
@one
def test_an_evaluation_says_what_the_audit_of_the_same_volumes_found(
    bundle: Path, trained: Train, planted: Callable[[Path], Audit], tmp_path: Path
) -> None:
    settings = planted(bundle).copied(tmp_path)
    del settings["num_volumes"]  # the volumes are there
    printed = run(bundle, "evaluate.yaml", **settings, compare_dir=str(trained(bundle).output / "samples"))
    output = tmp_path / "output"
    assert "; 2 of 5 are copies of training volumes." in printed
    found = json.loads((output / "evaluation" / "evaluation.json").read_text())["audit"]
    assert found["same_volumes"] and found["volumes"]["copy"] == 2
    page = (output / "evaluation" / "evaluation.html").read_text()
    assert page.count('"text": "copy; similarity ') == 2 and "compared with: samples" in page
    assert "2 of 5 synthetic volumes are copies" in (output / "evaluation" / "evaluation.md").read_text()
