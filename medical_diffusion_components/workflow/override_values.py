"""Refusal of values that a setting cannot have: names of folders, switches, numbers, lists, a device.

MONAI takes any value under any id, and the command line reads some names of folders as numbers, expressions or references.
"""

from __future__ import annotations

import ast
import inspect
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pydoc import ErrorDuringImport, locate
from typing import Any

import numpy as np
import torch
from monai.bundle import ComponentLocator, ConfigComponent, ConfigParser
from monai.bundle.utils import ID_SEP_KEY

from medical_diffusion_components.distributed import own_device
from medical_diffusion_components.files import folder_setting
from medical_diffusion_components.weights import provenance
from medical_diffusion_components.workflow.lookup import is_stage
from medical_diffusion_components.workflow.run_settings import FOLDERS, is_resolved_later

__all__ = ["check_circles", "check_device", "check_folder_names", "check_kinds", "check_switches", "remark_on_spacing"]

logger = logging.getLogger(__name__)

_FILES = {"conditions_table", "image", "manifest", "mask", "masks", "patients", "second_image"}
_SWITCHES = {"bool", "bool | None", "<class 'bool'>", "typing.Optional[bool]"}  # annotations
_OF_TWO_KINDS = {"mask_fill", "mask_patch_size", "percentages"}  # number or word, number or list, whole numbers or not
# Rules by whole names; tests/bundles/test_config_hygiene.py holds them against every configuration.
_WHOLE_NUMBERS = """
accumulation_steps autoencoder_batch_size autoencoder_epochs base_channels batch_size code_channels code_size
control_batch_size denoiser_channels discriminator_channels ema_every encoder_batch_size encoder_steps epochs
feature_size gan_channels generator_steps head_channels held_out_timesteps image_channels inference_batch_size
jump_length latent_views mask_batch_size mask_channels mask_code_channels mask_denoiser_channels mask_features
mask_head_channels mask_heads mask_views max_draws montage_interval norm_groups num_codes num_devices
num_embedded_subjects num_heads num_inference_steps num_masks num_membership_volumes num_results num_sampled_held_out
num_sampled_volumes num_shown num_train_timesteps num_training num_volumes resamples save_interval val_interval
volumes_per_mask window_size
"""
_AT_LEAST_1 = frozenset(_WHOLE_NUMBERS.split())
_RANGES = {"intensity_range", "spacing_range"}  # two ascending numbers
_PER_AXIS = {"compression", "crop_size", "embedded_image_size", "image_size", "patch_size", "roi_size", "spacing"}
_FIXED_LENGTH = {*_RANGES, *_PER_AXIS, "guidance_interval"}  # lists: a number for each axis or end
_ABOVE_0 = {  # lists of such numbers, and numbers that may be None
    *_PER_AXIS,
    *("num_heads", "num_labelled", "num_mask_patches", "num_pretraining", "num_training_volumes", "tile_size"),
}
_STANDS_FOR = re.compile(
    r"\$?@([\w#:]+)|\$(?:trained_(?:knob|spacing)\(@\w+, (?:'\w+', )?|float\(@\w+\.get\('\w+', )(.+?)\)+"
)
_WITH_HOME = {"dataset_dir", "masks", "patients", "raw_dir", "report_dir"}  # may begin with ~


def check_circles(config: Mapping[str, Any]) -> None:
    """Settings that refer to themselves, directly or through others: they have no value."""
    refers = {id: re.findall(r"@(\w+)", value) for id, value in config.items() if is_resolved_later(value)}
    try:
        TopologicalSorter(refers).prepare()
    except CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))  # each refers to the next, the last is the first again
        raise ValueError(f"expected settings that have a value, got some that refer to themselves: {circle}") from None


