"""What the files of a series of derived images can hold."""

from __future__ import annotations

import math

import pytest

from medical_diffusion_components.dicom_export.derived_images import check_levels


@pytest.mark.parametrize("limits", [(-32768.4, 32767.4), (0.0, 255.0)])
def test_what_sixteen_bits_hold_after_rounding_is_accepted(limits: tuple[float, float]) -> None:
    check_levels(*limits, "write NIfTI")


@pytest.mark.parametrize(
    "limits",
    [
        (-32768.6, 0.0),
        (0.0, 32767.6),
        (0.0, 254.9),
        (0.0, math.inf),
        (math.nan, math.nan),
        (0.0, math.nan),
        (255.0, 0.0),
    ],
)
def test_what_sixteen_bits_do_not_hold_is_refused(limits: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="whole numbers from -32768 to 32767, and at least 256 .*: write NIfTI"):
        check_levels(*limits, "write NIfTI")
