"""How long each recipe of the second stage trains until its samples are good: curves of quality against time.

    python benchmarks/time_to_quality.py --folder time_to_quality [--seeds 0 1 2] [--epochs 20 40 80 160 400] \
        [--fast_epochs 10 20 40 80] [--volumes 45] [--finished_only] [--save]

Two recipes are trained on the embedded brains with the networks of `demo.yaml` and the same first stage: the paper's,
which are the values of `train.yaml`, and that of `fast.yaml`. Nothing else differs. The paper's learning rate does not
change, so one training with the weights kept after each number of `--epochs` gives its curve; the rate of `fast.yaml`
falls towards the end of a training, so each number of `--fast_epochs` is a training of its own. A point is what a user
has who stops there: the weights that were best on held-out latents so far.

After an interruption, repeat the command: it resumes after the last finished epoch and keeps every result.
`--finished_only` trains nothing more and judges what is there.

Time is processor time of the second stage's process, start and validation included; where there is a GPU, by the clock.
That of the first stage, which is the same for all, is stated apart. Each point makes `--volumes` volumes with 20 steps of
dpmpp_2m; `evaluate.yaml` compares them with held-out volumes and with their reconstructions, in features of networks
that the first stage was not trained with. Written to `--folder`: `time_to_quality.json`, `.md` (the table, also printed)
and `.png` (the curves); with `--save`, copies in `benchmarks/results`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bundle_step import BUNDLES
from measuring import call_bundle, comparison_options, machine, read_knob, write_comparison
from metered_training import minutes_of, read_notes, train_metered
from table import markdown

NAME = "time_to_quality"
CONFIGS = BUNDLES / "adni_ldm" / "configs"
SAMPLING = {"sampler": "dpmpp_2m", "num_inference_steps": 20}
PLANES = ("slices_yz", "slices_zx", "slices_xy")


class Column(NamedTuple):
    """One measure of an evaluation: row, space (three planes: their mean) and name."""

    heading: str
    row: str
    spaces: Sequence[str]
    measure: str


COLUMNS = (
    Column("KID to real, slices", "synthetic", PLANES, "kid"),
    Column("KID to reconstructions, slices", "synthetic_latent", PLANES, "kid"),
    Column("KID to real, random weights", "synthetic", ("slices_random",), "kid"),
    Column("MMD to real, anatomy", "synthetic", ("anatomy",), "mmd"),
    Column("MS-SSIM of pairs", "synthetic", ("volumes",), "ms_ssim"),
)


class Run(NamedTuple):
    """A training: ``epochs`` is its length and ``kept`` after which of them its weights are kept."""

    recipe: str
    seed: int
    epochs: int
    kept: Sequence[int]

    @property
    def name(self) -> str:
        return f"{self.recipe}_{self.epochs}_seed{self.seed}"


def recipe(name: str) -> dict[str, Any]:
    """The knobs of fast.yaml that concern the second stage, with its values or those of train.yaml."""
    from monai.bundle import ConfigParser

    fast, paper = (ConfigParser.load_config_file(CONFIGS / file) for file in ("fast.yaml", "train.yaml"))
    of = {"fast": fast, "paper": paper}[name]
    return {id: of[id] for id in fast.keys() - {"epochs"}}


class Curves:
    """All trainings and judgements of one folder.

    Args:
        args: the command line's options.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.folder = args.folder.resolve()
        self.settings = dict(read_knob(text) for text in args.set)
        self.first_stage = args.first_stage or self.folder / "first_stage" / "models" / "model_autoencoder.pt"

    def runs(self) -> list[Run]:
        """All trainings, the short ones first, so that what is done when it is stopped can be compared."""
        found = []
        for seed in self.args.seeds:
            found += [Run("fast", seed, epochs, [epochs]) for epochs in sorted(self.args.fast_epochs)]
        for seed in self.args.seeds:
            found.append(Run("paper", seed, max(self.args.epochs), sorted(self.args.epochs)))
        return found

    def meter(self, run: Run) -> Path:
        return self.folder / run.name / "diffusion.json"

    def train_first_stage(self) -> None:
        """With demo.yaml's recipe, unless there is one."""
        if not self.first_stage.is_file():
            self._train(self.folder / "first_stage", "autoencoder", {}, seed=0)

    def train(self, run: Run) -> None:
        """Whatever is left of a training."""
        settings = recipe(run.recipe) | {"epochs": run.epochs, "montage_interval": run.epochs}
        settings |= {"val_interval": self.args.val_interval, "first_stage_weights": str(self.first_stage)}
        targets = {f"epoch_{epoch}": epoch for epoch in run.kept}
        self._train(self.folder / run.name, "diffusion", targets, seed=run.seed, **settings)

    def _train(self, folder: Path, stage: str, targets: Mapping[str, int], **settings: Any) -> None:
        cohort = {"num_embedded_subjects": self.args.subjects}  # each folder writes its own, the same
        train_metered(folder, stage, ["demo.yaml"], {**cohort, **settings, **self.settings}, targets)

    def points(self) -> Iterator[tuple[Run, int, Path]]:
        """Training, epoch and weights of every point that there is."""
        for run in self.runs():
            for epoch in run.kept:
                weights = self.meter(run).parent / f"epoch_{epoch}" / "model.pt"
                if f"epoch_{epoch}" in read_notes(self.meter(run))["reached"] and weights.is_file():
                    yield run, epoch, weights

    def judged(self, name: str, weights: Path) -> dict[str, Any]:
        """The evaluation of the samples of these weights; made once."""
        result = self.folder / "evaluations" / f"{name}.json"
        if not result.is_file():
            judge = self.folder / "judge"  # shared: the cohort, features of real volumes, reconstructions
            settings: dict[str, Any] = {
                "num_embedded_subjects": self.args.subjects,
                "num_more_held_out": self.args.more_held_out,
                "output_dir": str(judge),
                "weights": str(weights),
                "sampling::writer::folder": str(self.folder / "samples" / name),
                "num_volumes": self.args.volumes,
                **SAMPLING,
            }
            print(f"{name}: judging", flush=True)
            call_bundle([CONFIGS / "evaluate.yaml"], settings)
            shutil.copyfile(judge / "evaluation" / "evaluation.json", result)
        return json.loads(result.read_text())

    def result(self) -> dict[str, Any]:
        """Everything that table and curves need."""
        (self.folder / "evaluations").mkdir(parents=True, exist_ok=True)
        rows = []
        for run, epoch, weights in self.points():
            cost = read_notes(self.meter(run))["reached"][f"epoch_{epoch}"]
            report = self.judged(f"{run.name}_epoch{epoch}", weights)
            measures = {column.heading: of_column(report, column) for column in COLUMNS}
            rows.append({"recipe": run.recipe, "seed": run.seed, "epoch": epoch, **cost, "n": report["n"], **measures})
        stages = read_notes(self.folder / "first_stage" / "autoencoder.json")["rows"]
        return {
            "recipes": {name: recipe(name) for name in ("paper", "fast")},
            "changed_settings": self.settings,
            "first_stage_seconds": stages[-1]["seconds"] if stages else None,
            "rows": rows,
            "not_run": [run.name for run in self.runs() if not read_notes(self.meter(run))["done"]],
            "minutes_of": minutes_of(),
            "machine": machine(),
        }


