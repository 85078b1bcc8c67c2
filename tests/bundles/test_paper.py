"""The configurations held to the paper's values, as resolved: what the objects of a run say, not what the files say.

The values and their sources are in paper_values.py.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle_folders import BUNDLES, undisturbed, workflow
from ignite.engine import Engine
from ignite.metrics import Metric
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.engines import Evaluator
from monai.handlers import LrScheduleHandler
from paper_values import DATASETS, LDM, SWIN, TABLE, rows_of
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

# --- what expressions of the tables may call ---


def kind(thing: Any) -> str:
    return type(thing).__name__


def of_kind(things: Iterable, name: str) -> list:
    return [thing for thing in things if kind(thing) == name]


def only(things: Iterable, name: str) -> Any:
    """The one of this class: none, or a second, is an error."""
    (found,) = of_kind(things, name)
    return found


def parts(module: torch.nn.Module, *names: str) -> Iterator[torch.nn.Module]:
    return (part for part in module.modules() if kind(part) in names)


def convolutions(module: torch.nn.Module) -> list[torch.nn.Module]:
    return list(parts(module, "Conv2d", "Conv3d"))


def weights(module: torch.nn.Module) -> set[int]:
    return {id(weight) for weight in module.parameters()}


def trained(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(weight) for group in optimizer.param_groups for weight in group["params"]}


def cosine_error(alphas_cumprod: torch.Tensor) -> float:
    """Largest distance from cos^2((t/T + s) / (1 + s) pi/2) over its value at 0, s = 0.008, after steps 1 ... T."""
    steps, s = len(alphas_cumprod), 0.008
    signal = [math.cos((t / steps + s) / (1 + s) * math.pi / 2) ** 2 for t in range(steps + 1)]
    return float(np.abs(alphas_cumprod.double().numpy() - np.array(signal[1:]) / signal[0]).max())


def learns_the_noise(prepare_batch: Any) -> bool:
    latents, noise = torch.rand(2, 8, 4, 4, 2), torch.randn(2, 8, 4, 4, 2)
    return torch.equal(prepare_batch.get_target(latents, noise, torch.tensor([3, 200])), noise)


def rescaled(preprocessing: list) -> tuple[float, float]:
    """Least and greatest intensity of a volume of 100 to 900 after the one scaling among these transforms."""
    scaled = only(preprocessing, "ScaleAsPreparedd")({"image": torch.linspace(100.0, 900.0, 60).view(1, 3, 4, 5)})[
        "image"
    ]
    return round(float(scaled.min()), 5), round(float(scaled.max()), 5)


def transformed(metric: Metric, output: Any) -> Any:
    """What a metric takes from the output of an engine."""
    return metric._output_transform(output)


HELPERS = (
    kind,
    of_kind,
    only,
    parts,
    convolutions,
    weights,
    trained,
    cosine_error,
    learns_the_noise,
    rescaled,
    transformed,
)


# --- resolving ---


def start(folder: Path, bundle: str, *files: str, **overrides: Any) -> ConfigWorkflow:
    """A bundle's configuration with four cases that are never read, and everything that it writes below ``folder``."""
    cases = [{"image": f"{number}.nii.gz", "label": "0.nii.gz", "case_id": str(number)} for number in range(7)]
    (folder / "first_stage.pt").write_bytes(b"of these the hash is asked, no more")
    settings = {
        "output_dir": str(folder),
        "models_dir": str(folder),
        "device": "$torch.device('cpu')",
        "cache_rate": 0.0,
        "spacing": [1.0, 1.0, 1.0],
        "data_dir": str(folder),
        "volumes": None,
        "first_stage_weights": str(folder / "first_stage.pt"),
        "made_from": {"data_sha256": "0", "first_stage": "0"},
        "data_note": {"data_sha256": "0"},
        "conditions_note": {},
    }
    (path,) = [path for path in BUNDLES if path.name == bundle]
    with undisturbed():
        started = workflow(path, files)
    known = started.parser.get()
    settings |= {"train_latents": cases, "held_out_latents": cases}
    settings = {id: value for id, value in settings.items() if id in known} | overrides
    for part in ("train", "validate"):
        if part in known:
            settings[f"{part}#dataset#data"] = cases
    started.parser.update(settings)
    started.parser.globals.update({helper.__name__: helper for helper in HELPERS})
    return started


@functools.lru_cache(maxsize=1)  # tests come file by file, and the networks are those of the paper
def with_rows(folder: Path, bundle: str, file: str) -> ConfigParser:
    """The parser of a configuration, with the expressions of its table under ids of their own."""
    return start(folder, bundle, file, rows=[f"${row.id}" for row in rows_of(bundle, file)]).parser


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("paper")


# --- tests ---

FILES = [(bundle, file) for bundle in LDM for file in TABLE] + [(bundle, "train.yaml") for bundle in SWIN]
ROWS = [(*where, number) for where in FILES for number in range(len(rows_of(*where)))]
ROW_NAMES = [f"{bundle}/{file}: {rows_of(bundle, file)[number].id}" for bundle, file, number in ROWS]
TRAININGS = [(bundle, file) for bundle in LDM for file in ("train_autoencoder.yaml", "train.yaml")]
TRAININGS += [(bundle, "train.yaml") for bundle in SWIN]


@pytest.mark.parametrize(("bundle", "file", "number"), ROWS, ids=ROW_NAMES)
def test_a_value_is_the_papers(folder: Path, bundle: str, file: str, number: int) -> None:
    row = rows_of(bundle, file)[number]
    with undisturbed():
        found = with_rows(folder, bundle, file).get_parsed_content(f"rows#{number}")
    expected = pytest.approx(row.value, rel=1e-9) if isinstance(row.value, float) else row.value
    assert found == expected, f"{row.id} is {found} in {bundle}/{file}; {row.source} has {row.value}"


