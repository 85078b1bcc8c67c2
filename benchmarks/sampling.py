"""Steps against quality against time: the generator's samplers on trained weights, side by side.

    python benchmarks/sampling.py \
        --config_file "['bundles/adni_ldm/configs/evaluate.yaml','bundles/adni_ldm/configs/demo.yaml']" \
        [--models_dir ...] [--dataset_dir ...] [--folder ...] [--volumes 24] [--split training]

The configuration is a bundle's ``evaluate.yaml``, which has both the generator and the preprocessing of real volumes, with
any overlays. Every sampler starts from the same noise (seeds 0, 1, ...); the samplers take turns, batch by batch, so that a
shared machine disturbs all equally. Written to ``--folder``: ``sampling.md`` (the table, also printed), ``sampling.json``,
``sampling.png`` (the curves) and ``montage.png``. Samples stay in ``--folder``/samples: an interrupted run resumes.

* calls: of the denoiser, per volume.
* time: median over batches of the time that a sampler takes, decoding included, as a share of ancestral sampling's for the
  same batch. On the CPU it is the processor's time of this process, on other devices time by the clock.
* MMD: squared and unbiased, to the real volumes of ``--split``; polynomial kernel on EfficientNet-Lite0 features of slices
  (in units of their root mean square over the real volumes), and Gaussian kernel on voxels averaged in blocks of 4
  (bandwidth: median distance of the real volumes).
* MS-SSIM of pairs: mean over pairs of synthetic volumes, lower is more diverse.
* distance: root mean square of the difference to the same noise's latent after all steps of dpmpp_2m, as a share of that
  latents' standard deviation; how well a sampler follows the ODE. Ancestral sampling does not, and has no such distance.

Each number has its standard error (jackknife over volumes). "against ddpm" is the difference to the ancestral sampler; its
error is that of the difference for the same noise. It is called worse or better from two errors on, otherwise equal.
"""

from __future__ import annotations

import argparse
import ast
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from monai.bundle import ConfigWorkflow
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from medical_diffusion_components.data.datasets import load_cases
from medical_diffusion_components.diffusion.generator import LatentDiffusionGenerator
from medical_diffusion_components.diffusion.noise_latent import NoiseLatent
from medical_diffusion_components.evaluation.slice_features import SliceFeatures
from medical_diffusion_components.files import file_hash, versions, write_atomically, write_json
from medical_diffusion_components.losses.perceptual import EfficientNetLite0Features
from medical_diffusion_components.metrics.diversity import mean_similarity, pair_similarities
from medical_diffusion_components.metrics.jackknife import Estimate, jackknife
from medical_diffusion_components.metrics.mmd import (
    GaussianKernel,
    KernelMatrices,
    kernel_matrices,
    median_distance,
    mmd_squared,
    polynomial_kernel,
)
from medical_diffusion_components.reports.drawing import montage, save_montage
from medical_diffusion_components.weights import load_weights, save_tensors

STEPS = {"ddim": (10, 20, 30, 50, 100), "dpmpp_2m": (5, 10, 15, 20, 30)}
REFERENCE = "dpmpp_2m"  # with all steps, the closest to the ODE
COLUMNS = ("MMD features", "MMD voxels", "MS-SSIM of pairs")
Sampler = tuple[str, int]


class Setting:
    """Generator, starting noise and real volumes of a configuration."""

    def __init__(self, files: list[str], split: str, overrides: dict[str, str]) -> None:
        # said here, since what is asked for after initialize() is evaluated outside the workflow, which would know it
        folders = {"bundle_root": str(Path(files[0]).resolve().parents[1]), **overrides}
        workflow = ConfigWorkflow(config_file=files, workflow_type="inference", **folders)
        workflow.initialize()
        self.get = workflow.parser.get_parsed_content
        self.device = torch.device(self.get("device"))
        self.network = self.get("network_def").to(self.device).eval()
        self.weights = str(self.get("weights"))
        self.hash = file_hash(self.weights)
        load_weights(self.network, self.weights)
        self.noise = NoiseLatent(self.get("latent_shape"), seed=0)
        self.cases = load_cases(self.get("data_dir"), split)

    def generator(self, sampler: Sampler) -> LatentDiffusionGenerator:
        """The same networks with another sampler."""
        networks = self.network.first_stage, self.network.denoiser
        generator = LatentDiffusionGenerator(*networks, self.get("scheduler"), *sampler).to(self.device).eval()
        generator.load_state_dict(self.network.state_dict())
        return generator

    def real_volumes(self) -> Tensor:
        """(N, C, H, W, D)"""
        transform = self.get("dataset").transform
        return torch.stack([torch.as_tensor(transform(case)["image"]) for case in self.cases])

    def clock(self) -> float:
        """Seconds: the processor's where other work shares it, the clock's where it waits for another device."""
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()


