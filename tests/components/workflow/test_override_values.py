from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import fire
import pytest
from monai.bundle import ComponentLocator, ConfigParser

from medical_diffusion_components.workflow import override_values

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("id", ["dataset_dir", "raw_dir", "weights", "pretrained_weights", "generator", "models_dir"])
def test_whatever_names_a_place_is_explained_when_the_command_line_makes_a_number_of_it(id: str) -> None:
    with pytest.raises(ValueError, match=rf"--{id} was read as 20231101, which is no path.*--{id} \./20231101"):
        override_values.check_folder_names({id: 20231101})


def places() -> list[str]:
    """Every setting of every bundle that names a file or a folder, by its name or by what its comment says."""
    found = {"samples_dir", "audit_dir"}
    for file in ROOT.glob("bundles/*/configs/*.yaml"):
        for line in file.read_text().splitlines():
            if setting := re.match(r"(\w+): (null|\S*'/).*?(?:  # (.*))?$", line):
                is_place = re.search(
                    r"folder|NIfTI|file,patient|a table|made by|path with|model.pt|scan", setting[3] or ""
                )
                if setting[1].endswith("_dir") or (setting[2] == "null" and is_place):
                    found.add(setting[1])
    return sorted(found - {"patient_pattern", "select", "centre", "bids_suffix"})


def test_every_place_in_a_configuration_is_known_as_one() -> None:
    assert {"raw_dir", "patients", "manifest", "image", "mask", "conditions_table", "generator"} <= set(places())
    assert [
        id for id in places() if not id.endswith("_dir") and id not in override_values.FOLDERS | override_values._FILES
    ] == []


@pytest.mark.parametrize(
    "value", ["a b", "./$x", "./@y", "a%z", "äöü", "./-x", "x/", "../x", "x" * 300, "2023-11-01", "."]
)
def test_places_may_be_named_anything(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for id in places():
        for typed in (["--" + id, value], [f"--{id}={value}"]):
            monkeypatch.setattr(sys, "argv", ["run", *typed])
            override_values.check_folder_names({id: value})


@pytest.mark.parametrize("value", [20231101, 2023_11_01, 1e5, True, ["a"], ("a", "b")])
def test_every_place_that_is_read_as_something_else_is_explained(value: object) -> None:
    for id in places():
        with pytest.raises(ValueError, match=rf"--{id} was read as .*, which is no path"):
            override_values.check_folder_names({id: value})


@pytest.mark.parametrize("value", ["$x", "@y"])
def test_every_place_that_is_read_as_an_expression_is_explained(value: str) -> None:
    for id in places():
        with pytest.raises(ValueError, match=rf"Write \./ before it \(--{id} '\./\{value}'\)"):
            override_values.check_folder_names({id: value})


@pytest.mark.parametrize(("typed", "value"), [("scans#1", "scans"), ("(scans)", "scans"), ("'scans'", "scans")])
def test_a_name_that_the_command_line_shortens_is_explained(typed: str, value: str, monkeypatch) -> None:
    for argv in (["--dataset_dir", typed], [f"--dataset_dir={typed}"]):
        monkeypatch.setattr(sys, "argv", ["run", *argv])
        assert fire.parser.DefaultParseValue(typed) == value, "as MONAI's command line reads it"
        with pytest.raises(ValueError, match="--dataset_dir was given as .* and read as scans") as said:
            override_values.check_folder_names({"dataset_dir": value})
        assert ("rename the folder" if "#" in typed else "Write ./ before the name") in str(said.value)


@pytest.mark.parametrize(
    "given", ["./(scans)", "./'scans'", "/data/(a) 'b'", "./me@site", "/data/@x", "./100%", "/a#1"]
)
def test_the_advice_is_true(given: str, monkeypatch) -> None:
    """``./`` and whole paths reach a run as they were given, but for #, which does not whatever stands before it."""
    parser = ConfigParser({"dataset_dir": fire.parser.DefaultParseValue(given), "seen": "@dataset_dir"})
    seen = parser.get_parsed_content("seen")
    assert (seen == given) == ("#" not in given)


def test_a_home_that_no_shell_expanded_becomes_no_folder_of_that_name() -> None:
    with pytest.raises(ValueError, match="--output_dir ~/out: the shell expands ~ after a blank"):
        override_values.check_folder_names({"output_dir": "~/out"})
    override_values.check_folder_names({"raw_dir": "~/scans"})


@pytest.mark.parametrize("value", ["false", "true", "no"])
def test_a_switch_that_the_command_line_gives_as_text_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=f"--strict {value}: expected True or False.*got the text '{value}'"):
        override_values.check_switches({"strict": value}, {"strict": True})


