"""What others read from an audit's report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from medical_diffusion_components.audit import (
    AuditReport,
    AuditResult,
    HoldoutShare,
    Membership,
    Memorised,
    Preprocessing,
    PublishedRule,
    Verdict,
    audit_headline,
    flagged_share,
)
from medical_diffusion_components.audit.audit_report import HEADLINE_PARTS, markdown, note_verdict, summary
from medical_diffusion_components.audit.copy_test import PROTOCOL
from medical_diffusion_components.audit.strata import by_stratum
from medical_diffusion_components.data import Conditions
from medical_diffusion_components.metrics import Estimate


def written(folder: Path, protocol: str = PROTOCOL) -> Path:
    content: dict = {key: f"the {key}" for key in HEADLINE_PARTS} | {"closest_pairs": []}
    content |= {"facts": {"weights_sha256": "abc"}, "protocol": protocol, "duplicates_in_training": []}
    (folder / "audit.json").write_text(json.dumps(content))
    return folder


def test_an_audit_counts_for_the_weights_that_it_judged(tmp_path: Path) -> None:
    assert audit_headline(tmp_path, "abc") is None, "no audit has been run"
    folder = written(tmp_path)
    assert audit_headline(folder, "abc") == {key: f"the {key}" for key in HEADLINE_PARTS} | {"closest_pairs": []}
    assert audit_headline(folder, "abd") is None
    assert audit_headline(folder, None) is None, "volumes without a generator"


def test_training_volumes_are_found_again_where_their_list_is_and_nowhere_else(tmp_path: Path) -> None:
    pair = {"sample_sha256": "5", "nearest_training_volume": "1d"}
    content = json.loads((written(tmp_path) / "audit.json").read_text()) | {"closest_pairs": [pair]}
    (tmp_path / "audit.json").write_text(json.dumps(content))
    found = audit_headline(tmp_path, "abc")
    assert found is not None and found["closest_pairs"] == [{**pair, "nearest_training_volume_sha256": None}]
    (tmp_path / "at_home").mkdir()
    (tmp_path / "at_home" / "training_volumes.csv").write_text("id,case_id,sha256\n1d,case,abcd\n")
    found = audit_headline(tmp_path, "abc")
    assert found is not None and found["closest_pairs"][0]["nearest_training_volume_sha256"] == "abcd"


def test_a_report_of_another_protocol_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="copy-audit-v0, expected copy-audit-v4: audit again"):
        audit_headline(written(tmp_path, "copy-audit-v0"), "abc")


def result(folder: Path, declared: dict | None) -> AuditResult:
    """Eight volumes that were asked for, one of them flagged, of a generator with these conditions."""
    samples, verdicts = [], []
    for number in range(8):
        image = folder / f"{number}.nii.gz"
        image.write_bytes(bytes([number]))
        samples.append({"image": str(image), "case_id": image.name, "conditions": {"sex": "F"}})
        verdicts.append(
            Verdict("withheld" if number == 0 else "released", 0.5, 0.02 if number == 0 else 0.5, 0.5, 1, 0, "1d")
        )
    shares = flagged_share(np.array([verdict.p for verdict in verdicts]), 0.05, 39)
    conditions = Conditions(declared)
    half = Estimate(0.5, 0.1)
    return AuditResult(
        samples,
        verdicts,
        shares,
        Memorised(0, 0.0, (0.0, 0.1), []),
        HoldoutShare(0.5, 0.1, 8, 100),
        0.0,
        Membership(half, half, 30, 39, None),
        PublishedRule(0.9, 0.0, 0.0, 0.0, 0.1),
        [],
        [],
        {
            "alpha": 0.05,
            "training_volumes": 30,
            "training_patients": 30,
            "held_out_patients": 39,
            "trained_on_these": True,
        },
        by_stratum(samples, verdicts, conditions, [], 0.05, 39) if conditions else None,
    )


def test_conditions_add_a_section_and_without_them_nothing_changes(tmp_path: Path) -> None:
    plain = summary(result(tmp_path, None), {})
    asked = summary(result(tmp_path, {"sex": {"values": ["F", "M"]}}), {})
    strata = asked.pop("strata")
    assert "strata" not in plain and asked == plain, "no other number depends on conditions"
    assert strata["rare"]["flagged"]["share"] == 0.125 and strata["each"][0]["conditions"] == {"sex": "F"}
    assert json.loads(json.dumps(strata)) == strata, "plain values"
    text = markdown({**asked, "strata": strata})
    before, _, rest = text.partition("## By condition\n")
    section, _, after = rest.partition("Duplicates in the training set")
    assert before + "Duplicates in the training set" + after == markdown(plain)
    assert "| sex F | not counted | 0 | 1 of 8 = 12.5 % (0.3 % to 52.7 %) |" in section
    for report, taken in ((asked | {"strata": strata}, True), (plain, False)):
        (tmp_path / "audit.json").write_text(json.dumps(report | {"facts": {"weights_sha256": "abc"}}))
        found = audit_headline(tmp_path, "abc")
        assert found is not None and ("by_condition" in found) is taken
        if taken:
            header, _, row = found["by_condition"]["table"]
            assert f"| {' | '.join(header)} |" in section and f"| {' | '.join(row)} |" in section
            assert all(part in section for part in found["by_condition"]["text"].split("first. "))


@pytest.mark.parametrize("content", ["[1, 2]", "{", "3"])
def test_a_verdict_goes_into_the_note_of_a_volume_and_into_no_other_file(content: str, tmp_path: Path) -> None:
    samples, verdicts = result(tmp_path, None)[:2]
    note_verdict(samples[1]["image"], verdicts[1])
    (tmp_path / "0.json").write_text('{"seed": 4}')
    note_verdict(samples[0]["image"], verdicts[0])
    verdict = json.loads((tmp_path / "0.json").read_text())
    assert verdict["seed"] == 4 and verdict["audit"]["verdict"] == "withheld" and (tmp_path / "1.json").is_file()
    (tmp_path / "0.json").write_text(content)
    note_verdict(samples[0]["image"], verdicts[0])
    assert (tmp_path / "0.json").read_text() == content, "it is somebody else's"


def test_a_verdict_goes_into_the_note_of_a_volume_whose_ending_is_in_upper_case(tmp_path: Path) -> None:
    samples, verdicts = result(tmp_path, None)[:2]
    volume = Path(samples[0]["image"]).rename(tmp_path / "A.NII.GZ")
    (tmp_path / "A.json").write_text('{"seed": 4}')
    note_verdict(volume, verdicts[0])
    assert json.loads((tmp_path / "A.json").read_text()).keys() == {"seed", "audit"}


@pytest.mark.parametrize("axcodes", ["RAS", "PSR", "SLA"])
def test_a_mirrored_copy_is_shown_beside_the_mirror_image_of_its_source(axcodes: str, tmp_path: Path) -> None:
    """Whichever axis points to the right: the difference in the picture is nothing."""
    source = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (1, 8, 6, 4)).astype(np.float32))
    right = next(axis for axis, code in enumerate(axcodes) if code in "RL")
    held = {"copy": source.flip(1 + right), "source": source}
    report = AuditReport(tmp_path, Preprocessing(lambda case: {"image": held[case["case_id"]]}, ""), {}, axcodes)
    found = result(tmp_path, None)._replace(samples=[{"case_id": "copy"}], sources=[{"case_id": "source"}])
    found = found._replace(verdicts=[Verdict("copy", 0.99, 0.02, 0.02, 0.1, 0, "1d")])
    synthetic, training, difference = (axes.images[0].get_array() for axes in report._picture(found).axes)
    np.testing.assert_array_equal(synthetic, training)
    assert not np.any(difference) and np.ptp(synthetic) > 1
