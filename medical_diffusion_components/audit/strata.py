"""What an audit finds in each combination of conditions: a model copies first where it has seen few patients.

Combinations and numbers of patients are those of the note beside the weights, so that a report says no more of the training
patients than the note does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from medical_diffusion_components.audit.conformal import FlaggedShare, clopper_pearson, flagged_share
from medical_diffusion_components.audit.copy_test import Verdict
from medical_diffusion_components.data.condition_requests import stratum_part
from medical_diffusion_components.data.conditions import Conditions
from medical_diffusion_components.files import markdown_table

__all__ = ["Strata", "Stratum", "by_stratum", "strata_in_words", "strata_table", "stratum_of"]

MOST_OPEN = 0.5  # if no volume were flagged and the interval still went up to this, too few volumes were audited
WHY = "A model copies first where it has seen few patients: combinations of the fewest training patients come first."
HOW_READ = (
    f"Where even no flagged volume would leave it open whether {MOST_OPEN:.0%} of them are, there are too few to say "
    "anything. Among many combinations some have a small p by chance."
)
ALL_RARE = "all that are too rare for the weights' note"


class Stratum(NamedTuple):
    """The volumes that were asked for one combination of conditions."""

    # Name -> bin, category, or None where it was left to the network; None as a whole: not noted, or several combinations.
    conditions: dict[str, Any] | None
    patients: int | None  # training patients in the weights' note; None: too few to be in it, or unknown
    copies: int
    enough: bool  # whether there are enough volumes for the share to say anything
    flagged: FlaggedShare


class Strata(NamedTuple):
    """All volumes of an audit by what they were asked for."""

    rare: Stratum | None  # all combinations together that too few training patients have to be in the weights' note
    each: list[Stratum]  # those of the fewest training patients first
    not_noted: Stratum | None  # volumes without a note of what they were asked for


def by_stratum(
    samples: Sequence[Mapping[str, Any]],
    verdicts: Sequence[Verdict],
    conditions: Conditions,
    strata: Sequence[Mapping[str, Any]],
    alpha: float,
    held_out_patients: int,
) -> Strata:
    """Count the verdicts in each combination of conditions.

    Args:
        samples: the volumes' cases, with ``conditions`` where their notes say them.
        verdicts: of the volumes.
        conditions: those that the generator was trained with.
        strata: of the training patients, as the note beside the weights has them.
        alpha: level of the test.
        held_out_patients: behind its p-values.

    Raises:
        ValueError: a volume was asked for a condition that the generator does not have.
    """

    def counted(chosen: Sequence[Verdict], stratum: dict[str, Any] | None, patients: int | None) -> Stratum:
        share = flagged_share(np.array([verdict.p for verdict in chosen]), alpha, held_out_patients)
        copies = sum(verdict.verdict == "copy" for verdict in chosen)
        return Stratum(stratum, patients, copies, clopper_pearson(0, len(chosen))[1] < MOST_OPEN, share)

    groups: dict[str, list[Verdict]] = {}
    known: dict[str, int] = {}
    for case, verdict in zip(samples, verdicts):
        key = ""
        if case.get("conditions") is not None:
            values = conditions.decode(conditions.encode(case["conditions"], str(case["case_id"]), extrapolate=True))
            stratum, patients = stratum_of(conditions, strata, values)
            key = json.dumps(stratum)
            known[key] = patients
        groups.setdefault(key, []).append(verdict)
    order = sorted(known, key=lambda key: (known[key], key))
    rare = [verdict for key in order if not known[key] for verdict in groups[key]]
    return Strata(
        counted(rare, None, None) if rare else None,
        [counted(groups[key], json.loads(key), known[key] or None) for key in order],
        counted(groups[""], None, None) if "" in groups else None,
    )


def strata_in_words(found: Mapping[str, Any]) -> list[str]:
    """The paragraph of a report, in lines of Markdown.

    Args:
        found: :class:`Strata` as plain values.
    """
    header, *rows = strata_table(found)
    if found["rare"] is not None:
        rows[0][0] = f"**{rows[0][0]}**"
    return ["## By condition", "", WHY, "", *markdown_table(header, rows), "", HOW_READ, ""]


def strata_table(found: Mapping[str, Any]) -> list[list[str]]:
    """Header, then a row for each combination.

    Args:
        found: :class:`Strata` as plain values.
    """
    rows = [] if found["rare"] is None else [_row(ALL_RARE, found["rare"])]
    rows += [_row(_described(stratum["conditions"]), stratum) for stratum in found["each"]]
    if found["not_noted"] is not None:
        rows.append(_row("not noted beside the volumes", found["not_noted"], "unknown"))
    return [["asked for", "training patients", "copies", "flagged", "p"], *rows]


def _row(name: str, stratum: Mapping[str, Any], not_counted: str = "not counted") -> list[str]:
    share, known = stratum["flagged"], str(stratum["patients"] or not_counted)
    counts = f"{share['flagged']} of {share['volumes']}"
    if not stratum["enough"]:
        return [name, known, str(stratum["copies"]), f"{counts}: too few volumes to say anything", ""]
    low, high = share["interval"]
    shares = f"{counts} = {100 * share['share']:.1f} % ({100 * low:.1f} % to {100 * high:.1f} %)"
    return [name, known, str(stratum["copies"]), shares, f"{share['p_value']:.3g}"]


def _described(stratum: Mapping[str, Any]) -> str:
    """``age 70 to 75; sex F; site left open``."""
    parts = []
    for name, part in stratum.items():
        words = "left open" if part is None else f"{part[0]:g} to {part[1]:g}" if isinstance(part, list) else part
        parts.append(f"{name} {words}")
    return "; ".join(parts)


def stratum_of(
    conditions: Conditions, strata: Sequence[Mapping[str, Any]], values: Mapping[str, Any]
) -> tuple[dict[str, Any], int]:
    """The combination of bins and categories that a volume was asked for, and how many training patients have it.

    Args:
        conditions: those that the weights were trained with.
        strata: as ``data.condition_strata`` makes them, from which the bins follow.
        values: of the volume. A missing one was left to the network, so training patients with any value have it.

    Returns:
        name -> bin ``[low, high]``, ``"below 50"`` or ``"above 90"`` outside the declared range, category, or None; and
        the patients that ``strata`` count, 0 for a combination that is not among them.
    """
    counted = [counted["stratum"] for counted in strata]
    widths = [
        (variable.high - variable.low) / (part[1] - part[0])
        for variable in conditions.variables
        for part in (stratum[variable.name] for stratum in counted)
        if isinstance(part, list)
    ]
    bins = round(max(widths, default=1))
    stratum = {variable.name: stratum_part(variable, values[variable.name], bins) for variable in conditions.variables}
    patients = [
        one["patients"]
        for one in strata
        if all(part is None or part == one["stratum"][name] for name, part in stratum.items())
    ]
    return stratum, sum(patients)
