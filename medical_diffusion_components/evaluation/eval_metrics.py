"""Measured numbers in a bundle's ``metadata.json``, as the Model Zoo wants them, and of which weights they are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medical_diffusion_components.files import file_hash, write_atomically

__all__ = ["eval_metrics", "record_audit", "record_eval_metrics"]

OF_A_SPACE = ("kid", "mmd", "precision", "recall", "clipped_density", "clipped_coverage")
OF_VOLUMES = ("ms_ssim", "high_frequency")
OF_AN_AUDIT = (
    "protocol", "volumes", "flagged", "membership", "holdout_share", "data_copying_z", "published_rule",
)  # fmt: skip
# what makes a number readable
WITH = ("value", "se", "floor", "floor_sd", "floor_n", "at_floor_n", "real", "real_se", "n")


def eval_metrics(report: Mapping[str, Any]) -> dict[str, Any]:
    """What goes into the metadata: provenance, the first stage's numbers, and the synthetic row where it counts.

    Args:
        report: content of ``evaluation.json``.
    """
    found: dict[str, Any] = {
        "weights_sha256": report["weights_sha256"],
        "protocol": report["protocol"],
        "data": report["data"]["data"],
        **{name: report[name] for name in ("sampler", "steps") if name in report},  # a GAN has none
        "synthetic_volumes": report["n"]["synthetic"],
        "held_out_volumes": report["n"]["reference"],
    }
    if report["metrics"]:
        found["first_stage"] = dict(report["metrics"])
    for space, measures in report["rows"]["synthetic"].items():
        if space == "volumes" or report["spaces"][space]["counts"]:
            wanted = OF_VOLUMES if space == "volumes" else OF_A_SPACE
            cells = {name: measures[name] for name in wanted if name in measures}
            found[space] = {name: {key: cell[key] for key in WITH if key in cell} for name, cell in cells.items()}
    return found


def record_eval_metrics(metadata: str | Path, evaluation: str | Path, weights: str | Path) -> dict[str, Any]:
    """Write the numbers of an evaluation into ``metadata.json``; not a byte of what else it holds changes.

    Args:
        metadata: a bundle's ``metadata.json``.
        evaluation: ``evaluation.json``.
        weights: those that are released with the bundle.

    Returns:
        what was written.

    Raises:
        FileNotFoundError: no evaluation, or no weights.
        ValueError: the evaluation is of other weights, of somebody's folder of volumes, compares with training volumes, or
            with data that the weights were not trained on.
    """
    report = _read(evaluation, "run evaluating first")
    _check_weights(weights)
    if report.get("samples") != "generated":
        raise ValueError(
            f"{evaluation} is of {report.get('samples')}: metadata hold numbers of volumes that evaluating has itself "
            "sampled"
        )
    if report["reference"] != "test":
        raise ValueError(f"expected a comparison with reference test, {evaluation} is one with {report['reference']}")
    if not report["trained_on_these"]:
        raise ValueError(
            f"{evaluation} compares with data that the weights were not trained on, as far as their note says: metadata "
            "hold numbers of held-out patients of the training data"
        )
    if report["weights_sha256"] != file_hash(weights):
        raise ValueError(
            f"{evaluation} is of weights {report['weights_sha256']}, {weights} has {file_hash(weights)}: evaluate again"
        )
    before = _read(metadata, "it is the bundle's")["eval_metrics"]
    kept = {"audit": before["audit"]} if _is_of(before, weights) and "audit" in before else {}
    found = eval_metrics(report) | kept
    _write(metadata, found)
    return found


def record_audit(metadata: str | Path, audit: str | Path, weights: str | Path) -> dict[str, Any]:
    """Write the numbers of a copy audit beside those of the evaluation, as ``audit`` in ``eval_metrics``.

    Args:
        metadata: a bundle's ``metadata.json``.
        audit: ``audit.json``.
        weights: those that are released with the bundle.

    Returns:
        what was written.

    Raises:
        FileNotFoundError: no audit, or no weights.
        ValueError: the audit is of other weights, or no note confirms its training volumes as those of the weights; or
            the metadata hold no evaluation of these weights.
    """
    report = _read(audit, "run auditing first")
    _check_weights(weights)
    facts = report["facts"]
    if facts["weights_sha256"] != file_hash(weights):
        raise ValueError(
            f"{audit} is of weights {facts['weights_sha256']}, {weights} has {file_hash(weights)}: audit again"
        )
    if not facts["trained_on_these"]:
        raise ValueError(f"{audit} compares with volumes of which no note says that the weights were trained on them")
    before = _read(metadata, "it is the bundle's")["eval_metrics"]
    if not _is_of(before, weights):
        raise ValueError(
            f"eval_metrics in {metadata} are not of {weights}: record an evaluation of these weights first"
        )
    counts = {name: facts[name] for name in ("alpha", "training_volumes", "held_out_patients")}
    found = {**counts, **{name: report[name] for name in OF_AN_AUDIT}}
    _write(metadata, before | {"audit": found})
    return found


def _read(path: str | Path, how: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected {path}, found none: {how}")
    return json.loads(Path(path).read_text())


def _check_weights(weights: str | Path) -> None:
    if not Path(weights).is_file():
        raise FileNotFoundError(f"expected {weights}, found none: numbers without their weights mean nothing")


def _is_of(recorded: Mapping[str, Any], weights: str | Path) -> bool:
    return recorded.get("weights_sha256") == file_hash(weights)


def _write(metadata: str | Path, value: Mapping[str, Any]) -> None:
    text = _replaced(Path(metadata).read_text(), value)
    write_atomically(metadata, lambda temporary: temporary.write_text(text))


def _replaced(text: str, value: Mapping[str, Any]) -> str:
    """The JSON text with this value of ``eval_metrics``, laid out as it was everywhere else."""
    place = re.search(r'^(?P<indent> *)"eval_metrics":\s*', text, re.MULTILINE)
    if place is None:
        raise ValueError('expected a line "eval_metrics": ... in the metadata, found none')
    _, end = json.JSONDecoder().raw_decode(text, place.end())
    new = json.dumps(value, indent=2, allow_nan=False).replace("\n", "\n" + place["indent"])
    return text[: place.end()] + new + text[end:]
