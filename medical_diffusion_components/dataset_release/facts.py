"""What is known of a data set before its documents are written, and what must not be released."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medical_diffusion_components.audit import audit_headline
from medical_diffusion_components.weights import EMBEDDED

__all__ = ["ReleaseError", "ReleaseFacts", "check_releasable", "licence_of", "licence_url"]

# With attribution, the origin stays with every copy: under CC0-1.0 the mark "synthetic" might be dropped from one.
DEFAULT_LICENCE = "CC-BY-4.0"
_CREATIVE_COMMONS = {
    "CC0-1.0": "publicdomain/zero/1.0",
    "CC-BY-4.0": "licenses/by/4.0",
    "CC-BY-SA-4.0": "licenses/by-sa/4.0",
    "CC-BY-NC-4.0": "licenses/by-nc/4.0",
    "CC-BY-NC-SA-4.0": "licenses/by-nc-sa/4.0",
}


class ReleaseError(ValueError):
    """What is at hand must not be released, or not like this."""


class ReleaseFacts(NamedTuple):
    """What documents and tables are written from."""

    title: str
    bundle: str  # name and version
    modality: str  # CT or MR
    image_size: tuple[int, ...]
    spacing: tuple[float, ...]  # mm
    licence: str  # SPDX identifier
    creator: str | None
    version: str
    date: str  # of publication, YYYY-MM-DD
    weights: Mapping[str, Any]  # the note beside them, with weights_sha256
    sampler: str
    steps: int
    seed: int
    drawn: int  # volumes that were drawn until there were enough
    splits: Mapping[str, int]  # how many volumes are in each
    audit: Mapping[str, Any] | None  # parts of the audit's report; None: there was none
    evaluation: Mapping[str, Any] | None  # parts of evaluation.json; None: not evaluated
    layout: str  # bids, images or dicom

    @property
    def released(self) -> int:
        return sum(self.splits.values())

    @property
    def no_patient_seen(self) -> bool:
        """Whether the generator was trained on an embedded cohort."""
        return _is_embedded(self.weights)

    def origin(self) -> str:
        """Where the volumes come from, in two or three sentences."""
        text = f"Every volume is synthetic: sampled from noise by {self.bundle} ({self.sampler}, {self.steps} steps)."
        if self.no_patient_seen:
            return f"{text} No patient was seen: the generator was trained on the {self.weights['data']}."
        return f"{text} The generator was trained on scans of patients ({self.weights.get('data', 'unknown data')})."

    def privacy(self) -> str:
        """What was done against copies of training volumes."""
        if self.audit is None:
            return (
                "NOT AUDITED: nobody has tested whether volumes of this data set are copies of training volumes. "
                "It was released without an audit on purpose (--audited False)."
            )
        return (
            f"Audited: each volume passed a copy test, {self.released} of {self.drawn} drawn. The audit of the generator "
            f"found: {self.audit['headline']}"
        )


def licence_of(licence: str | None, weights: Mapping[str, Any]) -> str:
    """The licence of a data set: the one given or, of a generator that has seen no patient, CC-BY-4.0.

    Args:
        licence: SPDX identifier, or None.
        weights: the note beside the generator's weights.

    Raises:
        ReleaseError: none given for a generator of other data, whose agreement decides.
    """
    if licence is not None:
        return str(licence)
    if _is_embedded(weights):
        return DEFAULT_LICENCE
    raise ReleaseError(
        "expected a licence (--licence, an SPDX identifier such as CC-BY-NC-4.0), got none: the generator was trained on "
        f"{weights.get('data', 'unknown data')}, and what may be done with its volumes is for "
        "the agreement on these data to say"
    )


def licence_url(licence: str) -> str:
    """Where the text of a licence is."""
    if licence in _CREATIVE_COMMONS:
        return f"https://creativecommons.org/{_CREATIVE_COMMONS[licence]}/"
    return f"https://spdx.org/licenses/{licence}.html"


def check_date(date: str) -> None:
    """Refuse a date that is not written YYYY-MM-DD.

    Raises:
        ReleaseError: another form, or no such day.
    """
    try:
        right = datetime.date.fromisoformat(str(date)).isoformat() == date
    except ValueError:
        right = False
    if not right:
        raise ReleaseError(f"expected date_published as YYYY-MM-DD, got {date!r}")


def today() -> str:
    """The date, as YYYY-MM-DD, in UTC."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def check_audit(folder: Path, weights_sha256: str, audited: bool) -> dict[str, Any] | None:
    """Parts of the audit's report; None if a release without an audit was asked for.

    Raises:
        ReleaseError: there is no audit of these weights.
    """
    if not audited:
        return None
    found = audit_headline(folder, weights_sha256)
    if found is None:
        raise ReleaseError(
            f"expected an audit of the weights {weights_sha256[:16]}... in {folder}, found none: run audit.yaml first, or "
            "release without one by --audited False, which every document will then say"
        )
    return found


