"""Bundles as they are published: a zip that works alone, in an environment with little more than MONAI and torch.

The environment is made of links to what is installed here, so that nothing is downloaded: a folder with the packages that
are named and what they require, and a Python that sees no other.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_folders import REPOSITORY, bundles_with, for_each_kind_with, undisturbed
from monai.bundle import ConfigParser
from packaging.requirements import Requirement
from warm_processes import isolated, python

from medical_diffusion_components.files import file_hash
from medical_diffusion_components.networks import fast
from medical_diffusion_components.release import bundle_archive
from medical_diffusion_components.release.bundle_archive import build_bundle
from medical_diffusion_components.weights import WeightsError, load_weights, save_weights

pytestmark = pytest.mark.slow

BUNDLES = bundles_with("inference.json")
every_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=[bundle.name for bundle in BUNDLES])
every_kind = for_each_kind_with("inference.json")  # in the zips of the others are the same networks
BARE = ("torch", "monai", "fire", "pytorch-ignite", "nibabel", "einops")
LDM = {
    "image_size": [32, 64, 12],
    "num_train_timesteps": 12,
    "base_channels": 4,
    "compression": [4, 4, 2],
    "norm_groups": 4,
    "num_codes": 32,
    "denoiser_channels": 8,
    "channel_multipliers": [1, 2],
    "num_heads": 2,
    "head_channels": 8,
}
GAN = {"image_size": [16, 48, 32], "code_size": 5, "gan_channels": 8}
SWIN = {
    "feature_size": 12,
    "depths": [2, 1, 1, 1],
    "num_heads": [1, 2, 4, 8],
    "window_size": 4,
    "roi_size": [64, 32, 32],
}


def packages(names: Iterable[str]) -> set[str]:
    """The named distributions and all that they require, no extras."""
    found: set[str] = set()
    pending = list(names)
    while pending:
        name = pending.pop()
        if name in found:
            continue
        found.add(name)
        for line in importlib.metadata.requires(name) or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                pending.append(needed.name)
    return found


def environment(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Variables for ``python -S``: a path with links to these distributions and to nothing else."""
    folder.mkdir()
    for name in packages(names):
        files = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in files.files or [] if file.parts[0] != ".."}:
            link = folder / top
            if not link.exists():
                link.symlink_to(Path(str(files.locate_file(top))))
    return {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def started(*arguments: str, env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """What a Python did that was not forked."""
    return subprocess.run([sys.executable, *arguments], env=env, cwd=cwd, capture_output=True, text=True)


def output(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def bare_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return environment(tmp_path_factory.mktemp("bare") / "packages", BARE)


@pytest.fixture(scope="module")
def bare(bare_environment: dict[str, str]) -> Iterator[Callable]:
    """Python with MONAI and torch alone."""
    with isolated(bare_environment, "monai.bundle") as run:
        yield run


@pytest.fixture(scope="module")
def only_torch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable]:
    with isolated(environment(tmp_path_factory.mktemp("torch") / "packages", ["torch", "numpy"]), "torch") as run:
        yield run


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Bundle -> its zip, unpacked; the networks are small and know nothing."""
    made: dict[Path, Path] = {}

    def publish(bundle: Path) -> Path:
        if bundle not in made:
            folder = tmp_path_factory.mktemp("published")
            with undisturbed():
                archive = build_bundle(bundle, folder, ignorant_weights(bundle, folder / "weights"))
            with zipfile.ZipFile(archive) as zipped:
                zipped.extractall(folder)
            made[bundle] = folder / bundle.name
        return made[bundle]

    return publish


def ignorant_weights(bundle: Path, folder: Path) -> Path:
    knobs = LDM if bundle.name.endswith("_ldm") else GAN if bundle.name.endswith("_gan") else SWIN
    torch.manual_seed(0)
    parser = parsed(bundle, **knobs)
    note = {"data": "embedded cohort", "notice": "No patient.", "spacing": [2.0, 3.0, 4.0], "cases": {"training": 3}}
    note["knobs"] = {**parser.get_parsed_content("knobs"), **knobs}
    save_weights(parser.get_parsed_content("network_def"), folder / "model.pt", note)
    return folder


def parsed(bundle: Path, **settings: Any) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser.update(settings)
    return parser


@pytest.mark.parametrize("bundle", [b for b in BUNDLES if b.name in ("adni_ldm", "adni_gan", "swin_unetr_finetune")],
                         ids=lambda bundle: bundle.name)  # fmt: skip
def test_an_unpacked_bundle_works_with_monai_and_torch_alone(
    bundle: Path, published: Callable, bare: Callable, tmp_path: Path
) -> None:
    """From its folder and from elsewhere, and nothing of this repository is seen."""
    unpacked, images = published(bundle), []
    scan = np.random.default_rng(0).random((70, 40, 36), np.float32)
    nib.save(nib.Nifti1Image(scan, np.diag([2.0, 3.0, 4.0, 1.0])), tmp_path / "scan.nii.gz")
    wanted = ["--dataset_dir", str(tmp_path / "scan.nii.gz")] if "swin" in bundle.name else ["--num_volumes", "1"]
    for cwd in (unpacked, tmp_path):
        config = os.path.relpath(unpacked / "configs" / "inference.json", cwd)
        made = ["--output_dir", str(tmp_path / f"from_{cwd.name}"), *wanted]
        output(bare("-m", "monai.bundle", "run", "--config_file", config, *made, cwd=cwd))
        (file,) = (tmp_path / f"from_{cwd.name}").rglob("*.nii.gz")
        images.append(np.asarray(nib.load(file).dataobj))
    assert images[0].std() > 0 and np.array_equal(*images)
    code = "import importlib.util as u; print(u.find_spec('medical_diffusion_components'), u.find_spec('scipy'))"
    assert output(bare("-c", code, cwd=tmp_path)) == "None None\n"


@pytest.mark.parametrize("bundle", [b for b in BUNDLES if "swin" in b.name], ids=lambda bundle: bundle.name)
def test_without_data_an_unpacked_segmentation_asks_for_them(
    bundle: Path, published: Callable, bare: Callable, tmp_path: Path
) -> None:
    """Its embedded cohort needs packages that a user of a downloaded bundle has no use for."""
    command = ["-m", "monai.bundle", "run", "--config_file", str(published(bundle) / "configs" / "inference.json")]
    done = bare(*command, cwd=tmp_path)
    assert done.returncode != 0 and done.stderr.rstrip().splitlines()[-1] == (
        "Stopped: ModuleNotFoundError: no dataset_dir was given: give --dataset_dir, your own volumes; for the embedded "
        "cohort in their place 3 packages are missing: install them with pip install "
        '"nilearn>=0.10,<0.15" "scipy>=1.11,<2" "tqdm>=4.65,<5"'
    )


@pytest.mark.parametrize("bundle", BUNDLES[:1], ids=lambda bundle: bundle.name)
def test_monai_downloads_loads_and_runs_it(
    bundle: Path, published: Callable, bare_environment: dict[str, str], tmp_path: Path
) -> None:
    """In a Python that has just been started."""
    (archive,) = published(bundle).parent.glob("*.zip")
    code = """
import sys
import monai.bundle
url, folder, name = sys.argv[1:]
monai.bundle.download(name=name, url=url, bundle_dir=folder)
workflow = monai.bundle.create_workflow(
    config_file=f"{folder}/{name}/configs/inference.json", workflow_type="inference", num_volumes=1
)
workflow.run()
network = monai.bundle.load(name, bundle_dir=folder, workflow_type="inference", device="cpu")
scripted, metadata, _ = monai.bundle.load(name, bundle_dir=folder, load_ts_module=True, device="cpu")
print(type(network).__module__, metadata["version"])
"""
    command = ["-S", "-W", "ignore", "-c", code, archive.as_uri(), str(tmp_path / "downloaded"), bundle.name]
    printed = output(started(*command, env=bare_environment, cwd=tmp_path))
    assert printed.splitlines()[-1].startswith(f"{bundle.name}_components.")
    assert list((tmp_path / "downloaded" / bundle.name / "output").rglob("*.nii.gz"))


@every_bundle
def test_the_model_zoo_finds_its_files(bundle: Path, published: Callable) -> None:
    """As the first stages of its verify_bundle.py want them."""
    unpacked = published(bundle)
    metadata = json.loads((unpacked / "configs" / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"] and "medical-diffusion-bundles" not in str(metadata)
    assert all(version[0].isdigit() for version in metadata["required_packages_version"].values())
    assert metadata["schema"].endswith("/meta_schema_20240725.json")
    for name in ("LICENSE", "docs/README.md", "docs/data_license.txt", "models/model.pt", "configs/inference.json"):
        assert (unpacked / name).is_file(), name
    assert all(path.stat().st_size <= 25 * 2**20 for path in unpacked.rglob("*") if path.is_file())
    state = torch.load(unpacked / "models" / "model.pt", weights_only=True)
    assert all(torch.is_tensor(tensor) for tensor in state.values())


@every_kind
def test_the_model_zoo_runs_it(bundle: Path, published: Callable, bare: Callable, tmp_path: Path) -> None:
    """The last stages of its verify_bundle.py, from another folder and with the bundle's on the path, as there."""
    unpacked = published(bundle)
    code = """
import sys
import monai.bundle
root = sys.argv[1]
sys.path.insert(0, root)
files = {"meta_file": f"{root}/configs/metadata.json", "config_file": f"{root}/configs/inference.json"}
monai.bundle.verify_net_in_out(net_id="network_def", device="cpu", **files)
monai.bundle.ckpt_export(
    net_id="network_def", filepath=sys.argv[2], ckpt_file=f"{root}/models/model.pt", **files
)
"""
    output(bare("-c", code, str(unpacked), str(tmp_path / "model.ts"), cwd=tmp_path))
    assert (tmp_path / "model.ts").stat().st_size > 10_000


@every_bundle
def test_what_it_names_is_in_it_or_is_required(bundle: Path, published: Callable) -> None:
    unpacked = published(bundle)
    required = json.loads((unpacked / "configs" / "metadata.json").read_text())["required_packages_version"]
    lines = importlib.metadata.requires("medical-diffusion-bundles") or []
    needed = {Requirement(line).name for line in lines if "extra ==" not in line}
    assert needed - {"torch", "monai", "numpy"} <= set(required), "what training imports, as the package is inside"
    for config in (unpacked / "configs").glob("*.yaml"):
        text = config.read_text()
        assert "'/../../" not in text, f"{config.name} looks in the repository"
        assert [name for name in re.findall(r"data_manifests/\w+\.json", text) if not (unpacked / name).is_file()] == []
    guide = (unpacked / "docs" / "guide.md").read_text()
    assert re.findall(r"\]\(\.\./|released/|bundles/\w+", guide) == []


@every_kind
def test_torchscript_needs_torch_alone(bundle: Path, published: Callable, only_torch: Callable, tmp_path: Path) -> None:
    unpacked = published(bundle)
    image = json.loads((unpacked / "configs" / "metadata.json").read_text())["network_data_format"]["inputs"]["image"]
    example = torch.randn(1, image["num_channels"], *image["spatial_shape"], generator=torch.Generator().manual_seed(3))
    weights = unpacked / "models" / "model.pt"
    parser = parsed(bundle, bundle_root=str(bundle), models_dir=str(weights.parent))
    network = parser.get_parsed_content("network_def").eval()
    load_weights(network, weights, parser.get_parsed_content("knobs"))
    with torch.no_grad(), fast.use(False):
        torch.save((example, network(example)), tmp_path / "pair.pt")
    code = """
import sys, torch
example, expected = torch.load(sys.argv[2])
with torch.no_grad():
    found = torch.jit.load(sys.argv[1])(example)
print(float((found - expected).abs().max()), float(expected.std()), "monai" in sys.modules)
"""
    script, pair = str(unpacked / "models" / "model.ts"), str(tmp_path / "pair.pt")
    printed = output(only_torch("-c", code, script, pair, cwd=tmp_path))
    error, spread, monai_there = printed.split()
    assert float(error) <= 1e-5 < float(spread) and monai_there == "False"


@pytest.mark.parametrize("bundle", BUNDLES[:1], ids=lambda bundle: bundle.name)
def test_the_same_release_has_the_same_bytes(bundle: Path, published: Callable, tmp_path: Path) -> None:
    weights, sums = published(bundle) / "models", []
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "1", "SOURCE_DATE_EPOCH": "1700000000"}
    for start in (
        started,
        python,
    ):  # a forked one has another seed of hashes: what follows the order of a set would differ
        out = tmp_path / start.__name__
        command = ["-m", "medical_diffusion_components.release", "--out", str(out), "--bundles", bundle.name]
        output(start(*command, "--models_dir", str(weights), cwd=REPOSITORY, env=env))
        sums.append((out / "SHA256SUMS").read_text())
        listed = dict(line.split("  ")[::-1] for line in sums[-1].splitlines())
        assert listed == {path.name: file_hash(path) for path in out.iterdir() if path.name != "SHA256SUMS"}
    assert sums[0] == sums[1] and len(listed) == 3  # wheel, source archive, bundle


@pytest.mark.parametrize("bundle", BUNDLES, ids=[bundle.name for bundle in BUNDLES])
def test_an_annotation_server_trains_the_network_that_is_published(bundle: Path, published: Callable) -> None:
    """With train.yaml as it is; where no server trains, it is that of the repository."""
    found, before = (
        ConfigParser.load_config_file(folder / "configs" / "train.yaml") for folder in (published(bundle), bundle)
    )
    note = json.loads((published(bundle) / "models" / "model.json").read_text())
    changed = {id for id, value in found.items() if value != before[id] and "_components" not in str(value)}
    assert changed == ({id for id, value in SWIN.items() if value != before[id]} if "served" in before else set())
    assert all(found[id] == note["knobs"][id] for id in changed)


def test_a_branch_is_published_with_its_own_generator_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_archive, "_torchscript", lambda *_: b"")  # takes seconds
    bundle = next(bundle for bundle in BUNDLES if bundle.name == "adni_ldm")
    weights = ignorant_weights(bundle, tmp_path / "weights") / "model.pt"
    for generator, branch in ((file_hash(weights), {"models/control.json", "models/control.pt"}), ("0" * 64, set())):
        save_weights(torch.nn.Linear(1, 1), weights.with_name("control.pt"), {"generator": generator})
        with undisturbed(), zipfile.ZipFile(build_bundle(bundle, tmp_path, weights.parent)) as archive:
            assert {name.split("/", 1)[1] for name in archive.namelist() if "/models/control" in name} == branch


def test_weights_without_knobs_are_not_published(tmp_path: Path) -> None:
    save_weights(torch.nn.Linear(1, 1), tmp_path / "model.pt", {"data": "embedded cohort"})
    with pytest.raises(WeightsError, match="no note with the knobs of its training"):
        build_bundle(BUNDLES[0], tmp_path / "out", tmp_path)
