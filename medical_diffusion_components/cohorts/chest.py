"""An invented chest CT in Hounsfield units, from solids whose sizes and places vary from subject to subject.

Proportions and radiodensities are rounded from textbook anatomy (Gray's Anatomy; Hounsfield, "Computed
medical imaging", Nobel lecture 1979); no image of a person is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from medical_diffusion_components.chance import numpy_generator
from medical_diffusion_components.cohorts.shapes import (
    Phantom,
    Scene,
    SmoothField,
    capsule,
    centred_affine,
    checked_grid,
    render,
    smooth_union,
    superquadric,
    tilt,
)

__all__ = ["CHEST_LABELS", "chest_phantom"]

CHEST_FIELD_OF_VIEW_MM = (370.0, 370.0, 300.0)
CHEST_LABELS = {
    "0": "outside the body",
    "1": "soft tissue",
    "2": "fat",
    "3": "lung",
    "4": "airway",
    "5": "bone",
    "6": "heart and great vessels",
    "7": "nodule",
}
SOFT, FAT, LUNG, AIRWAY, BONE, BLOOD, NODULE = range(1, 8)
AIR_HU, LOWEST_HU = -1000.0, -1024.0  # scanners store nothing below the latter
PADDING_HU = (None, -2000.0, -3024.0)  # outside the circular field of view
BACK = 10.0  # mm by which the trunk's middle lies behind the lungs'
RIB_PITCH_MM = 25.0
VERTEBRA_MM = 25.0
EVERYWHERE = 1e4  # mm
_STREAM = 1  # keeps subjects of one number in different anatomies unrelated


# in mm about the heart's centre, and sizes as shares of its radii
CHAMBERS = (((-12, 6, -6), (0.5, 0.45, 0.55)), ((26, -2, 4), (0.38, 0.55, 0.6)), ((0, -16, 14), (0.5, 0.4, 0.4)))
GREAT_VESSELS = (  # corners and radii, mm
    (  # aorta
        ((6, 18, 0), (14, 20, 42), (6, 6, 62), (-16, -24, 62), (-22, -44, 40), (-20, -46, -160)),
        (15, 15, 13.5, 12.5, 12, 10.5),
    ),
    (((-12, 34, 0), (-16, 10, 26), (-34, -12, 20)), (13, 12, 9)),  # pulmonary trunk and left artery
    (((-14, 12, 26), (14, -2, 20), (36, -12, 12)), (11, 10, 8)),  # right pulmonary artery
    (((22, 10, -10), (24, 10, 60), (24, 4, 92)), (9.5, 9, 7)),  # superior vena cava
    (((11, 5, 66), (18, 8, 140)), (6, 4.5)),  # arteries of head and arms
    (((-4, 2, 66), (-6, 4, 140)), (6, 4.5)),
    (((-13, -5, 66), (-22, -8, 140)), (6, 4.5)),
)
BRONCHI = (  # segment and its radii, mm
    (((0, -14, 160), (1, -20, 48)), (8.5, 8.5)),
    (((1, -20, 48), (24, -20, 22)), (7, 6)),
    (((1, -20, 48), (-28, -20, 18)), (6.5, 5.5)),
    (((24, -20, 22), (48, -26, -8)), (5, 2.5)),
    (((-28, -20, 18), (-46, -28, -10)), (5, 2.5)),
    (((24, -20, 22), (50, -14, 26)), (4, 2)),
)


class _Anatomy(NamedTuple):
    scale: np.ndarray  # (3,) of the whole trunk
    body: tuple[float, float]  # half width, half depth of the skin, mm
    fat: float  # thickness under the skin, mm
    breasts: float  # radius, mm; 0 for none
    heart: tuple[np.ndarray, np.ndarray, np.ndarray]  # centre, radii, rotation
    domes: tuple[float, float]  # tops of the right and the left diaphragm, mm
    blood: float  # HU, with or without contrast medium
    lung: float  # HU
    rib_phase: float
    vessels: tuple[tuple[tuple, tuple], ...]  # (path, radii) of the branches in both lungs
    nodules: tuple[tuple[np.ndarray, float, float], ...]  # centre, radius, HU
    table: float  # top of the table at its middle, mm
    texture: SmoothField
    fine: SmoothField


def chest_phantom(
    subject: int, seed: int = 0, size: Sequence[int] = (64, 64, 64), spacing: Sequence[float] | None = None
) -> Phantom:
    """Make invented chest CT number ``subject`` of the cohort ``seed``.

    Trunk with skin, fat and muscle, lungs with branching vessels, airway, heart and great vessels, spine, ribs,
    sternum, shoulder blades, the upper abdomen and the table; at times breasts and nodules. In some subjects
    the image is cut to the scanner's circular field of view and padded with a value below air, of `PADDING_HU`.

    Args:
        subject: number of the subject, from 0.
        seed: number of the cohort, from 0.
        size: voxels (H, W, D) along right, anterior, superior.
        spacing: mm; by default `CHEST_FIELD_OF_VIEW_MM` shared out among the voxels. The anatomy is the same
            at every size and spacing.

    Returns:
        Whole Hounsfield units; ``findings`` has the number of ``nodules``; ``label`` as in `CHEST_LABELS`.

    Raises:
        ValueError: an argument out of range.
    """
    size, spacing = checked_grid(subject, seed, size, spacing, CHEST_FIELD_OF_VIEW_MM)
    rng = numpy_generator(seed, subject, _STREAM)
    warp = [SmoothField(rng, knot=60.0) for _ in range(3)]
    anatomy = _draw(rng)
    sigma, padding = rng.uniform(10, 28), PADDING_HU[rng.choice(len(PADDING_HU), p=(0.5, 0.25, 0.25))]

    def paint(scene: Scene) -> None:
        _paint(scene, anatomy)

    image, label = render(paint, size, spacing, AIR_HU, warp, amplitude=3.0)
    noise = gaussian_filter(rng.standard_normal(size, dtype=np.float32), 0.6)
    image += np.float32(sigma / noise.std()) * noise
    np.maximum(np.rint(image, out=image), LOWEST_HU, out=image)
    if padding is not None:
        x, y = ((np.arange(n) - (n - 1) / 2) * s for n, s in zip(size[:2], spacing))
        outside = np.hypot(x[:, None], y[None, :]) > min(n * s for n, s in zip(size[:2], spacing)) / 2
        image[outside], label[outside] = padding, 0
    return Phantom(image, centred_affine(size, spacing), label, {"nodules": len(anatomy.nodules)})


def _draw(rng: np.random.Generator) -> _Anatomy:
    fat = rng.uniform(6, 24)
    scale = rng.normal(1, 0.04) * rng.normal(1, 0.025, size=3)
    female = rng.random() < 0.5
    domes = (rng.normal(-62, 10), rng.normal(-76, 10))
    heart_size = rng.normal(1, 0.07)
    heart = (
        np.array([-24, 30, -38]) + rng.normal(0, 3, size=3),
        np.array([52, 42, 58]) * heart_size,
        tilt((rng.normal(20, 6), rng.normal(-20, 6), rng.normal(25, 6))),
    )
    vessels = [branch for side in (1, -1) for branch in _lung_vessels(rng, side)]
    nodules = []
    for _ in range(rng.choice(4, p=(0.5, 0.25, 0.15, 0.1))):
        place = rng.uniform(-1, 1, size=3) * (16, 45, 70) + (rng.choice((-88, 88)), -6, 20)
        nodules.append((place, rng.uniform(3, 11), rng.uniform(0, 70)))
    return _Anatomy(
        scale=scale,
        body=(rng.normal(143, 4) + fat, rng.normal(106, 4) + fat),
        fat=fat,
        breasts=rng.uniform(34, 58) if female else 0.0,
        heart=heart,
        domes=domes,
        blood=rng.uniform(150, 260) if rng.random() < 0.5 else rng.uniform(35, 50),
        lung=rng.normal(-855, 18),
        rib_phase=rng.random(),
        vessels=tuple(vessels),
        nodules=tuple(nodules),
        table=-rng.uniform(1, 4),
        texture=SmoothField(rng, knot=22.0),
        fine=SmoothField(rng, knot=5.0),
    )


def _lung_vessels(rng: np.random.Generator, side: int) -> list[tuple[tuple, tuple]]:
    """Branches of one lung: from the hilum outwards, each splits in two until they are a millimetre thin."""
    branches: list[tuple[tuple, tuple]] = []
    hilum = np.array([side * 34.0, -14.0, 12.0])
    stems = [(0.5, 0.2, 1), (0.9, 0.5, 0.2), (0.8, -0.8, 0.1), (0.5, -0.5, -1), (0.8, 0.4, -0.9), (0.6, -0.6, 0.8)]
    pending = [(hilum, np.array([side * x, y, z]), rng.uniform(4.4, 5.6), 30.0) for x, y, z in stems]
    while pending:
        start, heading, radius, length = pending.pop()
        heading = heading / np.linalg.norm(heading)
        end = start + heading * length * rng.uniform(0.8, 1.2)
        branches.append(((tuple(start), tuple(end)), (radius, 0.8 * radius)))
        left_the_lung = np.sum(((end - (side * 68, -6, 4)) / (60, 86, 138)) ** 2) > 1.1
        if radius < 1.0 or left_the_lung:
            continue
        across = rng.normal(size=3)
        across -= (across @ heading) * heading
        across /= np.linalg.norm(across)
        for sign, share in ((1, rng.uniform(0.72, 0.86)), (-1, rng.uniform(0.62, 0.78))):
            spread = np.tan(np.radians(rng.uniform(18, 48)))
            pending.append((end, heading + sign * spread * across, share * radius, 0.86 * length))
    return branches


def _paint(scene: Scene, anatomy: _Anatomy) -> None:
    scene = scene.scaled(anatomy.scale)
    field, fine = (f.at(scene.axes) for f in (anatomy.texture, anatomy.fine))
    body = _paint_wall(scene, anatomy, field, fine)
    cavity = superquadric(scene.points, (0, -4, 0), (123, 84, 158), 2.5)
    spine = superquadric(scene.points, (0, -66, 0), (19, 17, np.inf))
    cavity = np.maximum(cavity, -(spine - 3))
    lungs = _paint_lungs(scene, anatomy, cavity, field)
    _paint_abdomen(scene, anatomy, cavity, lungs, field)
    _paint_mediastinum(scene, anatomy, lungs)
    _paint_skeleton(scene, anatomy, body, fine)


def _paint_wall(scene: Scene, anatomy: _Anatomy, field: np.ndarray, fine: np.ndarray) -> np.ndarray:
    """Table, skin, fat and muscle; returns the distance to the skin."""
    z = scene.points.z
    width, depth = anatomy.body
    behind, _ = scene.near((-EVERYWHERE,) * 3, (EVERYWHERE, 70 - depth, EVERYWHERE))
    cradle = superquadric(behind.points, (0, 150 - BACK - depth, 0), (270, 152 + anatomy.table, np.inf))
    table = np.maximum(np.abs(cradle + 8) - 8, np.abs(behind.points.x) - 195)
    table = np.maximum(table, behind.points.y + np.float32(depth - 60))
    behind.paint(table, -150.0)
    behind.paint(table + 2, -930.0)
    skin = superquadric(scene.points, (0, -BACK, 0), (width, depth, np.inf), 2.4)
    skin = skin + 0.0007 * np.square(np.maximum(z - 60, 0))
    body = skin
    if anatomy.breasts:
        r = anatomy.breasts
        body = skin.copy()
        front, box = scene.near((-EVERYWHERE, 0, -100), (EVERYWHERE, EVERYWHERE, 70))
        for side in (1, -1):
            place = (side * 74, depth - BACK - 14, -18)
            breast = superquadric(front.points, place, (1.15 * r, 0.62 * r, 1.05 * r))
            body[box] = smooth_union(body[box], breast, 18.0)
    scene.paint(body, 20.0, SOFT)
    scene.paint(body + 2.0, -104 + 6 * field, FAT)
    muscle = skin + anatomy.fat * (1 + 0.25 * field)
    scene.paint(muscle, 50 + 4 * field, SOFT)
    planes = np.abs(fine) * 9 + 0.09 * np.maximum(-muscle - 14, 0) - 1.1  # fat between the muscles
    scene.paint(np.maximum(planes, muscle), -70.0, opacity=0.55)
    return body


def _paint_lungs(scene: Scene, anatomy: _Anatomy, cavity: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Lungs with their vessels and nodules; returns the distance to them."""
    x, y, z = scene.points
    lobe = superquadric(scene.points._replace(x=np.abs(x)), (68, -6, 4), (60, 86, 138), 2.25)
    middle = 20 + np.maximum(0, (z - 60) * 0.05) + np.maximum(0, y - 25) * -0.22  # half the mediastinum's width
    lungs = np.maximum(np.maximum(lobe, cavity), middle - np.abs(x))
    low, box = scene.near((-EVERYWHERE,) * 3, (EVERYWHERE, EVERYWHERE, max(anatomy.domes) + 10))
    for side, top in zip((1, -1), anatomy.domes):
        dome = superquadric(low.points, (side * 62, 2, top - 130), (86, 104, 130))
        lungs[box] = np.maximum(lungs[box], np.where(low.points.x * side > 0, -dome, -EVERYWHERE))
    centre, radii, rotation = anatomy.heart
    chest, box = scene.near(centre - max(radii) - 10, centre + max(radii) + 10)
    heart = superquadric(chest.points, centre, radii + 3, rotation=rotation)
    lungs[box] = np.maximum(lungs[box], -heart)
    scene.paint(lungs, np.float32(anatomy.lung) - 0.28 * y + 14 * field, LUNG)
    inner = lungs + 1
    for path, branch_radii in anatomy.vessels:
        scene.tube(path, branch_radii, 35 + 0.35 * (anatomy.blood - 35), inside=inner)
    for place, radius, density in anatomy.nodules:
        part, box = scene.near(place - radius, place + radius)
        nodule = superquadric(part.points, place, (radius,) * 3) + np.float32(0.12 * radius) * field[box]
        part.paint(np.maximum(nodule, lungs[box]), density, NODULE)
    return lungs


