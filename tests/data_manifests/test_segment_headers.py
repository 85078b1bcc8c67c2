from __future__ import annotations

import itk
import numpy as np
import pytest

from medical_diffusion_components.preparation.manifests import read_manifest
from medical_diffusion_components.preparation.segments import read_nrrd_header, read_segments

# A 3D file of (4, 3, 2) voxels, and the same with two layers in front.
FIELDS_3D = ["type: unsigned char", "dimension: 3", "space: left-posterior-superior", "sizes: 4 3 2"]
FIELDS_3D += ["space directions: (1,0,0) (0,1,0) (0,0,3)", "kinds: domain domain domain", "encoding: raw"]
FIELDS_3D += ["space origin: (-5,6,7)"]
FIELDS_4D = ["type: unsigned char", "dimension: 4", "space: left-posterior-superior", "sizes: 2 4 3 2"]
FIELDS_4D += ["space directions: none (1,0,0) (0,1,0) (0,0,3)", "kinds: list domain domain domain"]
FIELDS_4D += ["encoding: raw", "space origin: (-5,6,7)"]


def pairs(*segments: tuple[str, int, int | None]) -> list[str]:
    lines = []
    for number, (name, value, layer) in enumerate(segments):
        lines += [f"Segment{number}_Name:={name}", f"Segment{number}_LabelValue:={value}"]
        lines += [] if layer is None else [f"Segment{number}_Layer:={layer}"]
    return lines


def write(path, fields, lines, newline="\n", voxels=48):
    header = newline.join(["NRRD0004", "# an invented file", *fields, *lines, "", ""])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.encode() + np.arange(voxels, dtype=np.uint8).tobytes())
    return path


DENSE_FIRST = pairs(("Dense", 1, 0), ("Vessels", 2, 0))
VESSELS_FIRST = pairs(("Vessels", 1, 0), ("Dense", 2, 0))
IN_LAYERS = pairs(("Vessels", 1, 0), ("Dense", 1, 1))


@pytest.mark.parametrize(
    ("fields", "lines", "expected"),
    [
        (FIELDS_3D, DENSE_FIRST, [("Dense", 1, 0), ("Vessels", 2, 0)]),
        (FIELDS_3D, VESSELS_FIRST, [("Vessels", 1, 0), ("Dense", 2, 0)]),
        (FIELDS_4D, IN_LAYERS, [("Vessels", 1, 0), ("Dense", 1, 1)]),
        (FIELDS_3D, pairs(("Breast", 1, None)), [("Breast", 1, 0)]),
    ],
    ids=["dense first", "vessels first", "in layers", "no layer in 3D"],
)
def test_segments_are_what_the_header_names(tmp_path, fields, lines, expected):
    table = read_segments(write(tmp_path / "x.seg.nrrd", fields, lines))
    assert list(table.segments) == expected
    assert table.num_layers == (2 if fields is FIELDS_4D else 1)
    assert table.shape == (4, 3, 2)


def test_windows_line_ends_change_nothing(tmp_path):
    unix = read_segments(write(tmp_path / "u.seg.nrrd", FIELDS_4D, IN_LAYERS))
    assert read_segments(write(tmp_path / "w.seg.nrrd", FIELDS_4D, IN_LAYERS, "\r\n")) == unix


@pytest.mark.parametrize("fields", [FIELDS_3D, FIELDS_4D], ids=["3D", "4D"])
def test_the_header_is_read_as_itk_reads_it(tmp_path, fields):
    path = write(tmp_path / "x.seg.nrrd", fields, IN_LAYERS, voxels=24 if fields is FIELDS_3D else 48)
    reader = itk.NrrdImageIO.New(FileName=str(path))
    reader.ReadImageInformation()
    theirs, ours = reader.GetMetaDataDictionary(), read_nrrd_header(path)
    keys = [key for key in ours if key.startswith("Segment")]
    assert len(keys) == 6
    assert {key: theirs[key] for key in keys} == {key: ours[key] for key in keys}
    sizes = [reader.GetDimensions(axis) for axis in range(3)]
    assert sizes == [int(size) for size in ours["sizes"].split()[-3:]]


