from __future__ import annotations

import pytest
from builders import Series, finish, package_file, the_only

from medical_diffusion_components.preparation.manifests import read_manifest

HEADER = (
    '"Image Data ID","Subject","Group","Sex","Age","Visit","Modality","Description","Type","Acq Date",'
    '"Format","Downloaded"'
)


def row(image="I1", subject="999_S_0001", group="CN", modality="MRI", what="MP-RAGE", date="1/2/2000") -> str:
    return f'"{image}","{subject}","{group}","F","70","bl","{modality}","{what}","Original","{date}","DCM",""'


@pytest.fixture
def collection(tmp_path):
    """Write a collection's CSV from its lines."""

    def write(*rows: str, header: str = HEADER):
        (tmp_path / "mine.csv").write_text("\n".join([header, *rows]) + "\n")
        return tmp_path / "mine.csv"

    return write


def test_adni_takes_the_mp_rage_scans_of_the_group(builder, collection):
    path = collection(
        row("I1"),
        row("2", "999_S_0002", what="MPR-R; GradWarp; N3"),
        row("I3", "999_S_0003", group="MCI"),
        row("I4", "999_S_0004", what="Sag IR-SPGR"),
        row("I5", "999_S_0005", modality="PET", what="MPRAGE"),
        row("I6", "999_S_0006", what="Accelerated Sagittal MPRAGE"),
    )
    assert [scan.image_id for scan in builder("adni").read_scans(path)] == ["I1", "I2", "I6"]
    assert [scan.image_id for scan in builder("adni").read_scans(path, "MCI")] == ["I3"]
    assert [scan.image_id for scan in builder("adni").read_scans(path, description="spgr")] == ["I4"]


def test_adni_takes_all_scans_or_the_earliest_of_each_subject(builder, collection):
    path = collection(
        row("I30", date="10/1/2000"),
        row("I20", date="9/30/2000"),
        row("I10", date="9/30/2000"),
        row("I40", "999_S_0002"),
        row("I50", "999_S_0003"),
    )
    every = builder("adni").build(path)
    first = builder("adni").build(path, scans="first")
    assert every.counts["cases"] == 5
    assert sorted(c["case_id"] for c in first.cases) == [
        "999_S_0001_I10",
        "999_S_0002_I40",
        "999_S_0003_I50",
    ]


def test_adni_keeps_sex_age_and_dates_out_of_the_manifest(builder, collection):
    path = collection(*(row(f"I{n}", f"999_S_000{n}", date="12/31/2001") for n in range(1, 5)))
    keys = {"case_id", "patient_id", "split", "visit", "description", "source"}
    assert all(set(case) == keys for case in builder("adni").build(path).cases)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [row(), row("7", date="31/1/2000")],
            r"mine\.csv, line 3: expected a date month/day/year, got '31/1/2000'",
        ),
        ([row(date="")], r"line 2: expected a date month/day/year, got ''"),
        ([row(), row("1", "999_S_0002")], r"line 3: image I1 is already in line 2"),
        ([row("S12")], r"line 2: expected an image id such as I12345 or 12345, got 'S12'"),
        ([row(subject="a/b")], r"line 2: expected a subject such as 123_S_4567, got 'a/b'"),
        ([row(), '"I2","999_S_0001"'], r"line 3: the row has fewer fields than the header"),
        ([row(group="AD")], r"no MRI row of group 'CN' .*\(\('AD', 'MP-RAGE'\), 1\)"),
        ([], r"no MRI row of group 'CN'"),
        ([row()], r"at least 3 patients, got 1"),
    ],
)
def test_adni_refuses_a_wrong_row_by_its_line(builder, collection, rows, message):
    with pytest.raises(ValueError, match=message):
        builder("adni").build(collection(*rows))


def test_adni_names_the_missing_column(builder, collection):
    path = collection(row(), header=HEADER.replace('"Acq Date"', '"Date"'))
    with pytest.raises(ValueError, match=r"mine\.csv: no column 'Acq Date'; the header has"):
        builder("adni").build(path)


def series(description: str, number: int | None = 1, uid: str = "1.2", patient: str = "p", images: int = 9) -> Series:
    return Series(patient, "1", uid, description, number, images, "uuid", "bucket", "licence")


