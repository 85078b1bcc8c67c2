"""Notes beside volumes say what is synthetic, and what was edited from a scan."""

import json

from medical_diffusion_components.data.volume_notes import is_edited, is_synthetic, note_beside


def test_what_was_edited_from_a_scan_is_not_synthetic(tmp_path):
    note = {"weights_sha256": "0"}
    for name, more, synthetic in (
        ("a", {}, True),
        ("b", {"synthetic": True}, True),
        ("c", {"synthetic": False}, False),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps({**note, **more}))
        assert is_synthetic(tmp_path / f"{name}.nii.gz") is synthetic
    assert not is_synthetic(tmp_path / "no_note.nii.gz")


def test_a_note_that_names_a_scan_says_that_the_volume_was_edited_from_it(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"edited_from": "a scan", "synthetic": False}))
    (tmp_path / "b.json").write_text(json.dumps({"weights_sha256": "0"}))
    assert is_edited(tmp_path / "a.nii.gz") and not is_edited(tmp_path / "b.nii.gz")


def test_other_files_beside_a_volume_are_no_notes(tmp_path):
    for name, text in (("damaged", '{"EchoTime": 0.'), ("list", "[1]")):
        (tmp_path / f"{name}.json").write_text(text)
        assert note_beside(tmp_path / f"{name}.nii.gz") == {}
    assert note_beside(tmp_path / "none.nii.gz") == {}
