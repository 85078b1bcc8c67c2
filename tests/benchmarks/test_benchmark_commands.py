"""Every benchmark's help, and the command that its docstring gives, at the smallest size."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from warm_processes import python

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "tests" / "bundles"))
import bundle_folders  # noqa: E402

LIBRARIES = {
    "gan_table",
    "measuring",
    "metered_training",
    "plain_denoiser",
    "plain_first_stage",
    "plants",
}  # no commands
SCRIPTS = sorted(path for path in (REPOSITORY / "benchmarks").glob("*.py") if path.stem not in LIBRARIES)
ADNI = REPOSITORY / "bundles" / "adni_ldm"
FIRST_STAGE_KNOBS = bundle_folders.read(ADNI / "configs" / "train_autoencoder.yaml").keys() - {"image_size"}
SMALL_STEP = {id: value for id, value in bundle_folders.tiny(ADNI).items() if id in FIRST_STAGE_KNOBS}
GAN = REPOSITORY / "bundles" / "adni_gan"
GAN_IDS = bundle_folders.read(GAN / "configs" / "train.yaml").keys()
DIFFUSION_IDS = bundle_folders.read(ADNI / "configs" / "train.yaml").keys() | FIRST_STAGE_KNOBS
OWN_OPTIONS = {
    "image_size",
    "num_embedded_subjects",
    "patch_size",
}  # of gan_comparison.py, or too large for its volumes
SMALL_COMPARISON = [  # a volume must have 16 voxels for the network that measures features
    *(
        "--image_size",
        "16",
        "48",
        "32",
        "--subjects=8",
        "--more_held_out=4",
        "--volumes=3",
        "--seeds=0",
        "--norms=group",
    ),
    "--diffusion",
    "patch_size=[16, 48, 32]",
    *(f"{k}={json.dumps(v)}" for k, v in bundle_folders.tiny(ADNI).items() if k in DIFFUSION_IDS - OWN_OPTIONS),
    "--gan",
    "feature_workers=1",
    *(f"{k}={json.dumps(v)}" for k, v in bundle_folders.tiny(GAN).items() if k in GAN_IDS - OWN_OPTIONS - {"epochs"}),
]
# What makes a command small, appended to that of the docstring without its parts in brackets.
SMALLEST = {
    "bundle_step": ["--operations", *(f"--set={key}={json.dumps(value)}" for key, value in SMALL_STEP.items())],
    "cached_latents": ["--bundles=adni_ldm", "--volumes=1", "--batch=1", "--runs=1"],
    "codebook": ["--runs=1", "--latents", "1", "2", "3", "4", "5", "--codes=8"],
    "denoiser": ["--runs=1", "--batch=1", "--latent", "8", "8", "4", "--base_channels=8"],
    "first_stage": ["--runs=1", "--size", "16", "16", "16", "--batch=1", "--codes=8"],
    "growth": ["--quick", "--series=depth", "--steps=2", "--output={folder}"],
    "memory": ["--bundles=adni_ldm", "--stages=diffusion", "--batch_size=1"],
    "start_up": ["--runs=1", "--subjects=10"],
    "table": [],
}


def shown_command(script: Path) -> str:
    """The docstring's, in one line."""
    text = ast.get_docstring(ast.parse(script.read_text())).replace("\\\n", " ")
    return next(line for line in text.splitlines() if line.startswith("    python "))


def command(script: Path) -> list[str]:
    """The docstring's, split as a shell would, without what stands in brackets outside of quotes."""
    parts = re.split(r"(\"[^\"]*\")", shown_command(script))
    return shlex.split("".join(part if part.startswith('"') else re.sub(r"\[[^]]*\]", "", part) for part in parts))


def run(arguments: list[str], folder: Path = REPOSITORY) -> str:
    paths = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    done = python(*arguments, cwd=folder, env={**os.environ, "PYTHONPATH": paths}, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_docstring_of_every_benchmark_gives_a_command_for_itself() -> None:
    assert SCRIPTS
    for script in SCRIPTS:
        assert command(script)[:2] == ["python", f"benchmarks/{script.name}"]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=[script.stem for script in SCRIPTS])
