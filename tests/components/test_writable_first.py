"""Whether results can be written is known before any work is done: the first thing that a command tries."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ignite.engine import Engine
from torch import nn

from medical_diffusion_components.audit.copy_audit import CopyAudit
from medical_diffusion_components.control.mask_evaluation import MaskEvaluation
from medical_diffusion_components.control.mask_obedience import MaskObedience
from medical_diffusion_components.control.pairs import PairWriter
from medical_diffusion_components.dataset_release.dataset_release import DatasetRelease
from medical_diffusion_components.dicom_export.segmentation_objects import DicomCases
from medical_diffusion_components.editing.scan_editing import ScanEditing
from medical_diffusion_components.evaluation.generator_evaluation import GeneratorEvaluation
from medical_diffusion_components.files import check_writable
from medical_diffusion_components.handlers import BestWeights, LatestWeights, PublishWeights
from medical_diffusion_components.preflight.data_check import DataCheck
from medical_diffusion_components.preflight.prepared import TrainingCheck
from medical_diffusion_components.reports.evaluation_report import EvaluationReport
from medical_diffusion_components.reports.segmentation_report import SegmentationReport
from medical_diffusion_components.reports.volume_writer import SyntheticVolumeWriter
from medical_diffusion_components.weights import save_weights


def with_folder(kind: type, folder: str, **attributes: Any) -> Any:
    """An object that knows nothing but its folder: whatever it does before it tries the folder fails otherwise."""
    made = object.__new__(kind)
    vars(made).update(folder=folder, **attributes)
    return made


def attached(kind: type, **attributes: Any) -> None:
    with_folder(kind, "", **attributes).attach(Engine(lambda *_: None))


def started(handler: Any) -> None:
    """Attach a handler of an evaluator, and run the evaluator on a batch that it would fail on."""
    evaluator = Engine(lambda *_: pytest.fail("work was done before the folder was tried"))
    handler.attach(evaluator)
    evaluator.run([0])


def releasing(folder: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        weights = save_weights(nn.Linear(1, 1), Path(place, "model.pt"), {"data": "nobody's"})
        places = {"release_dir": Path(folder, "a"), "samples_dir": Path(folder, "b")}
        with_folder(DatasetRelease, folder, weights=weights, date="2026-01-31", **places).run()


COMMANDS: dict[str, Callable[[str], object]] = {
    "sampling": lambda folder: with_folder(SyntheticVolumeWriter, folder).prepare(),
    "pairs": lambda folder: with_folder(PairWriter, folder).prepare(),
    "auditing": lambda folder: with_folder(CopyAudit, folder)([]),
    "evaluating a generator": lambda folder: with_folder(GeneratorEvaluation, folder).run(),
    "evaluating reconstructions": lambda folder: started(with_folder(EvaluationReport, folder)),
    "evaluating segmentations": lambda folder: started(with_folder(SegmentationReport, folder)),
    "evaluating masks": lambda folder: with_folder(MaskEvaluation, folder).run(),
    "evaluating pairs": lambda folder: with_folder(MaskObedience, folder).run(),
    "converting DICOM": lambda folder: DicomCases("nowhere", folder),
    "segmenting DICOM": lambda folder: DicomCases("nowhere", tempfile.gettempdir(), results=folder),
    "checking raw data": lambda folder: with_folder(DataCheck, folder, report_dir=folder).run(),
    "checking prepared data": lambda folder: with_folder(TrainingCheck, folder, report_dir=folder).run(),
    "training, best weights": lambda folder: attached(BestWeights, path=Path(folder, "a")),
    "training, last weights": lambda folder: attached(LatestWeights, path=Path(folder, "a")),
    "training, what is published": lambda folder: attached(PublishWeights, target=Path(folder, "a")),
    "releasing a data set": lambda folder: releasing(folder),
    "editing": lambda folder: with_folder(ScanEditing, folder, writer=SimpleNamespace(folder=folder)).run("vary", {}),
}


@pytest.fixture(params=["a file", "below a file", "a folder of the system", "a new one in a folder of the system"])
def unwritable(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Places where root cannot write either."""
    (tmp_path / "occupied").touch()
    if "system" in request.param and not Path("/proc/self").is_dir():
        pytest.skip("a system without /proc")
    return {
        "a file": str(tmp_path / "occupied"),
        "below a file": str(tmp_path / "occupied" / "out"),
        "a folder of the system": "/proc/self",
        "a new one in a folder of the system": "/proc/self/out",
    }[request.param]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_cannot_be_written_is_named_before_anything_else(command: str, unwritable: str) -> None:
    with pytest.raises(OSError, match=f"cannot write to {unwritable}: "):
        COMMANDS[command](unwritable)


def test_trying_a_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