def check_folder_names(config: Mapping[str, Any]) -> None:
    """Folders whose names mean something else in a configuration: a number, an expression, a reference."""
    for id, value in config.items():
        if not _is_place(id) or value is None or isinstance(value, dict):
            continue
        if not isinstance(value, str):
            folder_setting(id, value)
        elif is_resolved_later(value) and (os.path.lexists(value) or _is_meant_as_name(value, config)):
            raise ValueError(
                f"--{id} {value}: a name that begins with {value[0]} is an expression or a reference in a configuration, "
                f"not a folder. Write ./ before it (--{id} './{value}'), or its whole path"
            )
        elif value.startswith("~") and id not in _WITH_HOME:
            raise ValueError(f"--{id} {value}: the shell expands ~ after a blank (--{id} {value}), not after =")
        elif (typed := _as_typed(id)) not in (None, value):
            advice = f"Write ./ before the name (--{id} './{typed}'), or its whole path"
            if "#" in str(typed):  # which MONAI reads as :: wherever it stands
                advice = "No name with # can be given: rename the folder, or give a link to it (ln -s)"
            raise ValueError(
                f"--{id} was given as {typed} and read as {value}: the command line takes away brackets and quotes, and "
                f"has a meaning of its own for #. {advice}"
            )


def _is_place(id: str) -> bool:
    """Whether a setting names a file or a folder."""
    return id.endswith("_dir") or id in FOLDERS | _FILES


def _as_typed(id: str) -> str | None:
    """What stands on the command line for a setting of this run, before anything has read it."""
    if is_stage():
        return None
    for arg, following in zip(sys.argv, [*sys.argv[1:], ""]):
        if arg == f"--{id}" or arg.startswith(f"--{id}="):
            return arg.partition("=")[2] or following
    return None


def _is_meant_as_name(value: str, config: Mapping[str, Any]) -> bool:
    """Whether a value in the form of an expression or a reference makes sense only as the name of a folder to be made.

    References with ``%`` are resolved before anything of this package runs.
    """
    if value[0] == "@":
        return value[1:].split(ID_SEP_KEY)[0] not in config
    return value[0] == "$" and value != "$None" and re.fullmatch(r"[\w ./~-]*", value[1:]) is not None


def check_switches(
    config: Mapping[str, Any], defaults: Mapping[str, Any], locator: ComponentLocator | None = None
) -> None:
    """Switches that were given as something else: ``false`` is no word of Python, and any text counts as true."""
    known = {id: value for id, value, _ in _nested(defaults)}
    nested = list(_nested(config))
    for id, value, block in nested:
        if isinstance(value, Mapping) or value in (None, False, True, known.get(id)) or is_resolved_later(value):
            continue
        takers = [(block, id)] + [(user, own) for own, reference, user in nested if reference == f"@{id}"]
        if (
            isinstance(known.get(id), bool)
            or (str(value).lower() in ("true", "false") and not _is_place(id))
            or (isinstance(value, str) and any(_takes_switch(user, own, locator) for user, own in takers))
        ):
            kind = "the text" if isinstance(value, str) else type(value).__name__
            raise ValueError(f"--{id} {value}: expected True or False, with a capital letter, got {kind} {value!r}")


