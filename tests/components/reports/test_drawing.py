from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from medical_diffusion_components.reports.drawing import montage, save_montage

SHAPE, SPACING = (10, 20, 6), (2.0, 0.5, 4.0)


def volume(seed: int = 0, shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def pictures(figure: Figure) -> list:
    """Axes that hold a picture, row by row."""
    return [axes for axes in figure.axes if axes.images]


def test_slices_are_the_middle_ones_with_the_second_axis_upwards():
    drawn = pictures(montage({"real": [volume()]}, SPACING))
    expected = [volume()[5], volume()[:, 10], volume()[:, :, 3]]
    for axes, picture in zip(drawn, expected, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), picture.T)
        assert axes.images[0].origin == "lower"


@pytest.mark.parametrize("axcodes", ["PSR", "LIA", "SRA"])
def test_volumes_of_other_axes_are_turned_to_the_same_picture(axcodes):
    # nibabel's way from RAS to these axes, as an independent reference
    there = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axcodes)
    )
    turned = nib.orientations.apply_orientation(volume(), there)
    spacing = np.empty(3)
    spacing[there[:, 0].astype(int)] = SPACING
    figures = montage({"real": [volume()]}, SPACING), montage({"real": [turned]}, spacing, axcodes=axcodes)
    for ours, theirs in zip(*map(pictures, figures), strict=True):
        np.testing.assert_array_equal(ours.images[0].get_array(), theirs.images[0].get_array())
        assert ours.get_aspect() == theirs.get_aspect()


@pytest.mark.parametrize("spacing", [SPACING, (1.0, 1.0, 1.0), (1.0, 3.0, 0.7)])
def test_pictures_have_the_proportions_of_the_volume_in_mm(spacing):
    figure = montage({"real": [volume(), volume(1)], "synthetic": [volume(2)]}, spacing)
    figure.canvas.draw()
    extent = np.array(SHAPE) * spacing
    boxes = [axes.get_window_extent() for axes in pictures(figure)]
    expected = [extent[1] / extent[2], extent[0] / extent[2], extent[0] / extent[1]]  # width / height, plane by plane
    ratios = [box.width / box.height for box in boxes]
    np.testing.assert_allclose(ratios, np.repeat(expected, 2).tolist() + expected, rtol=1e-6)


def test_pictures_do_not_overlap_each_other():
    figure = montage({"real": [volume(), volume(1)], "synthetic": [volume(2), volume(3)]}, SPACING)
    figure.canvas.draw()
    boxes = [axes.get_window_extent() for axes in pictures(figure)]
    assert len(boxes) == 12
    for i, a in enumerate(boxes):
        assert not any(a.overlaps(b) for b in boxes[:i])


def test_window_says_what_is_black_and_white():
    drawn = pictures(montage({"real": [volume()]}, window=(-0.5, 2.0)))
    assert {axes.images[0].get_clim() for axes in drawn} == {(-0.5, 2.0)}


def test_headings_planes_and_title_are_written():
    figure = montage({"real": [volume()], "synthetic": [volume()]}, title="epoch 3")
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    headings = [axes.get_title("left") for axes in figure.axes if axes.get_title("left")]
    assert texts == ["sagittal", "coronal", "axial"] * 2 and headings == ["real", "synthetic"]
    assert figure.get_suptitle() == "epoch 3"


def test_saved_picture_shows_the_volume_and_nothing_is_left_beside_it(tmp_path):
    bright = np.full(SHAPE, -1.0)
    bright[5:] = 1.0  # the right half of the coronal and axial slices is white
    path = tmp_path / "pictures" / "montage.png"
    save_montage(montage({"real": [bright]}, SPACING), path)
    pixels = imread(path)[..., 0]
    assert 0.1 < (pixels > 0.95).mean() < 0.6 and (pixels < 0.05).mean() > 0.2
    assert [file.name for file in path.parent.iterdir()] == ["montage.png"]


@pytest.mark.parametrize("groups", [{}, {"real": []}, {"real": [], "synthetic": []}])
def test_a_montage_of_nothing_is_an_error(groups):
    with pytest.raises(ValueError, match="at least one volume"):
        montage(groups)


def test_a_volume_on_other_axes_makes_the_same_picture():
    """H, W, D of the turned volume point to posterior, superior, right."""
    turned = volume()[:, ::-1].transpose(1, 2, 0)
    spacing = (SPACING[1], SPACING[2], SPACING[0])
    plain = pictures(montage({"real": [volume()]}, SPACING))
    same = pictures(montage({"real": [turned]}, spacing, axcodes="PSR"))
    for one, other in zip(plain, same, strict=True):
        np.testing.assert_array_equal(one.images[0].get_array(), other.images[0].get_array())
        assert one.get_aspect() == other.get_aspect()


def test_labels_are_drawn_over_the_slices_of_their_group_alone():
    labels = np.zeros(SHAPE, dtype=int)
    labels[5, 4:9, :], labels[5, 12, 2] = 1, 2
    figure = montage({"real": [volume()], "labelled": [volume()]}, SPACING, overlays={"labelled": [labels]})
    plain, labelled = pictures(figure)[:3], pictures(figure)[3:]
    assert [len(axes.images) for axes in plain] == [1, 1, 1]
    for axes, picture, below in zip(labelled, [labels[5], labels[:, 10], labels[:, :, 3]], plain, strict=True):
        colours = axes.images[1].get_array()
        np.testing.assert_array_equal(colours[..., 3] > 0, picture.T > 0)
        assert len(np.unique(colours[picture.T > 0], axis=0)) == len(np.unique(picture[picture > 0]))
        assert axes.get_aspect() == below.get_aspect()