def _paint_abdomen(scene: Scene, anatomy: _Anatomy, cavity: np.ndarray, lungs: np.ndarray, field: np.ndarray) -> None:
    """What lies below the diaphragm: fat, liver on the right, spleen and stomach with gas on the left."""
    low, box = scene.near((-EVERYWHERE,) * 3, (EVERYWHERE, EVERYWHERE, max(anatomy.domes)))
    points = low.points
    below = np.maximum(cavity[box] + 2, 2 - lungs[box])
    right, left = (np.maximum(below, points.z - np.float32(top - 3)) for top in anatomy.domes)
    low.paint(np.maximum(np.minimum(right, left), points.z + 55), -100.0, FAT)
    gain = 0.3 * (anatomy.blood - 40)
    liver = superquadric(points, (52, 6, anatomy.domes[0] - 90), (92, 92, 90))
    low.paint(np.maximum(right, liver), np.float32(58 + gain) + 4 * field[box], SOFT)
    spleen = superquadric(points, (-80, -38, anatomy.domes[1] - 42), (30, 38, 38))
    low.paint(np.maximum(left, spleen), 50 + gain, SOFT)
    stomach = np.maximum(left, superquadric(points, (-58, 26, anatomy.domes[1] - 44), (36, 40, 36)))
    low.paint(stomach, 25.0, SOFT)
    low.paint(np.maximum(stomach + 5, 34 - points.y), -950.0)