def check_kinds(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Numbers and lists that were given as something else, and whole numbers below 0: no setting has any.

    What a block is made with is its maker's to check: the angle of an augmentation may be 10 or [5.5, 10].
    """
    known = {id: value for id, value, _ in _nested(defaults)}
    nested = list(_nested(config))
    exempt = (*_OF_TWO_KINDS, *(id.removesuffix("_target_") for id, _, _ in nested if id.endswith("_target_")))
    for id, value, _ in nested:
        default = _plain_default(known.get(id), known)
        if id.startswith(exempt) or value in (None, default) or is_resolved_later(value):
            continue
        if expected := _misfit(id.split(ID_SEP_KEY)[-1], value, default):
            example = "or None" if default is None else f"such as {default}"
            raise ValueError(f"--{id} {value}: expected {expected}, {example}; got {value!r}")


def _misfit(name: str, value: Any, default: Any) -> str:
    """What was expected of a value that is not of the kind of the default, or breaks the rule of its name; else empty."""
    if isinstance(default, list):
        return _misfit_of_list(name, value, default)
    return _misfit_of_number(value, default, name in _AT_LEAST_1 | _ABOVE_0)


def _misfit_of_number(value: Any, default: Any, above_0: bool) -> str:
    number = type(value) in (int, float)
    if default is None:
        return "a number above 0" if above_0 and number and value <= 0 else ""
    if type(default) is int and not (type(value) is int and above_0 <= value < 1 << 63):
        return f"a whole number of at least {int(above_0)}, and below 2^63"
    if type(default) is float and not (number and (value > 0 or not above_0)):
        return "a number above 0" if above_0 else "a number"
    return ""


def _misfit_of_list(name: str, value: Any, default: list[Any]) -> str:
    ascending, above_0 = name in _RANGES, name in _ABOVE_0
    expected = f"a list{' of two ascending numbers' if ascending else ' of numbers above 0' if above_0 else ''}"
    if not isinstance(value, list | tuple) or (name in _FIXED_LENGTH and len(value) != len(default)):
        return expected
    holds_numbers = bool(default) and {type(item) for item in default} <= {int, float}
    if holds_numbers and any(_misfit_of_number(item, default[0], above_0) for item in value):
        return expected
    return expected if ascending and not value[0] < value[1] else ""


def check_device(device: Any) -> None:
    """A device that torch does not know, or that this machine does not have."""
    if isinstance(device, str) and not is_resolved_later(device):
        try:
            torch.empty(0, device=device)
        except Exception as error:  # of one kind for each device
            cause = str(error).partition("\n")[0].rstrip(".")
            raise ValueError(
                f"--device {device}: expected one that is here, such as {own_device()}: {cause}"
            ) from error


def remark_on_spacing(parser: ConfigParser, defaults: Mapping[str, Any]) -> None:
    """Voxels of another size than those that the weights were trained with: what is drawn keeps its number of voxels."""
    default = defaults.get("spacing")
    if parser.get().get("spacing") != default and str(default).startswith("$trained_spacing("):
        given: Any = parser.ref_resolver.get_resolved_content(id="spacing")
        weights = parser.ref_resolver.get_resolved_content(id=re.findall(r"@(\w+)", str(default))[0])
        trained = provenance(str(weights)).get("spacing")
        if trained and not np.allclose(given, trained, rtol=0.01):
            logger.warning(
                f"--spacing {given}: the weights were trained with voxels of {[round(mm, 3) for mm in trained]} mm, so "
                "what is drawn has another size in the world than in training"
            )


def _plain_default(value: Any, known: Mapping[str, Any]) -> Any:
    """A default, also where another setting, or the value of a training, stands for it in the file."""
    while isinstance(value, str) and (found := _STANDS_FOR.fullmatch(value)):
        if not found[1] and "@" not in found[2]:
            return ast.literal_eval(found[2])
        value = known.get(found[1].replace("#", ID_SEP_KEY)) if found[1] else found[2]
    return value


def _nested(value: Any, prefix: str = "", block: Any = None) -> Iterator[tuple[str, Any, Any]]:
    """Every setting, however deep: id, raw value, and what it is directly in."""
    if prefix:
        yield prefix, value, block
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from _nested(part, f"{prefix}{ID_SEP_KEY}{key}" if prefix else str(key), value)


def _takes_switch(block: Any, id: str, locator: ComponentLocator | None) -> bool:
    """Whether what a block makes takes True or False under the last part of ``id``, by its signature or its parents'."""
    if not ConfigComponent.is_instantiable(block):
        return False
    made = ConfigComponent(block, locator=locator).resolve_module_name()
    try:
        made = locate(made) if isinstance(made, str) else made
    except (ErrorDuringImport, ImportError):  # MONAI says so, with the block's name, when it makes it
        return False
    makers = [vars(c).get("__init__", c) for c in made.__mro__] if isinstance(made, type) else [made]
    makers.append(getattr(made, "array_form", None))  # to which a dictionary transform passes on what it is made with
    found = next(filter(None, (_parameter(maker, id.split(ID_SEP_KEY)[-1]) for maker in makers)), None)
    if found is None:
        return False
    annotated = found.annotation is not found.empty
    return str(found.annotation) in _SWITCHES if annotated else isinstance(found.default, bool)


def _parameter(maker: Any, name: str) -> inspect.Parameter | None:
    """What a callable takes under a name, as far as its signature says it."""
    try:
        return inspect.signature(maker).parameters.get(name)
    except (TypeError, ValueError):  # nothing that can be called, or written in C without a signature
        return None
