"""What an evaluation takes from a copy audit."""

from __future__ import annotations

from pathlib import Path

import pytest

from medical_diffusion_components.evaluation import audited_pairs, of_these_volumes
from medical_diffusion_components.evaluation.copies import copies_in_words
from medical_diffusion_components.files import file_hash


def files(folder: Path, name: str, count: int) -> list[dict]:
    folder.mkdir(exist_ok=True)
    made = [folder / f"{name}_{number}" for number in range(count)]
    for file in made:
        file.write_text(file.name)
    return [{"image": str(file), "case_id": file.name} for file in made]


def audit_of(synthetic: list[dict], copies: int = 0, **others: object) -> dict:
    volumes = {"copy": copies, "withheld": 1, "released": len(synthetic) - copies - 1}
    return {
        "headline": "Found this.",
        "note": "Not anonymous.",
        "volumes": volumes,
        "flagged": {},
        "membership": {},
        "data_copying_z": 0.5,
        "samples_sha256": [file_hash(case["image"]) for case in synthetic],
        "closest_pairs": [],
        **others,
    }


def test_copies_are_counted_among_the_audited_volumes(tmp_path: Path) -> None:
    some = files(tmp_path, "s", 5)
    assert copies_in_words(of_these_volumes(audit_of(some), some)) == "no copy found among 5"
    assert copies_in_words(of_these_volumes(audit_of(some, 2), some)) == "2 of 5 are copies of training volumes"
    assert copies_in_words(of_these_volumes(None, some)) == (
        "nobody has looked for copies of training volumes (audit.yaml does)"
    )


@pytest.mark.parametrize("evaluated", [4, 6])
def test_an_audit_of_other_volumes_does_not_speak_for_these(tmp_path: Path, evaluated: int) -> None:
    found = of_these_volumes(audit_of(files(tmp_path, "s", 5)), files(tmp_path, "s", evaluated))
    assert found is not None and not found["same_volumes"]
    assert copies_in_words(found).endswith("these were not audited")


def test_the_order_of_the_files_does_not_matter(tmp_path: Path) -> None:
    some = files(tmp_path, "s", 3)
    found = of_these_volumes(audit_of(some), some[::-1])
    assert found is not None and found["same_volumes"]
    assert "samples_sha256" not in found and "closest_pairs" not in found, "too much for a report"


def test_pairs_are_found_by_the_hashes_of_their_files(tmp_path: Path) -> None:
    synthetic, training = files(tmp_path, "s", 3), files(tmp_path, "t", 4)
    absent = "0" * 64

    def pair(one: str, other: str) -> dict:
        found = {"verdict": "copy", "similarity": 0.98765, "p": 0.01}
        return {"sample_sha256": one, "nearest_training_volume_sha256": other, **found}

    hashes = {case["case_id"]: file_hash(case["image"]) for case in synthetic + training}
    audit = audit_of(
        synthetic,
        closest_pairs=[
            pair(hashes["s_2"], hashes["t_0"]),
            pair(absent, hashes["t_1"]),
            pair(hashes["s_1"], absent),
            pair(hashes["s_0"], hashes["t_3"]),
        ],
    )
    found = audited_pairs(audit, synthetic, training)
    assert [(one.synthetic["case_id"], one.training["case_id"]) for one in found] == [("s_2", "t_0"), ("s_0", "t_3")]
    assert found[0].text == "copy; similarity 0.988, p = 0.01"
    assert audited_pairs(None, synthetic, training) == []
