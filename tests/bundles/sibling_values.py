"""The values in which the sibling bundles differ, read from their files, and the table of them.

    python tests/bundles/sibling_values.py

writes the table into ``bundles/README.md``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from bundle_folders import REPOSITORY, bundles_with, read

README = REPOSITORY / "bundles" / "README.md"
MARKS = ("<!-- made by tests/bundles/sibling_values.py -->", "<!-- end -->")
SIBLINGS = bundles_with("train_autoencoder.yaml", "train.yaml")
# Knobs -> the file whose line has them. They and what follows from them is all that siblings say differently.
KNOBS = {
    "embedded_cohort": "train.yaml",
    "num_embedded_subjects": "train.yaml",
    "image_size": "train.yaml",
    "axcodes": "train.yaml",
    "flip_axis": "train.yaml",
    "compression": "train.yaml",
    "batch_size": "train.yaml",
    "cache_rate": "train_autoencoder.yaml",
    "bids_suffix": "release_dataset.yaml",
}
METADATA = ("name", "task", "description", "data_source")


class SiblingValues(NamedTuple):
    """What makes a latent diffusion bundle of another one."""

    subject: str
    spacing: list[float]
    modality: str
    knobs: dict[str, tuple[str, str]]
    metadata: dict[str, str]


def sibling_values(bundle: Path) -> SiblingValues:
    """The values of a bundle, each from the one line that it is taken from."""
    header = (bundle / "configs" / "train_autoencoder.yaml").read_text().partition("\n")[0]
    default = re.search(
        r"trained_spacing\(@weights, (\[[^]]*\])\)", read(bundle / "configs" / "inference.json")["spacing"]
    )
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    return SiblingValues(
        re.search("compresses (.*) to discrete", header)[1],
        json.loads(default[1]),
        metadata["network_data_format"]["outputs"]["pred"]["modality"],
        {id: _line(bundle / "configs" / file, id) for id, file in KNOBS.items()},
        {key: metadata[key] for key in METADATA},
    )


def _line(file: Path, id: str) -> tuple[str, str]:
    """Value and comment."""
    found = re.search(rf"^{id}: (.*?) +# (.*)$", file.read_text(), re.MULTILINE)
    return found[1], found[2]


def rows() -> dict[str, list[str]]:
    """What -> its value in every bundle, as text."""
    values = [sibling_values(bundle) for bundle in SIBLINGS]
    configs = [read(bundle / "configs" / "train.yaml") for bundle in SIBLINGS]
    latents = [_latent(config) for config in configs]
    told: dict[str, list[str]] = {"synthesises": [found.subject for found in values]}
    told |= {f"`{id}`": [found.knobs[id][0] for found in values] for id in KNOBS if id != "cache_rate"}
    told["latent (channels, H, W, D)"] = [str(latent) for latent in latents]
    told["spacing of weights without a note, mm"] = [str(found.spacing) for found in values]
    told["a volume in memory"] = [f"{_megabytes(config):.1f} MB" for config in configs]
    told["modality"] = [found.modality for found in values]
    told["data"] = [found.metadata["data_source"] for found in values]
    return told


def _latent(config: dict[str, Any]) -> list[int]:
    return [config["code_channels"], *(n // c for n, c in zip(config["image_size"], config["compression"]))]


def _megabytes(config: dict[str, Any]) -> float:
    height, width, depth = config["image_size"]
    return 4 * height * width * depth / 1e6


def table() -> str:
    """Markdown."""
    lines = [["", *(f"`{bundle.name}`" for bundle in SIBLINGS)], ["---"] * (len(SIBLINGS) + 1)]
    lines += [[what, *values] for what, values in rows().items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def in_readme(text: str) -> str:
    """``text`` with the table between its marks."""
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return f"{before}{MARKS[0]}\n{table()}\n{MARKS[1]}{after}"


if __name__ == "__main__":
    README.write_text(in_readme(README.read_text()))
