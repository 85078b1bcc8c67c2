"""Classes that a mirror image would turn into each other, such as a left and a right lung."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence

from medical_diffusion_components.orientation import world_axes

__all__ = ["axes_to_flip", "sided_classes"]

logger = logging.getLogger(__name__)

# words of a name: "Left-Hippocampus", "lung_R", "ctx-lh-insula", "leftVentricle"
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SIDES = {
    *("left", "right", "l", "r", "lh", "rh", "lt", "rt"),
    *("sinister", "sinistra", "sinistrum", "dexter", "dextra", "dextrum", "sin", "dex", "sx", "dx"),
    *("links", "linke", "linker", "linkes", "linken", "rechts", "rechte", "rechter", "rechtes", "rechten"),
    *("gauche", "droit", "droite", "izquierdo", "izquierda", "derecho", "derecha"),
    *("sinistro", "destro", "destra", "esquerdo", "esquerda", "direito", "direita"),
    *("lul", "lll", "rul", "rml", "rll", "lv", "rv", "la", "ra"),  # lobes of lungs, chambers of hearts
}
# words in which a side is glued to a structure ("leftkidney", "KIDNEYLEFT"), and those that only look so
_GLUED = re.compile(r"left|right")
_OTHER = re.compile(r"bright|upright|leftover|copyright|wright|cleft")


def sided_classes(names: Iterable[str]) -> list[str]:
    """The names that say left or right, in their order."""
    return [name for name in names if _is_sided(str(name))]


def _is_sided(name: str) -> bool:
    words = {word.lower() for word in _WORD.findall(name)}
    return bool(_SIDES & words) or any(_GLUED.search(_OTHER.sub("", word)) for word in words)


def axes_to_flip(flip_axes: Sequence[int], classes: Iterable[str], axcodes: str = "RAS") -> list[int]:
    """The axes of a random flip, without left-right if a class is of one side: its mirror image would be labelled wrongly.

    Args:
        flip_axes: as configured; 0, 1, 2 are H, W, D.
        classes: their names.
        axcodes: where H, W and D point.
    """
    sideways = [number for number, (axis, _) in enumerate(world_axes(axcodes)) if axis == 0]
    sided = sided_classes(classes)
    left_out = [axis for axis in flip_axes if sided and axis in sideways]
    if left_out:
        logger.warning(
            f"volumes are not flipped along axis {left_out[0]}, left-right: mirrored, the classes {', '.join(sided)} would "
            "be of the other side"
        )
    return [axis for axis in flip_axes if axis not in left_out]
