"""alpha-WGAN against the diffusion system on the embedded brains, at equal processor time and at equal volumes seen.

    python benchmarks/gan_comparison.py --folder gan_comparison [--scale demo] [--seeds 0 1 2] [--norms group batch] \
        [--finished_only] [--save]
    python benchmarks/gan_comparison.py --folder released_comparison --subjects 400 \
        --weights adni_ldm=bundles/adni_ldm/released/model.pt adni_gan=bundles/adni_gan/released/model.pt

The second form trains nothing: it judges weights that are finished, such as those that bundles come with, against
subjects that neither was trained on, and reads from the notes beside them how many volumes they were trained on.
`--subjects` is the largest number that any of them was trained with, so that the test split is new to all.

After an interruption, repeat the command: it resumes after the last finished epoch and keeps every result.
`--finished_only` trains nothing more and judges what is there; the table names the trainings that are missing.

1. One cohort is written, with further subjects that no training sees.
2. `adni_ldm` is trained for each seed, first stage and diffusion, as its configuration says. What it cost (processor time
   of both stages' processes, start included; where there is a GPU, their time by the clock) and how many volumes it has
   seen (drawn by either stage, a crop counting as a volume) are the targets of the GAN of the same seed.
3. `adni_gan` is trained for each seed and norm until both targets are reached; its weights at either are kept. Its learning
   rate does not change with time, so the weights at a target are those of a training to that target.
4. Each generator makes `--volumes` volumes, and `adni_gan`'s evaluation judges them all, from files, against the same
   held-out subjects.

`--scale demo` trains both at the width of their `demo.yaml`; `--scale published` at the sizes of the papers (alpha-WGAN:
generator 37.42, discriminator 11.05, encoder 43.79, discriminator of codes 20.90 million parameters), which wants a GPU.
The table states the parameters in use. Written to `--folder`: `gan_comparison.json`, `.md` (the table, also printed) and
`.png` (the first samples of each); with `--save`, copies in `benchmarks/results`.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bundle_step import BUNDLES
from gan_table import make_table
from measuring import call_bundle, comparison_options, machine, read_knob, write_comparison
from metered_training import known, minutes_of, read_notes, train_metered

from medical_diffusion_components.files import file_hash, write_json
from medical_diffusion_components.weights import provenance, read_state

NAME = "gan_comparison"
OVERLAYS: dict[str, list[str]] = {"demo": ["demo.yaml"], "published": []}
NETWORKS = {
    "adni_ldm": ("autoencoder_def", "denoiser_def"),
    "adni_gan": ("network_def", "discriminator_def", "encoder_def", "code_discriminator_def"),
}
UNLIMITED = 1_000_000  # epochs of the GAN: its targets end it
SHOWN = 8  # volumes in a row of the picture
TARGETS = {"volumes": "equal volumes seen", "seconds": "equal processor time"}


class Run(NamedTuple):
    """One training; ``norm`` is of the GAN alone."""

    seed: int
    norm: str = ""

    @property
    def name(self) -> str:
        return f"{f'gan_{self.norm}' if self.norm else 'diffusion'}_{self.seed}"


class Generator(NamedTuple):
    """Weights to be judged: of a training, at one of its targets or (``at`` empty) at its end."""

    run: Run | None  # None: finished weights, of whatever training
    at: str
    weights: Path
    bundle: str

    @property
    def name(self) -> str:
        if self.run is None:
            return f"{self.bundle}_{file_hash(self.weights)[:12]}"
        return f"{self.run.name}_{self.at}" if self.at else self.run.name

    @property
    def kind(self) -> str:
        """How the table calls it."""
        if self.run is None:
            return f"{'alpha-WGAN' if self.bundle == 'adni_gan' else 'diffusion'}, finished weights {self.name[-12:]}"
        return f"alpha-WGAN, {self.run.norm} norm" if self.run.norm else "diffusion"


class Comparison:
    """All trainings and judgements of one folder.

    Args:
        args: the command line's options.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.folder = args.folder.resolve()
        self.judge = self.folder / "judge"  # output_dir of the evaluations, which share the cohort and features
        self.overlays = OVERLAYS[args.scale]
        self.shared = {"image_size": args.image_size, "num_embedded_subjects": args.subjects}
        given = (dict(read_knob(text) for text in texts) for texts in (args.diffusion, args.gan))
        self.settings = dict(zip(NETWORKS, given))

    def cohort(self) -> str:
        """The training cohort's folder; written on the first call."""
        from medical_diffusion_components.cohorts import resolve_dataset

        return resolve_dataset(None, str(self.judge), self.args.subjects, tuple(self.args.image_size))

    def runs(self) -> list[Run]:
        """Every training, the diffusion of a seed before its GANs, so that a stopped comparison has both."""
        return [Run(seed, norm) for seed in self.args.seeds for norm in ("", *self.args.norms) if not self.args.weights]

    def notes(self, run: Run, stage: str) -> dict[str, Any]:
        return read_notes(self.folder / run.name / f"{stage}.json")

    def cost(self, seed: int) -> dict[str, float]:
        """Seconds and volumes of both stages of the diffusion run, as far as they have got."""
        stages = [self.notes(Run(seed), stage) for stage in ("autoencoder", "diffusion")]
        return {name: round(sum(one["rows"][-1][name] for one in stages if one["rows"]), 1) for name in TARGETS}

    def train(self, run: Run) -> None:
        """Whatever is left of a training, each stage in a process of its own."""
        own = {"image_size": self.args.image_size, "dataset_dir": self.cohort(), "seed": run.seed}
        settings = {**self.settings["adni_gan" if run.norm else "adni_ldm"], **own}
        if run.norm:
            settings |= {"norm": run.norm, "epochs": UNLIMITED, "save_interval": 1}
        for stage in ("gan",) if run.norm else ("autoencoder", "diffusion"):
            targets = self.cost(run.seed) if run.norm else {}
            train_metered(self.folder / run.name, stage, self.overlays, settings, targets)

    def generators(self) -> Iterator[Generator]:
        """The weights that there are.

        Raises:
            ValueError: finished weights of another bundle, or that do not exist, or that have seen more subjects.
        """
        for text in self.args.weights:
            bundle, _, path = text.partition("=")
            if bundle not in NETWORKS or not Path(path).is_file():
                raise ValueError(f"--weights: expected {' or '.join(NETWORKS)} and a file, BUNDLE=FILE, got {text!r}")
            seen = provenance(path).get("knobs", {}).get("num_embedded_subjects", 0)
            if seen > self.args.subjects:
                raise ValueError(
                    f"{path} was trained on a cohort of {seen} subjects: give --subjects {seen}, got {self.args.subjects}"
                )
            yield Generator(None, "", Path(path).resolve(), bundle)
        for run in self.runs():
            folder = self.folder / run.name
            if not run.norm and self.notes(run, "diffusion")["done"]:
                yield Generator(run, "", folder / "models" / "model.pt", "adni_ldm")
            for name in TARGETS if run.norm else ():
                if name in self.notes(run, "gan")["reached"]:
                    yield Generator(run, name, folder / name / "model.pt", "adni_gan")

    def judged(self, generator: Generator) -> dict[str, Any]:
        """The evaluation of a generator's samples; made once."""
        result = self.folder / "evaluations" / f"{generator.name}.json"
        if result.is_file():
            return json.loads(result.read_text())
        bundle = generator.bundle
        samples = self.folder / "samples" / generator.name
        self.run_bundle(
            bundle,
            "inference.json",
            self.settings[bundle],
            self.overlays if generator.run else [],  # finished weights bring their own sizes
            weights=str(generator.weights),
            samples_dir=str(samples),
            num_volumes=self.args.volumes,
        )
        self.run_bundle(
            "adni_gan",
            "evaluate.yaml",
            self.settings["adni_gan"],
            self.overlays,
            **self.shared,
            samples_dir=str(samples),
            output_dir=str(self.judge),
            models_dir=str(self.judge / "models"),  # holds nothing: the samples are judged, whosever they are
            num_more_held_out=self.args.more_held_out,
        )
        report = json.loads((self.judge / "evaluation" / "evaluation.json").read_text())
        write_json(result, report)
        return report

    def run_bundle(
        self, bundle: str, config: str, given: Mapping[str, Any], overlays: Sequence[str], **settings: Any
    ) -> None:
        files = [BUNDLES / bundle / "configs" / name for name in (config, *overlays)]
        call_bundle(files, {**known([files[0]], given), **settings})

    def history(self, generator: Generator) -> dict[str, Any]:
        """Seed and cost of a training; of finished weights, which do not know their cost, the volumes of their note."""
        run = generator.run
        if run is None:
            return {"trained_on": provenance(generator.weights).get("cases", {}).get("training")}
        cost = self.notes(run, "gan")["reached"][generator.at] if run.norm else self.cost(run.seed)
        return {"seed": run.seed, **{name: cost[name] for name in TARGETS}}

    def result(self) -> dict[str, Any]:
        """Everything that the table needs."""
        rows = []
        for generator in self.generators():
            report = self.judged(generator)
            rows.append(
                {
                    "generator": generator.kind,
                    "at": TARGETS.get(generator.at, ""),
                    **self.history(generator),
                    "n": report["n"],
                    "spaces": report["rows"]["synthetic"],
                }
            )
        missing = [run.name for run in self.runs() if not self.notes(run, "gan" if run.norm else "diffusion")["done"]]
        return {
            "scale": self.args.scale,
            **self.shared,
            "changed_settings": self.settings,
            "parameters_in_millions": self.parameters(),
            "rows": rows,
            "not_run": missing,
            "minutes_of": minutes_of(),
            "machine": machine(),
        }

    def parameters(self) -> dict[str, dict[str, float]]:
        """Millions of parameters of every network that is trained, discriminators of the first stage apart.

        Of finished weights, all that their file holds.
        """
        from monai.bundle import ConfigParser

        if self.args.weights:
            states = {one.name: read_state(one.weights) for one in self.generators()}
            return {
                name: {"generator": round(sum(t.numel() for t in state.values()) / 1e6, 2)}
                for name, state in states.items()
            }
        found = {}
        for bundle, networks in NETWORKS.items():
            files = [BUNDLES / bundle / "configs" / name for name in ("train.yaml", *self.overlays)]
            parser = ConfigParser()
            parser.read_config([str(file) for file in files])
            for id, value in known([files[0]], self.settings[bundle] | self.shared).items():
                parser[id] = value
            modules = {name: parser.get_parsed_content(name) for name in networks}
            found[bundle] = {
                name.removesuffix("_def"): round(sum(p.numel() for p in module.parameters()) / 1e6, 2)
                for name, module in modules.items()
            }
        return found

    def draw(self, path: Path) -> None:
        """Middle axial slices: held-out volumes above, below them the first samples of every generator."""
        from medical_diffusion_components.data import load_cases

        rows = {"held out": [case["image"] for case in load_cases(self.cohort(), "test")]}
        for generator in self.generators():
            rows[generator.name] = sorted((self.folder / "samples" / generator.name).glob("*.nii.gz"))
        save_slices(rows, path)


