"""An invented knee MR: bones, cartilage, menisci, ligaments and muscles of one leg, left or right.

Proportions and contrasts are rounded from textbook anatomy and from the usual T2-weighted fat-saturated and
proton-density images; no image of a person is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medical_diffusion_components.chance import numpy_generator
from medical_diffusion_components.cohorts.shapes import (
    Numbers,
    Phantom,
    Points,
    Scene,
    SmoothField,
    capsule,
    centred_affine,
    checked_grid,
    render,
    smooth_union,
    superquadric,
    tilt,
    with_receiver_noise,
)

__all__ = ["KNEE_LABELS", "knee_phantom"]

KNEE_FIELD_OF_VIEW_MM = (116.0, 160.0, 160.0)
KNEE_LABELS = {
    "0": "outside the leg",
    "1": "skin and fat",
    "2": "muscle",
    "3": "bone",
    "4": "cartilage",
    "5": "meniscus",
    "6": "ligament or tendon",
    "7": "joint fluid",
}
FAT, MUSCLE, BONE, CARTILAGE, MENISCUS, LIGAMENT, FLUID = range(1, 8)
FINDINGS = ("abnormal", "acl", "meniscus")
# intensities with and without the signal of fat suppressed
CONTRAST = {
    True: {"fat": 190.0, "marrow": 170.0, "muscle": 330.0, "cartilage": 600.0, "fluid": 950.0, "vessel": 700.0},
    False: {"fat": 860.0, "marrow": 740.0, "muscle": 340.0, "cartilage": 540.0, "fluid": 700.0, "vessel": 90.0},
}
DARK = 45.0  # compact bone, tendons, ligaments, menisci
MUSCLES = (  # centre and radii in mm, rotation in degrees; lateral is where x is positive
    ((-20, -46, -62), (22, 20, 84), (6, 0, 0)),  # gastrocnemius, medial head
    ((22, -45, -62), (21, 19, 82), (6, 0, 0)),  # lateral head
    ((-26, -34, 84), (19, 22, 74), (-6, 0, 0)),  # semimembranosus and semitendinosus
    ((28, -32, 84), (18, 22, 72), (-6, 0, 0)),  # biceps femoris
    ((-30, 16, 84), (19, 28, 54), (0, -8, 0)),  # vastus medialis
    ((30, 16, 90), (18, 28, 54), (0, 8, 0)),  # vastus lateralis
    ((0, 34, 100), (22, 8, 44), (4, 0, 0)),  # vastus intermedius and rectus
    ((4, -24, -52), (27, 14, 44), (0, 0, 0)),  # popliteus and soleus
    ((34, 2, -86), (11, 18, 60), (0, 0, 0)),  # tibialis anterior
)
_STREAM = 3  # keeps subjects of one number in different anatomies unrelated


class _Anatomy(NamedTuple):
    lateral: float  # 1 for a right leg, -1 for a left one
    scale: np.ndarray  # (3,)
    fat: float  # under the skin, mm
    cartilage: float  # thickness, mm
    effusion: float  # thickness of the fluid above the knee cap, mm
    patella: float  # height, mm
    findings: dict[str, int]
    tear: float  # which meniscus is torn: 1 lateral, -1 medial
    shading_slope: np.ndarray
    fields: tuple[SmoothField, SmoothField, SmoothField]  # 30, 7 and 70 mm


def knee_phantom(
    subject: int, seed: int = 0, size: Sequence[int] = (32, 96, 96), spacing: Sequence[float] | None = None
) -> Phantom:
    """Make invented knee MR number ``subject`` of the cohort ``seed``.

    Femur, tibia, fibula and knee cap with compact bone and marrow, cartilage, menisci, cruciate ligaments,
    tendons, fat pad, fluid, muscles, vessels, fat and skin. Most subjects are fat-saturated. In some the anterior
    cruciate ligament is torn (thin, wavy and bright) or a meniscus has a bright cleft.

    Args:
        subject: number of the subject, from 0.
        seed: number of the cohort, from 0.
        size: voxels (H, W, D) along right, anterior, superior: sagittal slices are along the first axis.
        spacing: mm; by default `KNEE_FIELD_OF_VIEW_MM` shared out among the voxels. The anatomy is the same at
            every size and spacing.

    Returns:
        Intensities from 0 to about 1,000. ``findings`` has 0 or 1 for ``abnormal``, ``acl`` and ``meniscus``;
        ``label`` as in `KNEE_LABELS`.

    Raises:
        ValueError: an argument out of range.
    """
    size, spacing = checked_grid(subject, seed, size, spacing, KNEE_FIELD_OF_VIEW_MM)
    rng = numpy_generator(seed, subject, _STREAM)
    warp = [SmoothField(rng, knot=45.0) for _ in range(3)]
    anatomy = _draw(rng)
    contrast = {tissue: value * rng.normal(1, 0.06) for tissue, value in CONTRAST[bool(rng.random() < 0.75)].items()}
    sigma = rng.uniform(10, 22)

    def paint(scene: Scene) -> None:
        _paint(scene, anatomy, contrast)

    image, label = render(paint, size, spacing, 0.0, warp, amplitude=1.8)
    return Phantom(with_receiver_noise(image, rng, sigma), centred_affine(size, spacing), label, anatomy.findings)


def _draw(rng: np.random.Generator) -> _Anatomy:
    acl, meniscus = int(rng.random() < 0.2), int(rng.random() < 0.35)
    effusion = rng.uniform(1.2, 3) + 3.5 * acl * rng.random()
    abnormal = int(acl or meniscus or effusion > 2.6)
    return _Anatomy(
        lateral=float(rng.choice((-1, 1))),
        scale=rng.normal(1, 0.045) * rng.normal(1, 0.02, size=3),
        fat=rng.uniform(4, 12),
        cartilage=rng.uniform(1.9, 2.9),
        effusion=effusion,
        patella=rng.normal(32, 3),
        findings=dict(zip(FINDINGS, (abnormal, acl, meniscus))),
        tear=float(rng.choice((-1, 1))),
        shading_slope=rng.normal(0, 0.08, size=3),
        fields=(SmoothField(rng, 30.0), SmoothField(rng, 7.0), SmoothField(rng, 70.0)),
    )


class _Bones(NamedTuple):
    femur: np.ndarray
    tibia: np.ndarray
    fibula: np.ndarray
    patella: np.ndarray


def _paint(scene: Scene, anatomy: _Anatomy, contrast: dict[str, float]) -> None:
    scene = scene.scaled(anatomy.scale)
    if anatomy.lateral < 0:
        scene = scene.mirrored()  # from here on, lateral is where x is positive
    broad, fine, shading = (field.at(scene.axes) for field in anatomy.fields)
    bones = _bones(scene.points, anatomy)
    _paint_soft_tissue(scene, anatomy, contrast, broad, fine)
    _paint_joint(scene, anatomy, contrast, bones)
    _paint_cruciates(scene, anatomy, contrast, fine)
    for bone in bones:
        scene.paint(bone, DARK, BONE)
        scene.paint(bone + 1.5, contrast["marrow"] * (1 + 0.03 * fine + 0.03 * broad))
    slope = sum(np.float32(k / 80) * c for k, c in zip(anatomy.shading_slope, scene.points))
    scene.image *= np.exp(slope + 0.08 * shading)


def _bones(points: Points, anatomy: _Anatomy) -> _Bones:
    """Distances to the bones' surfaces."""
    _, y, z = points
    femur = np.maximum(capsule(points, (0, 6, 46), (0, 10, 140), 17, 14), -1 * z)
    for x, wide, low in ((-23, 19.5, 26.5), (24, 20.0, 27.0)):  # the medial condyle reaches lower
        condyle = superquadric(points, (x, -6, low), (wide, 31, 26))
        femur = smooth_union(femur, condyle, 12.0)
    femur = smooth_union(femur, superquadric(points, (1, 10, 34), (33, 21, 22), 2.5), 8.0)  # trochlea
    groove = capsule(points, (1, 40, 24), (1, 34, 56), 9)
    notch = superquadric(points, (0, -24, 6), (8.5, 30, 21), 2.4)
    femur = np.maximum(femur, -np.minimum(groove, notch))

    plateau = superquadric(points, (0, -7, -22), (39, 25, 19), 3.0)
    tibia = smooth_union(plateau, capsule(points, (0, -3, -34), (0, -8, -140), 23, 14), 18.0)
    tibia = smooth_union(tibia, superquadric(points, (0, 16, -42), (9, 11, 14)), 10.0)  # tuberosity
    for x, top in ((-4, 1), (4, 0)):  # intercondylar tubercles
        tibia = smooth_union(tibia, capsule(points, (x, -5, -8), (x, -6, top), 4, 1), 4.0)
    fibula = smooth_union(
        superquadric(points, (37, -24, -26), (9, 9, 11)), capsule(points, (37, -25, -30), (34, -25, -140), 6.5), 8.0
    )
    patella = superquadric(points, (0, 50, anatomy.patella), (21, 9.5, 21), 2.3)
    patella = np.maximum(patella, np.abs(points.x) * 0.35 - (y - 41))  # its back is a ridge
    return _Bones(femur, tibia, fibula, patella)


