"""What people read about a data set: the card with Hugging Face's header, the datasheet, the licence.

Source of the datasheet's sections: Gebru et al., Datasheets for Datasets, Communications of the ACM 64 (2021).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from medical_diffusion_components.dataset_release.facts import ReleaseFacts, licence_url

__all__ = ["BIASES", "LIMITS", "USES", "card", "datasheet", "licence_text"]

BIASES = (
    "The volumes have at most the variety of what the generator was trained on, and usually less: what is rare "
    "there is rarer here or missing."
)
USES = (
    "Developing and testing software for medical images",
    "Research on generative models, augmentation and pre-training",
)
LIMITS = (
    "Not for clinical use, and not evidence about any population or disease",
    "A model that was trained on these volumes must be tested on real ones",
)
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"))
_HUGGING_FACE = {"training": "train", "validation": "validation", "test": "test"}


def card(facts: ReleaseFacts) -> str:
    """``README.md``: Hugging Face's header, what the set is, how to load it."""
    return f"""{_front_matter(facts)}
# {facts.title}

**Synthetic data: no volume is a scan of a person.** {facts.origin()}

{facts.privacy()}

![the first volumes](preview.png)

| | |
|---|---|
| volumes | {facts.released} ({", ".join(f"{count} {split}" for split, count in facts.splits.items())}) |
| size, spacing | {_times(facts.image_size)} voxels, {_times(f"{mm:.4g}" for mm in facts.spacing)} mm |
| modality imitated | {facts.modality} |
| licence | [{facts.licence}]({licence_url(facts.licence)}) |
| version | {facts.version}, {facts.date} |
| weights, SHA-256 | `{facts.weights["weights_sha256"]}` |

## Loading

```python
from monai.data import load_decathlon_datalist
training = load_decathlon_datalist("dataset.json", is_segmentation=False, data_list_key="training")

import torchio
subjects = torchio.SubjectsDataset([torchio.Subject(image=torchio.ScalarImage(case["image"])) for case in training])

import pandas
volumes = pandas.read_csv("volumes.csv")  # paths are below this folder

import os
from datasets import load_dataset
splits = load_dataset(os.getcwd())  # train, validation, test: the rows of volumes.csv
```

`sha256sum --check SHA256SUMS` finds what was changed or lost on the way.

## How good they are

{_quality(facts)}

## Use

{_listed(USES)}

Limits:

{_listed((*LIMITS, BIASES))}

`datasheet.md` answers the questions of "Datasheets for Datasets"; `croissant.json` is for machines; the JSON beside each
volume says how to make it again.
"""


def datasheet(facts: ReleaseFacts) -> str:
    """``datasheet.md``."""
    sections: Mapping[str, Mapping[str, str]] = {
        "Motivation": {
            "For what purpose was the data set created?": "; ".join(USES) + ".",
            "Who created it?": facts.creator or "Not stated by whoever released it.",
        },
        "Composition": {
            "What is an instance?": f"One synthetic volume of {_times(facts.image_size)} voxels that imitates "
            f"{facts.modality}, with a JSON file that says how it was made.",
            "How many are there?": f"{facts.released}: "
            + ", ".join(f"{count} {split}" for split, count in facts.splits.items()),
            "Is it a sample of a larger set?": f"The first {facts.released} of {facts.drawn} draws"
            + (" that passed the copy test." if facts.audit else ", all of them."),
            "Are there labels?": "None.",
            "Are there errors or noise?": "The volumes are a model's. " + _quality(facts),
            "Does it relate to people?": "No volume is a scan of a person. " + facts.privacy(),
            "Does it have subpopulations?": BIASES,
        },
        "Collection": {
            "How were the data acquired?": facts.origin() + f" Seeds start at {facts.seed}.",
            "Who was involved, and was anybody asked for consent?": "Nobody was scanned for this data set. "
            + (facts.weights.get("notice") or "Consent is a matter of the generator's training data."),
        },
        "Preprocessing": {
            "Was anything done to the volumes?": "Intensities were scaled from the generator's [-1, 1] to a range that is "
            "the same for all. Nothing was cropped, aligned or selected by eye.",
        },
        "Uses": {
            "What may it be used for?": "; ".join(USES) + ".",
            "What not?": "; ".join(LIMITS) + ".",
        },
        "Distribution": {
            "Under which licence?": f"{facts.licence}: {licence_url(facts.licence)}",
            "What else applies?": "`DATA_TERMS.txt` has the terms of the data that the generator is made for.",
        },
        "Maintenance": {
            "How are errors corrected?": f"This is version {facts.version}. A corrected set gets another version.",
        },
    }
    text = [f"# Datasheet of {facts.title}\n"]
    for heading, answers in sections.items():
        text.append(f"## {heading}\n")
        text += [f"**{question}** {answer}\n" for question, answer in answers.items()]
    return "\n".join(text)


def licence_text(facts: ReleaseFacts) -> str:
    """``LICENSE``: which licence, where its text is, and what it is no licence for."""
    return (
        f"{facts.title}, version {facts.version}\n\nReleased under {facts.licence}: {licence_url(facts.licence)}\n\n"
        f"{facts.origin()} {facts.privacy()}\n\nThe licence is for what the publisher has rights in. The terms of the data "
        "that the generator is made for, and of templates, are in DATA_TERMS.txt.\n"
    )


def _front_matter(facts: ReleaseFacts) -> str:
    """What Hugging Face reads, as YAML; every value is written as JSON, which YAML is."""
    fields: dict[str, Any] = {
        "pretty_name": facts.title,
        "license": facts.licence.lower() if facts.licence.startswith("CC") else "other",
        "tags": ["synthetic", "medical", "3d", facts.modality.lower(), "monai", *(["not-audited"] * (not facts.audit))],
        "size_categories": [next((name for most, name in _SIZES if facts.released < most), "100K<n<1M")],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": _HUGGING_FACE[split], "path": f"splits/{split}.csv"} for split in facts.splits
                ],
            }
        ],
    }
    if fields["license"] == "other":
        fields |= {"license_name": facts.licence, "license_link": licence_url(facts.licence)}
    return "---\n" + "".join(f"{key}: {json.dumps(value)}\n" for key, value in fields.items()) + "---\n"


def _quality(facts: ReleaseFacts) -> str:
    if facts.evaluation is None:
        return "Not evaluated: no report of these weights was there."
    other = (facts.evaluation.get("sampler"), facts.evaluation.get("steps")) != (facts.sampler, facts.steps)
    text = "`reports/evaluation.json` and `reports/evaluation.png` compare samples of this generator with held-out volumes."
    if other:
        text += (
            f" They were made with {facts.evaluation.get('sampler')}, {facts.evaluation.get('steps')} steps, and these "
            f"volumes with {facts.sampler}, {facts.steps} steps."
        )
    return " ".join([text, *(f"{warning.rstrip('.')}." for warning in facts.evaluation.get("warnings", []))])


def _times(numbers: Iterable[Any]) -> str:
    return " x ".join(map(str, numbers))


def _listed(lines: Iterable[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)
