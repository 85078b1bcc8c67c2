"""The account of a check, for people and for programs, with its contact sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medical_diffusion_components.files import markdown_table, printable, versions, write_atomically, write_json
from medical_diffusion_components.preflight.advice import advice_for, grouped
from medical_diffusion_components.preflight.contact_sheet import contact_sheet
from medical_diffusion_components.preflight.survey import Survey, table_lines
from medical_diffusion_components.reports.drawing import save_montage

__all__ = ["CheckReport", "write_check"]

SHEET = "contact_sheet.png"
_LISTED = 5


class CheckReport(NamedTuple):
    """What was found.

    Attributes:
        title: of what.
        found: name -> number or text: patients, series, files.
        survey: of the scans.
        room: name -> number or text: disk, memory, time.
        remarks: of the folder as a whole.
        short: what is lacking, each with what to do: room, patients.
    """

    title: str
    found: Mapping[str, Any]
    survey: Survey
    room: Mapping[str, Any]
    remarks: Sequence[str]
    short: Sequence[str]

    @property
    def to_do(self) -> list[str]:
        """What to do before the work, the gravest first; empty if nothing."""
        refusals = [
            f"{len(cases)} refused ({_some(cases)}): {advice}" for advice, cases in grouped(self.survey.refused).items()
        ]
        outliers = self.survey.outliers()
        looks = [f"look at {len(outliers)} unlike the others ({_some(list(outliers))})"] if outliers else []
        return [*self.short, *refusals, *looks]

    @property
    def last_line(self) -> str:
        """Ready, or what to do."""
        to_do = self.to_do
        return "Ready." if not to_do else f"To do: {'; '.join(f'({n}) {what}' for n, what in enumerate(to_do, 1))}."

    def as_dict(self) -> dict[str, Any]:
        """The content of ``check.json``."""
        survey = self.survey
        return {
            "title": self.title,
            "found": self.found,
            "remarks": list(self.remarks),
            "tables": survey.tables(),
            "outliers": survey.outliers(),
            "refused": {case: {"why": why, "advice": advice_for(why)} for case, why in sorted(survey.refused.items())},
            "aside": {case: why for case, (_, why) in sorted(survey.aside.items())},
            "remarks_on_cases": dict(sorted(survey.remarks.items())),
            "room": self.room,
            "voxels_looked_at": sorted(survey.looks),
            "ready": not self.to_do,
            "to_do": self.to_do,
            "versions": versions(),
            "cases": [facts.as_dict() for facts in survey.facts.values()],
        }

    def as_text(self) -> str:
        """The content of ``check.md``."""
        survey = self.survey
        lines = [
            f"# {self.title}",
            "",
            "## Found",
            "",
            *_listed(self.found),
            *(f"* Noticed: {r}." for r in self.remarks),
        ]
        lines += ["", "## Sizes, spacings, intensities", ""]
        looked = f"{len(survey.looks)} of {len(survey.facts)}"
        lines += [f"Headers of all scans; intensities of {looked}, whose voxels were looked at.", "", "```"]
        for name, table in survey.tables().items():
            lines += table_lines(name, table)
        lines += ["```", "", "## Unlike the others", ""]
        lines += [f"* {case}: {'; '.join(why)}" for case, why in survey.outliers().items()] or ["None."]
        lines += ["", "## Refused", ""]
        if survey.refused:
            refused = [(case, why, advice_for(why)) for case, why in sorted(survey.refused.items())]
            lines += markdown_table(("case", "why", "what to do"), refused)
        else:
            lines.append(f"None, by all headers and the voxels of {looked}.")
        if survey.aside:
            lines += [
                "",
                "## Left aside, no images",
                "",
                *(f"* {case}: {why}" for case, (_, why) in sorted(survey.aside.items())),
            ]
        if survey.remarks:
            remarks = [(case, said, advice_for(said)) for case, rs in sorted(survey.remarks.items()) for said in rs]
            lines += ["", "## Remarks", "", *markdown_table(("case", "remark", "what to do"), remarks)]
        lines += ["", "## Room, memory, time", "", *_listed(self.room)]
        if survey.looks:
            lines += ["", "## Pictures", "", f"![{len(survey.cells())} cases]({SHEET})"]
        return printable("\n".join([*lines, "", self.last_line]) + "\n")

    def as_console_text(self, folder: Path) -> str:
        """What the command prints: the report without its picture, where it lies, and the last line."""
        text = self.as_text().removesuffix(printable(f"{self.last_line}\n")).split("## Pictures")[0].strip()
        return f"{text}\n\nReport and pictures: {folder}\n{printable(self.last_line)}"


def write_check(report: CheckReport, folder: Path) -> None:
    """Write ``check.json``, ``check.md`` and, where voxels were looked at, ``contact_sheet.png``."""
    cells = report.survey.cells()
    if cells:
        title = (
            f"{report.title}: {len(cells)} of {len(report.survey.facts)}; sagittal, coronal, axial; outliers and refused "
            "scans are framed"
        )
        save_montage(contact_sheet(cells, title), folder / SHEET)
    else:
        (folder / SHEET).unlink(missing_ok=True)
    write_json(folder / "check.json", report.as_dict())
    write_atomically(folder / "check.md", lambda file: file.write_text(report.as_text()))


def _some(cases: Sequence[str]) -> str:
    return ", ".join(cases[:_LISTED]) + (", ..." if len(cases) > _LISTED else "")


def _listed(things: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, value in things.items():
        said = ", ".join(f"{number} {what}" for what, number in value.items()) if isinstance(value, Mapping) else value
        if value not in (None, {}, ""):
            lines.append(f"* {name}: {said}")
    return lines
