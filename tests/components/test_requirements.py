"""What is missing is named all at once, and the list says what setup.cfg does."""

from __future__ import annotations

import configparser
from importlib.util import find_spec
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from medical_diffusion_components import requirements
from medical_diffusion_components.cohorts import embedded
from medical_diffusion_components.requirements import SEGMENTATION_TRAINING, check_packages

ROOT = Path(__file__).parents[2]
TRAIN = ROOT / "bundles" / "swin_unetr_finetune" / "configs" / "train.yaml"


def test_the_list_says_what_pip_installs_and_what_is_imported() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = f"{setup['options']['install_requires']}\n{setup['options.extras_require']['segmentation']}".splitlines()
    assert {*SEGMENTATION_TRAINING, *embedded.TO_WARP, *embedded.TO_COMPARE} <= set(lines)
    check_packages(SEGMENTATION_TRAINING)


@pytest.fixture
def without_two(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = {"torchio", "matplotlib"}
    monkeypatch.setattr(requirements, "find_spec", lambda name: None if name in hidden else find_spec(name))


def test_every_missing_package_is_named_with_the_command(without_two: None) -> None:
    with pytest.raises(ModuleNotFoundError) as error:
        check_packages(SEGMENTATION_TRAINING)
    assert str(error.value) == (
        '2 packages are missing: install them with pip install "matplotlib>=3.8,<4" "torchio>=1,<2"'
    )


def test_one_missing_package_is_named_in_the_singular(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda name: None if name == "torchio" else find_spec(name))
    with pytest.raises(
        ModuleNotFoundError, match=r'^1 package is missing: install it with pip install "torchio>=1,<2"$'
    ):
        check_packages(SEGMENTATION_TRAINING)


def test_a_training_says_so_before_anything_else_fails(without_two: None) -> None:
    """Before the cases are read: there are none."""
    parser = ConfigParser()
    parser.read_config(str(TRAIN))
    parser["dataset_dir"] = "nowhere"
    with pytest.raises(RuntimeError) as error:
        parser.get_parsed_content("run")
    cause: BaseException = error.value
    while cause.__cause__ is not None:
        cause = cause.__cause__
    assert isinstance(cause, ModuleNotFoundError) and str(cause).startswith("2 packages are missing")
