"""Write down what a copy audit found: beside each volume, as a table, for a model, and as a picture."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medical_diffusion_components.audit.copy_audit import AuditResult
from medical_diffusion_components.audit.copy_test import NOT_ANONYMOUS, PROTOCOL, VERDICTS, Verdict
from medical_diffusion_components.audit.strata import HOW_READ, WHY, strata_in_words, strata_table
from medical_diffusion_components.audit.training_ids import volumes_by_id
from medical_diffusion_components.audit.volumes import Preprocessing
from medical_diffusion_components.data.training_of_weights import without_hashes
from medical_diffusion_components.data.volume_notes import note_beside, note_path
from medical_diffusion_components.files import file_hash, markdown_table, versions, write_atomically, write_json
from medical_diffusion_components.orientation import to_ras
from medical_diffusion_components.reports.drawing import save_montage

__all__ = ["AuditReport", "audit_headline"]

NUM_PAIRS = 12
# what an evaluation takes over
HEADLINE_PARTS = (
    "headline", "note", "volumes", "flagged", "membership", "data_copying_z", "samples_sha256", "closest_pairs",
)  # fmt: skip
UNKNOWN = "The weights came without a note: that they were trained on these volumes is your word alone."
LEAKING_AREA = 0.6  # membership area from which weights should not be passed on, whatever the volumes look like


class AuditReport:
    """Write an audit's result.

    ``audit.json`` and ``audit.md`` (the model), ``audit.csv`` and ``released.txt`` (its volumes), ``closest_pairs.png``
    (the 12 most similar volumes, each with its nearest training volume and the difference), and the entry ``audit`` in
    the JSON beside each volume. Training volumes appear under names that only ``at_home`` can resolve, and no hash
    of a file or of the set is written; the picture shows them, so it is as confidential as they are.

    Args:
        folder: where all but the notes go.
        preprocessing: of the volumes, for the picture.
        facts: what else goes into the report, such as the bundle and what the data are; hashes of the data are left out.
        axcodes: where H, W and D point.
    """

    def __init__(
        self, folder: str | Path, preprocessing: Preprocessing, facts: Mapping[str, Any], axcodes: str = "RAS"
    ) -> None:
        self.folder = Path(folder)
        self.preprocessing = preprocessing
        self.facts = dict(facts)
        self.axcodes = axcodes

    def __call__(self, result: AuditResult) -> None:
        for case, verdict in zip(result.samples, result.verdicts):
            note_verdict(case["image"], verdict)
        report = summary(result, self.facts)
        write_json(self.folder / "audit.json", report)
        self._write(self.folder / "audit.md", markdown(report))
        self._write(self.folder / "audit.csv", table(result))
        names = [
            case["case_id"] for case, verdict in zip(result.samples, result.verdicts) if verdict.verdict == "released"
        ]
        self._write(self.folder / "released.txt", "".join(f"{name}\n" for name in names))
        save_montage(self._picture(result), self.folder / "closest_pairs.png")
        print(f"{report['headline']}\nreport: {self.folder / 'audit.md'}", flush=True)

    @staticmethod
    def _write(path: Path, text: str) -> None:
        write_atomically(path, lambda temporary: temporary.write_text(text))

    def _picture(self, result: AuditResult) -> Figure:
        """Rows of synthetic volume, nearest training volume and difference; two pairs side by side."""
        closest = _closest(result)
        rows = -(-len(closest) // 2)
        figure = Figure(figsize=(9.6, 1.75 * rows + 0.5), facecolor="black", dpi=110)
        FigureCanvasAgg(figure)
        figure.suptitle("synthetic volume | nearest training volume | difference", color="white", fontsize=9)
        grid = figure.add_gridspec(rows, 6, left=0.01, right=0.99, top=1 - 0.45 / figure.get_figheight(), bottom=0.01)
        for place, number in enumerate(closest):
            verdict = result.verdicts[number]
            one, theirs = (self._volume(case) for case in (result.samples[number], result.sources[verdict.source]))
            if abs(one - theirs[::-1]).mean() < abs(one - theirs).mean():  # the encoder counts mirror images as copies
                theirs = theirs[::-1]
            one, other = _middle(one), _middle(theirs)
            row, column = place % rows, 3 * (place // rows)
            for offset, (picture, style) in enumerate(
                ((one, ("gray", -1, 1)), (other, ("gray", -1, 1)), (one - other, ("RdBu_r", -1, 1)))
            ):
                axes = figure.add_subplot(grid[row, column + offset])
                axes.set_axis_off()
                axes.imshow(picture.T, origin="lower", cmap=style[0], vmin=style[1], vmax=style[2], aspect="equal")
                if offset == 0:
                    axes.set_title(
                        f"{verdict.verdict}, {verdict.similarity:.3f}, p = {verdict.p:.3f}",
                        color="0.8",
                        fontsize=6,
                        pad=2,
                    )
        return figure

    def _volume(self, case: dict) -> np.ndarray:
        """The volume (X, Y, Z), in [-1, 1], its axes turned to the right, to the front and up."""
        return to_ras(self.preprocessing.volume(case)[0].numpy(), self.axcodes)


def _middle(volume: np.ndarray) -> np.ndarray:
    """The middle slice across the axis with the fewest voxels."""
    axis = 2 - int(np.argmin(volume.shape[::-1]))  # the last of several: axial, if all are equal
    return volume.take(volume.shape[axis] // 2, axis=axis)


def summary(result: AuditResult, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The report of a model as plain values, headline first."""
    counts = Counter(verdict.verdict for verdict in result.verdicts)
    flagged = _plain(result.flagged)
    samples = [file_hash(case["image"]) for case in result.samples]
    report = {
        "headline": headline(result),
        "note": NOT_ANONYMOUS,
        "protocol": PROTOCOL,
        "facts": {**without_hashes(facts), **result.facts, "versions": versions()},
        "volumes": {word: counts[word] for word in VERDICTS},
        "flagged": flagged,
        "memorised": _plain(result.memorised),
        "holdout_share": _plain(result.holdout_share),
        "data_copying_z": _rounded(result.data_copying),
        "membership": _plain(result.membership),
        "published_rule": _plain(result.published),
        **({"strata": _plain(result.strata)} if result.strata else {}),
        "duplicates_in_training": [
            {"one": one, "other": other, "similarity": _rounded(found)} for one, other, found in result.duplicates
        ],
        "samples_sha256": samples,
        "closest_pairs": [
            {"sample_sha256": samples[number], "verdict": found.verdict, "similarity": _rounded(found.similarity)}
            | {"p": _rounded(found.p), "nearest_training_volume": found.source_id}
            for number, found in ((number, result.verdicts[number]) for number in _closest(result))
        ],
    }
    return report


