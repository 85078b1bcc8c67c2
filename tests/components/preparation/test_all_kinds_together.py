"""Twelve good patients among everything that a real folder holds besides: `prepare` sees exactly the twelve."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_writing import stable_uid, write_series
from monai.bundle import ConfigWorkflow
from pydicom.filebase import DicomIO
from pydicom.filewriter import write_dataset
from pydicom.uid import ImplicitVRLittleEndian

from medical_diffusion_components.data.datasets import load_cases
from medical_diffusion_components.data.splits import SPLITS
from medical_diffusion_components.preparation import same_scan
from medical_diffusion_components.transforms.load_volume import LoadVolume

ROOT = Path(__file__).parents[3]
LPS = np.diag([-1.0, -1, 1, 1])


def head(seed, shape=(28, 24, 16)):
    """A smooth ellipsoid of whole numbers, 0 outside."""
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = sum((x / s) ** 2 for x, s in zip(grid, (0.6, 0.7, 0.8))) < 1
    return (inside * (600 + 300 * np.sin(5 * grid[2] + seed) * np.cos(4 * grid[1]) + 90 * grid[0])).astype(np.int16)


def dicom(folder, seed, patient=None, volume=None, **options):
    patient = f"patient {seed}" if patient is None else patient
    uid = stable_uid("study", seed)
    options = {"modality": "MR", "patient_id": patient, "study_uid": uid, "series_uid": f"1.9.{seed}", **options}
    return write_series(folder, head(seed) if volume is None else volume, LPS, **options)


def nifti(path, seed, **forms):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(head(seed), LPS)
    for name, affine in forms.items():
        getattr(image, f"set_{name}")(affine, 1)
    nib.save(image, path)


def image_type(word):
    return lambda dataset, _: setattr(dataset, "ImageType", ["ORIGINAL", "PRIMARY", word])


def strip_preamble(path):
    dataset = pydicom.dcmread(path)
    with open(path, "wb") as file:
        stream = DicomIO(file)
        stream.is_little_endian = stream.is_implicit_VR = True
        write_dataset(stream, dataset)


def write_good(raw, store):
    dicom(raw / "p00", 0)
    paths = dicom(raw / "p01" / "DIR1", 1)
    (raw / "p01" / "DIR2").mkdir()
    for path in paths[8:]:
        path.rename(raw / "p01" / "DIR2" / path.name)
    for path in dicom(raw / "p02", 2, transfer_syntax=ImplicitVRLittleEndian):
        strip_preamble(path)
    dicom(store / "p03", 3)
    (raw / "p03").symlink_to(store / "p03")
    dicom(raw / "p04", 4)
    dicom(raw / "p05", 5, patient="")
    padded = head(6)
    padded[:4] = -32768
    dicom(raw / "p06", 6, volume=padded, adjust=lambda dataset, _: setattr(dataset, "PixelPaddingValue", -32768))
    nifti(raw / "p07" / "t1.nii.gz", 7)
    nifti(raw / "p08.nii.gz", 8)
    (raw / "p08.nii.gz").rename(raw / "p08.NII.GZ")
    fields = ["NRRD0004", "type: short", "dimension: 3", "space: left-posterior-superior", "sizes: 28 24 16"]
    fields += ["space directions: (1,0,0) (0,1,0) (0,0,1)", "kinds: domain domain domain", "endian: little"]
    fields += ["encoding: raw", "space origin: (0,0,0)", "", ""]
    (raw / "p09.nrrd").write_bytes("\n".join(fields).encode() + head(9).tobytes(order="F"))
    for session in (1, 2):
        nifti(raw / "bids" / "sub-10" / f"ses-{session}" / f"sub-10_ses-{session}_T1w.nii.gz", 10 + 50 * session)
    nib.save(nib.Nifti1Pair(head(11), LPS), raw / "p11.img")


def write_the_rest(raw):
    nifti(raw / "p04" / "converted.nii.gz", 4)  # dcm2niix, beside the slices
    shutil.copytree(raw / "p00", raw / "backup")  # the same slices again
    (raw / "p07" / "drawn.nii.gz").parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image((head(7) > 600).astype(np.uint8), LPS), raw / "p07" / "t1_seg.nii.gz")
    nib.save(nib.Nifti1Image((head(7) > 500).astype(np.float32) * 3, LPS), raw / "p07" / "drawn.nii.gz")
    for kind, uid in {"rt": "1.2.840.10008.5.1.4.1.1.481.3", "DICOMDIR": "1.2.840.10008.1.3.10"}.items():
        (path,) = dicom(raw / "objects", 90 + len(kind), volume=head(0)[..., :1], names=[kind])
        dataset = pydicom.dcmread(path)
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = uid
        del dataset.Rows, dataset.Columns, dataset.PixelData
        dataset.save_as(path)
    dicom(raw / "p00_scout", 0, volume=head(0)[..., :2], series_uid="1.9.77", series_number=9)
    nifti(raw / "contradiction.nii.gz", 30, sform=LPS, qform=np.diag([1.0, -1, 1, 1]))
    nifti(raw / "bids" / "derivatives" / "tool" / "sub-10_T1w.nii.gz", 31)
    dicom(raw / "p02_mosaic", 2, series_uid="1.9.78", adjust=image_type("MOSAIC"))
    dicom(raw / "p03_scout", 3, series_uid="1.9.79", adjust=image_type("LOCALIZER"))
    nib.save(nib.Nifti1Image(np.zeros((28, 24, 16), np.uint8), LPS), raw / "p07" / "spleen.nii.gz")
    nifti(raw / "p08_copy.nii.gz", 8)
    (raw / "p08_copy.nii.gz").rename(raw / "p08.nii.gz (1)")
    with zipfile.ZipFile(raw / "more.zip", "w") as archive:
        archive.writestr("a", "b")
    (raw / "report.pdf").write_bytes(b"%PDF-1.4")
    (raw / "p00" / "report.pdf").write_bytes(b"%PDF-1.4")
    (raw / ".DS_Store").write_bytes(b"x")
    (raw / "gone").symlink_to(raw / "nowhere")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("field")
    write_good(folder / "raw", folder / "store")
    write_the_rest(folder / "raw")
    workflow = ConfigWorkflow(
        config_file=str(ROOT / "bundles" / "adni_ldm" / "configs" / "prepare.yaml"),
        meta_file=None,
        logging_file=False,
        run_id="prepare",
        raw_dir=str(folder / "raw"),
        dataset_dir=str(folder / "out"),
        image_size=[32, 32, 32],
        max_refused_share=0.1,
        executor={"_target_": "concurrent.futures.ThreadPoolExecutor", "_mode_": "callable", "max_workers": 1},
    )
    workflow.initialize()
    workflow.run()
    return folder / "out"


def test_exactly_the_twelve_patients_are_there_to_train_on(prepared):
    cases = [case for split in SPLITS for case in load_cases(prepared, split)]
    names = {case["case_id"] for case in cases}
    expected = {f"p{n:02d}" for n in (0, 1, 2, 3, 4, 5, 6, 8, 9, 11)} | {"p07_t1"}
    expected |= {f"bids_sub-10_ses-{n}_sub-10_ses-{n}_T1w" for n in (1, 2)}
    assert {"p00" if name == "backup" else name for name in names} == expected
    assert len({case["patient_id"] for case in cases}) == 12
    assert {path.name for path in (prepared / "images").iterdir()} == {f"{name}.nii.gz" for name in names}


def test_everything_else_is_named_and_the_files_add_up(prepared):
    report = json.loads((prepared / "report.json").read_text())
    reasons = {case["case_id"]: case["reason"] for case in report["cases"] if case["reason"]}
    assert reasons == {
        "p04_converted": "same_volume",
        "p07_drawn": "label_map",
        "p07_spleen": "one_value",
        "contradiction": "unusable_volume",
    }
    files = report["files"]
    assert files["seen"] == files["used"] + files["refused"] + sum(files["aside"].values())
    assert files["aside"]["copy of a slice"] == 16 and files["aside"]["broken link"] == 1
    assert files["aside"]["archive, not opened"] == 1 and files["aside"]["label map"] == 2
    assert files["aside"]["DICOM without a scan (RT Structure Set)"] == 1
    assert files["aside"]["DICOM without a scan (DICOMDIR)"] == 1
    assert files["aside"]["localiser, by its image type"] == 16
    assert files["aside"]["mosaic (all slices in one picture): convert it to NIfTI, as with dcm2niix"] == 16
    assert files["aside"]["NIfTI by its content, not by its name: rename it to .nii or .nii.gz"] == 1
    assert report["remarks"]["padding_filled"] == 1
    assert (prepared / "report.md").read_text().splitlines()[-1].startswith(f"Files: {files['seen']} seen = ")


def test_the_datalist_says_what_was_decided(prepared):
    decided = json.loads((prepared / "dataset.json").read_text())["decided"]
    assert decided["scale"] == {"limits_from": "volume", "limits": None, "range": [-1.0, 1.0]}
    assert decided["plane"]["slices"] == "any" and decided["affine_from"] == "refuse"
    assert decided["patients"]["PatientID of DICOM"] == 6 and sum(decided["patients"].values()) >= 12


SMALL = {
    "image_size": [32, 32, 32],
    "patch_size": [32, 32, 32],
    "base_channels": 4,
    "compression": [4, 4, 4],
    "norm_groups": 4,
    "num_codes": 16,
    "autoencoder_epochs": 1,
    "denoiser_channels": 8,
    "num_train_timesteps": 4,
    "num_inference_steps": 2,
    "sampler": "ddim",
    "batch_size": 2,
    "epochs": 1,
    "val_interval": 1,
    "num_workers": 0,
}


@pytest.mark.slow
def test_both_stages_of_training_see_exactly_the_twelve_patients(prepared, tmp_path, monkeypatch):
    seen = Counter()
    read = LoadVolume.__call__

    def noting(self, filename):
        seen[Path(filename).name.removesuffix(".nii.gz")] += 1
        return read(self, filename)

    monkeypatch.setattr(LoadVolume, "__call__", noting)
    monkeypatch.setattr(same_scan, "in_two_splits", lambda *_: [])  # which compares the scans of all splits
    folders = {"dataset_dir": prepared, "output_dir": tmp_path / "output", "models_dir": tmp_path / "models"}
    workflow = ConfigWorkflow(
        config_file=str(ROOT / "bundles" / "adni_ldm" / "configs" / "train.yaml"),
        meta_file=None,
        logging_file=False,
        run_id="training",
        **SMALL,
        **{name: str(folder) for name, folder in folders.items()},
    )
    workflow.initialize()
    workflow.run()
    patients = {case["case_id"]: case["patient_id"] for split in SPLITS for case in load_cases(prepared, split)}
    held_out = {case["case_id"] for case in load_cases(prepared, "test")}
    assert set(seen) == patients.keys() - held_out
    assert len({patients[name] for name in seen} | {patients[name] for name in held_out}) == 12
    assert not {patients[name] for name in seen} & {patients[name] for name in held_out}
    note = json.loads((tmp_path / "models" / "model.json").read_text())
    assert note["cases"] == {split: len(load_cases(prepared, split)) for split in SPLITS}
