"""Controls of the copy audit: planted copies, innocents, lack of diversity, doses and mutations, on an embedded cohort.

    python benchmarks/audit.py --cohort template [--size 64 64 64] [--training 100] [--held_out 150] [--innocents 100] \
        [--sources 30] [--steps 1000] [--folder audit_controls] [--plants NAME ...] [--first_stage FILE] [--samples DIR]

The encoder is trained on the first ``--training`` subjects of the cohort and kept in ``--folder``. Printed, and written as
``--folder``/``audit_<cohort>.json``:

* plants: copies of ``--sources`` training volumes in each of 13 ways; the share with p <= 0.05 against the held-out
  subjects, the share whose nearest training volume is the right one, and the share that the audit calls ``copy``.
* plants_through_first_stage, with ``--first_stage`` (``model_autoencoder.pt`` of the demo of the cohort's bundle): the same
  copies of what the first stage makes of the training volumes, as a generator that remembers them gives them back. The
  encoder is then trained with these reconstructions, too, the training volumes are compared in both versions, and
  held-out and fresh volumes go through the first stage: all as in the audit itself.
* samples, with ``--samples`` and ``--first_stage``: verdicts on a generator's volumes.
* innocents: share of fresh subjects with p <= 0.05, over 40 random choices of who is held out and who is fresh.
* mean: of the training volumes, with noise: smallest distance ratio, which a copy has below 1/3.
* doses: estimate of copies and its interval when 0 to 50 of 100 volumes are noisy copies.
* mutations: recall of plants with an untrained encoder, with held-out volumes leaked into the bank, and of mirrored plants
  with no mirror images in the bank.
* seconds: of the encoder's training, and for one volume against 1,000 training volumes, reduction included.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from plants import PLANTS, planted
from torch import Tensor, nn

from medical_diffusion_components.audit import (
    ContrastiveEncoder,
    ContrastiveTraining,
    Nearest,
    RandomViews,
    TrainingBank,
    are_copies,
    conformal_p,
    embed,
    flagged_share,
    reduce_volumes,
    trained_encoder,
)
from medical_diffusion_components.chance import numpy_generator, seeded, torch_generator
from medical_diffusion_components.cohorts import write_phantom_cohort, write_template_cohort
from medical_diffusion_components.data import SPLITS, load_cases
from medical_diffusion_components.data.datasets import nifti_files
from medical_diffusion_components.files import file_hash, versions, write_json
from medical_diffusion_components.transforms import LoadVolume
from medical_diffusion_components.weights import load_weights

ALPHA, REDRAWS, FLIP = 0.05, 40, 0
AXCODES = {"knee": "PSR"}  # others RAS
BUNDLES = {"template": "adni_ldm", "knee": "mrnet_ldm", "breast": "duke_ldm", "chest": "lidc_ldm"}


def volumes(cohort: str, count: int, size: tuple[int, int, int], folder: Path) -> Tensor:
    """Invented subjects (N, 1, H, W, D) in [-1, 1], in the order of their numbers; of each subject one volume."""
    place = folder / f"{cohort}_{count}_{'x'.join(map(str, size))}"
    if cohort == "template":
        write_template_cohort(place, count, size)
    else:
        write_phantom_cohort(place, cohort, count, size)
    cases = {case["patient_id"]: case for split in SPLITS for case in load_cases(place, split)}
    load = LoadVolume(AXCODES.get(cohort, "RAS"))
    return torch.stack([load(cases[patient]["image"]).as_tensor() for patient in sorted(cases)])


class Bed:
    """Everything that the controls share.

    Args:
        encoder: trained.
        versions: of the N training volumes: as they are and, with a first stage, through it; each (N, 1, H, W, D).
        held_out, fresh: volumes of others; with a first stage, through it.
    """

    def __init__(
        self, encoder: ContrastiveEncoder, versions: Sequence[Tensor], held_out: Tensor, fresh: Tensor
    ) -> None:
        self.encoder, self.versions, self.held_out, self.fresh = encoder, list(versions), held_out, fresh
        self.bank = self.bank_of(self.versions)
        self.calibration = self.nearest(held_out).similarity

    def bank_of(self, versions: Sequence[Tensor], mirrored: bool = True) -> TrainingBank:
        reduced = [reduce_volumes(version) for version in versions]
        views = [*reduced, *(some.flip(2 + FLIP) for some in reduced if mirrored)]
        return TrainingBank(
            torch.stack([embed(self.encoder, view) for view in views], 1), torch.arange(len(versions[0]))
        )

    def nearest(self, volumes: Tensor, bank: TrainingBank | None = None) -> Nearest:
        return (bank or self.bank).nearest(embed(self.encoder, reduce_volumes(volumes)))


def plant_row(bed: Bed, name: str, copied: Tensor, bank: TrainingBank | None = None) -> dict[str, float]:
    """Recall, right sources and verdicts ``copy`` of one kind of plant: copies of the first training volumes."""
    calibration = bed.nearest(bed.held_out, bank).similarity
    found = bed.nearest(planted(copied, name), bank)
    return {
        "recall": float((conformal_p(found.similarity, calibration) <= ALPHA).mean()),
        "right_source": float((found.source == np.arange(len(copied))).mean()),
        "copy": float(are_copies(found, calibration).mean()),
        "similarity": float(found.similarity.mean()),
    }


def first_stage(cohort: str, file: Path) -> nn.Module:
    """The first stage of the demo of the cohort's bundle."""
    configs = Path(__file__).parents[1] / "bundles" / BUNDLES[cohort] / "configs"
    parser = ConfigParser()
    parser.read_config([str(configs / "train_autoencoder.yaml"), str(configs / "demo.yaml")])
    network = parser.get_parsed_content("autoencoder_def").eval()
    load_weights(network, file)
    return network