DENOISER = {"_target_": "medical_diffusion_components.networks.Denoiser"}
LOADER: dict[str, Any] = {
    "_target_": "monai.data.DataLoader",
    "dataset": None,
    "timeout": 0,
}  # MONAI's takes drop_last for torch's


@pytest.mark.parametrize(
    ("config", "default", "id"),
    [
        ({"train": {"strict": "maybe"}}, {"train": {"strict": True}}, "train::strict"),
        ({"all": [{"strict": "maybe"}]}, {"all": [{"strict": False}]}, "all::0::strict"),
        ({"load": {**LOADER, "drop_last": "maybe"}}, {"load": LOADER}, "load::drop_last"),
        ({"net": {**DENOISER, "use_checkpointing": "maybe"}}, {"net": DENOISER}, "net::use_checkpointing"),
        ({"half": "maybe", "load": {**LOADER, "drop_last": "@half"}}, {"half": "$@n > 1"}, "half"),
        ({"strict": ["maybe"]}, {"strict": False}, "strict"),
        ({"train": {"x": "False"}}, {}, "train::x"),
    ],
)
def test_a_switch_is_refused_wherever_it_stands(config: dict, default: dict, id: str) -> None:
    with pytest.raises(ValueError, match=rf"^--{id} .*expected True or False, with a capital letter, got"):
        override_values.check_switches(config, default)


@pytest.mark.parametrize(
    "config",
    [
        {"strict": False, "amp": "$x > 1", "name": "no"},
        {"strict": 0, "amp": None, "name": "a"},
        {"models_dir": "true", "load": {**LOADER, "drop_last": "@strict", "multiprocessing_context": "fork"}},
        {
            "load": {"_target_": "no.such.name", "strict": "maybe"},
            "other": {"_target_": "monai.data.DataLoader", "unknown": "maybe"},
        },
    ],
)
def test_switches_and_other_texts_are_left_alone(config: dict) -> None:
    override_values.check_switches(config, {"strict": True, "amp": True, "name": "a", "load": LOADER})