@torch.no_grad()
def synthesise(setting: Setting, sampler: Sampler, seeds: range, folder: Path) -> dict[str, Any]:
    """Latents, volumes and seconds of one batch; read from ``folder`` if they are there."""
    name = f"{setting.hash[:12]}_{sampler[0]}_{sampler[1]}_{seeds.start}_{seeds.stop}.pt"
    if (folder / name).is_file():
        return torch.load(folder / name, weights_only=True)
    generator = setting.generator(sampler)
    noise = torch.stack([setting.noise(seed) for seed in seeds]).to(setting.device)
    start = setting.clock()
    latent = generator.sample_latent(noise)
    volume = setting.network.first_stage.decode_stage_2_outputs(latent).float()
    made = {"seconds": setting.clock() - start, "latent": latent.cpu(), "volume": volume.cpu()}
    write_atomically(folder / name, lambda temporary: save_tensors(made, temporary))
    return made


def sample_all(
    setting: Setting, samplers: list[Sampler], args: argparse.Namespace, folder: Path
) -> dict[Sampler, dict]:
    """Sampler -> latents and volumes (N, ...) and seconds of each batch."""
    batches = [range(n, min(n + args.batch_size, args.volumes)) for n in range(0, args.volumes, args.batch_size)]
    reference = (REFERENCE, int(setting.network.alphas_cumprod.numel()))
    jobs = [(batch, sampler) for batch in batches for sampler in samplers]
    jobs += [(batch, reference) for batch in batches if batch.start < args.reference_volumes]
    made: dict[Sampler, list[dict]] = {}
    total = sum(sampler[1] * len(batch) for batch, sampler in jobs)
    with tqdm(total=total, unit="call", desc="sampling") as progress:
        for batch, sampler in jobs:
            progress.set_postfix_str(f"{sampler[0]} {sampler[1]}, seeds {batch.start} to {batch.stop - 1}")
            made.setdefault(sampler, []).append(synthesise(setting, sampler, batch, folder))
            progress.update(sampler[1] * len(batch))
    joined = {}
    for sampler, parts in made.items():
        joined[sampler] = {key: torch.cat([part[key] for part in parts]) for key in ("latent", "volume")}
        joined[sampler]["seconds"] = [part["seconds"] for part in parts]
    return joined


class Quality:
    """The three measures of a set of synthetic volumes, kept so that two sets can be compared volume by volume."""

    def __init__(self, real: Tensor, neighbours: int) -> None:
        self.slices = SliceFeatures(EfficientNetLite0Features())
        self.neighbours = neighbours
        raw = self._raw_features(real)
        self.unit = np.sqrt(np.square(raw).mean())
        self.real_features, self.real_voxels = raw / self.unit, self._voxels(real)
        self.gaussian = GaussianKernel(median_distance(self.real_voxels))
        self.real_similarities = pair_similarities(real, neighbours)

    def _features(self, volumes: Tensor) -> np.ndarray:
        return self._raw_features(volumes) / self.unit

    def _raw_features(self, volumes: Tensor) -> np.ndarray:
        return torch.cat([self.slices(volume[None]) for volume in volumes]).double().numpy()

    def _voxels(self, volumes: Tensor) -> np.ndarray:
        block = tuple(min(4, size) for size in volumes.shape[2:])
        return F.avg_pool3d(volumes, block).flatten(1).double().numpy()

    def measure(self, volumes: Tensor) -> dict[str, Any]:
        """Column -> kernel matrices or similarities."""
        features = kernel_matrices(self._features(volumes), self.real_features, polynomial_kernel)
        voxels = kernel_matrices(self._voxels(volumes), self.real_voxels, self.gaussian)
        return dict(zip(COLUMNS, (features, voxels, pair_similarities(volumes, self.neighbours))))


