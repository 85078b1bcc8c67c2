"""An invented bilateral breast MR (T1-weighted, prone, axial slices) with the outline of the breasts.

Proportions and contrasts are rounded from textbook anatomy and T1 contrast (fat bright, gland and muscle dark,
lung and moving blood black); no image of a person is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medical_diffusion_components.chance import numpy_generator
from medical_diffusion_components.cohorts.shapes import (
    Phantom,
    Points,
    Scene,
    SmoothField,
    centred_affine,
    checked_grid,
    render,
    smooth_union,
    superquadric,
    tilt,
    with_receiver_noise,
)
from medical_diffusion_components.cohorts.variation import (
    PLAIN,
    Lesion,
    Variation,
    draw_lesions,
    lesion_intensity,
    variation_rng,
    varied_appearance,
    varied_contrast,
)

__all__ = ["BREAST_LABELS", "BREAST_LABELS_WITH_TUMOURS", "breast_phantom"]

BREAST_FIELD_OF_VIEW_MM = (350.0, 350.0, 180.0)
BREAST_LABELS = {"0": "outside the breasts", "1": "fat and skin of the breasts", "2": "fibroglandular tissue"}
FATTY, GLANDULAR, TUMOUR = 1, 2, 3
BREAST_LABELS_WITH_TUMOURS = {**BREAST_LABELS, "3": "tumour"}
TUMOUR_RADIUS_MM = (9.0, 18.0)
FILLET_MM = 26.0  # rounds the groove between breast and chest
# intensities: T1-weighted, and the same with the signal of fat suppressed
CONTRAST = {
    False: {"fat": 820.0, "gland": 330.0, "muscle": 270.0, "skin": 420.0, "liver": 380.0, "blood": 110.0, "lung": 25.0},
    True: {"fat": 130.0, "gland": 400.0, "muscle": 330.0, "skin": 360.0, "liver": 430.0, "blood": 170.0, "lung": 25.0},
}
EVERYWHERE = 1e4  # mm
_STREAM = 2  # keeps subjects of one number in different anatomies unrelated


class _Breast(NamedTuple):
    side: float  # 1 right, -1 left
    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    density: float  # raises the share of glandular tissue


class _Anatomy(NamedTuple):
    breasts: tuple[_Breast, _Breast]
    thorax: tuple[float, float]  # half width, half depth of the chest wall's outside, mm
    fat: float  # under the skin of the chest, mm
    pectoral: float  # thickness, mm
    heart: tuple[tuple[float, float, float], np.ndarray]  # centre, rotation
    dome: float  # top of the liver, mm
    rib_phase: float
    coil: float  # how much weaker the signal is at the back
    fields: tuple[SmoothField, SmoothField, SmoothField, SmoothField]  # 50, 13, 5 and 90 mm


def breast_phantom(
    subject: int,
    seed: int = 0,
    size: Sequence[int] = (96, 96, 32),
    spacing: Sequence[float] | None = None,
    fat_saturated: bool = False,
    centre: Sequence[float] = (0.0, 0.0, 0.0),
    variation: Variation = PLAIN,
) -> Phantom:
    """Make invented breast MR number ``subject`` of the cohort ``seed``.

    Two breasts, of which one may be larger, with skin, fat, fibroglandular tissue of any density and nipples;
    pectoral muscles, ribs, sternum, spine, lungs, heart and liver behind them.

    Args:
        subject: number of the subject, from 0.
        seed: number of the cohort, from 0.
        size: voxels (H, W, D) along right, anterior, superior.
        spacing: mm; by default `BREAST_FIELD_OF_VIEW_MM` shared out among the voxels. The anatomy is the same
            at every size and spacing.
        fat_saturated: suppress the signal of fat, as in dynamic series; the anatomy stays the same.
        centre: of the volume in the world, mm: between the breasts and the back, at the height of the nipples.
        variation: of contrast, bias field, noise and sharpness, and tumours in each breast; none by default.

    Returns:
        Intensities from 0 to about 1,200. ``label`` as in `BREAST_LABELS`, or `BREAST_LABELS_WITH_TUMOURS` where there
        are some: its outline, ``mask``, is the breasts with their skin, to the front of the pectoral muscles and to where
        the skin bends into the chest's.

    Raises:
        ValueError: an argument out of range.
    """
    size, spacing = checked_grid(subject, seed, size, spacing, BREAST_FIELD_OF_VIEW_MM)
    rng = numpy_generator(seed, subject, _STREAM)
    warp = [SmoothField(rng, knot=60.0) for _ in range(3)]
    anatomy = _draw(rng)
    sigma = rng.uniform(8, 20)
    contrast, tumours = CONTRAST[bool(fat_saturated)], []
    more = variation_rng(subject, seed, _STREAM)
    if variation != PLAIN:
        contrast = varied_contrast(more, contrast, variation.checked())
        tumours = [draw_lesions(more, variation, TUMOUR_RADIUS_MM) for _ in anatomy.breasts]

    def paint(scene: Scene) -> None:
        _paint(scene, anatomy, contrast, tumours)

    image, label = render(paint, size, spacing, 0.0, warp, amplitude=3.0, centre=centre)
    if variation != PLAIN:
        image = varied_appearance(more, image, spacing, variation)
    return Phantom(with_receiver_noise(image, rng, sigma), centred_affine(size, spacing, centre), label, {})


def _draw(rng: np.random.Generator) -> _Anatomy:
    overall = float(np.clip(rng.normal(1, 0.13), 0.75, 1.25))
    density = rng.normal(-0.9, 0.55)
    droop = rng.uniform(0.85, 1.25)
    breasts = []
    for side in (1.0, -1.0):
        own = overall * float(np.clip(rng.normal(1, 0.06), 0.85, 1.15))
        radii = (58 * own * rng.normal(1, 0.04), 88 * own * droop, 62 * own * rng.normal(1, 0.04))
        centre = (side * (78 + rng.normal(0, 4)), 16.0, rng.normal(0, 4))
        breasts.append(_Breast(side, centre, radii, density + rng.normal(0, 0.1)))
    return _Anatomy(
        breasts=(breasts[0], breasts[1]),
        thorax=(rng.normal(146, 5), rng.normal(100, 4)),
        fat=rng.uniform(6, 16),
        pectoral=rng.uniform(7, 13),
        heart=(
            (rng.normal(-28, 4), rng.normal(-42, 3), rng.normal(-22, 8)),
            tilt((15, -15, rng.normal(30, 6))),
        ),
        dome=rng.normal(-48, 12),
        rib_phase=rng.random(),
        coil=rng.uniform(0.35, 0.75),
        fields=(SmoothField(rng, 50.0), SmoothField(rng, 13.0), SmoothField(rng, 5.0), SmoothField(rng, 90.0)),
    )


def _paint(scene: Scene, anatomy: _Anatomy, contrast: dict[str, float], tumours: Sequence[Sequence[Lesion]]) -> None:
    broad, middle, fine, shading = (field.at(scene.axes) for field in anatomy.fields)
    wall = superquadric(scene.points, (0, -84, 0), (*anatomy.thorax, np.inf), 2.3)
    chest = wall - np.float32(anatomy.fat + 4) - 3 * broad
    mounds = _breasts(scene.points, anatomy)
    skin = smooth_union(chest, mounds, FILLET_MM)
    muscle = _muscle(scene.points, wall, anatomy)

    scene.paint(skin, contrast["skin"])
    scene.paint(skin + 2.0, contrast["fat"] * (1 + 0.03 * middle))
    tissue = np.maximum(np.maximum(skin, -muscle), mounds - FILLET_MM / 4)
    scene.label[tissue < 0] = FATTY
    _paint_gland(scene, anatomy, np.maximum(tissue, skin + 2), contrast, broad, middle, fine)
    for breast, own in zip(anatomy.breasts, tumours):
        for tumour in own:
            _paint_tumour(scene, breast, tumour, np.maximum(tissue, skin + 4), contrast, fine)
    scene.paint(np.maximum(muscle, skin + 4), contrast["muscle"] * (1 + 0.08 * fine))
    _paint_chest(scene, anatomy, wall, contrast, fine)

    front = scene.points.y * np.float32(1 / 170)  # the coil lies around the breasts
    scene.image *= np.exp(np.float32(anatomy.coil) * (np.minimum(front, 0.2) - 0.1) + 0.10 * shading)


def _breasts(points: Points, anatomy: _Anatomy) -> np.ndarray:
    """Distance to the two mounds, which taper to the nipples."""
    mounds = np.full(points.x.shape, np.inf, dtype=np.float32)
    for breast in anatomy.breasts:
        mound = superquadric(points, breast.centre, breast.radii, 2.15)
        apex = np.add(breast.centre, (0, breast.radii[1] - 1, 0))
        nipple = superquadric(points, apex, (5.5, 6.5, 5.5))
        mounds = np.minimum(mounds, smooth_union(mound, nipple, 8.0))
    return mounds


def _muscle(points: Points, wall: np.ndarray, anatomy: _Anatomy) -> np.ndarray:
    """Distance to the chest with the pectoral muscles, thick beside the sternum and none over it."""
    x, y, z = points
    across = np.abs(x)
    thickness = np.clip((across - 8) / 22, 0, 1) * np.clip((150 - across) / 70, 0, 1) * np.clip((z + 75) / 60, 0.25, 1)
    return wall - np.float32(anatomy.pectoral) * thickness * (y > -60)


def _paint_gland(
    scene: Scene,
    anatomy: _Anatomy,
    room: np.ndarray,
    contrast: dict[str, float],
    broad: np.ndarray,
    middle: np.ndarray,
    fine: np.ndarray,
) -> None:
    """Fibroglandular tissue: a random field above a threshold, most behind the nipple, with strands into the fat."""
    for breast in anatomy.breasts:
        cx, cy, cz = breast.centre
        rx, ry, rz = breast.radii
        low, high = (cx - rx, cy - 20, cz - rz), (cx + rx, cy + ry, cz + rz)
        part, box = scene.near(low, high)
        if part.image.size == 0:
            continue
        cone = superquadric(part.points, (cx, cy + 0.36 * ry, cz), (0.66 * rx, 0.66 * ry, 0.66 * rz)) / 13
        level = np.float32(breast.density) + 0.55 * broad[box] + 0.95 * middle[box] + 0.6 * fine[box] - cone
        gland = np.maximum(-4.5 * level, room[box] + 3)
        part.paint(gland, contrast["gland"] * (1 + 0.06 * fine[box]), GLANDULAR)
        strands = np.abs(middle[box] - 0.35 * fine[box]) * 9 - 0.9 + np.maximum(cone, 0)
        part.paint(np.maximum(strands, room[box]), contrast["gland"] * 1.2, opacity=0.5)


def _paint_tumour(
    scene: Scene, breast: _Breast, tumour: Lesion, room: np.ndarray, contrast: dict[str, float], fine: np.ndarray
) -> None:
    """An ellipsoid with a rough surface, in the front two thirds of the breast."""
    cx, cy, cz = breast.centre
    rx, ry, rz = breast.radii
    centre = np.array([cx, cy + 0.3 * ry, cz]) + tumour.direction * [0.5 * rx, 0.4 * ry, 0.5 * rz]
    reach = 1.5 * tumour.radii.max()
    part, box = scene.near(centre - reach, centre + reach)
    if part.image.size:
        solid = superquadric(part.points, centre, tumour.radii) + np.float32(1.2) * fine[box]
        value = lesion_intensity(tumour, (contrast["fat"], contrast["gland"]))
        part.paint(np.maximum(solid, room[box]), value, TUMOUR)


def _paint_chest(
    scene: Scene, anatomy: _Anatomy, wall: np.ndarray, contrast: dict[str, float], fine: np.ndarray
) -> None:
    """What lies behind: ribs, lungs, heart, liver, vessels and spine."""
    x, y, z = scene.points
    around = np.arctan2(np.abs(x), -(y + 84))  # 0 at the spine, pi at the sternum
    turns = (z + 34 * around) / 26 + anatomy.rib_phase
    height = 26 * (turns - np.round(turns))
    ribs = np.sqrt(np.square((wall + 7) / 4) + np.square(height / 7)) * 5 - 5
    scene.paint(ribs, 60.0)
    scene.paint(ribs + 1.6, 0.65 * contrast["fat"])
    scene.paint(wall + 13, 0.8 * contrast["fat"])
    lungs = np.maximum(wall + 15, np.maximum(16 - np.abs(x), 38 - np.hypot(x, y + 150)))
    dome = superquadric(scene.points, (50, -80, anatomy.dome - 110), (110, 110, 110))
    scene.paint(lungs, contrast["lung"])
    scene.paint(np.maximum(np.maximum(dome, wall + 14), -x - 30), contrast["liver"] * (1 + 0.05 * fine))
    centre, rotation = anatomy.heart
    part, box = scene.near(np.subtract(centre, 64), np.add(centre, 64))
    heart = np.maximum(superquadric(part.points, centre, (54, 44, 58), rotation=rotation), wall[box] + 14)
    part.paint(heart - 3, 0.8 * contrast["fat"])
    part.paint(heart, contrast["muscle"])
    part.paint(heart + 9, contrast["blood"] * (1 + 0.3 * fine[box]))
    scene.tube([(-20, -128, -EVERYWHERE / 20), (-20, -128, EVERYWHERE / 20)], [12, 12], contrast["blood"])
    part, box = scene.near((-40, -200, -EVERYWHERE), (40, -118, EVERYWHERE))
    column = superquadric(part.points, (0, -146, 0), (18, 16, np.inf), 2.3)
    part.paint(column, 90.0)
    part.paint(column + 2, 0.55 * contrast["fat"] * (1 + 0.1 * fine[box]))
    part.paint(superquadric(part.points, (0, -171, 0), (10, 8, np.inf)), 160.0)
    part, _ = scene.near((-22, 0, -EVERYWHERE), (22, 30, EVERYWHERE))
    sternum = superquadric(part.points, (0, anatomy.thorax[1] - 84 - 7, 20), (17, 6, 90), 3.0)
    part.paint(sternum, 70.0)
    part.paint(sternum + 2, 0.6 * contrast["fat"])
