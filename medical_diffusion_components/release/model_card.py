"""A bundle's README: the Model Zoo's ten headings, from its metadata and its weights' note; Hugging Face's header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from medical_diffusion_components.files import markdown_table

__all__ = ["HEADINGS", "front_matter", "model_card"]

HEADINGS = (
    "Authors",
    "Tags",
    "Model Description",
    "Data",
    "Performance",
    "Additional Usage Steps",
    "System Configuration",
    "Limitations",
    "Citation Info",
    "References",
)
_CITATION = """```bibtex
@article{khader2023denoising,
  title   = {Denoising diffusion probabilistic models for 3D medical image generation},
  author  = {Khader, Firas and others},
  journal = {Scientific Reports},
  volume  = {13},
  number  = {7303},
  year    = {2023},
  doi     = {10.1038/s41598-023-34341-2}
}
```"""


def front_matter(metadata: Mapping[str, Any]) -> str:
    """What Hugging Face reads at the top of a README, as YAML; every value is written as JSON, which YAML is."""
    fields = {
        "license": "apache-2.0",
        "library_name": "monai",
        "pipeline_tag": _kind(metadata).pipeline,
        "tags": _tags(metadata),
    }
    return "---\n" + "".join(f"{key}: {json.dumps(value)}\n" for key, value in fields.items()) + "---\n"


def model_card(bundle: str, metadata: Mapping[str, Any], note: Mapping[str, Any], sha256: str) -> str:
    """The README of a bundle.

    Args:
        bundle: its name.
        metadata: content of its ``metadata.json``.
        note: of its weights.
        sha256: of its weights.
    """
    image, pred = _input(metadata), metadata["network_data_format"]["outputs"]["pred"]
    sizes = "x".join(str(n) for n in pred["spatial_shape"])
    text = {
        "Authors": metadata["authors"],
        "Tags": ", ".join(_tags(metadata)),
        "Model Description": f"{metadata['description']}.\n\nInput: {_format(image)}. Output: {_format(pred)}. "
        f"These weights: {sizes} voxels; their networks are built from `models/model.json`.",
        "Data": _data(metadata, note),
        "Performance": _performance(metadata, note, sha256),
        "Additional Usage Steps": _usage(bundle, metadata),
        "System Configuration": f"Made with torch {metadata['pytorch_version']}, MONAI {metadata['monai_version']} and "
        f"numpy {metadata['numpy_version']}. Runs on a CPU or a GPU. "
        "`configs/metadata.json` names what training needs besides.",
        "Limitations": f"{metadata['intended_use']}. {note.get('notice') or ''}".strip(),
        "Citation Info": _CITATION,
        "References": "\n".join(f"[{n}] {text}\n" for n, text in enumerate(metadata["references"], 1)).strip(),
    }
    return f"# {metadata['name']}\n" + "".join(f"\n## {heading}\n\n{text[heading]}\n" for heading in HEADINGS)


def _input(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    return metadata["network_data_format"]["inputs"]["image"]


class _Kind(NamedTuple):
    pipeline: str  # one of Hugging Face's tasks
    tag: str
    options: str  # of the first inference, after a space


_GENERATOR = _Kind("unconditional-image-generation", "synthetic-data", " --num_volumes 2")
_SEGMENTER = _Kind("image-segmentation", "segmentation", " --dataset_dir FOLDER_OF_NIFTI")
_PAINTER = _Kind("image-to-image", "inpainting", " --dataset_dir FOLDER_OF_NIFTI")


def _kind(metadata: Mapping[str, Any]) -> _Kind:
    if _input(metadata)["type"] == "noise":
        return _GENERATOR
    segments = metadata["network_data_format"]["outputs"]["pred"]["format"] == "segmentation"
    return _SEGMENTER if segments else _PAINTER


def _tags(metadata: Mapping[str, Any]) -> list[str]:
    modality = metadata["network_data_format"]["outputs"]["pred"].get("modality") or _input(metadata)["modality"]
    modalities = [] if modality == "n/a" else [str(modality).lower()]
    return ["monai", "medical", "3d", *modalities, _kind(metadata).tag]


def _format(of: Mapping[str, Any]) -> str:
    return f"{of['type']}, {of['num_channels']} x {' x '.join(str(n) for n in of['spatial_shape'])}, {of['dtype']}"


def _data(metadata: Mapping[str, Any], note: Mapping[str, Any]) -> str:
    cases = ", ".join(f"{count} {split}" for split, count in note.get("cases", {}).items())
    return (
        f"These weights were trained on: {note.get('data', 'unknown data')} ({cases or 'number of cases unknown'}).\n\n"
        f"The bundle is made for: {metadata['data_source']}.\n\n### Preprocessing\n\n{metadata['image_classes']}. "
        "Raw scans are brought to one orientation, spacing and size by `configs/prepare.yaml`, where the bundle has one."
    )


def _performance(metadata: Mapping[str, Any], note: Mapping[str, Any], sha256: str) -> str:
    """The measured numbers, if they are of these weights; none are made up, and those of others are not shown."""
    measured = metadata["eval_metrics"]
    if measured.get("weights_sha256") != sha256:
        text = "Not measured with these weights on held-out cases."
        if found := note.get("validation"):
            values = {name: value for name, value in found.items() if not isinstance(value, str)}  # but why one is null
            numbers = ", ".join(
                f"{name} {'not a number' if value is None else f'{value:.4g}'}" for name, value in values.items()
            )
            text += f" On the validation cases of their training: {numbers}."
        return text
    rows = [
        (space, name, _number(found, "value", "se"), _number(found, "floor", "floor_sd"))
        for space, measures in measured.items()
        if isinstance(measures, Mapping) and space != "audit"
        for name, found in measures.items()
    ]
    facts = ", ".join(
        f"{name.replace('_', ' ')}: {fact}"
        for name, fact in measured.items()
        if not isinstance(fact, Mapping) and name != "weights_sha256"
    )
    parts = [
        f"As `configs/evaluate.yaml` measured it ({facts}). The floor is what two halves of the held-out volumes give; all "
        "numbers are under `eval_metrics` in `configs/metadata.json`.",
        "\n".join(markdown_table(("space", "measure", "found", "floor"), rows)),
    ]
    if "audit" in measured:
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in measured["audit"]["volumes"].items())
        parts.append(f"Copy audit of the synthetic volumes: {verdicts}. No copy found is not the same as anonymous.")
    return "\n\n".join(parts)


def _number(found: Any, value: str, error: str) -> str:
    """A measure with its error, as ``metadata.json`` has them; what has no error, such as SSIM, is a plain number there."""
    if not isinstance(found, Mapping):
        return f"{found:.4g}" if value == "value" else ""
    return f"{found[value]:.3g}" + (f" ± {found[error]:.2g}" if error in found else "") if value in found else ""


def _usage(bundle: str, metadata: Mapping[str, Any]) -> str:
    return f"""In the unpacked folder `{bundle}`, with MONAI, torch, pytorch-ignite, nibabel, einops and fire installed:

    python -m monai.bundle run --config_file configs/inference.json{_kind(metadata).options}

The code that it needs is in `{bundle}_components`, under a name that collides with nothing that is installed. From Python,
with that folder on `sys.path`:

    monai.bundle.load("{bundle}", bundle_dir="..", workflow_type="inference")

`models/model.ts` runs with `torch.jit.load` and nothing else. `docs/guide.md` says how to train on data of your own."""
