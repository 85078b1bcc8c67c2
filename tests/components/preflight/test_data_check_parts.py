"""What `check` makes of an inventory, of the cases prepared for trial and of what it looks at, without a configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from folders_to_check import head, nifti

from medical_diffusion_components.preflight import data_check
from medical_diffusion_components.preflight.check_report import CheckReport
from medical_diffusion_components.preflight.rehearsal import Estimate
from medical_diffusion_components.preparation import case
from medical_diffusion_components.preparation.case import CaseResult
from medical_diffusion_components.preparation.inventory import Inventory, RawCase
from medical_diffusion_components.preparation.steps.load_scan import LoadScand, RawScan
from medical_diffusion_components.preparation.steps.run_command import RunCommandd

UID = "1.2.826.0.1.9.77"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    for seed in range(4):
        nifti(tmp_path / "raw" / f"c{seed}.nii.gz", head(seed))
    return tmp_path / "raw"


def inventory_of(raw: Path, more: int = 0, **facts: Any) -> Inventory:
    """The files of a folder, and ``more`` cases of patients of their own that the download lacks."""
    names = [path.name.removesuffix(".nii.gz") for path in sorted(raw.glob("*.nii.gz"))]
    cases = [RawCase(name, name, None, RawScan(str(raw / f"{name}.nii.gz"))) for name in names]
    cases += [RawCase(f"lost{n}", f"lost{n}", None, None, f"no {raw}/MRI/{UID}.nii.gz") for n in range(more)]
    return Inventory(raw, cases=cases, files_of={name: [f"{name}.nii.gz"] for name in names}, **facts)


def checked(
    inventory: Inventory,
    allowed: float = 0.05,
    manifest: object = None,
    more: Sequence[Callable] = (),
    load: Any = None,
    **settings: Any,
) -> CheckReport:
    raw = inventory.root

    def make(dataset_dir: str, max_refused_share: float = allowed) -> SimpleNamespace:
        steps = [load or LoadScand("image"), *more]
        return SimpleNamespace(
            max_refused_share=max_refused_share,
            raw_dir=raw,
            steps=steps,
            manifest=manifest,
            take_inventory=lambda: inventory,
        )

    return data_check.DataCheck(make, **{"report_dir": raw.parent / "report", "look_seconds": 60.0} | settings).run()


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list]:
    """Let the trial give these results; a list gets what it was called with."""

    def answer(*results: CaseResult) -> list:
        calls: list = []
        estimate = Estimate(results, None, None, None, None)
        monkeypatch.setattr(data_check, "rehearse", lambda *given: calls.append(given) or estimate)
        return calls

    return answer


def test_a_report_that_could_not_be_written_ends_the_check_before_it_begins(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    check = data_check.DataCheck(lambda **_: pytest.fail("the folder was looked at"), tmp_path / "taken" / "report")
    with pytest.raises(NotADirectoryError, match="cannot write to"):
        check.run()


@pytest.mark.parametrize("inside", [".", "below"])
def test_the_report_does_not_go_among_the_scans(inside: str, raw: Path) -> None:
    with pytest.raises(ValueError, match="report_dir must lie outside raw_dir"):
        checked(inventory_of(raw), report_dir=raw / inside)


def test_the_report_is_written_and_printed(raw: Path, capsys: pytest.CaptureFixture) -> None:
    checked(inventory_of(raw))
    assert {path.name for path in (raw.parent / "report").iterdir()} == {"check.json", "check.md", "contact_sheet.png"}
    assert capsys.readouterr().out.endswith("Ready.\n")


def test_an_absent_case_is_refused_without_its_identifiers_and_not_tried(raw: Path, tried: Callable) -> None:
    calls = tried()
    report = checked(inventory_of(raw, more=1))
    assert report.survey.refused["lost0"].startswith("no MRI/") and UID not in report.survey.refused["lost0"]
    assert [case.case_id for case in calls[0][0]] == ["c0", "c1", "c2", "c3"]
    assert calls[0][-1] == 30.0, "half of the time for looking"


def test_what_the_trial_says_of_a_case_is_reported_without_identifiers(raw: Path, tried: Callable) -> None:
    told = f"{raw}/c0.nii.gz of {UID}: odd"
    notes = {"notes": {"tilted": True, "padded": False}}
    tried(
        CaseResult("c0", "c0", None, "aside", "label_map", told),
        CaseResult("c1", "c1", None, "refused", "failed", told),
        CaseResult("c2", "c2", None, "made", outputs=(notes,)),
    )
    inventory = inventory_of(raw)
    report = checked(inventory)
    for text in (report.survey.aside["c0"][1], report.survey.refused["c1"]):
        assert text.startswith("c0.nii.gz") and UID not in text
    assert report.survey.remarks == {"c2": ["tilted"]}
    assert set(report.survey.facts) == set(report.survey.looks) == {"c1", "c2", "c3"}
    assert inventory.aside == {"label map": ["c0.nii.gz"]} and report.found["scans"] == 3


def test_what_is_odd_about_the_voxels_of_a_look_is_remarked_on(
    raw: Path, tried: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried()
    monkeypatch.setattr(case, "remarks_on_picture", lambda image: ["half is black"])
    assert checked(inventory_of(raw)).survey.remarks == {f"c{n}": ["half is black"] for n in range(4)}


def test_a_command_of_the_preparation_is_named_and_not_run(raw: Path, tried: Callable) -> None:
    calls, command = tried(), RunCommandd("image", "no-such-tool {input} {output}")
    report = checked(inventory_of(raw), more=[command])
    assert report.room["not tried"].startswith("the command of --brain_extraction")
    assert command not in calls[0][2] and report.survey.refused == {}


@pytest.mark.parametrize(
    "belief",
    [{"plane": "sagittal"}, {"spacing_range": (1.0, 3.0)}, {"largest_extent": 60.0}, {"affine_from": "refuse"}],
)
def test_what_a_belief_about_headers_refuses_is_pictured_and_not_read_by_the_steps(
    belief: dict, raw: Path, tried: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried()
    image = nib.Nifti1Image(head(0), np.diag([2.0, 2.0, 6.0, 1.0]))
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine @ np.diag([1.0, -1.0, 1.0, 1.0]) if "affine_from" in belief else image.affine, 1)
    nib.save(image, raw / "c0.nii.gz")
    read, run_steps = [], data_check.run_steps
    monkeypatch.setattr(
        data_check, "run_steps", lambda case, *rest: read.append(case.case_id) or run_steps(case, *rest)
    )
    survey = checked(inventory_of(raw), load=LoadScand("image", **belief)).survey
    assert "c0" in survey.refused and "c0" in survey.looks and "c0" not in read


def test_what_a_look_refuses_is_named_without_the_folder(raw: Path, tried: Callable) -> None:
    tried()
    (raw / "c1.nii.gz").write_bytes((raw / "c1.nii.gz").read_bytes()[:-2000])
    refused = checked(inventory_of(raw)).survey.refused
    assert set(refused) == {"c1"} and refused["c1"].startswith("c1.nii.gz: ")


def test_a_look_takes_the_steps_up_to_the_first_that_is_slow(raw: Path, tried: Callable) -> None:
    tried()
    done: list[str] = []

    def step(kind: str, said: str) -> Callable:
        return type(kind, (), {"__call__": lambda _, data: done.append(said) or data})()

    steps = [step("CheckVolumed", "first"), step("FillPaddingd", "second"), step("Slow", "slow")]
    checked(inventory_of(raw), more=[*steps, step("CheckVolumed", "after")])
    assert done == ["first", "second"] * 4


def test_an_empty_folder_is_reported_on(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    assert checked(Inventory(tmp_path / "raw")).short == ["0 patient(s): at least 3 are needed, one for each split"]


def test_a_header_that_is_refused_keeps_its_own_reason(raw: Path, tried: Callable) -> None:
    (raw / "c1.nii.gz").write_bytes(b"")
    tried(CaseResult("c1", "c1", None, "refused", "failed", "something else"))
    assert "the file is empty" in checked(inventory_of(raw)).survey.refused["c1"]


def test_who_stands_out_is_looked_at_first(raw: Path, tried: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    nifti(raw / "c7.nii.gz", head(7)[:14])
    looked: list[list[str]] = []
    monkeypatch.setattr(data_check, "within_budget", lambda cases, *_: looked.append([c.case_id for c in cases]))
    tried()
    checked(inventory_of(raw, more=1))
    assert looked[0][0] == "c7" and sorted(looked[0]) == ["c0", "c1", "c2", "c3", "c7"]


def test_as_many_refusals_and_broken_links_as_are_allowed_are_no_fault(raw: Path, tried: Callable) -> None:
    """One case of five, and one link of six files."""
    tried()
    assert checked(inventory_of(raw, more=1, aside={"broken link": ["gone"]}), allowed=0.2).short == []
    refused, links = reversed(checked(inventory_of(raw, 1, aside={"broken link": ["gone"]}), allowed=0.15).short)
    assert refused == "20.0% of the scans would be refused, 15.0% may be (--max_refused_share)"
    assert links.startswith("1 links point nowhere")


def test_a_manifest_has_its_own_splits(raw: Path, tried: Callable) -> None:
    tried()
    for number in (2, 3):
        (raw / f"c{number}.nii.gz").unlink()
    assert checked(inventory_of(raw)).short == ["2 patient(s): at least 3 are needed, one for each split"]
    assert checked(inventory_of(raw), manifest=object()).short == []


def test_one_scan_twice_is_remarked_on_and_in_two_splits_forbidden(raw: Path, tried: Callable) -> None:
    """By the landmarks of the voxels that were looked at."""
    tried()
    rng = np.random.default_rng(0)
    textured = (head(0) + 100 * rng.random(head(0).shape)).astype(np.float32)
    for number in (0, 1):
        nifti(raw / f"c{number}.nii.gz", textured * (1 + number))
    inventory = inventory_of(raw, remarks=[f"{raw}/c3.nii.gz of {UID} is odd"])
    report = checked(inventory)
    twice = "c0 and c1 are one scan, perhaps mirrored, cut or rescaled: "
    assert report.remarks[0].startswith("c3.nii.gz of ") and UID not in report.remarks[0]
    assert report.remarks[1].startswith(twice) and report.short == []
    inventory = inventory_of(raw)
    inventory.cases[0] = inventory.cases[0]._replace(split="training")
    inventory.cases[1] = inventory.cases[1]._replace(split="test")
    report = checked(inventory, manifest=object())
    assert (
        report.remarks == [] and report.short[0] == f"{twice}put both into one split of the manifest, or leave one out"
    )