def of_column(report: Mapping[str, Any], column: Column) -> dict[str, float]:
    """Value, standard error, floor and, where it has one, that of real volumes; means over the planes."""
    cells = [report["rows"][column.row][space][column.measure] for space in column.spaces]
    return {
        key: sum(cell[key] for cell in cells) / len(cells)
        for key in ("value", "se", "floor", "real")
        if all(cell.get(key) is not None for cell in cells)
    }


def make_table(result: Mapping[str, Any]) -> str:
    """Markdown: a line for each point, floors above."""
    rows = result["rows"]
    if not rows:
        return f"No point is finished. Not run: {', '.join(result['not_run'])}.\n"
    headings = [column.heading for column in COLUMNS]
    floors = [rows[0][name].get("real", rows[0][name].get("floor")) for name in headings]
    lines = [["held-out volumes (halves; MS-SSIM: all)", "", "", "", *(f"{floor:.3g}" for floor in floors)]]
    for row in sorted(rows, key=lambda row: (row["recipe"], row["seed"], row["seconds"])):
        found = [f"{row[name]['value']:.3g} ± {row[name]['se']:.1g}" for name in headings]
        lines.append([row["recipe"], str(row["seed"]), f"{row['iteration']:,}", f"{row['seconds'] / 60:.1f}", *found])
    first = result["first_stage_seconds"]
    spent = (
        f"The first stage, the same for all, took {first / 60:.1f} minutes." if first else "The first stage was given."
    )
    n = rows[0]["n"]
    header = ["recipe", "seed", "batches", f"{result['minutes_of']} minutes", *headings]
    below = (
        f"{n['synthetic']} samples against {n['reference']} held-out volumes. {spent} "
        f"Not run: {', '.join(result['not_run']) or 'nothing'}."
    )
    return "\n".join([*markdown(header, lines), "", below, ""])