def _paint_mediastinum(scene: Scene, anatomy: _Anatomy, lungs: np.ndarray) -> None:
    """Fat between the lungs, heart, great vessels, oesophagus and airway."""
    part, box = scene.near((-50, -70, -70), (50, 80, EVERYWHERE))
    middle = superquadric(part.points, (0, 6, 20), (42, 66, 150), 3.0)
    part.paint(np.maximum(np.maximum(middle, 1.5 - lungs[box]), -62 - part.points.z), -85.0, FAT)
    centre, radii, rotation = anatomy.heart
    part, _ = scene.near(centre - max(radii), centre + max(radii))
    heart = superquadric(part.points, centre, radii, rotation=rotation)
    part.paint(heart, 45.0, BLOOD)  # muscle around the chambers
    for offset, share in CHAMBERS:
        chamber = superquadric(part.points, centre + offset, radii * share, rotation=rotation)
        part.paint(np.maximum(chamber, heart + 4), anatomy.blood, BLOOD)
    for path, vessel_radii in GREAT_VESSELS:
        scene.tube(path, vessel_radii, anatomy.blood, BLOOD)
    scene.tube([(-4, -38, 150), (-5, -40, 40), (-8, -36, -150)], [7.5, 7, 8], 38.0, SOFT)  # oesophagus
    for wall, value, label in ((1.6, 30.0, SOFT), (0.0, AIR_HU, AIRWAY)):
        for path, (first, last) in BRONCHI:
            scene.tube(path, (first + wall, last + wall), value, label)


