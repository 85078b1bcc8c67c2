"""What others read from an audit's report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medical_diffusion_components.audit import audit_headline
from medical_diffusion_components.audit.audit_report import HEADLINE_PARTS, PROTOCOL


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
    with pytest.raises(ValueError, match="copy-audit-v0, expected copy-audit-v3: audit again"):
        audit_headline(written(tmp_path, "copy-audit-v0"), "abc")
