"""What a copy audit of the same generator adds to an evaluation: its headline, and the pairs to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from medical_diffusion_components.files import file_hash

__all__ = ["AuditedPair", "audited_pairs", "copies_in_words", "of_these_volumes"]

Case = Mapping[str, Any]
TAKEN_OVER = ("headline", "note", "volumes", "flagged", "membership", "data_copying_z")


class AuditedPair(NamedTuple):
    """A synthetic volume and the training volume that an audit found nearest."""

    synthetic: Case
    training: Case
    text: str


def of_these_volumes(audit: Mapping[str, Any] | None, synthetic: Sequence[Case]) -> dict[str, Any] | None:
    """The part of an audit that goes into ``evaluation.json``, and whether it judged the volumes that are evaluated.

    Args:
        audit: as ``audit_headline`` gives it; None: there is none.
        synthetic: the evaluated cases.
    """
    if audit is None:
        return None
    same = {file_hash(case["image"]) for case in synthetic} == set(audit["samples_sha256"])
    return {**{key: audit[key] for key in TAKEN_OVER}, "same_volumes": same}


def copies_in_words(found: Mapping[str, Any] | None) -> str:
    """The end of the headline's first sentence.

    Args:
        found: as :func:`of_these_volumes` gives it.
    """
    if found is None:
        return "nobody has looked for copies of training volumes (audit.yaml does)"
    total, copies = sum(found["volumes"].values()), found["volumes"]["copy"]
    words = f"{copies} of {total} are copies of training volumes" if copies else f"no copy found among {total}"
    return words if found["same_volumes"] else f"{words} other volumes of this generator, and these were not audited"


def audited_pairs(
    audit: Mapping[str, Any] | None, synthetic: Sequence[Case], training: Sequence[Case]
) -> list[AuditedPair]:
    """The closest pairs of an audit, as far as their files are among these cases, the closest first.

    Args:
        audit: as ``audit_headline`` gives it; None: there is none.
        synthetic: the evaluated cases.
        training: all training cases.
    """
    if audit is None:
        return []
    ours = {file_hash(case["image"]): case for case in synthetic}
    theirs = {file_hash(case["image"]): case for case in training}
    return [
        AuditedPair(
            ours[pair["sample_sha256"]],
            theirs[pair["nearest_training_volume_sha256"]],
            f"{pair['verdict']}; similarity {pair['similarity']:.3f}, p = {pair['p']:.3g}",
        )
        for pair in audit["closest_pairs"]
        if pair["sample_sha256"] in ours and pair["nearest_training_volume_sha256"] in theirs
    ]
