"""What a few cases prepared for trial say of all: time, room and memory grow with the voxels of the raw scans."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from medical_diffusion_components.preflight import rehearsal
from medical_diffusion_components.preparation.inventory import RawCase
from medical_diffusion_components.preparation.steps.load_scan import RawScan

VOXELS = {f"c{number:02d}": 100 * (7 * number % 20 + 1) for number in range(20)}  # 100 to 2000, in no order
FACTS = {name: SimpleNamespace(voxels=voxels) for name, voxels in VOXELS.items()}
CASES = [RawCase(name, "", None, RawScan(name)) for name in VOXELS]
MIDDLE = [1100, 1000, 1200, 900, 1300, 800, 1400, 700]


@pytest.fixture
def rehearsed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., rehearsal.Estimate | None]:
    """A preparation that takes 10 ms and 0.1 MiB of memory a voxel, beside 500 MiB, and writes 1 MiB a case."""

    def made(
        cases: list[RawCase], seconds: float = 60.0, refused: tuple[int, ...] = (), watched: bool = True
    ) -> rehearsal.Estimate | None:
        peak = [500.0]

        def prepare(case: RawCase, steps: object, raw_dir: str, folder: str, _: str) -> SimpleNamespace:
            voxels = VOXELS[case.case_id]
            peak[0] = max(peak[0], 500 + 0.1 * voxels)
            if voxels in refused:
                return SimpleNamespace(case_id=case.case_id, status="refused", seconds={"load": 99.0})
            (Path(folder) / "images").mkdir(exist_ok=True)
            (Path(folder) / "images" / case.case_id).write_bytes(bytes(2**20))
            seconds = {"load": 0.004 * voxels, "resample": 0.006 * voxels}
            return SimpleNamespace(case_id=case.case_id, status="made", seconds=seconds)

        def forget() -> bool:
            peak[0] = 500.0
            return watched

        monkeypatch.setattr(rehearsal, "prepare_case", prepare)
        monkeypatch.setattr(rehearsal, "peak_memory", lambda: peak[0])
        monkeypatch.setattr(rehearsal, "_forget_peak", forget)
        return rehearsal.rehearse(cases, FACTS, [], Path("raw"), seconds)

    return made


def test_eight_of_the_middle_size_stand_for_all(rehearsed: Callable) -> None:
    found = rehearsed(CASES)
    assert [VOXELS[result.case_id] for result in found.results] == MIDDLE
    assert found.seconds == pytest.approx(0.01 * sum(VOXELS.values()))
    assert found.case_mib == 1
    assert found.held_mib == 500
    assert found.growth_mib == pytest.approx(0.1 * 2000), "of the largest case, which was not tried"


def test_cases_that_are_refused_do_not_count(rehearsed: Callable) -> None:
    found = rehearsed(CASES, refused=(1100, 800))
    assert len(found.results) == 8 and found.case_mib == 1
    assert found.seconds == pytest.approx(0.01 * sum(VOXELS.values()))
    assert rehearsed(CASES, refused=(*MIDDLE,))[1:] == (None,) * 4


def test_one_case_is_tried_however_little_time_there_is(rehearsed: Callable) -> None:
    assert [VOXELS[result.case_id] for result in rehearsed(CASES, seconds=0.0).results] == [1100]
    assert rehearsed([]) is None


def test_memory_that_the_system_does_not_tell_is_not_guessed(rehearsed: Callable) -> None:
    assert rehearsed(CASES, watched=False)[3:] == (None, None)


def test_why_no_fresh_process_can_be_measured_is_not_hidden(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(rehearsal, "peak_memory", SimpleNamespace(__module__="no_such_module"))
    with pytest.raises(subprocess.CalledProcessError):
        rehearsal.fresh_process_mib.__wrapped__()
    assert "no_such_module" in capfd.readouterr().err


@pytest.mark.slow
def test_what_this_process_holds_is_not_what_a_fresh_one_does() -> None:
    held = np.ones(2**28)  # 2 GiB
    assert 100 < rehearsal.fresh_process_mib() < 2000 < held.nbytes / 2**20