def _paint_soft_tissue(
    scene: Scene, anatomy: _Anatomy, contrast: dict[str, float], broad: np.ndarray, fine: np.ndarray
) -> None:
    points = scene.points
    _, y, z = points
    backwards = 0.16 * np.maximum(-z - 10, 0) + 0.04 * np.abs(z)  # shin and calf lie further back than the knee
    skin = superquadric(Points(points.x, y + backwards, z), (0, -4, 0), (53, 60, np.inf), 2.2) - 0.05 * z
    knee_cap = superquadric(points, (0, 40, anatomy.patella - 8), (34, 27, 44))
    skin = smooth_union(skin, knee_cap, 16.0)
    scene.paint(skin, 0.9 * contrast["muscle"], FAT)
    scene.paint(skin + 1.6, contrast["fat"] * (1 + 0.02 * fine))
    room = skin + np.float32(anatomy.fat)
    grain = contrast["muscle"] * (1 + 0.04 * fine + 0.04 * broad)
    sheaths = 1.2 * fine
    for centre, radii, turn in MUSCLES:
        reach = np.abs(tilt(turn)) @ radii
        part, box = scene.near(centre - reach, centre + reach)
        belly = superquadric(part.points, centre, radii, 2.3, tilt(turn)) + sheaths[box]
        part.paint(np.maximum(belly, room[box]), grain[box], MUSCLE)
    scene.tube([(4, -44, 140), (3, -36, 20), (4, -38, -140)], [4.0, 3.6, 3.4], contrast["vessel"])
    scene.tube([(-3, -47, 140), (-3, -41, 20), (-1, -43, -140)], [3.2, 2.8, 2.8], 0.8 * contrast["vessel"])