@pytest.mark.parametrize(
    ("fields", "lines", "message"),
    [
        (FIELDS_3D, [], "names no segment"),
        (FIELDS_3D, ["Segment0_Name:=Dense"], "whole number under 'Segment0_LabelValue', got None"),
        (FIELDS_3D, ["Segment0_Name:=Dense", "Segment0_LabelValue:=one"], "LabelValue', got 'one'"),
        (FIELDS_3D, pairs(("Dense", 0, 0)), "segment 'Dense': expected a label value of at least 1, got 0"),
        (FIELDS_3D, pairs(("Dense", 1, 1)), "segment 'Dense' is in layer 1, the file has 1"),
        (FIELDS_4D, pairs(("Dense", 1, None)), "whole number under 'Segment0_Layer', got None"),
        (FIELDS_3D, pairs(("Dense", 1, 0), ("Dense", 2, 0)), "two segments have one name"),
        (FIELDS_3D, pairs(("Dense", 1, 0), ("Vessels", 1, 0)), "two segments share value and layer"),
        (["sizes: 4 3"], DENSE_FIRST, r"expected 3 axes, or 4 of which one is a list; got sizes \[4, 3\]"),
        (["sizes: 4 x 2"], DENSE_FIRST, "expected 'sizes: ' with whole numbers, got '4 x 2'"),
        (FIELDS_3D, ["nonsense"], "line 11 of the NRRD header is neither field nor pair: 'nonsense'"),
        (FIELDS_3D, [*DENSE_FIRST, "Segment0_Name:=Other"], "'Segment0_Name' stands twice"),
    ],
)
def test_an_unclear_header_is_refused(tmp_path, fields, lines, message):
    path = write(tmp_path / "x.seg.nrrd", fields, lines)
    with pytest.raises(ValueError, match=message) as error:
        read_segments(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "got b''"), (b"\x1f\x8bgzip...", "not a NRRD file"), (b"NRRD0004\nsizes: 1 1 1\n", "has no end")],
)
def test_what_is_no_nrrd_file_is_refused(tmp_path, content, message):
    (tmp_path / "x.seg.nrrd").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_segments(tmp_path / "x.seg.nrrd")


def masks(root, patient, lines, fields=FIELDS_3D):
    folder = root / "Segmentation_Masks_NRRD" / patient
    write(folder / f"Segmentation_{patient}_Breast.seg.nrrd", FIELDS_3D, pairs(("Breast", 1, 0)))
    write(folder / f"Segmentation_{patient}_Dense_and_Vessels.seg.nrrd", fields, lines)


@pytest.fixture
def download(tmp_path, manifests):
    """Masks of one patient of each split, each with other label values; the patients by split."""
    cases = sorted(read_manifest(manifests / "duke.json").cases, key=lambda case: case["case_id"])
    one = {case["split"]: case for case in reversed(cases)}
    masks(tmp_path, one["training"]["patient_id"], DENSE_FIRST)
    masks(tmp_path, one["validation"]["patient_id"], VESSELS_FIRST)
    masks(tmp_path, one["test"]["patient_id"], IN_LAYERS, FIELDS_4D)
    return tmp_path, one


def test_masks_get_the_labels_of_their_own_header(builder, manifests, download):
    root, _ = download
    manifest = builder("duke_fgt").build(root, manifests / "duke.json")
    found = {
        case["split"]: {label["name"]: (label["value"], label["layer"]) for label in case["labels"]}
        for case in manifest.cases
    }
    assert found["training"] == {"Breast": (1, 0), "Dense": (1, 0), "Vessels": (2, 0)}
    assert found["validation"] == {"Breast": (1, 0), "Dense": (2, 0), "Vessels": (1, 0)}
    assert found["test"] == {"Breast": (1, 0), "Dense": (1, 1), "Vessels": (1, 0)}
    assert all((root / label["path"]).is_file() for case in manifest.cases for label in case["labels"])


def test_masks_keep_split_and_series_of_the_images(builder, manifests, download):
    root, images = download
    for case in builder("duke_fgt").build(root, manifests / "duke.json").cases:
        image = images[case["split"]]
        assert case["patient_id"] == image["patient_id"]
        assert case["source"]["series_uid"] == image["dynamic_pre"]["series_uid"]
        assert case["source"]["study_uid"] == image["source"]["study_uid"]


def test_masks_that_do_not_fit_are_refused(builder, manifests, download):
    root, images = download
    fgt, duke = builder("duke_fgt"), manifests / "duke.json"
    with pytest.raises(ValueError, match=r"expected folders Breast_MRI_NNN in .*elsewhere"):
        fgt.build(root / "elsewhere", duke)
    masks(root, "Breast_MRI_999", DENSE_FIRST)
    with pytest.raises(ValueError, match=r"Breast_MRI_999: not a patient of .*duke\.json"):
        fgt.build(root, duke)
    patient = images["training"]["patient_id"]
    (root / f"Segmentation_Masks_NRRD/{patient}/Segmentation_{patient}_Breast.seg.nrrd").unlink()
    with pytest.raises(ValueError, match=rf"{patient}: expected the file .*_Breast\.seg\.nrrd"):
        fgt.build(root, duke)


def test_masks_of_one_split_only_are_refused(builder, manifests, tmp_path):
    masks(tmp_path, "Breast_MRI_002", DENSE_FIRST)
    with pytest.raises(ValueError, match=r"each of .* needs one"):
        builder("duke_fgt").build(tmp_path, manifests / "duke.json")