@torch.no_grad()
def through(network: nn.Module, some: Tensor) -> Tensor:
    """Reconstructions, (N, 1, H, W, D) in [-1, 1], scaled to [-1, 1] as files are when they are read."""
    again = [network.decode_stage_2_outputs(network.encode_stage_2_inputs(one[None]))[0].clamp(-1, 1) for one in some]
    return torch.stack([2 * (one - one.min()) / (one.max() - one.min()) - 1 for one in again])


def read_samples(folder: Path, axcodes: str) -> Tensor:
    """A generator's volumes, scaled to [-1, 1] as files are when they are read."""
    load = LoadVolume(axcodes)
    made = [load(file).as_tensor().float() for file in nifti_files(folder)]
    return torch.stack([2 * (one - one.min()) / (one.max() - one.min()) - 1 for one in made])


def judged(bed: Bed, made: Tensor) -> dict[str, float]:
    """Verdicts on a generator's volumes."""
    near = bed.nearest(made)
    return {
        "volumes": len(made),
        "p <= 0.05": float((conformal_p(near.similarity, bed.calibration) <= ALPHA).mean()),
        "copy": float(are_copies(near, bed.calibration).mean()),
        "smallest_ratio": float(near.ratio.min()),
    }


def innocents(bed: Bed) -> dict[str, float]:
    """Share of fresh subjects that are flagged, over random choices of who is held out."""
    everyone = np.concatenate([bed.calibration, bed.nearest(bed.fresh).similarity])
    shares = []
    for number in range(REDRAWS):
        order = numpy_generator(1, number).permutation(len(everyone))
        held_out, others = order[: len(bed.calibration)], order[len(bed.calibration) :]
        shares.append((conformal_p(everyone[others], everyone[held_out]) <= ALPHA).mean())
    return {"mean": float(np.mean(shares)), "scatter": float(np.std(shares)), "redraws": REDRAWS}


def doses(bed: Bed) -> list[dict[str, Any]]:
    """Estimates of the share of copies, for known shares."""
    rows = []
    for dose in (0, 5, 10, 20, 50):
        sources = bed.versions[-1][:dose]
        some = [planted(sources, "noise 0.1")] if dose else []
        mixed = torch.cat([*some, bed.fresh[: 100 - dose]])
        p = conformal_p(bed.nearest(mixed).similarity, bed.calibration)
        found = flagged_share(p, ALPHA, len(bed.calibration))
        rows.append({"dose": dose / len(mixed), "estimate": found.copies, "interval": found.copies_interval})
    return rows


