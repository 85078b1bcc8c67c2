"""READMEs of bundles: what they link to is there, they say how to read a report, and their values are the files'."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bundle_folders import BUNDLES, bundles_with, by_default, for_bundles_with, read

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


# --- values that documents name ---

WORDS = {
    "those of the embedded cohort",
    "where bfloat16 is fast",
    "all steps of the training",
    "-",
}  # no value to compare


def default_rows() -> Iterator[tuple[Path, list[str], str]]:
    """Bundle, knobs and defaults of each row of the READMEs' tables of knobs."""
    for bundle in BUNDLES:
        rows = [line.split(" | ") for line in (bundle / "docs" / "README.md").read_text().splitlines() if " | " in line]
        begin = [number for number, row in enumerate(rows) if row[:2] == ["| knob", "default"]]
        for row in rows[begin[0] + 1 :] if begin else []:
            yield bundle, re.findall(r"`(\w+)`", row[0]), row[1]


def as_text(value: Any) -> str:
    """A value as the documents write it: 64x64x32 for a size, 8 to 16 for a range."""
    if isinstance(value, list) and all(part == value[0] for part in value) and isinstance(value[0], list):
        return " to ".join(map(str, value[0]))
    if isinstance(value, list):
        return ("x" if len(value) == 3 else ", ").join(map(str, value))
    return str(value) if not isinstance(value, float) else f"{value:g}"


@pytest.mark.parametrize(
    ("bundle", "knobs", "defaults"),
    [pytest.param(*row, id=f"{row[0].name}: {', '.join(row[1])}") for row in default_rows() if row[2] not in WORDS],
)
def test_a_default_in_a_readme_is_that_of_the_files(bundle: Path, knobs: list[str], defaults: str) -> None:
    said = defaults.replace("`", "").split("; " if "; " in defaults else ", ")
    files = [
        read(bundle / "configs" / name)
        for name in ("inference.json", "train.yaml", "train_autoencoder.yaml")
        if (bundle / "configs" / name).is_file()
    ]
    for knob, text in zip(knobs, said, strict=True):
        if text in WORDS:
            continue
        values = [
            config["displayable_configs"].get(knob, config[knob]) if "displayable_configs" in config else config[knob]
            for config in files
            if knob in config
        ]
        number = re.fullmatch(r"[\d.e-]+", text)
        assert (f"{float(text):g}" if number else text) in {
            f"{float(value):g}" if number and isinstance(value, int | float) else as_text(by_default(value))
            for value in values
        }, f"{knob}: {text} in the README, {values} in the configurations"


@for_bundles_with("low_compression.yaml")
def test_sizes_in_a_readme_are_those_of_the_files(bundle: Path) -> None:
    text = (bundle / "docs" / "README.md").read_text()
    first, second = (read(bundle / "configs" / name) for name in ("train_autoencoder.yaml", "train.yaml"))
    variant = read(bundle / "configs" / "low_compression.yaml")
    assert (
        f"sizes {first['autoencoder_batch_size']} and {second['batch_size']} (variant: {variant['batch_size']})" in text
    )
    assert f"({first['autoencoder_epochs']} and {second['epochs']:,})" in text
    assert "x".join(map(str, second["image_size"])) in text
    assert f"compression {second['compression'][0]} (variant: {variant['compression'][0]})" in text
    assert f"`axcodes: {second['axcodes']}`" in text


def test_what_preparation_believes_of_spacing_is_in_the_documents() -> None:
    text = (BUNDLES[0].parents[1] / "docs" / "own_data.md").read_text()
    for bundle in bundles_with("prepare.yaml"):
        config = read(bundle / "configs" / "prepare.yaml")
        lowest, highest = config["spacing_range"]
        row = f" | {config['plane'] or 'any'} | {lowest:g} to {highest:g} | {config['modality'] or 'any'} |"
        assert [line for line in text.splitlines() if f"`{bundle.name}`" in line and line.endswith(row)], row