def draw(result: Mapping[str, Any], path: Path) -> None:
    """A curve for each recipe, seed and measure, with errors; dotted: what held-out volumes have."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.1 * len(COLUMNS), 3.2), dpi=90, layout="constrained")
    colours = {"paper": "tab:orange", "fast": "tab:blue"}
    for axis, column in zip(figure.subplots(1, len(COLUMNS)), COLUMNS):
        for name, colour in colours.items():
            for seed in sorted({row["seed"] for row in result["rows"] if row["recipe"] == name}):
                points = [row for row in result["rows"] if (row["recipe"], row["seed"]) == (name, seed)]
                points.sort(key=lambda row: row["seconds"])
                values, errors = ([row[column.heading][key] for row in points] for key in ("value", "se"))
                label = name if not axis.get_legend_handles_labels()[1].count(name) else None
                minutes = [row["seconds"] / 60 for row in points]
                axis.errorbar(minutes, values, errors, color=colour, marker=".", capsize=2, label=label)
        known = result["rows"][0][column.heading] if result["rows"] else {}
        if (floor := known.get("real", known.get("floor"))) is not None:
            axis.axhline(floor, color="grey", linestyle=":", label="held-out volumes")
        axis.set(title=column.heading, xlabel=f"{result['minutes_of']} minutes")
        axis.set_xlim(left=0)
        axis.title.set_fontsize(9)
    figure.axes[0].legend(fontsize=8)
    FigureCanvasAgg(figure).print_png(path)


def options() -> argparse.ArgumentParser:
    parser = comparison_options(__doc__)
    parser.add_argument("--epochs", type=int, nargs="+", default=[20, 40, 80, 160, 400], help="of the paper's recipe")
    parser.add_argument("--fast_epochs", type=int, nargs="+", default=[10, 20, 40, 80], help="a training each")
    parser.add_argument("--val_interval", type=int, default=10, help="epochs between validations; divides all epochs")
    parser.add_argument("--first_stage", type=Path, help="finished weights, in place of training one")
    parser.add_argument("--set", nargs="*", default=[], metavar="KNOB=JSON", help="settings of both recipes")
    return parser


def main() -> None:
    parser = options()
    args = parser.parse_args()
    if uneven := [n for n in (*args.epochs, *args.fast_epochs) if n % args.val_interval]:
        parser.error(f"expected epochs that --val_interval {args.val_interval} divides, got {uneven}")
    curves = Curves(args)
    if not args.finished_only:
        curves.train_first_stage()
        for run in curves.runs():
            curves.train(run)
    result = curves.result()
    write_comparison(curves.folder, NAME, result, make_table(result), partial(draw, result), args.save)


if __name__ == "__main__":
    main()
