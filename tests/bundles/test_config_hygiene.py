"""What a reader of any bundle's configuration may rely on."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bundle_folders import BUNDLES, bundles_with, config_files, for_bundles_with, is_overlay, read
from monai.bundle import ComponentLocator
from monai.bundle.properties import InferProperties, TrainProperties
from monai.bundle.utils import ID_SEP_KEY
from monai.utils import optional_import

from medical_diffusion_components.workflow import override_values

FILES = [file for bundle in BUNDLES for file in config_files(bundle)]
YAML_FILES = [file for file in FILES if file.suffix != ".json"]
# ids that MONAI (run, properties) or MONAI Label (the stock monaibundle app) looks for by name
RUN_IDS = {
    "imports",
    "initialize",
    "run",
    "finalize",
    "training",
    "evaluating",
    "inference",
    "prepare",
    "recording",
    "auditing",
}
RUN_IDS |= {"check", "drawing", "editing", "pairing", "obeying", "releasing", "releasing_dataset"}
PROPERTY_IDS = {str(p["id"]).split(ID_SEP_KEY)[0] for p in (TrainProperties | InferProperties).values()}
LABEL_IDS = {"displayable_configs", "preprocessing", "inferer", "postprocessing", "network_def"}
NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")
MACHINE_PATH = re.compile(r"(?<![\w.@'])/(home|root|work|tmp|mnt|Users|data|opt|scratch|var)/|[A-Z]:\\\\")

# knobs that are whole numbers and may be 0, and lists of numbers without a rule; see workflow/override_values.py
MAY_BE_0 = """
adversarial_ramp adversarial_start adversarial_warmup code_hidden ema_start feature_workers flip_axis
iterations_per_epoch min_patients_in_note num_calibration_subjects num_more_held_out num_workers patience
slice_distance warmup_iterations
"""
FREE_LISTS = """
betas channel_multipliers denoiser_patch depths flip_axes intensity_scale mask_block mask_multipliers percentages
second_weights strengths
"""

every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parents[1].name}/{file.name}")
every_yaml = pytest.mark.parametrize("file", YAML_FILES, ids=lambda file: f"{file.parents[1].name}/{file.name}")


def leaves(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    parts = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else None
    if parts is None:
        yield path, config
    else:
        for key, part in parts:
            yield from leaves(part, f"{path}::{key}" if path else str(key))


def texts(config: Any) -> Iterator[tuple[str, str]]:
    return ((path, leaf) for path, leaf in leaves(config) if isinstance(leaf, str))


def references(config: Any) -> set[str]:
    """Top-level ids that ``@id`` and ``%id`` point to."""
    return {found for _, text in texts(config) for found in re.findall(r"[@%](\w+)", text)}


def components(config: Any, path: str = "") -> Iterator[tuple[str, dict]]:
    """Every block with a ``_target_``."""
    if isinstance(config, dict):
        if "_target_" in config:
            yield path, config
        for key, part in config.items():
            yield from components(part, f"{path}::{key}")
    elif isinstance(config, list):
        for number, part in enumerate(config):
            yield from components(part, f"{path}::{number}")


def locate(target: str) -> Any:
    if "." not in target:
        modules = ComponentLocator().get_component_module_name(target)
        assert isinstance(modules, str), f"MONAI knows {target} as {modules}"
        target = f"{modules}.{target}"
    module, _, name = target.rpartition(".")
    component, found = optional_import(module, name=name)
    assert found, f"{target} cannot be imported"
    return component


@every_file
def test_every_top_level_id_is_used(file: Path) -> None:
    config = read(file)
    if is_overlay(file):
        bases = [other for other in config_files(file.parents[1]) if not is_overlay(other)]
        known = {id for base in bases for id in read(base)} | RUN_IDS
        assert set(config) <= known, "an overlay sets what no configuration of the bundle has"
    else:
        used = references(config) | RUN_IDS | PROPERTY_IDS | LABEL_IDS
        assert set(config) <= used


@every_file
def test_every_reference_points_to_something(file: Path) -> None:
    config = read(file)
    known = set(config)
    if is_overlay(file):
        known |= {id for other in config_files(file.parents[1]) for id in read(other)}
    assert references(config) <= known


@every_file
def test_every_import_is_used(file: Path) -> None:
    """By an expression of this file, or of an overlay for it; MONAI brings ``torch``, ``numpy`` and ``monai`` itself."""
    config = read(file)
    names = [text.split()[-1] for text in config.pop("imports", [])]
    overlays = [read(other) for other in config_files(file.parents[1]) if is_overlay(other)]
    expressions = " ".join(text for part in [config, *overlays] for _, text in texts(part) if text.startswith("$"))
    assert [name for name in names if not re.search(rf"(?<![\w.@]){name}\b", expressions)] == []


@every_file
def test_no_number_is_text(file: Path) -> None:
    assert [(path, text) for path, text in texts(read(file)) if NUMBER.fullmatch(text)] == []


def test_for_every_whole_number_and_list_of_numbers_it_is_decided_what_it_may_be() -> None:
    """A new knob fails here until it is named: in a rule of ``override_values``, or above."""
    whole, lists, missing = set(), set(), set()
    for file in FILES:
        config = read(file)
        known = {id: value for id, value, _ in override_values._nested(config)}
        for id, value in config.items():
            default = override_values._plain_default(value, known)
            if default is None:
                missing.add(id)
            elif type(default) is int and default > 0:
                whole.add(id)
            elif isinstance(default, list) and default and {type(item) for item in default} <= {int, float}:
                lists.add(id)
    ruled = override_values._FIXED_LENGTH | override_values._ABOVE_0
    assert whole == override_values._AT_LEAST_1 | {*MAY_BE_0.split()}
    assert lists == {*FREE_LISTS.split()} | (ruled & lists)
    assert ruled <= lists | missing
    assert not override_values._AT_LEAST_1 & {*MAY_BE_0.split()}


@every_file
def test_every_target_can_be_imported_and_takes_these_arguments(file: Path) -> None:
    for path, block in components(read(file)):
        component = locate(block["_target_"])
        arguments = {key: None for key in block if not key.startswith("_")}
        try:
            inspect.signature(component).bind_partial(**arguments)
        except TypeError as error:
            pytest.fail(f"{path}: {block['_target_']}: {error}")


@every_file
def test_an_expression_fits_on_one_line(file: Path) -> None:
    for path, text in texts(read(file)):
        if text.startswith("$"):
            assert "\n" not in text and len(text) <= 124, path


@every_file
def test_no_path_of_a_machine_is_in_a_configuration(file: Path) -> None:
    assert not MACHINE_PATH.search(file.read_text())


@every_yaml
def test_a_yaml_file_begins_with_a_sentence_about_itself(file: Path) -> None:
    first, second, *_ = file.read_text().splitlines()
    assert re.fullmatch(r"# [A-Z].{30,}\.", first)
    assert not second.startswith("#"), "one sentence"


def test_bundle_names_survive_the_name_parsing_of_monai() -> None:
    names = [bundle.name for bundle in BUNDLES]
    assert not [name for name in names if "_v" in name]
    assert not [(a, b) for a in names for b in names if a != b and a in b]


@pytest.mark.parametrize("bundle", BUNDLES, ids=[bundle.name for bundle in BUNDLES])
def test_no_bundle_has_a_scripts_folder(bundle: Path) -> None:
    assert not (bundle / "scripts").exists()


def test_the_repository_has_no_scripts_folder_that_would_shadow_one() -> None:
    assert not (BUNDLES[0].parents[1] / "scripts").exists()


@for_bundles_with("train.yaml")
def test_every_knob_says_what_it_is_or_comes_after_the_knobs(bundle: Path) -> None:
    """Plain numbers at the top level stand in the section of knobs, where a person looks for them."""
    for file in (file for file in config_files(bundle) if file.suffix == ".yaml" and not is_overlay(file)):
        sections = re.split(r"^# --- (.+) ---$", file.read_text(), flags=re.MULTILINE)
        for heading, section in zip(sections[1::2], sections[2::2]):
            if heading != "knobs":
                assert not re.search(r"^\w+: [-\d\[]", section, flags=re.MULTILINE), f"{file.name}: {heading}"


def test_there_are_bundles_to_look_at() -> None:
    assert bundles_with("train.yaml", "inference.json")
