"""A bundle as one zip that works alone: configurations, weights, TorchScript, documents, and the package itself.

The same inputs give the same bytes: names are sorted, times are ``SOURCE_DATE_EPOCH``, and TorchScript holds no paths.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import time
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from medical_diffusion_components.chance import torch_generator
from medical_diffusion_components.files import PACKAGE_NAME, file_hash, write_atomically
from medical_diffusion_components.networks import fast
from medical_diffusion_components.release.model_card import front_matter, model_card
from medical_diffusion_components.release.torchscript import scripted
from medical_diffusion_components.release.vendored import renamed, vendored_files
from medical_diffusion_components.weights import RELEASED, WeightsError, load_weights, provenance

__all__ = ["build_bundle", "source_date", "write_zip"]

LARGEST = 25 * 2**20  # bytes of a file that the Model Zoo takes
OLDEST = 315532800  # 1980-01-01, before which zip knows no time
AGREE = 1e-5  # of intensities in [-1, 1]
MANIFESTS = "data_manifests/"  # beside the bundles in the repository, inside the bundle in a zip


def source_date() -> int:
    """The time of all files in an archive, in seconds since 1970: ``SOURCE_DATE_EPOCH``, or the oldest that zip knows."""
    return max(int(os.environ.get("SOURCE_DATE_EPOCH", OLDEST)), OLDEST)


def build_bundle(
    bundle: str | os.PathLike, out: str | os.PathLike, models_dir: str | os.PathLike | None = None
) -> Path:
    """Write ``<name>_<version>.zip`` into ``out``.

    Args:
        bundle: its folder in the repository.
        out: folder for the archive.
        models_dir: weights (``model.pt`` and its note) to put into it; None: those in the bundle's ``released``. A
            control branch of theirs, ``control.pt``, goes with them.

    Returns:
        path of the archive.

    Raises:
        WeightsError: the weights are missing, damaged, without knobs in their note or not those of the configuration.
        ValueError: what TorchScript computes is not what the network computes, or a file is too large for the Model Zoo.
    """
    bundle = Path(bundle).resolve()
    weights = (bundle / RELEASED if models_dir is None else Path(models_dir).resolve()) / "model.pt"
    parser = _built(bundle, weights)
    metadata = _metadata(bundle, parser)
    files = dict(_files(bundle, weights, metadata))
    network = parser.get_parsed_content("network_def")
    files["models/model.ts"] = _torchscript(network, metadata, files["configs/inference.json"])
    large = sorted(name for name, content in files.items() if len(content) > LARGEST)
    if large:
        raise ValueError(f"larger than the {LARGEST >> 20} MiB that the Model Zoo takes: {', '.join(large)}")
    path = Path(out) / f"{bundle.name}_{metadata['version']}.zip"
    return write_zip(path, {f"{bundle.name}/{name}": content for name, content in files.items()})


def write_zip(path: str | os.PathLike, files: Mapping[str, bytes]) -> Path:
    """Write ``files`` (name -> content) so that the archive's bytes follow from them and :func:`source_date` alone."""
    date = time.gmtime(source_date())[:6]

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w") as archive:
            for name in sorted(files):
                entry = zipfile.ZipInfo(name, date)
                entry.external_attr = 0o644 << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, files[name], compresslevel=9)

    return write_atomically(path, write)


def _built(bundle: Path, weights: Path) -> ConfigParser:
    """The inference of a bundle with these weights, as a bare parser; what it prints is not for whoever builds."""
    if not provenance(weights).get("knobs"):
        raise WeightsError(f"{weights} has no note with the knobs of its training: run `releasing`, or train again")
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser.update({"bundle_root": str(bundle), "models_dir": str(weights.parent), "weights": str(weights)})
    with contextlib.redirect_stdout(io.StringIO()):
        network, knobs = parser.get_parsed_content("network_def"), parser.get_parsed_content("knobs")
        load_weights(network, weights, knobs)
    return parser


def _metadata(bundle: Path, parser: ConfigParser) -> dict[str, Any]:
    """The metadata with the sizes of these weights, and with what the package requires in place of the package."""
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    required = metadata["required_packages_version"]
    required.pop(PACKAGE_NAME, None)
    needed = [re.split(r"[^\w.-]", line)[0] for line in requires(PACKAGE_NAME) or () if "extra ==" not in line]
    required |= {name: version(name) for name in needed if name not in (*required, "torch", "monai", "numpy")}
    image, pred = metadata["network_data_format"]["inputs"]["image"], metadata["network_data_format"]["outputs"]["pred"]
    ids = parser.get()
    if "latent_shape" in ids:
        shape = parser.get_parsed_content("latent_shape")
    elif "code_size" in ids:
        shape = [parser.get_parsed_content("code_size"), 1, 1, 1]
    else:
        shape = [parser.get_parsed_content("image_channels"), *parser.get_parsed_content("roi_size")]
    image["num_channels"], image["spatial_shape"] = int(shape[0]), [int(n) for n in shape[1:]]
    size = parser.get_parsed_content("image_size" if "image_size" in ids else "roi_size")
    pred["spatial_shape"] = [int(n) for n in size]
    return metadata


