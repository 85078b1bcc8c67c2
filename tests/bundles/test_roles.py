"""What must hold between the files of a bundle and shows in no one of them: who sees which split, what runs beside a
training, one range of intensities, and the axis of the flip."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bundle_folders import BUNDLES, bundles_with, by_default, config_files, is_overlay, read, undisturbed, workflow

SPLITS = ("training", "validation", "test")
LDM = [bundle.name for bundle in bundles_with("train_autoencoder.yaml", "train.yaml")]

# --- splits ---

# configuration -> what takes cases -> the splits that they are from; "further" are subjects of no split
LDM_ROLES: dict[str, dict[str, set[str]]] = {
    "train_autoencoder.yaml": {"train#dataset#data": {"training"}, "validate#dataset#data": {"validation"}},
    "train.yaml": {
        "train#dataset#data": {"training"},
        "validate#dataset#data": {"validation"},
        "membership#training": {"training"},
        "membership#held_out": {"validation"},
    },
    "evaluate.yaml": {
        "dataset#data": {"test", "further"},
        "evaluation#training": {"training"},
        "evaluation#reference": {"test", "further"},
    },
    "audit.yaml": {"audit#training": {"training"}, "audit#held_out": {"validation", "test", "further"}},
}
ROLES = {
    **dict.fromkeys(LDM, LDM_ROLES),
    "adni_gan": {
        "train.yaml": {"train#dataset#data": {"training"}},
        "evaluate.yaml": {"evaluation#training": {"training"}, "evaluation#reference": {"test", "further"}},
    },
    "swin_unetr_finetune": {
        "train.yaml": {"train#dataset#data": {"training"}, "validate#dataset#data": {"validation"}},
        "evaluate.yaml": {"dataset#data": {"test"}},
    },
    "swin_unetr_pretrain": {
        "train.yaml": {"train#dataset#data": {"training"}, "validate#dataset#data": {"validation"}},
        "evaluate.yaml": {"dataset#data": {"test"}},
    },
}
ROLE_ROWS = [(bundle, file, id) for bundle in ROLES for file, roles in ROLES[bundle].items() for id in roles]


def resolved(folder: Path, bundle: str, file: str, id: str) -> Any:
    """The value of an id, with three volumes that are never read in each split of ``folder``."""
    (path,) = [path for path in BUNDLES if path.name == bundle]
    cases = {split: [case(folder, split, number) for number in range(3)] for split in SPLITS}
    (folder / "dataset.json").write_text(json.dumps(cases))
    stand_ins = {
        "data_dir": str(folder),
        "output_dir": str(folder),
        "dataset_dir": str(folder),
        "encode": "$lambda cases, views=1: cases",
        "more": [case(folder, "further", number) for number in range(3)],
        "further": [case(folder, "further", number) for number in range(3)],
        "spacing": [1.0, 1.0, 1.0],
        "volumes": SimpleNamespace(training=cases["training"], validation=cases["validation"]),
    }
    with undisturbed():
        started = workflow(path, file)
        known = started.parser.get()
        started.parser.update({id: value for id, value in stand_ins.items() if id in known})
        return started.parser.get_parsed_content(id)


def case(folder: Path, split: str, number: int) -> dict[str, str]:
    name = f"{split}_{number}"
    for kind in ("image", "label"):
        (folder / f"{kind}_{name}.nii.gz").touch()
    return {
        "image": str(folder / f"image_{name}.nii.gz"),
        "label": str(folder / f"label_{name}.nii.gz"),
        "case_id": name,
        "patient_id": name,
    }


@pytest.mark.parametrize(("bundle", "file", "id"), ROLE_ROWS, ids=[f"{b}/{f}: {id}" for b, f, id in ROLE_ROWS])
def test_cases_are_those_of_their_split(tmp_path: Path, bundle: str, file: str, id: str) -> None:
    found = {entry["case_id"].rsplit("_", 1)[0] for entry in resolved(tmp_path, bundle, file, id)}
    assert found == ROLES[bundle][file][id]


def test_every_training_evaluation_and_audit_says_whose_cases_it_takes() -> None:
    files = ("train_autoencoder.yaml", "train.yaml", "evaluate.yaml", "audit.yaml")
    there = {(bundle.name, file) for bundle in BUNDLES for file in files if (bundle / "configs" / file).is_file()}
    assert there == {(bundle, file) for bundle, file, _ in ROLE_ROWS}


# --- what runs beside a training ---

BEGINS = ["SeedIterations", "MeanOverProcesses", "StopOnNonFinite"]
REPORTS = ["TrainingProgress", "TensorBoardStatsHandler", "ValidationWithLastEpoch"]
HANDLERS = {
    "train_autoencoder.yaml": [
        *BEGINS,
        "LrScheduleHandler",
        *REPORTS,
        "ForgetBest",
        "TrainingCheckpoint",
        "PublishWeights",
    ],
    "train.yaml": [
        *BEGINS,
        "ExponentialMovingAverage",
        "averages",
        "ClipGradients",
        "StepLrSchedule",
        *REPORTS,
        "SampleMontage",
        "TrainingCheckpoint",
        "StopWhenConverged",
    ],
    "adni_gan": [
        "SeedIterations",  # one process alone: there is no mean over several
        "StopOnNonFinite",
        "ExponentialMovingAverage",
        "TrainingProgress",
        "TensorBoardStatsHandler",
        "SampleMontage",
        "LatestWeights",
        "TrainingCheckpoint",
    ],
    "swin_unetr_pretrain": [
        *BEGINS,
        "LrScheduleHandler",
        *REPORTS,
        "TrainingCheckpoint",
        "StopWhenConverged",
        "PublishWeights",
    ],
    "swin_unetr_finetune": [
        *BEGINS,
        "LrScheduleHandler",
        "TrainingProgress",
        "KeepUnlessBetter",
        "TensorBoardStatsHandler",
        "ValidationWithLastEpoch",
        "TrainingCheckpoint",
    ],
}
VALIDATING = {
    "train_autoencoder.yaml": ["StatsHandler", "TensorBoardStatsHandler", "ReconstructionMontage", "BestWeights"],
    "train.yaml": ["membership", "StatsHandler", "TensorBoardStatsHandler", "BestWeights"],
    "swin_unetr_pretrain": [
        "StatsHandler",
        "TensorBoardStatsHandler",
        "ReconstructionMontage",
        "BestWeights",
        "convergence",
    ],
    "swin_unetr_finetune": ["StatsHandler", "TensorBoardStatsHandler", "SegmentationMontage", "best_weights"],
}
TRAININGS = [(b, f) for b in LDM for f in ("train_autoencoder.yaml", "train.yaml")]
TRAININGS += [(b, "train.yaml") for b in ("adni_gan", "swin_unetr_pretrain", "swin_unetr_finetune")]


def names(handlers: list[Any]) -> list[str]:
    """Class of each handler in a list, or the id where it refers to one."""
    found = []
    for handler in handlers:
        if isinstance(handler, dict) and handler["_target_"] == "monai.utils.first":
            (handler,) = handler["iterable"]
        found.append(handler["_target_"].split(".")[-1] if isinstance(handler, dict) else handler.split("#")[-1])
    return [name.removeprefix("@") for name in found]


@pytest.mark.parametrize(("bundle", "file"), TRAININGS, ids=[f"{b}/{f}" for b, f in TRAININGS])
def test_a_training_runs_with_its_handlers_in_their_order(bundle: str, file: str) -> None:
    """A checkpoint comes after all whose state it saves; what publishes or ends a training comes after the checkpoint."""
    (path,) = [path for path in BUNDLES if path.name == bundle]
    config = read(path / "configs" / file)
    assert names(config["train"]["handlers"]) == HANDLERS.get(bundle, HANDLERS.get(file))
    if "validate" in config:
        assert names(config["validate"]["handlers"]) == VALIDATING.get(bundle, VALIDATING.get(file))
    assert ("validate" in config) == (bundle != "adni_gan")


# --- one range of intensities ---

WHOLE = [(bundle, file) for bundle in BUNDLES for file in config_files(bundle) if not is_overlay(file)]
every_whole_file = pytest.mark.parametrize(
    ("bundle", "file"), WHOLE, ids=[f"{bundle.name}/{file.name}" for bundle, file in WHOLE]
)
LOW, HIGH = -1.0, 1.0
# class -> argument -> value in a configuration that has the argument
OF_THE_RANGE = {
    "ScaleAsPreparedd": {"minv": LOW, "maxv": HIGH},
    "PeakSignalToNoiseRatio": {"max_val": HIGH - LOW},
    "SSIMMetric": {"data_range": HIGH - LOW},
    "MSSSIMLoss": {"data_range": HIGH - LOW},
    "SlidingWindowInferer": {"cval": LOW},  # what is outside a volume is background
}


def blocks(config: Any, id: str = "") -> Iterator[tuple[str, dict]]:
    """Every block with a ``_target_``, by its id."""
    parts = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    if isinstance(config, dict) and "_target_" in config:
        yield id, config
    for key, part in parts:
        yield from blocks(part, f"{id}#{key}" if id else str(key))


@every_whole_file
def test_every_part_has_the_range_from_minus_one_to_one(bundle: Path, file: Path) -> None:
    for id, block in blocks(read(file)):
        kind = block["_target_"].split(".")[-1]
        for argument, value in OF_THE_RANGE.get(kind, {}).items():
            assert block.get(argument, value) == value, f"{id}: {argument} of {kind}"
        if kind == "SpatialPadd" and block["keys"] == "image":
            assert block["value"] == LOW, f"{id}: volumes are padded with background"
        if kind == "ScaleIntensityRanged" and block["keys"] == "pred":
            assert (block["a_min"], block["a_max"]) == (LOW, HIGH), f"{id}: what a network gives"


@pytest.mark.parametrize("file", ["train.yaml", "evaluate.yaml", "inference.json"])
def test_windows_of_a_segmentation_reach_into_background(file: str) -> None:
    (bundle,) = bundles_with("label_study.yaml")
    (window,) = [b for _, b in blocks(read(bundle / "configs" / file)) if b["_target_"] == "SlidingWindowInferer"]
    assert window["cval"] == LOW


def test_no_dice_counts_the_background() -> None:
    (bundle,) = bundles_with("label_study.yaml")
    found = [
        (file.name, id, block)
        for file in config_files(bundle)
        for id, block in blocks(read(file))
        if block["_target_"] in ("MeanDice", "DiceCELoss")
    ]
    assert {name for name, _, _ in found} == {"train.yaml", "evaluate.yaml"}
    assert [(name, id) for name, id, block in found if block.get("include_background", True)] == []


# --- one axis of the flip, one grid ---


@pytest.mark.parametrize("bundle", LDM)
def test_a_flip_is_along_one_axis_in_training_and_audit(bundle: str) -> None:
    (path,) = [path for path in BUNDLES if path.name == bundle]
    files = ("train_autoencoder.yaml", "train.yaml", "audit.yaml")
    found = {read(path / "configs" / file)["flip_axis"] for file in files}
    config = read(path / "configs" / "train.yaml")
    assert found == {max(config["axcodes"].find(letter) for letter in "RL")}, "left and right change places"


@pytest.mark.parametrize("bundle", LDM)
def test_prepared_volumes_are_as_training_expects_them(bundle: str) -> None:
    (path,) = [path for path in BUNDLES if path.name == bundle]
    prepared, trained = (read(path / "configs" / file) for file in ("prepare.yaml", "train.yaml"))
    assert prepared["image_size"] == trained["image_size"]
    assert prepared["axcodes"] == trained["axcodes"]
    if bundle == "mrnet_ldm":  # arrays without a spacing get this one, and so do samples of weights without a note
        spacing = read(path / "configs" / "inference.json")["spacing"]
        assert spacing == f"$trained_spacing(@weights, {prepared['spacing']})"
    assert by_default(read(path / "configs" / "evaluate.yaml")["axcodes"]) == trained["axcodes"]


# --- values without which a number means something else ---

GAN = {  # Kwon et al., MICCAI 2019, as their code has it; what is otherwise stands in the README's table
    "code_size": 1000,
    "gan_channels": 64,
    "code_hidden": 4096,
    "batch_size": 4,
    "learning_rate": 2e-4,
    "betas": [0.9, 0.999],
    "reconstruction_weight": 10.0,
    "penalty_weight": 10.0,
    "code_weight": 1.0,
    "ema_decay": 0.0,
    "norm": "group",
    "generator_steps": 1,
}


def test_the_gan_is_trained_as_published() -> None:
    (bundle,) = bundles_with("train.yaml", "evaluate.yaml", "demo.yaml")[:1]
    config = read(bundle / "configs" / "train.yaml")
    assert bundle.name == "adni_gan" and {id: config[id] for id in GAN} == GAN
    assert config["train"]["dataloader"]["drop_last"] is True, "batch norm of one volume divides by nothing"
    (average,) = [b for _, b in blocks(config) if b["_target_"].endswith(".ExponentialMovingAverage")]
    assert (average["every"], average["start"]) == (1, 1)


@pytest.mark.parametrize("bundle", LDM)
def test_error_rates_that_are_promised_are_those_of_the_audit_and_of_preparation(bundle: str) -> None:
    (path,) = [path for path in BUNDLES if path.name == bundle]
    assert read(path / "configs" / "audit.yaml")["alpha"] == 0.05
    assert read(path / "configs" / "prepare.yaml")["max_refused_share"] == 0.05
    assert read(path / "configs" / "inference.json")["max_draws"] == 10
    evaluation = read(path / "configs" / "evaluate.yaml")["evaluation"]
    assert evaluation["reconstructions"] == "$@reconstructing if @has_weights else None"


def test_masks_are_the_same_whenever_inpainting_is_measured() -> None:
    """Else a validation would be better or worse by its masks, and patience would end training by chance."""
    (bundle,) = [path for path in BUNDLES if path.name == "swin_unetr_pretrain"]
    measured = {"train.yaml": "validate#dataset", "evaluate.yaml": "dataset", "inference.json": "dataset"}
    for file, id in measured.items():
        assert dict(blocks(read(bundle / "configs" / file)))[id].get("same_every_epoch") is True, file


def test_a_percentile_in_a_metrics_name_is_its_own() -> None:
    (bundle,) = bundles_with("label_study.yaml")
    metrics = read(bundle / "configs" / "evaluate.yaml")["additional_metrics"]
    assert metrics["hausdorff_distance_95"]["metric_fn"]["percentile"] == 95


@every_whole_file
def test_a_knob_goes_into_the_note_of_the_weights_under_its_own_name(bundle: Path, file: Path) -> None:
    noted = read(file).get("knobs", {})
    assert {name: value for name, value in noted.items() if value != f"@{name}"} == {}


# --- what a training depends on ---


@pytest.mark.parametrize(("bundle", "file"), TRAININGS, ids=[f"{b}/{f}" for b, f in TRAININGS])
def test_a_checkpoint_knows_the_data_and_the_weights_that_a_training_starts_from(bundle: str, file: str) -> None:
    (path,) = [path for path in BUNDLES if path.name == bundle]
    config = read(path / "configs" / file)
    (checkpoint,) = [b for _, b in blocks(config) if b["_target_"].endswith(".TrainingCheckpoint")]
    facts = set(re.findall(r"(\w+)=", checkpoint["settings"]))
    starts_from = {"first_stage_weights": "first_stage", "pretrained_weights": "pretrained"}
    assert facts == {"data"} | {fact for knob, fact in starts_from.items() if knob in config}


@pytest.mark.parametrize("bundle", LDM)
def test_the_demo_has_the_recipe_of_the_fast_overlay(bundle: str) -> None:
    (path,) = [path for path in BUNDLES if path.name == bundle]
    fast, demo = (read(path / "configs" / file) for file in ("fast.yaml", "demo.yaml"))
    recipe = list(demo)[list(demo).index("prediction_type") :][:8]  # "this and the next seven lines"
    assert {id: demo[id] for id in recipe} == {id: fast[id] for id in recipe}


@pytest.mark.parametrize("bundle", LDM)
def test_several_processes_scale_the_learning_rate_by_their_number(bundle: str) -> None:
    (path,) = [path for path in BUNDLES if path.name == bundle]
    assert "@num_devices" in read(path / "configs" / "train_autoencoder.yaml")["autoencoder_learning_rate"]
    assert read(path / "configs" / "multi_gpu_train.yaml")["num_devices"] == "$torch.distributed.get_world_size()"