def _paint_joint(scene: Scene, anatomy: _Anatomy, contrast: dict[str, float], bones: _Bones) -> None:
    """Fluid, cartilage, menisci, tendons and the ligaments at the sides."""
    points = scene.points
    x, y, z = points
    femur, tibia, _, patella = bones
    capsule_room = superquadric(points, (0, -2, 2), (44, 35, 13), 2.6)
    gap = np.maximum(np.maximum(np.minimum(femur, tibia) - 3.4, capsule_room), -np.minimum(femur, tibia))
    scene.paint(gap, 0.8 * contrast["fluid"], FLUID)
    pouch = superquadric(points, (0, 31, anatomy.patella + 24), (19, anatomy.effusion, 24), rotation=tilt((-8, 0, 0)))
    scene.paint(pouch, contrast["fluid"], FLUID)

    thick = np.float32(anatomy.cartilage)
    on_femur = np.maximum(femur - thick, np.maximum(z - 36 - 0.25 * np.maximum(y, 0), -30 - y))
    on_femur = np.maximum(on_femur, 9 - np.abs(x) - np.maximum(y, 0))
    on_tibia = np.maximum(np.maximum(tibia - thick, -9 - z), np.maximum(7 - np.abs(x), np.abs(y + 6) - 23))
    on_patella = np.maximum(patella - 1.2 * thick, y - 45)
    for solid in (on_femur, on_tibia, on_patella):
        scene.paint(solid, contrast["cartilage"], CARTILAGE)
    _paint_menisci(scene, anatomy, contrast, bones)

    cap = anatomy.patella
    front = np.minimum(
        _band(points, (0, 54, cap - 18), (0, 26, -45), 13, 2.4), _band(points, (0, 53, cap + 18), (0, 36, 140), 15, 3.2)
    )
    sides = np.minimum(
        _band(points, (-43, -4, 28), (-39, 2, -52), 1.6, 7), _band(points, (45, -6, 26), (41, -24, -22), 2.0, 3)
    )
    scene.paint(np.minimum(front, sides), DARK, LIGAMENT)


