"""docs/faithfulness.md: every row says where it is held, and the tests that it names are there."""

from __future__ import annotations

import re

from bundle_folders import REPOSITORY, bundles_with, read

PAGE = REPOSITORY / "docs" / "faithfulness.md"
HELD_BY = re.compile(r"`([\w/]+\.py)::(test_\w+)`$")


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| D")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_all_differences_are_listed_in_order_and_explained() -> None:
    numbers = [re.match(r"D(\d+)", row[0])[1] for row in rows()]
    assert list(dict.fromkeys(numbers)) == [str(number) for number in range(1, 16)]
    for name, part, published, here, why, _, held_by in rows():
        assert part and published and here and held_by, name
        assert why or here.startswith("the same") or name == "D12", f"{name} differs and does not say why"


def test_every_row_names_a_test_that_exists() -> None:
    for row in rows():
        file, test = HELD_BY.match(row[-1]).groups()
        assert f"\ndef {test}(" in (REPOSITORY / "tests" / file).read_text(), row[0]


def test_every_knob_that_a_row_names_is_one() -> None:
    knobs = {match for row in rows() for match in re.findall(r"`(\w+): [^`]+`", " ".join(row[:-1]))}
    assert len(knobs) == 4
    for bundle in bundles_with("train_autoencoder.yaml", "train.yaml"):
        assert (
            knobs
            <= read(bundle / "configs" / "train_autoencoder.yaml").keys()
            | read(bundle / "configs" / "train.yaml").keys()
        )