def estimate(measure: Any, other: Any = None) -> Estimate:
    """The number with its error, or its difference to ``other``'s of the same noise."""
    if isinstance(measure, KernelMatrices):
        if other is None:
            return jackknife(lambda x, y: mmd_squared(measure, x, y), *measure.xy.shape)
        return jackknife(lambda x, y: mmd_squared(measure, x, y) - mmd_squared(other, x, y), *measure.xy.shape)
    if other is None:
        return jackknife(lambda kept: mean_similarity(measure, kept), len(measure))
    return jackknife(lambda kept: mean_similarity(measure, kept) - mean_similarity(other, kept), len(measure))


def halves(quality: Quality) -> dict[str, Estimate]:
    """The same measures for real volumes: MMD of one half to the other, MS-SSIM of real pairs."""
    count = len(quality.real_features) // 2
    found = {}
    for column, features, kernel in (
        (COLUMNS[0], quality.real_features, polynomial_kernel),
        (COLUMNS[1], quality.real_voxels, quality.gaussian),
    ):
        found[column] = estimate(kernel_matrices(features[::2][:count], features[1::2][:count], kernel))
    found[COLUMNS[2]] = estimate(quality.real_similarities)
    return found


def distance(latent: Tensor, reference: Tensor) -> Estimate:
    """Relative root mean square distance to the reference of the same noise."""
    some = latent[: len(reference)]
    squares = ((some - reference) ** 2).flatten(1).mean(1).double().numpy()
    return jackknife(lambda kept: float(np.sqrt(squares[kept].mean()) / reference.std()), len(squares))


def evaluate(samples: dict[Sampler, dict], quality: Quality, ancestral: Sampler, reference: Sampler) -> list[dict]:
    """One row per sampler, the ancestral one first."""
    measures = {sampler: quality.measure(found["volume"]) for sampler, found in samples.items()}
    rows = []
    for sampler, found in samples.items():
        ratios = [one / other for one, other in zip(found["seconds"], samples[ancestral]["seconds"])]
        row: dict[str, Any] = {"sampler": sampler[0], "calls": sampler[1], "time": statistics.median(ratios)}
        row["seconds_per_batch"] = found["seconds"]
        row["volumes"] = len(found["volume"])
        if sampler != ancestral:
            row["distance"] = distance(found["latent"], samples[reference]["latent"])._asdict()
        if row["volumes"] == len(samples[ancestral]["volume"]):
            for column, measure in measures[sampler].items():
                row[column] = estimate(measure)._asdict()
                if sampler != ancestral:
                    row[f"{column} against ddpm"] = estimate(measure, measures[ancestral][column])._asdict()
        rows.append(row)
    return rows


def table(rows: list[dict], real: dict[str, Estimate]) -> str:
    """Markdown."""
    head = ["sampler", "calls", "time"]
    for column in COLUMNS:
        head += [column, "against ddpm"]
    lines = [[*head, "distance"]]
    lines.append(["real volumes", "", "", *(cell for c in COLUMNS for cell in (_number(real[c]._asdict()), "")), ""])
    for row in rows:
        cells = [row["sampler"], str(row["calls"]), f"{row['time']:.3f}"]
        for column in COLUMNS:
            cells += [_number(row.get(column)), _verdict(row.get(f"{column} against ddpm"))]
        lines.append([*cells, _number(row.get("distance"))])
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(estimate: dict | None) -> str:
    return "" if estimate is None else f"{estimate['value']:.4f} ± {estimate['error']:.4f}"


def _verdict(difference: dict | None) -> str:
    """Lower is better in all three measures."""
    if difference is None:
        return ""
    value, error = difference["value"], difference["error"]
    word = "worse" if value > 2 * error else "better" if value < -2 * error else "equal"
    return f"{word} ({value:+.4f} ± {error:.4f})"


