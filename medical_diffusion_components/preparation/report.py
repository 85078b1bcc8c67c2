"""The account of a preparation: what became of each case, where the time went, how much memory it took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from medical_diffusion_components.files import markdown_table, printable, versions, write_atomically, write_json
from medical_diffusion_components.preparation.case import WRITING, CaseResult
from medical_diffusion_components.preparation.inventory import Inventory

__all__ = ["PreparationReport", "write_report"]

STATUSES = ("made", "skipped", "refused", "absent", "aside")
_COLUMNS = ("case", "status", "reason", "remarks")
_LISTED = 20  # names of files left aside, of each reason


class PreparationReport(NamedTuple):
    """Results by case id, wall time in seconds, what the steps were, what was found, and what was decided."""

    results: tuple[CaseResult, ...]
    wall_seconds: float
    settings: str
    max_refused_share: float
    allow_absent: bool
    inventory: Inventory
    decided: Mapping[str, Any]

    @property
    def counts(self) -> dict[str, int]:
        """Number of cases by status."""
        counts = Counter(result.status for result in self.results)
        return {status: counts[status] for status in STATUSES}

    @property
    def refused_share(self) -> float:
        """Share of the cases that were refused; absent ones count among them, or not at all if that is allowed.

        What is left aside is no case.
        """
        counts = self.counts
        refused = counts["refused"] + (0 if self.allow_absent else counts["absent"])
        return refused / max(1, len(self.results) - counts["aside"] - (counts["absent"] if self.allow_absent else 0))

    @property
    def files(self) -> dict[str, Any]:
        """Files seen; used by volumes; of refused cases; left aside by reason. The last three add up to the first."""
        aside = Counter(self.inventory.num_aside)
        used = refused = 0
        for result in self.results:
            number = len(self.inventory.files_of.get(result.case_id, ()))
            if result.status in ("made", "skipped"):
                used += number
            elif result.status == "aside":
                aside[result.reason.replace("_", " ")] += number
            else:
                refused += number
        return {"seen": self.inventory.num_seen, "used": used, "refused": refused, "aside": dict(aside.most_common())}

    @property
    def files_line(self) -> str:
        """The account of the files in one line."""
        files = self.files
        reasons = ", ".join(f"{number} {reason}" for reason, number in files["aside"].items() if number)
        return (
            f"Files: {files['seen']} seen = {files['used']} used + {files['refused']} of refused cases + "
            f"{sum(files['aside'].values())} left aside{f' ({reasons})' if reasons else ''}."
        )

    @property
    def shares(self) -> dict[str, float]:
        """Share of the workers' time in reading, resampling, writing and other steps; empty if nothing was made."""
        seconds = self.seconds
        groups = dict.fromkeys(("reading", "resampling", "writing", "other"), 0.0)
        for step, spent in seconds.items():
            groups[_group(step)] += spent
        total = sum(groups.values())
        return {name: spent / total for name, spent in groups.items()} if total else {}

    @property
    def seconds(self) -> dict[str, float]:
        """The workers' time by step."""
        seconds: Counter[str] = Counter()
        for result in self.results:
            seconds.update(result.seconds)
        return dict(seconds)

    @property
    def remarks(self) -> dict[str, int]:
        """How many volumes bear each note that is true, such as ``skull``."""
        notes = (output["notes"] for result in self.results for output in result.outputs)
        return dict(Counter(name for note in notes for name, value in note.items() if value is True))

    @property
    def peak_mib(self) -> float:
        """Highest memory use of a worker process."""
        return max((result.peak_mib for result in self.results), default=0.0)

    def as_dict(self) -> dict[str, Any]:
        """The content of ``report.json``."""
        reasons = Counter(result.reason for result in self.results if result.reason)
        return {
            "counts": self.counts,
            "refused_share": self.refused_share,
            "max_refused_share": self.max_refused_share,
            "reasons": dict(reasons.most_common()),
            "remarks": self.remarks,
            "noticed": self.inventory.remarks,
            "files": self.files,
            "files_aside": {reason: sorted(names)[:_LISTED] for reason, names in self.inventory.aside.items() if names},
            "decided": self.decided,
            "wall_seconds": round(self.wall_seconds, 3),
            "worker_seconds": {step: round(spent, 3) for step, spent in self.seconds.items()},
            "worker_shares": {name: round(share, 4) for name, share in self.shares.items()},
            "peak_worker_mib": round(self.peak_mib),
            "settings": self.settings,
            "versions": versions(),
            "cases": [_as_dict(result) for result in self.results],
        }

    def as_text(self) -> str:
        """The content of ``report.md``."""
        counts, total = self.counts, len(self.results)
        lines = [
            "# Preparation",
            "",
            f"{total} cases: {', '.join(f'{number} {status}' for status, number in counts.items())} "
            f"({self.refused_share:.1%} refused, {self.max_refused_share:.1%} allowed).",
            f"{self.wall_seconds:.0f} s; highest memory use of a worker {self.peak_mib:.0f} MiB.",
        ]
        if self.shares:
            lines.append(f"Time: {', '.join(f'{share:.0%} {name}' for name, share in self.shares.items())}.")
        lines += [f"Noticed: {name} in {number} of the volumes." for name, number in self.remarks.items()]
        lines += [f"Noticed: {remark}." for remark in self.inventory.remarks]
        patients = ", ".join(f"{number} by {what}" for what, number in self.decided["patients"].items())
        lines.append(f"Patients: {patients}.")
        rows = []
        order = {status: place for place, status in enumerate(("refused", "absent", "aside", "made", "skipped"))}
        for result in sorted(self.results, key=lambda result: (order[result.status], result.case_id)):
            remarks = sorted({name for o in result.outputs for name, value in o["notes"].items() if value is True})
            reason = f"{result.reason}: {result.text}" if result.reason else ""
            rows.append((result.case_id, result.status, reason, ", ".join(remarks)))
        return printable("\n".join([*lines, "", *markdown_table(_COLUMNS, rows), "", self.files_line]) + "\n")

    def as_console_text(self, details: Path) -> str:
        """What the command says at its end."""
        return (
            f"{self.as_text().split(markdown_table(_COLUMNS, [])[0])[0].strip()}\nDetails: {details}\n{self.files_line}"
        )


def write_report(report: PreparationReport, dataset_dir: Path) -> None:
    """Write ``report.json`` and ``report.md``."""
    write_json(dataset_dir / "report.json", report.as_dict())
    write_atomically(dataset_dir / "report.md", lambda file: file.write_text(report.as_text()))


def _group(step: str) -> str:
    if step == WRITING:
        return "writing"
    return "reading" if step.startswith("Load") else "resampling" if step.startswith("Resample") else "other"


def _as_dict(result: CaseResult) -> Mapping[str, Any]:
    shown = result._asdict()
    shown["seconds"] = {step: round(spent, 3) for step, spent in result.seconds.items()}
    shown["peak_mib"] = round(result.peak_mib)
    shown["outputs"] = [
        {key: value for key, value in output.items() if key not in ("signature", "landmarks")}
        for output in result.outputs
    ]
    return shown