@pytest.mark.parametrize(
    ("description", "kind"),
    [
        ("ax t1", "pre-contrast non-fat-sat"),
        ("Ax 3D T1 NON FS", "pre-contrast non-fat-sat"),
        ("ax 3d t1 bilateral", "pre-contrast non-fat-sat"),
        ("ax t1 tse +c", "post-contrast"),
        ("AX IDEAL Breast", "IDEAL"),
        ("ax 3d pre", "dynamic pre-contrast"),
        ("Ax Vibrant MultiPhase", "dynamic pre-contrast"),
        ("t1_fl3d_tra_dynVIEWS_spair_ pre", "dynamic pre-contrast"),
        ("t1_fl3d_tra_dynVIEWS_spair_2nd pass", "dynamic post-contrast"),
        ("Ph2/ax 3d dyn", "dynamic post-contrast"),
        ("1st ax dyn", "dynamic post-contrast"),
    ],
)
def test_duke_tells_series_apart_by_description(builder, description, kind):
    assert builder("duke").series_kind(description) == kind


def test_duke_takes_the_first_of_dynamic_series_with_one_name(builder):
    duke = builder("duke")
    patient = [series("ax dyn", 13), series("ax t1", 5), series("ax dyn", 7), series("ax dyn", 8)]
    assert duke.choose_series(patient) == (patient[1], patient[2])
    with pytest.raises(ValueError, match=r"which of the dynamic series is first\? Their numbers are \[7, 7\]"):
        duke.choose_series([series("ax t1"), series("ax dyn", 7), series("ax dyn", 7)])


def test_duke_refuses_what_it_does_not_know(builder):
    duke = builder("duke")
    with pytest.raises(ValueError, match="no rule for the series description 'localizer'"):
        duke.series_kind("localizer")
    with pytest.raises(ValueError, match=r"p: expected one T1 series, got \['ax t1', 'ax t1 \+c'\]"):
        duke.choose_series([series("ax t1"), series("ax t1 +c"), series("ax dyn")])
    with pytest.raises(ValueError, match="p: no dynamic series before contrast"):
        duke.choose_series([series("ax t1"), series("Ph1/ax dyn")])


def test_lidc_prefers_sound_then_thin_then_long_scans(builder):
    lidc = builder("lidc_idri")

    def geometry(*positions: float):
        return lidc.Geometry(3.0, 0.7, tuple(map(float, positions)))

    thick, uneven, repeated = geometry(0, 3, 6), geometry(0, 1, 2, 4), geometry(0, 1, 2)
    geometries = {"1": thick, "2": uneven, "3": repeated, "4": geometry(0, 3, 6, 9), "5": geometry(3, 6, 9)}
    scans = {uid: series("", uid=uid, images=len(one.positions)) for uid, one in geometries.items()}
    scans["3"] = scans["3"]._replace(num_images=4)

    def better(*uids: str):
        choice = lidc.choose_series([scans[uid] for uid in uids], geometries)
        return choice.series.series_uid, choice.because

    assert better("2", "1") == ("1", "0 known defects, the other has 1")
    assert better("3", "1")[0] == "1"
    assert better("2", "3") == ("2", "4 slices 1.0 mm apart, the other has 3")
    assert better("1", "4") == ("4", "4 slices 3.0 mm apart, the other has 3")
    assert better("5", "1") == ("1", "lower series UID, the scans are alike")
    assert better("5") == ("5", "")
    geometries["4"] = geometry(0, 2.5, 5, 7.5)
    assert better("1", "4") == ("4", "slice spacing 2.5 mm, the other has 3.0 mm")


def test_lidc_measures_gaps_against_the_median(builder):
    lidc = builder("lidc_idri")
    hole = lidc.Geometry(2.5, 0.7, (-286.0, -248.0, -246.0, -244.0))
    assert hole.slice_spacing == 2.0
    assert lidc.defects(hole, 5) == [
        {"kind": "uneven spacing", "gaps": 1, "min_mm": 2.0, "max_mm": 38.0},
        {"kind": "more images than positions", "extra": 1},
    ]
    assert lidc.defects(lidc.Geometry(2.5, 0.7, (0.0, 2.0001, 4.0)), 3) == []


def test_check_tells_a_changed_file_and_writes_nothing(builder, tmp_path):
    manifest, out = builder("mrnet").build(), tmp_path / "m.json"
    assert finish(manifest, out, check=True) == 1
    assert not out.exists()
    assert finish(manifest, out, check=False) == 0
    assert finish(manifest, out, check=True) == 0
    out.write_bytes(out.read_bytes().replace(b"0000.npy", b"0001.npy"))
    assert finish(manifest, out, check=True) == 1
    assert read_manifest(out).counts == manifest.counts


def test_a_missing_package_is_named_with_the_extra_that_brings_it():
    with pytest.raises(ModuleNotFoundError, match=r"'no-such-thing' is needed .* the extra 'manifests'"):
        package_file("no-such-thing", "data.parquet")
    with pytest.raises(ValueError, match=r"expected one licence for the whole collection, got \['a', 'b'\]"):
        the_only(["b", "a", "b"], "licence")