def test_help_names_every_option_of_the_command_in_the_docstring(script: Path) -> None:
    done = python(str(script), "--help")
    assert done.returncode == 0, done.stderr[-2000:]
    _, _, options = done.stdout.partition("\noptions:")
    for option in re.findall(r"(?<![\w-])--\w+", shown_command(script)):
        assert re.search(rf"^ +{option}\b", options, re.MULTILINE), option


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_the_command_of_the_docstring_runs(name: str, tmp_path: Path) -> None:
    smallest = [part.replace("{folder}", str(tmp_path)) for part in SMALLEST[name]]
    shown = run([*command(REPOSITORY / "benchmarks" / f"{name}.py")[1:], *smallest])
    if name == "bundle_step":
        step = json.loads(shown.splitlines()[-1])
        assert step["seconds"] and step["tera_operations"] > 0
    if name == "growth":
        assert {path.name for path in tmp_path.iterdir()} == {"growth.csv", "growth.png"}
    assert shown.strip()


@pytest.mark.slow
def test_the_gan_is_compared_by_the_command_of_the_docstring_and_again_without_training(tmp_path: Path) -> None:
    parts = [*command(REPOSITORY / "benchmarks" / "gan_comparison.py")[1:], f"--folder={tmp_path}", *SMALL_COMPARISON]
    shown = run(parts)
    table = (tmp_path / "gan_comparison.md").read_text()
    assert table.strip() in shown and "Not run: nothing." in table
    result = json.loads((tmp_path / "gan_comparison.json").read_text())
    assert [row["at"] for row in result["rows"]] == ["", "equal volumes seen", "equal processor time"]
    diffusion, *gans = result["rows"]
    assert gans[0]["volumes"] >= diffusion["volumes"] and gans[1]["seconds"] >= diffusion["seconds"]
    assert all(
        row["n"]["synthetic"] == 3 and row["n"]["reference"] == gans[0]["n"]["reference"] for row in result["rows"]
    )
    assert (tmp_path / "gan_comparison.png").is_file()
    again = run(parts)
    assert "training, " not in again and table.strip() in again


@pytest.mark.slow
def test_samplers_are_compared_with_the_weights_that_the_overlay_left_in_the_bundle(tmp_path: Path) -> None:
    """The command names no folder of weights and is run from outside the bundle."""
    bundle = tmp_path / "bundles" / "adni_ldm"
    shutil.copytree(ADNI / "configs", bundle / "configs")
    sides = [16, 32, 16]  # the network that measures features wants 16 voxels
    small = bundle_folders.tiny(bundle, image_size=sides, patch_size=sides, num_embedded_subjects=14)
    configs = ["train.yaml", "demo.yaml", "small.yaml"]
    known = {
        id for name in ("train.yaml", "train_autoencoder.yaml") for id in bundle_folders.read(ADNI / "configs" / name)
    }
    (bundle / "configs" / "small.yaml").write_text(yaml.safe_dump({k: v for k, v in small.items() if k in known}))
    bundle_folders.run(bundle, configs)
    _, script, option, files = command(REPOSITORY / "benchmarks" / "sampling.py")
    files = [*ast.literal_eval(files), "bundles/adni_ldm/configs/small.yaml"]
    sizes = ["--volumes=3", "--batch_size=3", "--reference_volumes=3", "--neighbours=1", "--ddim=2", "--dpmpp_2m=2"]
    shown = run([str(REPOSITORY / script), option, str(files), *sizes], tmp_path)
    made = bundle / "demo" / "sampling"
    assert {"sampling.md", "sampling.json", "sampling.png", "montage.png"} <= {path.name for path in made.iterdir()}
    assert (made / "sampling.md").read_text().strip() in shown
    rows = json.loads((made / "sampling.json").read_text())["samplers"]
    assert [(row["sampler"], row["calls"]) for row in rows] == [
        ("ddpm", 12),
        ("ddim", 2),
        ("dpmpp_2m", 2),
        ("dpmpp_2m", 12),
    ]
