"""``prepare.yaml`` of ``swin_unetr_finetune``: phantoms as Duke downloads with masks as 3D Slicer writes them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow
from phantom_downloads import first_cases, subject_number, write_breast_dicom_tree

from medical_diffusion_components.cohorts.breast import breast_phantom
from medical_diffusion_components.data.datasets import load_cases
from medical_diffusion_components.data.splits import SPLITS
from medical_diffusion_components.preparation.manifests import Manifest, read_manifest, write_manifest

ROOT = Path(__file__).parents[3]
GRID = (96, 96, 30)


def builder():
    sys.path.insert(0, str(ROOT / "data_manifests"))  # the builders are scripts: what they share lies beside them
    spec = importlib.util.spec_from_file_location("build_duke_fgt", ROOT / "data_manifests" / "build_duke_fgt.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_masks(folder: Path, patient: str, swapped: bool) -> None:
    """The phantom's own labels: 1 and 2 are breast, 2 is dense; one vessel voxel."""
    phantom = breast_phantom(subject_number(patient), 0, GRID, fat_saturated=True)
    dense, vessels = (2, 1) if swapped else (1, 2)
    tissue = np.where(phantom.label == 2, dense, 0).astype(np.uint8)
    tissue[tuple(np.argwhere(phantom.label == 2)[0])] = vessels
    for part, voxels, segments in (
        ("Breast", (phantom.label > 0).astype(np.uint8), [("Breast", 1)]),
        ("Dense_and_Vessels", tissue, [("Dense", dense), ("Vessels", vessels)]),
    ):
        lps = np.diag([-1, -1, 1, 1]) @ phantom.affine
        directions = " ".join(f"({','.join(repr(float(x)) for x in lps[:3, axis])})" for axis in range(3))
        lines = ["NRRD0004", "type: unsigned char", "dimension: 3", "space: left-posterior-superior"]
        lines += [f"sizes: {' '.join(map(str, voxels.shape))}", f"space directions: {directions}"]
        lines += ["kinds: domain domain domain", "encoding: raw"]
        lines += [f"space origin: ({','.join(repr(float(x)) for x in lps[:3, 3])})"]
        for number, (name, value) in enumerate(segments):
            lines += [
                f"Segment{number}_Name:={name}",
                f"Segment{number}_LabelValue:={value}",
                f"Segment{number}_Layer:=0",
            ]
        path = folder / "Segmentation_Masks_NRRD" / patient / f"Segmentation_{patient}_{part}.seg.nrrd"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes("\n".join([*lines, "", ""]).encode() + voxels.tobytes(order="F"))


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("duke")
    images = read_manifest(ROOT / "data_manifests" / "duke.json")
    written = write_breast_dicom_tree(folder / "raw", first_cases(images.cases, 3), size=GRID)
    write_manifest(Manifest(images.metadata, tuple(written)), folder / "duke.json")
    for number, case in enumerate(written):
        write_masks(folder / "masks", case["patient_id"], swapped=number == 1)
    write_manifest(builder().build(folder / "masks", folder / "duke.json"), folder / "duke_fgt.json")
    return folder, [case["patient_id"] for case in written]


def prepare(downloads: Path, out: Path, **overrides) -> dict[str, dict]:
    executor = {"_target_": "concurrent.futures.ThreadPoolExecutor", "_mode_": "callable", "max_workers": 1}
    workflow = ConfigWorkflow(
        config_file=str(ROOT / "bundles" / "swin_unetr_finetune" / "configs" / "prepare.yaml"),
        meta_file=None,
        logging_file=False,
        run_id="prepare",
        raw_dir=str(downloads / "raw"),
        **{"masks_dir": str(downloads / "masks"), **overrides},
        manifest=str(downloads / "duke_fgt.json"),
        dataset_dir=str(out),
        executor=executor,
        image_size=[64, 48, 32],
        spacing=[2.0, 2.0, 4.0],
    )
    workflow.initialize()
    workflow.run()
    return {case["case_id"]: case for split in SPLITS for case in load_cases(out, split)}


@pytest.mark.slow
@pytest.mark.parametrize("fit", ["resize", "crop_or_pad"])
def test_from_a_download_with_masks_to_pairs_of_image_and_label(downloads, tmp_path: Path, fit: str) -> None:
    """Both halves of every patient; each label where the phantom's own labels are in the world."""
    folder, patients = downloads
    segments = {"Breast": 1, "Dense": 2, "Vessels": 2}
    cases = prepare(folder, tmp_path, fit=fit, segments=segments)
    assert set(cases) == {f"{patient}_{side}" for patient in patients for side in ("left", "right")}
    for patient in patients:
        phantom = breast_phantom(subject_number(patient), 0, GRID, fat_saturated=True)
        case = cases[f"{patient}_right"]  # the left one is mirrored
        image, label = nib.load(case["image"]), nib.load(case["label"])
        assert image.shape == label.shape == (64, 48, 32) and label.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(image.affine, label.affine)
        index = np.indices(label.shape).reshape(3, -1)
        world = label.affine @ np.vstack([index, np.ones(index.shape[1])])
        there = np.round((np.linalg.inv(phantom.affine) @ world)[:3]).astype(int)
        inside = ((there >= 0) & (there < np.array(GRID)[:, None])).all(0)
        expected, found = phantom.label[tuple(there[:, inside])], np.asarray(label.dataobj).ravel()[inside]
        for value in (1, 2):
            both = ((found == value) & (expected == value)).sum()
            assert 2 * both / ((found == value).sum() + (expected == value).sum()) > 0.8
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.nii.gz")}
    Path(cases[f"{patients[0]}_left"]["label"]).unlink()
    prepare(folder, tmp_path, fit=fit, segments=segments)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*.nii.gz")}
    assert before == after and len(after) == 12, "the label that was lost is made again"


@pytest.mark.slow
def test_a_patient_without_masks_is_refused_and_a_template_that_fits_no_patient_stops_the_run(
    downloads, tmp_path: Path
) -> None:
    folder, patients = downloads
    lone = tmp_path / "masks" / f"{patients[0]}.seg.nrrd"
    lone.parent.mkdir()
    source = folder / "masks" / "Segmentation_Masks_NRRD" / patients[0] / f"Segmentation_{patients[0]}_Breast.seg.nrrd"
    lone.write_bytes(source.read_bytes())
    masks = {"masks_dir": str(lone.parent), "segment_files": {"breast": "{case_id}.seg.nrrd"}}
    with pytest.raises(SystemExit, match=r"prepare: 66\.7% of the cases were refused"):
        prepare(folder, tmp_path / "some", **masks)
    report = json.loads((tmp_path / "some" / "report.json").read_text())
    assert "expected a file of segments as 'breast', found none" in json.dumps(report)
    assert "breast: 1 of 3 cases have one, 2 have none" in report["noticed"]
    with pytest.raises(SystemExit, match="breast: none of the 3 cases has the file"):
        prepare(folder, tmp_path / "none", segment_files={"breast": "nowhere/{case_id}.seg.nrrd"})
