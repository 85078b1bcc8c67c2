"""The verdict of one volume, and the file that carries the test to inference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medical_diffusion_components.audit import ContrastiveEncoder, CopyTest, TrainingBank, copy_test, embed
from medical_diffusion_components.weights import WeightsError, load_tensors, save_tensors

SHAPE = (1, 8, 10, 12)


@pytest.fixture
def volumes() -> torch.Tensor:
    return torch.rand(5, *SHAPE) * 2 - 1


@pytest.fixture
def test(volumes: torch.Tensor) -> CopyTest:
    encoder = ContrastiveEncoder(SHAPE).eval()
    points = torch.stack([embed(encoder, volumes), embed(encoder, volumes.flip(2))], dim=1)
    facts = {"weights_sha256": "ab" * 32, "shape": list(SHAPE)}
    calibration = np.linspace(0, 0.9, 39)
    bank = TrainingBank(points, torch.arange(5))
    return CopyTest(encoder, bank, [f"{number}" * 64 for number in range(5)], calibration, calibration / 2, 0.05, facts)


def test_a_training_volume_and_its_mirror_image_are_copies_of_it(test: CopyTest, volumes: torch.Tensor) -> None:
    for number, verdict in enumerate(test.verdicts(torch.cat([volumes, volumes.flip(2)]))):
        assert (verdict.verdict, verdict.source) == ("copy", number % 5)
        assert verdict.source_id == str(number % 5) * 64
        assert verdict.p == verdict.p_raw == 1 / 40


def test_resembling_two_patients_alike_is_withheld_and_no_copy(test: CopyTest, volumes: torch.Tensor) -> None:
    """What an untrained encoder makes of other noise is near to all training volumes: no source stands out."""
    other = torch.rand(1, *SHAPE) * 2 - 1
    found = test.verdicts(other)[0]
    assert found.distance_ratio > 1 / 3
    high = test._replace(calibration=np.full(39, found.similarity - 1e-6))
    assert high.verdicts(other)[0].verdict == "withheld"


def test_what_a_single_held_out_patient_resembles_more_is_withheld_and_no_copy(
    test: CopyTest, volumes: torch.Tensor
) -> None:
    found = test._replace(calibration=np.array([1.1] + [-1.0] * 38)).verdicts(volumes[:1])[0]
    assert found.distance_ratio < 1 / 3
    assert (found.verdict, found.p) == ("withheld", 2 / 40)


def test_a_volume_that_held_out_patients_equal_is_no_copy(test: CopyTest, volumes: torch.Tensor) -> None:
    """A tie counts for innocence, in the verdict as in p: one that all equal has p = 1."""
    similarity = test.verdicts(volumes[:1])[0].similarity
    found = test._replace(calibration=np.full(39, similarity)).verdicts(volumes[:1])[0]
    assert found.distance_ratio < 1 / 3 and (found.verdict, found.p) == ("released", 1.0)


@pytest.mark.parametrize(
    ("more_similar", "verdict"), [(0, "withheld"), (1, "withheld"), (2, "released"), (39, "released")]
)
def test_released_from_the_third_more_similar_of_39_held_out_patients_on(
    test: CopyTest, more_similar: int, verdict: str
) -> None:
    other = torch.rand(1, *SHAPE) * 2 - 1
    calibration = np.array([1.0] * more_similar + [-1.0] * (39 - more_similar))
    found = test._replace(calibration=calibration).verdicts(other)[0]
    assert (found.verdict, found.p) == (verdict, (1 + more_similar) / 40)


def test_the_note_names_no_case_and_does_not_promise_anonymity(test: CopyTest, volumes: torch.Tensor) -> None:
    note = test.verdicts(volumes)[0].note()
    assert note["nearest_training_volume"] == "0" * 64
    assert "anonymous" in note["note"] and "source" not in note


def test_the_file_brings_the_same_verdicts(test: CopyTest, volumes: torch.Tensor, tmp_path: Path) -> None:
    test.save(tmp_path / "test.pt")
    again = CopyTest.load(tmp_path / "test.pt", "ab" * 32)
    queries = torch.cat([volumes, torch.rand(3, *SHAPE)])
    assert again.verdicts(queries) == test.verdicts(queries)


def test_that_of_an_earlier_protocol_is_refused(test: CopyTest, tmp_path: Path, monkeypatch) -> None:
    """It misses copies that the present one finds, and inference would write them with the verdict released."""
    monkeypatch.setattr(copy_test, "PROTOCOL", "copy-audit-v0")
    test.save(tmp_path / "test.pt")
    monkeypatch.undo()
    with pytest.raises(WeightsError, match="is of copy-audit-v0, expected copy-audit-v.: run audit.yaml again"):
        CopyTest.load(tmp_path / "test.pt", "ab" * 32)
    content = load_tensors(tmp_path / "test.pt")
    save_tensors(
        {name: value for name, value in content.items() if name != "protocol"} | {"format": 2}, tmp_path / "old.pt"
    )
    with pytest.raises(WeightsError, match="is of an earlier protocol, expected"):
        CopyTest.load(tmp_path / "old.pt", "ab" * 32)


def test_what_cannot_be_used_is_refused(test: CopyTest, tmp_path: Path) -> None:
    test.save(tmp_path / "test.pt")
    with pytest.raises(WeightsError, match=r"calibrated for the generator abababab.*these weights are cdcdcdcd"):
        CopyTest.load(tmp_path / "test.pt", "cd" * 32)
    with pytest.raises(WeightsError, match="no such file: run audit.yaml first"):
        CopyTest.load(tmp_path / "none.pt", "ab" * 32)
    (tmp_path / "test.pt").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="cannot be read"):
        CopyTest.load(tmp_path / "test.pt", "ab" * 32)
    with pytest.raises(ValueError, match=r"expected volumes of \[1, 8, 10, 12\].* got \[1, 8, 10, 11\]"):
        test.verdicts(torch.zeros(1, 1, 8, 10, 11))