def _closest(result: AuditResult) -> list[int]:
    """The volumes that are most similar to a training volume, the most similar first."""
    order = np.argsort([-verdict.similarity for verdict in result.verdicts], kind="stable")
    return order[:NUM_PAIRS].tolist()


def headline(result: AuditResult) -> str:
    """The audit in one or two sentences."""
    copies = sum(verdict.verdict == "copy" for verdict in result.verdicts)
    flagged, total = result.flagged, len(result.verdicts)
    found = (
        f"{copies} of {total} synthetic volumes are copies of {result.memorised.count} training volume(s)"
        if copies
        else f"No copy found by this test among {total} synthetic volumes"
    )
    share = (
        f"{flagged.flagged} of {total} have p <= {result.facts['alpha']:g}, where up to {flagged.innocent_count} are "
        "expected without copies"
    )
    area = result.membership.denoiser
    return (
        f"{found}; {share}; training volumes can be told from held-out ones with an area under the curve of "
        f"{area.value:.3f} ± {area.error:.3f} (0.5 is chance). {NOT_ANONYMOUS}"
    )


def table(result: AuditResult) -> str:
    """One line per volume, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["volume", "verdict", "similarity", "p", "p_raw", "distance_ratio", "nearest_training_volume"])
    for case, verdict in zip(result.samples, result.verdicts):
        note = verdict.note()
        keys = ("verdict", "similarity", "p", "p_raw", "distance_ratio", "nearest_training_volume")
        writer.writerow([case["case_id"], *(note[key] for key in keys)])
    return text.getvalue()


def markdown(report: Mapping[str, Any]) -> str:
    """The report for people."""
    facts = report["facts"]
    volumes = ", ".join(f"{count} {word}" for word, count in report["volumes"].items())
    return "\n".join(
        [
            "# Copy audit",
            "",
            report["headline"],
            "",
            f"Volumes: {volumes}. Training: {facts['training_volumes']} volumes of {facts['training_patients']} patients; "
            f"held out: {facts['held_out_patients']} patients."
            + ("" if facts["trained_on_these"] else f" **{UNKNOWN}**")
            + "".join(f" Remark: {remark}." for remark in facts.get("remarks", ())),
            "",
            *markdown_table(("", "found", "without copies"), _measures(report)),
            "",
            *(strata_in_words(report["strata"]) if "strata" in report else ()),
            _duplicates(report["duplicates_in_training"]),
            "",
            "Intervals are at 95 %, errors are standard errors. The test finds volumes that resemble a training volume "
            "more than held-out patients do, in the encoder's space and up to the mirror images, movements, bends, blurs "
            "and intensity changes that it was trained with. A fragment of a training volume inside an otherwise new one "
            "is outside of it, and so is what an attacker with the weights could do, of which the membership test shows "
            f"the least. {NOT_ANONYMOUS} See docs/privacy.md.",
            "",
        ]
    )


def _measures(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of the table: what was measured, what was found, and what is expected without copies."""
    flagged, member, rule = report["flagged"], report["membership"], report["published_rule"]
    share, memorised, facts = report["holdout_share"], report["memorised"], report["facts"]
    low, high = (_percent(bound) for bound in flagged["interval"])
    rows = [
        (
            f"flagged, p <= {facts['alpha']:g}",
            f"{flagged['flagged']} of {flagged['volumes']} = {_percent(flagged['share'])} ({low} to {high})",
            f"{_percent(facts['alpha'])} on average; {_percent(flagged['innocent_range'][0])} to "
            f"{_percent(flagged['innocent_range'][1])} with one calibration set of {facts['held_out_patients']} patients; "
            f"p = {flagged['p_value']:.3g} (binomial, calibration taken as exact: {flagged['p_binomial']:.3g})",
        ),
        ("estimate of copies", _with_interval(flagged["copies"], flagged["copies_interval"]), "0 %"),
        (
            "training volumes memorised",
            f"{memorised['count']} of {facts['training_volumes']} "
            f"({_percent(memorised['interval'][0])} to {_percent(memorised['interval'][1])})",
            "0",
        ),
        (
            f"nearer to training than to held-out volumes, {share['size']} of each",
            f"{share['share']:.3f} ± {share['scatter']:.3f} over {share['redraws']} redraws",
            "0.5",
        ),
        ("C_T (far below 0 is copying)", f"{report['data_copying_z']:.2f}", "0 ± 1"),
        (
            "membership, denoiser's loss: area under the curve",
            f"{member['denoiser']['value']:.3f} ± {member['denoiser']['error']:.3f}",
            f"0.5; above {LEAKING_AREA:g} the weights should not be passed on",
        ),
        (
            "membership, first stage's error: area under the curve",
            f"{member['first_stage']['value']:.3f} ± {member['first_stage']['error']:.3f}",
            "0.5",
        ),
        (
            "published rule (Dar et al. 2025): copies, memorised",
            f"{_percent(rule['copies'])}, {_percent(rule['memorised'])}",
            f"{_percent(rule['held_out'])} of *held-out* volumes are called copies by it "
            f"({_percent(rule['expected'])} were volumes independent): not 5 %",
        ),
    ]
    if member["true_positives"] is not None:
        rows.append(("membership: true positives at 1 % false ones", _percent(member["true_positives"]), "1 %"))
    return rows