def _paint_menisci(scene: Scene, anatomy: _Anatomy, contrast: dict[str, float], bones: _Bones) -> None:
    """Two C-shaped wedges, open towards the middle of the joint, thick at the rim and sharp inside."""
    for side in (-1.0, 1.0):
        part, box = scene.near((-46, -42, -16), (46, 32, 16))
        x, y, z = part.points
        across, along = (x - side * 23) / 19.5, (y + 6) / (27 if side < 0 else 24)
        radius = np.sqrt(np.square(across) + np.square(along))
        half_height = np.maximum(radius - 0.5, 0) * 11
        wedge = np.maximum(np.maximum(np.abs(z + 0.5) - half_height, (radius - 1) * 20), (0.5 - radius) * 20)
        wedge = np.maximum(wedge, 5.5 - side * x)
        wedge = np.maximum(wedge, 0.4 - np.minimum(bones.femur[box], bones.tibia[box]))
        part.paint(wedge, 1.4 * DARK, MENISCUS)
        if anatomy.findings["meniscus"] and side == anatomy.tear:
            cleft = np.maximum(np.abs(z + 0.5 + 0.25 * (y + 22)) - 0.9, y + 12)  # in the posterior horn
            part.paint(np.maximum(cleft, wedge), 0.85 * contrast["fluid"])


def _paint_cruciates(scene: Scene, anatomy: _Anatomy, contrast: dict[str, float], fine: np.ndarray) -> None:
    points = scene.points
    posterior = np.minimum(
        capsule(points, (-5, 0, 15), (-2, -16, 10), 4.2), capsule(points, (-2, -16, 10), (1, -29, -12), 4.2)
    )
    scene.paint(posterior, DARK, LIGAMENT)
    anterior = capsule(points, (6, -19, 22), (-1, 8, -3), 4.0, 4.6)
    if anatomy.findings["acl"]:
        scene.paint(anterior - 2 + 2.5 * fine, 0.75 * contrast["fluid"], FLUID)
        scene.paint(np.maximum(anterior + 2.2 + 1.5 * fine, points.y + 8), 3 * DARK, LIGAMENT)
    else:
        scene.paint(anterior, DARK * (2.2 + 0.8 * fine), LIGAMENT)


def _band(points: Points, start: Numbers, end: Numbers, half_width: float, half_depth: float) -> np.ndarray:
    """A strap from start to end, ``half_width`` along x and ``half_depth`` along y, mm."""
    start, end = np.asarray(start, dtype=float), np.asarray(end, dtype=float)
    share = np.clip((points.z - np.float32(start[2])) / np.float32(end[2] - start[2]), 0, 1)
    x, y = (np.abs(c - np.float32(a) - np.float32(b - a) * share) for c, a, b in zip(points[:2], start[:2], end[:2]))
    low, high = sorted((start[2], end[2]))
    return np.maximum(np.maximum(x - half_width, y - half_depth), np.maximum(low - points.z, points.z - high))
