"""An evaluation in words."""

from __future__ import annotations

from medical_diffusion_components.evaluation import headline

PAIRS = {"value": 0.7, "se": 0.01, "real": 0.6, "real_se": 0.02}


def cell(value: float, se: float = 0.01) -> dict:
    return {"value": value, "se": se, "floor": 0.1, "floor_sd": 0.02, "n": 45, "m": 60}


def report(texture: list[float], anatomy: float, audit: dict | None = None) -> dict:
    spaces = {f"slices_{number}": {"counts": True} for number in range(len(texture))}
    row: dict = {name: {"kid": cell(value)} for name, value in zip(spaces, texture)}
    row |= {"anatomy": {"mmd": cell(anatomy)}, "volumes": {"ms_ssim": PAIRS}}
    # a space for comparison alone says nothing in the headline
    spaces |= {"slices_random": {"counts": False}, "anatomy": {"counts": True}}
    row["slices_random"] = {"kid": cell(99.0)}
    return {"spaces": spaces, "rows": {"synthetic": row}, "audit": audit}


def test_the_first_sentence_gives_distances_in_the_spread_of_the_floor_and_copies() -> None:
    audit = {
        "headline": "No copy ... 200.",
        "volumes": {"copy": 0, "withheld": 8, "released": 192},
        "same_volumes": True,
    }
    first, *others = headline(report([0.5, 0.7], 0.11, audit))
    # two planes as one: mean 0.6; slices of the same volumes err together, so the spread stays 0.02
    assert first == (
        "Samples differ from held-out volumes by 25 times the floor's spread in texture and by nothing that 45 volumes can "
        "show in anatomy; no copy found among 200."
    )
    assert others[0].startswith(
        "Texture (KID of slices): 0.6 ± 0.01, two halves of the held-out volumes read 0.1 ± 0.02"
    )
    assert others[1].endswith("no difference that 45 volumes can show.")
    assert "0.700 ± 0.010, real 0.600 ± 0.020: less varied than real ones" in others[2]
    assert others[3] == "Copies: No copy ... 200."


def test_a_difference_must_exceed_the_errors_of_value_and_floor_together() -> None:
    """0.03 above the floor: three errors of the value, but one and a half of the floor's spread."""
    assert "by nothing" in headline(report([0.13], 0.13))[0] and "times" not in headline(report([0.13], 0.13))[0]
    assert headline(report([0.16], 0.16))[0].count("by 3 times the floor's spread") == 2


def test_it_is_the_smaller_set_that_limits_what_can_be_shown() -> None:
    few = report([0.11], 0.11)
    for space in ("slices_0", "anatomy"):
        next(iter(few["rows"]["synthetic"][space].values())).update(n=200, m=6)
    sentences = headline(few)
    assert sentences[0].count("by nothing that 6 volumes can show") == 2
    assert all("no difference that 6 volumes can show" in sentence for sentence in sentences[1:3])


def test_without_an_audit_nothing_is_said_of_copies_but_that() -> None:
    sentences = headline(report([0.5], 0.5))
    assert "nobody has looked for copies" in sentences[0] and len(sentences) == 4
    assert sum("opies" in sentence for sentence in sentences) == 1
