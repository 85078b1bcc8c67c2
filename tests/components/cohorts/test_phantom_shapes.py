"""Solids and fields against closed forms."""

import numpy as np
import pytest

from medical_diffusion_components.cohorts.shapes import (
    Points,
    Scene,
    SmoothField,
    capsule,
    checked_grid,
    render,
    smooth_union,
    superquadric,
    tilt,
    with_receiver_noise,
)

SIZE, SPACING = (40, 60, 50), (1.3, 0.8, 1.1)  # 52 x 48 x 55 mm
VOXEL = np.prod(SPACING)


def painted(distance_of, size=SIZE, spacing=SPACING):
    """Volume of a solid in mm^3, by the shares of the voxels."""
    still = [SmoothField(np.random.default_rng(0), 50.0)] * 3
    image, _ = render(lambda s: s.paint(distance_of(s.points), 1.0), size, spacing, 0.0, still, amplitude=0.0)
    return image.sum(dtype=float) * np.prod(spacing)


def at(*places):
    return Points(*np.asarray(places, dtype=np.float32).T)


def test_an_ellipsoid_has_its_volume_however_it_is_turned():
    expected = 4 / 3 * np.pi * 9 * 14 * 18
    for rotation in (None, tilt((20, -35, 50))):
        volume = painted(lambda p, r=rotation: superquadric(p, (1, -2, 3), (9, 14, 18), rotation=r))
        assert volume == pytest.approx(expected, rel=0.01)


def test_a_superquadric_of_exponent_four_has_its_volume():
    from scipy.special import gamma

    expected = 8 * 9 * 14 * 18 * gamma(1 + 1 / 4) ** 3 / gamma(1 + 3 / 4)
    volume = painted(lambda p: superquadric(p, (0, 0, 0), (9, 14, 18), 4.0))
    assert volume == pytest.approx(expected, rel=0.01)


def test_an_infinite_radius_makes_a_cylinder():
    volume = painted(lambda p: superquadric(p, (0, 1, 0), (9, 14, np.inf)))
    assert volume == pytest.approx(np.pi * 9 * 14 * SIZE[2] * SPACING[2], rel=0.01)


def test_a_capsule_has_its_volume():
    length = np.linalg.norm([10, 12, 14])
    volume = painted(lambda p: capsule(p, (-5, -6, -7), (5, 6, 7), 6))
    assert volume == pytest.approx(np.pi * 36 * length + 4 / 3 * np.pi * 216, rel=0.01)


def test_a_capsule_that_tapers_has_the_radius_of_each_end():
    distances = capsule(at((0, 0, 0), (0, 0, 20), (5, 0, 10)), (0, 0, 0), (0, 0, 20), 4, 2)
    np.testing.assert_allclose(distances, [-4, -2, 5 - 3], atol=1e-5)


def test_distances_near_a_surface_are_in_mm():
    points = at((9.5, 0, 0), (0, 13, 0), (0, 0, 18), (0, 0, 0))
    distances = superquadric(points, (0, 0, 0), (9, 14, 18))
    np.testing.assert_allclose(distances[:3], [0.5, -1, 0], atol=0.05)
    assert distances[3] == -9  # the smallest radius


def test_the_columns_of_a_rotation_are_the_axes_of_the_solid():
    rotation = tilt((0, 0, 90))
    np.testing.assert_allclose(rotation[:, 0], [0, 1, 0], atol=1e-12)  # x goes to y
    end = at((0, 17.9, 0), (17.9, 0, 0))
    inside = superquadric(end, (0, 0, 0), (18, 5, 5), rotation=rotation) < 0
    np.testing.assert_array_equal(inside, [True, False])


def test_a_smooth_union_adds_a_quarter_of_the_blend_where_surfaces_meet():
    first, second = np.float32([1, 0, -3]), np.float32([9, 0, 4])
    np.testing.assert_allclose(smooth_union(first, second, 4.0), [1, -1, -3])


def test_a_tube_thinner_than_a_voxel_keeps_its_volume():
    still = [SmoothField(np.random.default_rng(0), 50.0)] * 3
    image, _ = render(
        lambda s: s.tube([(-15, 0, 0.2), (15, 0.1, 0)], [0.5, 0.5], 1.0), (40, 41, 43), (2.0,) * 3, 0, still, 0
    )
    assert image.sum(dtype=float) * 8 == pytest.approx(np.pi * 0.25 * 30, rel=0.5)