def note_verdict(volume: str | Path, verdict: Verdict) -> None:
    """Put a verdict into the note beside a volume; what is there and is no note is somebody else's, and stays."""
    path, note = note_path(volume), note_beside(volume)
    if note or not path.exists():
        write_json(path, {**note, "audit": verdict.note()})


def audit_headline(folder: str | Path, weights_sha256: str | None) -> dict[str, Any] | None:
    """What an evaluation says about copies: parts of ``audit.json``, or None without an audit of this generator.

    Where volumes were asked for by condition, ``by_condition`` has a table of what was found in each combination, and how
    to read it. At home, where the list of training volumes is, each of the closest pairs also has the hash of its training
    volume's file, by which the page finds it; elsewhere None stands there.

    Args:
        folder: of the audit's report.
        weights_sha256: of the evaluated generator; an audit of another one does not count. None: there is no generator.

    Raises:
        ValueError: a report of another protocol.
    """
    path = Path(folder) / "audit.json"
    report = json.loads(path.read_text()) if path.is_file() else None
    if report is None or report["facts"]["weights_sha256"] != weights_sha256:
        return None
    if report["protocol"] != PROTOCOL:
        raise ValueError(f"{path} is a report of {report['protocol']}, expected {PROTOCOL}: audit again")
    known = volumes_by_id(folder)
    pairs = [
        {**pair, "nearest_training_volume_sha256": known.get(pair["nearest_training_volume"])}
        for pair in report["closest_pairs"]
    ]
    found = {key: report[key] for key in HEADLINE_PARTS} | {"closest_pairs": pairs}
    if "strata" in report:
        found["by_condition"] = {"text": f"{WHY} {HOW_READ}", "table": strata_table(report["strata"])}
    return found


def _duplicates(pairs: Sequence[Mapping[str, Any]]) -> str:
    if not pairs:
        return "Duplicates in the training set: none (no two patients' volumes are nearer than a held-out one to any)."
    listed = "; ".join(f"{pair['one']} and {pair['other']} ({pair['similarity']:.3f})" for pair in pairs[:20])
    return (
        f"Duplicates in the training set: {len(pairs)} pair(s) of volumes of different patients are nearer to each other "
        f"than any held-out volume is to a training volume: {listed} "
        "(at_home/training_volumes.csv says which they are). A generator copies these first."
    )


def _with_interval(value: float, interval: Sequence[float]) -> str:
    return f"{_percent(value)} ({_percent(interval[0])} to {_percent(interval[1])})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _plain(value: Any) -> Any:
    """Named tuples as dictionaries, numbers with 6 digits."""
    if hasattr(value, "_asdict"):
        return {key: _plain(part) for key, part in value._asdict().items()}
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return _rounded(value)


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