def check_releasable(notes: Mapping[Path, Mapping[str, Any]], weights_sha256: str, audited: bool) -> None:
    """Refuse volumes that are no fresh samples of this generator.

    Args:
        notes: path of each volume -> the note beside it.
        weights_sha256: of the generator.
        audited: whether each must have passed the audit.

    Raises:
        ReleaseError: a volume that was made from a scan, by other weights, or that the audit has not released.
    """
    for path, note in notes.items():
        if note.get("synthetic") is False or "edited_from" in note:
            raise ReleaseError(f"{path} was edited from a real scan, as its note says: it is not synthetic, and stays")
        if note.get("weights_sha256") != weights_sha256:
            raise ReleaseError(
                f"{path} was made by the weights {str(note.get('weights_sha256'))[:16]}..., "
                f"expected {weights_sha256[:16]}..."
            )
        verdict = note.get("audit", {}).get("verdict")
        if audited and verdict != "released":
            raise ReleaseError(f"{path} has the verdict {verdict!r} in its note, expected 'released'")


def public_audit(report: Mapping[str, Any]) -> dict[str, Any]:
    """An audit's report without the hashes of training volumes, by which somebody could recognise them.

    Args:
        report: content of ``audit.json``.
    """
    kept = ("headline", "note", "protocol", "volumes", "flagged", "holdout_share", "data_copying_z", "membership")
    counted = ("alpha", "training_volumes", "training_patients", "held_out_patients", "synthetic_volumes")
    known = {key: report[key] for key in (*kept, "published_rule") if key in report}
    known["memorised"] = {key: report["memorised"][key] for key in ("count", "share", "interval")}
    known["duplicates_in_training"] = len(report["duplicates_in_training"])
    known["facts"] = {key: report["facts"][key] for key in (*counted, "weights_sha256", "versions")}
    return known


def public_evaluation(report: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation's report without what refers to single volumes.

    Args:
        report: content of ``evaluation.json``.
    """
    kept: Sequence[str] = (
        "protocol", "metrics", "n", "bundle", "weights_sha256", "sampler", "steps", "reference", "samples", "spaces",
        "what_rows_are", "rows", "warnings", "settings", "versions",
    )  # fmt: skip
    return {key: report[key] for key in kept if key in report}


def public_note(note: Mapping[str, Any]) -> dict[str, Any]:
    """The note of a volume as others get it: how to make it again, and the audit's verdict without the nearest volume."""
    public = {key: value for key, value in note.items() if key not in ("seconds", "audit")}
    if "audit" in note:
        kept = ("verdict", "similarity", "p", "p_raw", "distance_ratio", "note")
        public["audit"] = {key: note["audit"][key] for key in kept if key in note["audit"]}
    return {"synthetic": True, **public}


def _is_embedded(weights: Mapping[str, Any]) -> bool:
    return str(weights.get("data", "")).startswith(EMBEDDED)