def _paint_skeleton(scene: Scene, anatomy: _Anatomy, body: np.ndarray, fine: np.ndarray) -> None:
    x, y, z = scene.points
    cage = superquadric(scene.points, (0, -4, 0), (129, 90, 170), 2.5)
    # All ribs at once: they repeat along z, and each drops from the spine to its front end.
    front = np.arctan2(np.abs(x), -(y + 4))  # 0 at the spine, pi at the sternum
    turns = (z + 34 * front) / RIB_PITCH_MM + anatomy.rib_phase
    height = RIB_PITCH_MM * (turns - np.round(turns))
    ribs = np.sqrt(np.square(cage / 4.0) + np.square(height / 6.5)) * 5.0 - 5.0
    ribs = np.maximum(ribs, 10 - np.abs(x))
    bony = np.maximum(ribs, front - 2.45)
    scene.paint(np.maximum(np.maximum(ribs, 2.45 - front), z - 95), 110.0, SOFT)  # cartilage
    scene.paint(bony, 620.0, BONE)
    scene.paint(bony + 1.8, 230 + 40 * fine, BONE)

    part, box = scene.near((-20, 74, -30), (20, 94, 110))
    sternum = superquadric(part.points, (0, 84, 40), (19, 6.5, 66), 3.0)
    part.paint(sternum, 420.0, BONE)
    part.paint(sternum + 2, 140 + 25 * fine[box], BONE)
    for side in (1, -1):
        part, box = scene.near((side * 98 - 50, -115, 10), (side * 98 + 50, -35, 145))
        blade = superquadric(part.points, (side * 102, -76, 78), (5, 38, 60), rotation=tilt((0, 0, side * -62)))
        spine = capsule(part.points, (side * 76, -94, 104), (side * 128, -58, 116), 6)
        blade = np.maximum(np.minimum(blade, spine), body[box] + 6)
        part.paint(blade, 520.0, BONE)
        part.paint(blade + 2, 260.0, BONE)
        scene.tube([(side * 16, 72, 122), (side * 70, 60, 138), (side * 120, 20, 140)], [8, 6, 7], 480.0, BONE)
    _paint_spine(scene, anatomy, body, fine)


