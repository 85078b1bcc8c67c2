"""Rebuild ``mrnet.json``: the sagittal series of the 1,250 released studies of MRNet v1.0.

The study numbers and the provider's division are fixed, so nothing is read. Run
``python data_manifests/build_mrnet.py``, with ``--check`` to compare only.
"""

from __future__ import annotations

import sys
from pathlib import Path

from builders import builder_arguments, finish

from medical_diffusion_components.data.splits import split_patients
from medical_diffusion_components.preparation.manifests import Manifest

TRAIN, VALID = range(1130), range(1130, 1250)


def build() -> Manifest:
    """The manifest, from the provider's study numbers."""
    # Only two splits are drawn here: what the hash would put into a test split is validation as well.
    drawn = split_patients((_study_id(number) for number in TRAIN), validation=0.05, test=0.05)
    cases = []
    for folder, numbers in (("train", TRAIN), ("valid", VALID)):
        for number in numbers:
            study = _study_id(number)
            held_out = "test" if folder == "valid" else "validation"
            split = "training" if drawn.get(study) == "training" else held_out
            source = {"path": f"{folder}/sagittal/{number:04d}.npy"}
            cases.append({"case_id": study, "patient_id": study, "split": split, "source": source})
    return Manifest(
        {
            "name": "MRNet v1.0",
            "description": (
                "Knee MRI: the sagittal T2-weighted fat-saturated series of 1,250 studies of 1,199 patients. "
                "Paths are relative to the folder MRNet-v1.0. Labels are in the provider's CSV files, not "
                "here."
            ),
            "version": "1",
            "licence": "Stanford University School of Medicine MRNet Dataset Research Use Agreement",
            "access": (
                "Registration and agreement at https://stanfordmlgroup.github.io/competitions/mrnet/: "
                "personal, non-commercial research; the data must not be passed on"
            ),
            "reference": (
                "Bien et al., Deep-learning-assisted diagnosis for knee magnetic resonance imaging: "
                "development and retrospective validation of MRNet, PLOS Medicine 15(11), e1002699 (2018), "
                "doi:10.1371/journal.pmed.1002699"
            ),
            "built_from": ["the provider's study numbers: train 0000-1129, valid 1130-1249"],
            "patient_ids": (
                "not published: 'patient_id' repeats the study number. The provider states that train holds "
                "1,088 patients in 1,130 studies and valid 111 in 120, and that no patient is in both."
            ),
            "split": (
                "test is the provider's valid set, which shares no patient with train. Validation is drawn "
                "from train by a hash of the study number (shares 0.9 / 0.1); as patients are unknown, a few "
                "of the patients with two studies may have one in training and one in validation."
            ),
        },
        tuple(cases),
    )


def _study_id(number: int) -> str:
    return f"MRNet-{number:04d}"


def main(argv: list[str] | None = None) -> int:
    parser = builder_arguments(__doc__, Path(__file__).with_name("mrnet.json"))
    arguments = parser.parse_args(argv)
    return finish(build(), arguments.out, arguments.check)


if __name__ == "__main__":
    sys.exit(main())