def test_slabs_give_the_same_as_the_whole(monkeypatch):
    """To float32's rounding of coordinates of tens of mm: vector and scalar kernels of sums and powers differ in the last
    bit, and where a row begins in memory, so which of them computes a voxel, depends on the shape of the slab."""
    rng = np.random.default_rng(3)
    warp = [SmoothField(rng, 20.0) for _ in range(3)]

    def both():
        return render(
            lambda s: s.paint(superquadric(s.points, (0, 0, 0), (9, 14, 18)), 1.0, 5), SIZE, SPACING, 0.0, warp, 2.0
        )

    whole = both()
    monkeypatch.setattr("medical_diffusion_components.cohorts.shapes.SLAB_VOXELS", 40 * 60 * 7)
    (image, label), (expected_image, expected_label) = both(), whole
    assert expected_image.max() == 1 and (expected_label == 5).sum() > 1000
    np.testing.assert_allclose(image, expected_image, rtol=0, atol=1e-5)
    assert (label != expected_label).mean() < 1e-4  # voxels whose centre lies on the surface


def test_painting_a_box_paints_the_scene_it_was_cut_from():
    image, label = np.zeros(SIZE, np.float32), np.zeros(SIZE, np.uint8)
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(SIZE, SPACING)]
    points = Points(*np.meshgrid(*(a.astype(np.float32) for a in axes), indexing="ij"))
    scene = Scene(axes, points, image, label, 1.0)
    part, box = scene.near((2, 3, 4), (8, 9, 10), margin=0)
    part.paint(superquadric(part.points, (5, 6, 7), (2, 2, 2)), 3.0, 9)
    assert image[box].shape < image.shape and image.max() == 3
    assert label.sum() / 9 * VOXEL == pytest.approx(4 / 3 * np.pi * 8, rel=0.1)
    mirrored = scene.mirrored()
    mirrored.paint(superquadric(mirrored.points, (18, 6, 7), (2, 2, 2)), 7.0)
    assert np.argwhere(image == 7)[:, 0].max() < 20  # on the left


def test_a_field_is_the_cubic_spline_of_its_coefficients():
    from scipy.interpolate import BSpline

    field = SmoothField(np.random.default_rng(4), knot=7.0)
    axes = [np.array([-31.0, 2.5]), np.array([400.0]), np.array([0.0, 7.0, 11.0])]  # past the period, too
    hat = BSpline.basis_element([-2, -1, 0, 1, 2], extrapolate=False)
    reach = range(-80, 81)

    def weights(x):
        return np.array([np.nan_to_num(hat(x / 7.0 - k)) for k in reach])

    expected = np.zeros((2, 1, 3))
    index = np.array(reach) % SmoothField.PERIOD
    coefficients = field.coefficients[np.ix_(index, index, index)]
    for place in np.ndindex(2, 1, 3):
        w = [weights(axis[i]) for axis, i in zip(axes, place)]
        expected[place] = np.einsum("i,j,k,ijk", *w, coefficients)
    np.testing.assert_allclose(field.at(axes), expected, atol=1e-5)


def test_a_field_has_unit_variance():
    values = [
        SmoothField(np.random.default_rng(seed), 10.0).at([np.arange(0, 320, 7.3)] * 3).std() for seed in range(4)
    ]
    assert np.mean(values) == pytest.approx(1, abs=0.05)


def test_receiver_noise_without_signal_is_rayleigh_distributed():
    noise = with_receiver_noise(np.zeros((40, 50, 60), np.float32), np.random.default_rng(0), 10.0)
    assert noise.mean() == pytest.approx(10 * np.sqrt(np.pi / 2), rel=0.02)
    assert noise.min() >= 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subject": -1}, "start at 0"),
        ({"seed": -1}, "start at 0"),
        ({"size": (64, 64)}, "three whole numbers"),
        ({"size": (64, 64, 4)}, "three whole numbers"),
        ({"spacing": (1, 1)}, "three positive numbers"),
        ({"spacing": (1, 1, 0)}, "three positive numbers"),
    ],
)
def test_grids_that_are_none_are_refused(change, message):
    good = {"subject": 0, "seed": 0, "size": (64, 64, 64), "spacing": None, "field_of_view": (1, 1, 1)}
    with pytest.raises(ValueError, match=message):
        checked_grid(**{**good, **change})