@pytest.mark.parametrize(("bundle", "overlay"), DATASETS, ids=[f"{b} {o}".strip() for b, o in DATASETS])
def test_sizes_are_those_of_the_papers_data_set(folder: Path, bundle: str, overlay: str) -> None:
    overlays = [overlay] if overlay else []
    found = {}
    for file, batch in (("train_autoencoder.yaml", "autoencoder_batch_size"), ("train.yaml", "batch_size")):
        started = start(folder, bundle, file, *overlays, latent="$list(@autoencoder_def.latent_shape(@image_size))")
        ids = ("image_size", "compression", "latent", batch)
        found[file] = tuple(started.parser.get_parsed_content(id) for id in ids)
    paper = DATASETS[bundle, overlay]
    assert found == {"train_autoencoder.yaml": (*paper[:3], 2), "train.yaml": tuple(paper)}


def test_no_data_set_of_the_paper_lacks_its_bundle() -> None:
    assert {path.name for path in BUNDLES} >= {*LDM, *SWIN}


@pytest.mark.parametrize("bundle", LDM)
def test_the_learning_rate_of_the_first_stage_grows_with_batch_and_devices(folder: Path, bundle: str) -> None:
    started = start(folder, bundle, "train_autoencoder.yaml", autoencoder_batch_size=4, num_devices=8)
    assert started.parser.get_parsed_content("autoencoder_learning_rate") == pytest.approx(3e-4)


@pytest.mark.parametrize(("bundle", "file"), TRAININGS, ids=[f"{b}/{f}" for b, f in TRAININGS])
def test_the_learning_rate_follows_its_schedule_to_the_end(folder: Path, bundle: str, file: str) -> None:
    """The training's own handler, on an engine that only steps: half-way down in the middle, at the bottom at the end."""
    first = file == "train_autoencoder.yaml"
    knobs: dict[str, Any] = (
        {"autoencoder_final_lr": 0.1, "autoencoder_epochs": 2} if first else {"final_lr": 0.1, "epochs": 2}
    )
    if bundle in SWIN:
        knobs |= {"warmup_iterations": 0}
    parser = start(folder, bundle, file, **knobs, **small(bundle)).parser
    with undisturbed():
        optimizer = parser.get_parsed_content("optimizer")
        trainer = parser.get_parsed_content("train#trainer")
        (handler,) = [h for h in parser.get_parsed_content("train#handlers") if isinstance(h, LrScheduleHandler)]
    steps, rates = getattr(trainer, "accumulation_steps", 1), []
    length = trainer.state.epoch_length
    batch_of_update = [i % steps == 0 or i == length for i in range(1, length + 1)]

    def update(engine: Engine, _: Any) -> None:
        if batch_of_update[(engine.state.iteration - 1) % length]:
            optimizer.step()
            rates.append(optimizer.param_groups[0]["lr"])

    engine = Engine(update)
    engine.accumulation_steps = steps  # as the trainer has it
    handler.attach(engine)
    engine.run(range(length), max_epochs=2)
    rates.append(optimizer.param_groups[0]["lr"])
    start_rate = parser.get_parsed_content("autoencoder_learning_rate" if first else "learning_rate")
    along = np.arange(len(rates)) / (len(rates) - 1)
    cosine = (1 + np.cos(np.pi * along)) / 2
    # torch's schedule ends at its lowest rate; MONAI's, after a warm-up, would end at 0 and is cut off before
    cosine = np.maximum(cosine, 0.1) if bundle in SWIN else 0.1 + 0.9 * cosine
    np.testing.assert_allclose(rates, start_rate * cosine, rtol=1e-5)


def small(bundle: str) -> dict[str, Any]:
    """Networks that take no time to make, where only what is around them is looked at."""
    if bundle in SWIN:
        return {"feature_size": 12, "depths": [1, 1, 1, 1]} | (
            {"iterations_per_epoch": 6} if "finetune" in bundle else {}
        )
    return {"base_channels": 4, "norm_groups": 4, "num_codes": 32, "denoiser_channels": 8}


@pytest.mark.parametrize("bundle", LDM)
@pytest.mark.parametrize(
    ("file", "id"),
    [("evaluate.yaml", "key_metric#ssim"), ("train_autoencoder.yaml", "validate#additional_metrics#val_ssim")],
)
def test_ssim_is_scikit_images(folder: Path, bundle: str, file: str, id: str) -> None:
    """Of volumes in [-1, 1], whose range is 2, with the Gaussian window of Wang et al. 2004 (sigma 1.5, 11 voxels wide)."""
    rng = np.random.default_rng(0)
    real = gaussian_filter(rng.uniform(-1, 1, size=(2, 14, 17, 12)), (0, 1, 1, 1))
    real *= 0.9 / np.abs(real).max()
    pred = np.clip(0.8 * real + rng.normal(scale=0.05, size=real.shape), -1, 1)
    metric = start(folder, bundle, file, **small(bundle)).parser.get_parsed_content(id)
    engine = Evaluator(torch.device("cpu"), val_data_loader=[0])
    metric.attach(engine, "ssim")
    metric.update(tuple(torch.from_numpy(volumes).float()[:, None] for volumes in (pred, real)))
    one_by_one = [
        structural_similarity(p, r, data_range=2.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
        for p, r in zip(pred, real)
    ]
    assert metric.compute() == pytest.approx(np.mean(one_by_one), abs=1e-4)
    assert np.mean(one_by_one) < 0.99