def plot(rows: list[dict], real: dict[str, Estimate]) -> Figure:
    """Calls against each measure, with error bars; bands are the ancestral sampler and the real volumes."""
    figure = Figure(figsize=(15, 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    names = [*COLUMNS, "distance", "time"]
    ancestral = rows[0]
    for axes, name in zip(figure.subplots(1, len(names)), names):
        for sampler, colour in (("ddim", "tab:blue"), ("dpmpp_2m", "tab:orange")):
            points = [row for row in rows if row["sampler"] == sampler and name in row]
            values = [p[name]["value"] if isinstance(p[name], dict) else p[name] for p in points]
            errors = [p[name]["error"] if isinstance(p[name], dict) else 0 for p in points]
            axes.errorbar([p["calls"] for p in points], values, errors, marker="o", ms=4, color=colour, label=sampler)
        if name in COLUMNS:
            for value, label, colour in ((ancestral[name], "ddpm", "0.4"), (real[name]._asdict(), "real", "tab:green")):
                axes.axhline(value["value"], color=colour, label=label, lw=1)
                low, high = value["value"] - value["error"], value["value"] + value["error"]
                axes.axhspan(low, high, color=colour, alpha=0.15, lw=0)
        else:
            axes.set_yscale("log")
        axes.set_xscale("log")
        axes.set_xlabel("calls of the denoiser")
        axes.set_title(name, fontsize=10)
    figure.axes[0].legend(fontsize=8)
    return figure


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config_file", required=True, help="evaluate.yaml, or a list of it and overlays as text")
    parser.add_argument("--models_dir")
    parser.add_argument("--dataset_dir")
    parser.add_argument("--output_dir")
    parser.add_argument("--folder", help="where results go; the configuration's output_dir/sampling by default")
    parser.add_argument("--split", default="training", help="of the real volumes")
    parser.add_argument("--volumes", type=int, default=24, help="synthetic volumes of each sampler")
    parser.add_argument("--batch_size", type=int, default=6)
    parser.add_argument("--neighbours", type=int, default=5, help="each volume is compared with this many that follow")
    parser.add_argument("--reference_volumes", type=int, default=6, help="volumes that are also sampled with all steps")
    for name, steps in STEPS.items():
        parser.add_argument(f"--{name}", type=int, nargs="*", default=steps, help="numbers of steps")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    files = ast.literal_eval(args.config_file) if args.config_file.startswith("[") else [args.config_file]
    given = {key: getattr(args, key) for key in ("models_dir", "dataset_dir", "output_dir")}
    overrides = {key: os.path.abspath(path) for key, path in given.items() if path}
    setting = Setting(files, args.split, overrides)
    folder = Path(args.folder or f"{setting.get('output_dir')}/sampling")
    total = int(setting.network.alphas_cumprod.numel())
    ancestral, reference = ("ddpm", total), (REFERENCE, total)
    samplers = [ancestral, *((name, steps) for name in STEPS for steps in getattr(args, name))]
    samples = sample_all(setting, samplers, args, folder / "samples")

    real = setting.real_volumes()
    quality = Quality(real, args.neighbours)
    rows, reals = evaluate(samples, quality, ancestral, reference), halves(quality)
    text = table(rows, reals)
    print(text)
    facts = {
        "weights_sha256": setting.hash,
        "real_volumes": len(real),
        "split": args.split,
        "device": str(setting.device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "real": {column: found._asdict() for column, found in reals.items()},
        "samplers": rows,
    }
    write_atomically(folder / "sampling.md", lambda temporary: temporary.write_text(text + "\n"))
    write_json(folder / "sampling.json", facts, indent=1)
    save = plot(rows, reals).savefig
    write_atomically(folder / "sampling.png", lambda temporary: save(temporary))
    shown = {"real volumes": real[:6, 0].numpy()}
    shown |= {f"{s[0]}, {s[1]} calls": found["volume"][:6, 0].numpy() for s, found in samples.items()}
    spacing = setting.get("spacing")
    save_montage(montage(shown, spacing, axcodes=setting.get("axcodes")), folder / "montage.png")


if __name__ == "__main__":
    main()