@pytest.mark.parametrize("target", ["broken_module.Net", "builtins.dict", "$no(", None, 3])
def test_what_does_not_say_what_it_takes_is_left_to_whoever_makes_it(target: Any, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "broken_module.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    override_values.check_switches({"net": {"_target_": target, "some": "maybe"}}, {})


class Child(dict):
    """Its own signature says nothing of ``strict``; its parent has none that can be read."""

    def __init__(self, amp: bool = False, **others: Any) -> None:
        super().__init__(**others)


def test_parents_without_a_signature_hide_nothing() -> None:
    with pytest.raises(ValueError, match="--net::amp maybe: expected True or False"):
        override_values.check_switches({"net": {"_target_": Child, "amp": "maybe"}}, {})
    override_values.check_switches({"net": {"_target_": Child, "strict": "maybe"}}, {})


@pytest.mark.parametrize(
    "lazily", [False, True], ids=["when the room is imported", "when the room is asked, as in a bundle's zip"]
)
def test_a_class_whose_package_is_missing_is_not_looked_into(
    lazily: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, room = "import no_such_package", tmp_path / f"room_{lazily}"
    room.mkdir()
    (room / "__init__.py").write_text(f"def __getattr__(name):\n    {code}\n" if lazily else f"{code}\n")
    monkeypatch.syspath_prepend(tmp_path)
    override_values.check_switches({"net": {"_target_": f"room_{lazily}.Net", "amp": "maybe"}}, {})


def test_a_dictionary_transform_takes_the_switches_of_its_array_form() -> None:
    scaling = {"_target_": "medical_diffusion_components.transforms.ScaleAsPreparedd", "keys": "image", "minv": 0.0}
    with pytest.raises(ValueError, match="--scaling::clip maybe: expected True or False"):
        override_values.check_switches({"scaling": scaling | {"clip": "maybe"}}, {})
    override_values.check_switches({"scaling": scaling | {"clip": True}}, {})


def test_a_failure_of_the_search_itself_is_not_hidden() -> None:
    class Broken(ComponentLocator):
        def get_component_module_name(self, name: str) -> str:
            raise RuntimeError(f"no table to look {name} up in")

    with pytest.raises(RuntimeError, match="no table to look Net up in"):
        override_values.check_switches({"net": {"_target_": "Net", "strict": "maybe"}}, {}, Broken())


def test_a_place_that_a_configuration_works_out_is_no_name() -> None:
    override_values.check_folder_names(
        {"data_dir": {"_target_": "resolve"}, "weights": "$@models_dir + '/m.pt'", "x": 3}
    )


@pytest.mark.parametrize("value", ["$x", "$HOME/out", "$a b", "@y", "@y::z"])
def test_a_folder_to_be_made_whose_name_means_something_else_is_explained(value: str) -> None:
    with pytest.raises(ValueError, match=r"a name that begins with .* Write \./ before it \(--output_dir '\./"):
        override_values.check_folder_names({"output_dir": value})


@pytest.mark.parametrize("value", ["$a+b", "%x"])
def test_a_folder_that_is_there_is_no_expression(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    override_values.check_folder_names({"output_dir": value})  # nothing of that name
    Path(value).mkdir()
    with pytest.raises(ValueError, match=r"is an expression or a reference in a configuration, not a folder"):
        override_values.check_folder_names({"output_dir": value})


@pytest.mark.parametrize("value", ["@models_dir", "@a::models_dir", "$@models_dir + '/x'", "$None", "./$x", "/tmp/@y"])
def test_references_expressions_and_paths_that_make_sense_are_left_alone(value: str) -> None:
    override_values.check_folder_names({"output_dir": value, "models_dir": "m", "a": {"models_dir": "m"}})


@pytest.mark.parametrize(
    ("given", "default", "expected"),
    [
        ("ten", 8, "a whole number"),
        (2.0, 8, "a whole number"),
        (-1, 0, "a whole number of at least 0"),
        (2**63, 0, "below 2^63"),
        (True, 8, "a whole number"),
        ("fast", 1e-4, "a number"),
        (True, 1e-4, "a number"),
        (64, [64, 64, 64], "a list"),
        ("slices", ["slices", "anatomy"], "a list"),
    ],
)
def test_a_number_or_a_list_that_is_given_as_another_kind_of_value_is_refused(given, default, expected) -> None:
    for config, defaults in (({"knob": given}, {"knob": default}), ({"a": {"knob": given}}, {"a": {"knob": default}})):
        with pytest.raises(ValueError, match="--(a::)?knob") as said:
            override_values.check_kinds(config, defaults)
        text = str(said.value)
        assert f"knob {given}: expected " in text and expected in text and text.endswith(f" {default}; got {given!r}")


def test_what_a_block_is_made_with_is_its_makers_to_check() -> None:
    turn = {"_target_": "torchio.RandomAffine", "degrees": 10, "options": {"translation": 5}}
    file = {"augmentation": [{"transform": turn}], "epochs": 3}
    given = [{"transform": turn | {"degrees": [5.5, 10], "options": {"translation": 2.5}}}]
    override_values.check_kinds(file | {"augmentation": given}, file)
    with pytest.raises(ValueError, match="--epochs 2.5"):
        override_values.check_kinds(file | {"augmentation": given, "epochs": 2.5}, file)


def test_a_list_has_a_number_for_each_axis_or_end() -> None:
    with pytest.raises(ValueError, match=r"--guidance_interval \[0, 1, 2\]: expected a list, such as \[0.0, 1.0\]"):
        override_values.check_kinds({"guidance_interval": [0, 1, 2]}, {"guidance_interval": [0.0, 1.0]})
    override_values.check_kinds({"strengths": [0.1]}, {"strengths": [0.0, 1.0]})


@pytest.mark.parametrize(
    ("id", "given", "expected"),
    [
        ("seed", 1.5, "a whole number of at least 0, and below 2^63, such as 0"),
        ("steps", 2.5, "a whole number of at least 0, and below 2^63, such as 300"),
        ("spacing", 2, "a list of numbers above 0, such as [2.8, 2.8, 2.8]"),
    ],
)
def test_a_setting_that_another_stands_for_is_of_the_kind_of_that(id: str, given: float, expected: str) -> None:
    file = {
        "shown": {"seed": 0, "steps": "$trained_knob(@weights, 'steps', @timesteps)"},
        "timesteps": "$trained_knob(@weights, 'timesteps', 300)",
        "seed": "$@shown#seed",
        "steps": "$@shown#steps",
        "spacing": "$trained_spacing(@weights, [2.8, 2.8, 2.8])",
        "width": "$trained_knob(@weights, 'width', @shape[1])",
    }
    with pytest.raises(ValueError, match="--") as said:
        override_values.check_kinds(file | {id: given}, file)
    assert str(said.value) == f"--{id} {given}: expected {expected}; got {given!r}"
    override_values.check_kinds(file | {"width": "anything"}, file)


def test_numbers_expressions_and_nothing_are_left_to_the_run() -> None:
    defaults = {"rate": 1e-4, "epochs": 5, "roi_size": [64, 64, 32], "mask_fill": 0.0, "mask_patch_size": [[8, 16]] * 3}
    for given in (
        {"rate": 1, "epochs": 1, "roi_size": (64, 32, 32), "mask_fill": "noise", "mask_patch_size": 8},
        {"rate": "$1/3", "epochs": "@steps", "roi_size": None},
    ):
        override_values.check_kinds(given, defaults)


SIZES = "a list of numbers above 0"


@pytest.mark.parametrize(
    ("id", "given", "default", "expected"),
    [
        ("spacing", [-2, 2, 2], [2.8, 2.8, 2.8], SIZES),
        ("spacing", [0, 2, 2], [2.8, 2.8, 2.8], SIZES),
        ("spacing", [2, "a", 2], [2.8, 2.8, 2.8], SIZES),
        ("spacing", [2, 2], [2.8, 2.8, 2.8], SIZES),
        ("image_size", [64, 64, 0], [64, 64, 64], SIZES),
        ("roi_size", [64, 64.5, 32], [64, 64, 32], SIZES),
        ("compression", [2, 2, -2], [2, 2, 2], SIZES),
        ("intensity_range", [255.0, 0.0], [0.0, 255.0], "a list of two ascending numbers"),
        ("intensity_range", [1, 1], [0.0, 255.0], "a list of two ascending numbers"),
        ("intensity_range", ["a", 1], [0.0, 255.0], "a list of two ascending numbers"),
        ("num_volumes", 0, 8, "a whole number of at least 1, and below 2^63"),
        ("num_shown", 0, 6, "a whole number of at least 1, and below 2^63"),
        ("batch_size", 0, 2, "a whole number of at least 1, and below 2^63"),
        ("epochs", 0, 5, "a whole number of at least 1, and below 2^63"),
        ("val_interval", 0, 5, "a whole number of at least 1, and below 2^63"),
        ("volumes_per_mask", -1, 1, "a whole number of at least 1, and below 2^63"),
        ("flip_axes", ["a"], [0], "a list"),
    ],
)
def test_numbers_that_make_no_sense_of_such_a_name_are_refused(id: str, given, default, expected: str) -> None:
    with pytest.raises(ValueError, match="--") as said:
        override_values.check_kinds({id: given}, {id: default})
    assert str(said.value) == f"--{id} {given}: expected {expected}, such as {default}; got {given!r}"


def test_a_rule_holds_within_a_block_that_makes_nothing() -> None:
    with pytest.raises(ValueError, match="^--shown::num_volumes 0: expected a whole number of at least 1"):
        override_values.check_kinds({"shown": {"num_volumes": 0}}, {"shown": {"num_volumes": 8}})


@pytest.mark.parametrize(
    ("id", "given", "default"),
    [
        ("a_users_own", 0, 3),
        ("num_workers", 0, 2),
        ("num_more_held_out", 0, 45),
        ("num_calibration_subjects", 0, 100),
        ("guidance_interval", [0.0, 0.0], [0.0, 1.0]),
        ("spacing", [1, 2.5, 3], [1.0, 1.0, 1.0]),
        ("percentages", [0.5, 100], [1, 2]),
        ("intensity_range", [-1024, 3071], [0.0, 255.0]),
        ("warmup_iterations", 0, 100),
    ],
)
def test_numbers_that_make_sense_are_left_alone(id: str, given, default) -> None:
    override_values.check_kinds({id: given}, {id: default})


def test_a_number_that_may_be_left_out_may_not_be_nothing() -> None:
    with pytest.raises(ValueError, match="--num_training_volumes 0: expected a number above 0, or None; got 0"):
        override_values.check_kinds({"num_training_volumes": 0}, {"num_training_volumes": None})
    override_values.check_kinds(
        {"num_training_volumes": 3, "tile_size": [8, 8, 8]}, dict.fromkeys(("tile_size", "num_x"))
    )


def test_a_word_for_the_guidance_scale_is_refused() -> None:
    file = {"shown": {"guidance_scale": 1.0}, "guidance_scale": "$float(@shown.get('guidance_scale', 1.0))"}
    with pytest.raises(ValueError, match="--guidance_scale strong: expected a number, such as 1.0; got 'strong'"):
        override_values.check_kinds(file | {"guidance_scale": "strong"}, file)


@pytest.mark.parametrize("device", ["gpu", "cuda:77", "mps", "cuda", 3.5])
def test_a_device_that_is_not_here_is_refused_in_the_first_place(device, monkeypatch) -> None:
    monkeypatch.setattr(override_values, "own_device", lambda: "cpu")
    if device == "cuda":
        monkeypatch.setattr(override_values.torch, "empty", lambda *_, device: 1 / 0)  # also where there is one
    if device == 3.5:
        override_values.check_device(device)  # whoever takes it says so
        return
    with pytest.raises(ValueError, match=rf"--device {device}: expected one that is here, such as cpu: \w"):
        override_values.check_device(device)


@pytest.mark.parametrize("device", ["cpu", "$distributed.own_device()", None])
def test_a_device_that_is_here_or_worked_out_is_not(device) -> None:
    override_values.check_device(device)


def test_a_spacing_given_as_an_expression_is_compared_by_its_value(tmp_path: Path, caplog) -> None:
    (tmp_path / "model.json").write_text(json.dumps({"spacing": [1.0, 1.0, 2.0]}))
    default = {"spacing": "$trained_spacing(@weights, [2.8, 2.8, 2.8])"}
    for given, remarks in (("$[1, 1, 4 / 2]", 0), ("$[1, 1, 4]", 1)):
        caplog.clear()
        parser = ConfigParser({"weights": str(tmp_path / "model.pt"), "spacing": given})
        parser.parse()
        override_values.remark_on_spacing(parser, default)
        assert caplog.text.count("the weights were trained with voxels of [1.0, 1.0, 2.0] mm") == remarks
