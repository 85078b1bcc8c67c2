"""READMEs of bundles: what they point at is there, and who can evaluate or audit says how to read it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from bundle_folders import BUNDLES, for_bundles_with

EACH = pytest.mark.parametrize("bundle", BUNDLES, ids=[bundle.name for bundle in BUNDLES])


def targets(bundle: Path) -> set[Path]:
    """Files that the README links to."""
    folder = bundle / "docs"
    links = re.findall(r"\]\(([^)#:]+)\)", (folder / "README.md").read_text())
    return {(folder / link).resolve() for link in links}


@EACH
def test_links_point_at_files(bundle: Path) -> None:
    assert [str(target) for target in targets(bundle) if not target.exists()] == []


@for_bundles_with("audit.yaml")
def test_who_can_audit_says_what_an_audit_can_say(bundle: Path) -> None:
    text = (bundle / "docs" / "README.md").read_text()
    assert bundle.parents[1] / "docs" / "privacy.md" in targets(bundle)
    assert f"bundles/{bundle.name}/configs/audit.yaml" in text


@for_bundles_with("inference.json", "evaluate.yaml", "metadata.json")
def test_who_can_evaluate_a_generator_says_how_to_read_it(bundle: Path) -> None:
    if "GeneratorEvaluation" in (bundle / "configs" / "evaluate.yaml").read_text():
        assert bundle.parents[1] / "docs" / "evaluation.md" in targets(bundle)
        assert f"bundles/{bundle.name}/configs/evaluate.yaml" in (bundle / "docs" / "README.md").read_text()
