"""What others read from an audit's report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medical_diffusion_components.audit import audit_headline
from medical_diffusion_components.audit.audit_report import HEADLINE_PARTS, PROTOCOL


def written(folder: Path, protocol: str = PROTOCOL) -> Path:
    content = {key: f"the {key}" for key in HEADLINE_PARTS}
    content |= {"facts": {"weights_sha256": "abc"}, "protocol": protocol, "duplicates_in_training": []}
    (folder / "audit.json").write_text(json.dumps(content))
    return folder


def test_an_audit_counts_for_the_weights_that_it_judged(tmp_path: Path) -> None:
    assert audit_headline(tmp_path, "abc") is None, "no audit has been run"
    folder = written(tmp_path)
    assert audit_headline(folder, "abc") == {key: f"the {key}" for key in HEADLINE_PARTS}
    assert audit_headline(folder, "abd") is None
    assert audit_headline(folder, None) is None, "volumes without a generator"


def test_a_report_of_another_protocol_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="copy-audit-v0, expected copy-audit-v2: audit again"):
        audit_headline(written(tmp_path, "copy-audit-v0"), "abc")