def _files(bundle: Path, weights: Path, metadata: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Name below the bundle's folder -> content, of all but the TorchScript."""
    note = provenance(weights)
    yield "LICENSE", (bundle / "LICENSE").read_bytes()
    for path in sorted((bundle / "configs").iterdir()):
        config = _config(path, bundle.name, note["knobs"])
        for manifest in re.findall(rf"/\.\./\.\./({MANIFESTS}\w+\.json)", config):
            yield manifest, (bundle.parents[1] / manifest).read_bytes()
        yield f"configs/{path.name}", config.replace(f"/../../{MANIFESTS}", f"/{MANIFESTS}").encode()
    yield "configs/metadata.json", _json(metadata)
    for path in sorted((bundle / "docs").iterdir()):
        content = path.read_bytes()
        if path.suffix == ".md":
            content = _guide(path.read_text(), bundle.name).encode()
        yield f"docs/{'guide.md' if path.name == 'README.md' else path.name}", content
    card = model_card(bundle.name, metadata, note, file_hash(weights))
    yield "docs/README.md", card.encode()
    yield "README.md", (front_matter(metadata) + card).encode()
    yield "models/model.pt", weights.read_bytes()
    yield "models/model.json", _json(note)
    branch = weights.with_name("control.pt")
    if branch.is_file() and provenance(branch).get("generator") == file_hash(weights):
        yield "models/control.pt", branch.read_bytes()
        yield "models/control.json", _json(provenance(branch))
    yield from vendored_files(bundle.name)


def _config(path: Path, bundle: str, knobs: Mapping[str, Any]) -> str:
    """A configuration that finds the package in the bundle's folder.

    MONAI puts that folder on the path when a run begins, after ``initialize``: what inference does there, it does first
    of all it runs.

    An annotation server trains the weights further, with ``train.yaml`` as it is: where a bundle is made for that, its
    knobs are those of the weights.
    """
    text = renamed(path.read_text(), bundle)
    if path.name == "train.yaml" and re.search("^served: ", text, re.MULTILINE):
        for id, value in knobs.items():
            text = re.sub(rf"^{id}: .*?(?=\s+#|$)", partial(_line, id, value), text, flags=re.MULTILINE)
    if path.name != "inference.json":
        return text
    config = json.loads(text)
    config["inference"] = config.pop("initialize", []) + config["inference"]
    return _json(config).decode()


def _guide(page: str, bundle: str) -> str:
    """A page of the bundle as it is true in the unpacked folder; what it links to outside of the bundle is only named."""
    title, text = page.split("\n", 1)
    text = text.replace(f"bundles/{bundle}/", "").replace("bundles/", "../").replace(f"{RELEASED}/", "models/")
    text = re.sub(r"\[([^\]]+)\]\((?:\.\./)+([^)]+)\)", r"\1 (`\2` of the repository)", text)
    note = (
        "> This is the bundle's page in the repository. Here, run its commands in this folder: training replaces "
        "`models/model.pt`, and needs the packages that `configs/metadata.json` names. Other bundles lie beside it, "
        "unpacked. `make`, `benchmarks`, builders of manifests and the other pages of `docs` are in the repository alone."
    )
    return f"{title}\n\n{note}\n{text}"


def _line(id: str, value: Any, _: re.Match[str]) -> str:
    return f"{id}: {json.dumps(value)}"


def _torchscript(network: torch.nn.Module, metadata: Mapping[str, Any], config: bytes) -> bytes:
    content = scripted(network, {"metadata.json": json.dumps(metadata), "inference.json": config.decode()})
    image = metadata["network_data_format"]["inputs"]["image"]
    shape = (1, image["num_channels"], *image["spatial_shape"])
    example = torch.randn(shape, generator=torch_generator(0))
    with torch.no_grad(), fast.use(False):  # TorchScript computes in the plain form
        expected, found = network(example), torch.jit.load(io.BytesIO(content))(example)
    error = float((expected - found).abs().max())
    if not error <= AGREE:
        raise ValueError(f"TorchScript differs from the network by {error:.1e}, more than {AGREE:.0e}")
    return content


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