def save_slices(rows: Mapping[str, Sequence[str | os.PathLike]], path: Path) -> None:
    """A picture with a row for each name, of the middle slices of the first volumes in it."""
    import nibabel as nib
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.1 * SHOWN + 1.6, 1.1 * len(rows)), dpi=90, facecolor="black")
    axes = figure.subplots(len(rows), SHOWN, squeeze=False, gridspec_kw={"wspace": 0.02, "hspace": 0.02})
    figure.subplots_adjust(left=1.6 / figure.get_figwidth(), right=1, top=1, bottom=0)
    for (name, files), line in zip(rows.items(), axes):
        line[0].text(-0.05, 0.5, name.replace("_", " "), color="white", ha="right", transform=line[0].transAxes, size=8)
        for place in line:
            place.set_axis_off()
        for place, file in zip(line, files):
            volume = np.asarray(nib.load(file).dataobj)
            place.imshow(np.rot90(volume[:, :, volume.shape[2] // 2]), cmap="gray", aspect="equal")
    FigureCanvasAgg(figure).print_png(path)


def options() -> argparse.ArgumentParser:
    parser = comparison_options(__doc__)
    parser.add_argument("--scale", choices=OVERLAYS, default="demo", help="width of the networks (default: demo)")
    parser.add_argument("--norms", choices=("group", "batch"), nargs="*", default=["group", "batch"])
    parser.add_argument("--image_size", type=int, nargs=3, default=[64, 64, 64])
    for name in ("diffusion", "gan"):
        parser.add_argument(
            f"--{name}", nargs="*", default=[], metavar="KNOB=JSON", help=f"settings of the {name} bundle"
        )
    parser.add_argument(
        "--weights", nargs="+", default=[], metavar="BUNDLE=FILE", help="finished weights to judge; nothing is trained"
    )
    return parser


def main() -> None:
    args = options().parse_args()
    comparison = Comparison(args)
    for run in () if args.finished_only else comparison.runs():
        comparison.train(run)
    result = comparison.result()
    write_comparison(comparison.folder, NAME, result, make_table(result), comparison.draw, args.save)


if __name__ == "__main__":
    main()