def _paint_spine(scene: Scene, anatomy: _Anatomy, body: np.ndarray, fine: np.ndarray) -> None:
    """Vertebrae and discs, repeating along z, with arches, processes and the canal."""
    part, box = scene.near((-40, -130, -EVERYWHERE), (40, -45, EVERYWHERE))
    points, grain = part.points, fine[box]
    height = VERTEBRA_MM * ((points.z / VERTEBRA_MM + anatomy.rib_phase) % 1 - 0.5)  # 0 at a vertebra's middle
    column = superquadric(points, (0, -66, 0), (17.5, 15.5, np.inf), 2.3)
    disc = np.abs(height) - 9.5
    arch = np.maximum(superquadric(points, (0, -90, 0), (17, 13, np.inf)), np.abs(height) - 9)
    spinous = np.maximum(superquadric(points, (0, -110, 0), (3.8, 19, np.inf), 3.0), np.abs(height + 3) - 8)
    wings = np.maximum(superquadric(points, (0, -91, 0), (34, 5, np.inf), 3.0), np.abs(height) - 5)
    behind = np.maximum(np.minimum(np.minimum(arch, spinous), wings), body[box] + 5)
    part.paint(column, 95.0, SOFT)
    bone = np.maximum(column, disc)
    for solid, inner in ((bone, 190.0), (behind, 260.0)):
        part.paint(solid, 560.0, BONE)
        part.paint(solid + 2.0, inner + 35 * grain, BONE)
    part.paint(superquadric(points, (0, -90, 0), (10, 8.5, np.inf)), 25.0, SOFT)  # canal and cord
