"""Asked against measured: planted obedience and disobedience, against closed forms and another library."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import stats

from medical_diffusion_components.data import Conditions, RequestedConditions
from medical_diffusion_components.evaluation import AnatomySpace, Obedience, folder_cases, guided_cases, sampled_cases
from medical_diffusion_components.evaluation.comparison import VolumeSet
from medical_diffusion_components.evaluation.obedience import _wilson, agreement, hit_rates
from medical_diffusion_components.evaluation.obedience_report import (
    obedience_in_words,
    obedience_section,
    obedience_tables,
)
from medical_diffusion_components.reports import SyntheticVolumeWriter
from medical_diffusion_components.transforms import SpacingAffine
from medical_diffusion_components.weights import save_weights

DECLARED = Conditions({"age": {"range": [50, 90], "unit": "years"}, "sex": {"values": ["F", "M"]}})
SPACES = {"anatomy": AnatomySpace()}


def subjects(seed: int, count: int = 60, obey: float = 1.0) -> tuple[list[dict[str, Any]], VolumeSet]:
    """Volumes with 12 features; the first follows the age, the second the sex, as far as they obey."""
    rng = np.random.default_rng(seed)
    age, sex = rng.uniform(50, 90, count).round(3), rng.integers(0, 2, count)
    features = 0.1 * rng.normal(size=(count, 12))
    features[:, 0] += obey * (age - 70) / 10
    features[:, 1] += sex if obey else rng.integers(0, 2, count)
    cases = [
        {"case_id": f"{seed}_{n}", "patient_id": f"{seed}_{n}", "conditions": {"age": float(a), "sex": "FM"[s]}}
        for n, (a, s) in enumerate(zip(age, sex))
    ]
    return cases, VolumeSet(str(seed), np.arange(count), {"anatomy": features}, {})


def measured(obey: float = 1.0, **changed: Any) -> Any:
    both = {"training": subjects(0), "reference": subjects(1), "synthetic": subjects(2, obey=obey)}
    cases = {name: some for name, (some, _) in both.items()} | changed
    obedience = Obedience(DECLARED, cases["training"], cases["reference"])
    return obedience(cases, {name: one for name, (_, one) in both.items()}, SPACES, lambda case: None)


def test_a_generator_that_obeys_reaches_the_ceiling() -> None:
    found = measured().report
    age, sex = found["age"]["rows"], found["sex"]["rows"]
    assert list(age) == ["held_out", "synthetic"] and age["synthetic"]["n"] == 60
    for row in ("held_out", "synthetic"):
        assert age[row]["r2"]["value"] > 0.95 and sex[row]["accuracy"]["value"] > 0.95
        assert abs(age[row]["slope"]["value"] - 1) < 4 * age[row]["slope"]["se"] + 0.03
        assert age[row]["r2"]["shuffled"] < 0.06 and 0.35 < sex[row]["accuracy"]["shuffled"] < 0.65


def test_a_generator_that_does_not_obey_is_at_the_floor_below_the_same_ceiling() -> None:
    found, obeying = measured(obey=0.0).report, measured().report
    age, sex = found["age"]["rows"], found["sex"]["rows"]
    assert age["held_out"] == obeying["age"]["rows"]["held_out"]
    assert (
        age["synthetic"]["r2"]["value"] < age["synthetic"]["r2"]["shuffled"] + 3 * age["synthetic"]["r2"]["shuffled_sd"]
    )
    assert abs(sex["synthetic"]["accuracy"]["value"] - 0.5) < 0.2
    low, high = sex["synthetic"]["accuracy"]["interval"]
    assert low < 0.5 < high + 0.1


def test_a_generator_that_follows_by_half_has_half_the_slope() -> None:
    slope = measured(obey=0.5).report["age"]["rows"]["synthetic"]["slope"]
    assert 0.45 < slope["value"] < 0.55 and 0 < slope["se"] < 0.03


def test_what_was_not_asked_for_has_no_part() -> None:
    cases, _ = subjects(2)
    for case in cases[:20]:
        case["conditions"]["age"] = None
    found = measured(synthetic=cases)
    assert found.report["age"]["rows"]["synthetic"]["n"] == 40 and found.report["sex"]["rows"]["synthetic"]["n"] == 60
    assert found.points["age"]["synthetic"].shape == (40, 2)
    assert found.points["age"]["synthetic"][0, 0] == cases[20]["conditions"]["age"]


def test_one_age_asked_of_all_gives_no_slope_and_is_said() -> None:
    cases, _ = subjects(2)
    for case in cases:
        case["conditions"]["age"] = 70.0
    report = measured(synthetic=cases).report
    row = report["age"]["rows"]["synthetic"]
    assert row["r2"]["value"] is None and row["slope"]["value"] is None and row["rms"]["value"] > 5
    json.dumps(report, allow_nan=False)
    assert "not measured, since too few volumes, or volumes of one value alone" in obedience_in_words(report)[0]
    assert "not measured" not in obedience_in_words(report)[1]
    assert any(line.startswith("| synthetic | 60 | |") for line in obedience_tables(report))


@pytest.mark.parametrize("split", ["training", "reference"])
def test_a_condition_that_the_data_do_not_have_is_refused_by_name(split: str) -> None:
    both = {"training": subjects(0)[0], "reference": subjects(1)[0]}
    for case in both[split]:
        del case["conditions"]["sex"]
    with pytest.raises(ValueError, match="no case has a value of the declared condition sex; the cases have age"):
        Obedience(DECLARED, both["training"], both["reference"])


def test_agreement_is_the_regression_of_scipy() -> None:
    rng = np.random.default_rng(3)
    asked = rng.normal(size=30)
    pair = np.stack([asked, 0.3 * asked + 2 + 0.2 * rng.normal(size=30)], 1)
    expected = stats.linregress(*pair.T)
    found = {name: statistic(pair) for name, statistic in agreement().items()}
    assert found["r2"] == pytest.approx(expected.rvalue**2)
    assert found["slope"] == pytest.approx(expected.slope) and found["intercept"] == pytest.approx(expected.intercept)
    assert found["bias"] == pytest.approx(np.mean(pair[:, 1] - asked))
    assert found["rms"] == pytest.approx(np.sqrt(np.mean((pair[:, 1] - asked) ** 2)))


def test_balanced_accuracy_counts_every_category_once() -> None:
    pair = np.array([[0, 0]] * 8 + [[1, 1], [1, 0]])
    rates = hit_rates(3)
    assert rates["accuracy"](pair) == 0.9 and rates["balanced_accuracy"](pair) == 0.75


@pytest.mark.parametrize(("hits", "count"), [(0, 7), (5, 9), (40, 40)])
def test_wilson_is_that_of_scipy(hits: int, count: int) -> None:
    expected = stats.binomtest(hits, count).proportion_ci(method="wilson")
    assert _wilson(hits / count, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_words_and_page_show_ceiling_and_floor() -> None:
    found = measured()
    age, sex = obedience_in_words(found.report)
    assert "held-out volumes explain" in age and "at a slope of" in age and "shuffled conditions read" in age
    assert "on held-out volumes the truth was found in" in sex
    page = obedience_section(found.report, found.points)
    assert page.count("<circle") == 2 * (60 + 60) and "held out, 60 volumes" in page and page.count("<svg") == 4


class Asked(torch.nn.Module):
    """Stands for a generator: a volume as bright as its age, times the guidance scale."""

    guidance_scale = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.level = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, noise: torch.Tensor, conditions: torch.Tensor) -> torch.Tensor:
        level = self.level * self.guidance_scale * conditions[:, :1, None, None, None] / 4
        return level.expand(len(noise), 1, 4, 5, 6)


def sampling(folder: Path, request: Any, scale: float = 1.0) -> Any:
    generator, weights = Asked(), folder / "model.pt"
    save_weights(generator, weights, {"data": "phantoms"})
    facts = {"sampler": "ddim", "steps": 2, "guidance_scale": scale}
    return partial(
        sampled_cases,
        generator=generator,
        latent_shape=(1, 2, 2, 2),
        writer=SyntheticVolumeWriter(folder / "samples", weights, facts, conditions=DECLARED),
        affine=SpacingAffine([1.0, 1.0, 1.0]),
        num_volumes=2,
        conditions=RequestedConditions(DECLARED, request, num_volumes=2),
    )


def test_every_guidance_scale_has_a_folder_of_the_same_requests(tmp_path: Path) -> None:
    sample = sampling(tmp_path, {"age": 90, "sex": "F"})
    first = sample()
    others = guided_cases(sample, [1, 3, 1.5], in_use=1.0)
    assert list(others) == ["guidance_1.5", "guidance_3"]
    found = {name: cases() for name, cases in others.items()}
    assert sample() == first and sample.keywords["generator"].guidance_scale == 1.0
    asked = [{"age": 90.0, "sex": "F"}] * 2
    for name, scale in (("guidance_1.5", 1.5), ("guidance_3", 3.0)):
        assert [case["conditions"] for case in found[name]] == asked
        cases = folder_cases(tmp_path / f"samples_{name}")
        assert [case["conditions"] for case in cases] == asked
        note = json.loads(Path(cases[0]["image"].replace(".nii.gz", ".json")).read_text())
        assert note["guidance_scale"] == scale
        level = float(np.asarray(nib.load(cases[0]["image"]).dataobj).mean())
        assert level == pytest.approx((0.5 * scale / 4 + 1) / 2 * 255, rel=1e-4)


def test_volumes_of_other_conditions_are_not_taken_for_those_asked_for(tmp_path: Path) -> None:
    sampling(tmp_path, {"age": 90, "sex": "F"})()
    with pytest.raises(ValueError, match="made with conditions .*90.*, not .*60"):
        sampling(tmp_path, {"age": 60, "sex": "F"})()
    with pytest.raises(ValueError, match="made with guidance_scale 1.0, not 2.0"):
        sampling(tmp_path, {"age": 90, "sex": "F"}, scale=2.0)()


def test_a_whole_number_names_a_category_however_it_is_written() -> None:
    obedience = Obedience(Conditions({"grade": {"values": [1, 2]}}), *[[case_of_grade(2.0)]] * 2)
    assert obedience._values([case_of_grade(grade) for grade in (1, 2.0, "2", None)])[:3, 0].tolist() == [0, 1, 1]


def case_of_grade(grade: Any) -> dict[str, Any]:
    return {"case_id": "a", "conditions": {"grade": grade}}