def mutations(bed: Bed, sources: int, plants: Sequence[str]) -> dict[str, float]:
    """Smallest recall of the plants when something is wrong."""
    copied = bed.versions[-1][:sources]
    with seeded(1):
        untrained = ContrastiveEncoder(tuple(reduce_volumes(bed.held_out[:1]).shape[1:])).eval()
    blind = Bed(untrained, bed.versions, bed.held_out, bed.fresh)
    leaky = bed.bank_of([torch.cat([version, bed.held_out]) for version in bed.versions])
    plain = bed.bank_of(bed.versions, mirrored=False)
    return {
        "untrained encoder, worst plant": min(plant_row(blind, name, copied)["recall"] for name in plants),
        "held-out volumes in the bank, best plant": max(
            plant_row(bed, name, copied, leaky)["recall"] for name in plants
        ),
        "no mirror images in the bank, mirrored plants": plant_row(bed, "right-left flip", copied, plain)["recall"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", required=True, choices=["template", "knee", "breast", "chest"])
    parser.add_argument("--size", type=int, nargs=3, default=(64, 64, 64), metavar=("H", "W", "D"))
    for name, default in (("training", 100), ("held_out", 150), ("innocents", 100), ("sources", 30), ("steps", 1000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "audit_controls")
    parser.add_argument("--plants", nargs="+", choices=list(PLANTS), default=list(PLANTS), metavar="NAME")
    parser.add_argument("--first_stage", type=Path)
    parser.add_argument("--samples", type=Path)
    options = parser.parse_args()
    if options.samples and not options.first_stage:
        parser.error("--samples needs --first_stage: held-out volumes have to go through what has decoded the samples")
    size = tuple(options.size)
    every = volumes(options.cohort, options.training + options.held_out + options.innocents, size, options.folder)
    training, held_out, fresh = every.split([options.training, options.held_out, options.innocents])
    network = first_stage(options.cohort, options.first_stage) if options.first_stage else None
    known = [training] if network is None else [training, through(network, training)]
    if network is not None:
        held_out, fresh = through(network, held_out), through(network, fresh)
    started = time.process_time()
    encoder, key = trained_encoder(
        reduce_volumes(training),
        {"cohort": options.cohort, "size": size, "first_stage": network and file_hash(options.first_stage)},
        options.folder,
        RandomViews(FLIP),
        ContrastiveTraining(steps=options.steps),
        through=None if network is None else reduce_volumes(known[1]),
    )
    trained = time.process_time() - started
    bed = Bed(encoder, known, held_out, fresh)
    thousand = TrainingBank(bed.bank.points.repeat(-(-1000 // len(training)), 1, 1)[:1000], torch.arange(1000))
    started = time.process_time()
    bed.nearest(fresh[:1], thousand)
    one = time.process_time() - started
    mean = training.mean(0, keepdim=True) + 0.05 * torch.randn((20, *training.shape[1:]), generator=torch_generator(0))
    rows = {
        heading: {name: plant_row(bed, name, version[: options.sources]) for name in options.plants}
        for heading, version in zip(("plants", "plants_through_first_stage"), known)
    }
    axcodes = AXCODES.get(options.cohort, "RAS")
    report = {
        "cohort": options.cohort,
        "size": list(size),
        "volumes": {"training": len(training), "held_out": len(held_out), "innocents": len(fresh)},
        "encoder": {"key": key, "steps": options.steps, "processor_seconds": trained},
        **rows,
        **({"samples": judged(bed, read_samples(options.samples, axcodes))} if options.samples else {}),
        "innocents": innocents(bed),
        "mean_of_training_smallest_ratio": float(bed.nearest(mean).ratio.min()),
        "doses": doses(bed),
        "mutations": mutations(bed, options.sources, options.plants),
        "processor_seconds_of_a_volume_against_1000": one,
        "versions": versions(),
    }
    path = write_json(options.folder / f"audit_{options.cohort}.json", report)
    for heading, some in rows.items():
        print(heading)
        for name, row in some.items():
            print(f"  {name:22s} " + "  ".join(f"{what} {value:.2f}" for what, value in row.items()))
    for name in ("samples", "innocents", "mean_of_training_smallest_ratio", "doses", "mutations", "encoder"):
        if name in report:
            print(name, report[name])
    print(f"a volume against 1,000: {one:.3f} s of the processor\nwrote {path}")


if __name__ == "__main__":
    main()
