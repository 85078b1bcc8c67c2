"""A survey compares the scans that it holds now."""

from __future__ import annotations

import numpy as np
import pytest

from medical_diffusion_components.preflight import survey as surveys
from medical_diffusion_components.preflight.look import Look
from medical_diffusion_components.preflight.survey import Survey


def look(highest: float, seed: int) -> Look:
    coarse = np.arange(27.0).reshape(3, 3, 3) + np.random.default_rng(seed).normal(0, 0.1, (3, 3, 3))
    return Look((), (0.0, 0.0, highest / 2, highest, highest), coarse)


def test_a_scan_that_takes_the_place_of_another_is_compared_again() -> None:
    survey = Survey(looks={f"scan{number}": look(100 + number, number) for number in range(7)})
    assert survey.outliers() == {}
    survey.forget("scan3")
    survey.looks["scan7"] = look(900, 7)
    assert list(survey.outliers()) == ["scan7"]
    survey.looks["scan7"] = look(103, 7)
    assert survey.outliers() == {}


def test_the_same_scans_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    survey = Survey(looks={f"scan{number}": look(100 + number, number) for number in range(7)})
    first = survey.outliers()
    monkeypatch.setattr(surveys, "likeness", lambda looks: pytest.fail("compared again"))
    assert survey.outliers() is first
