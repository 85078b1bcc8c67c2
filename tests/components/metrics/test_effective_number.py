from __future__ import annotations

import numpy as np
import pytest

from medical_diffusion_components.metrics import effective_number


def test_copies_count_once_and_far_points_each() -> None:
    assert effective_number(np.ones((7, 3)), 1.0) == pytest.approx(1)
    assert effective_number(1000 * np.arange(7.0)[:, None], 1.0) == pytest.approx(7)


def test_two_places_count_twice_whatever_the_number_in_each() -> None:
    places = np.repeat([[0.0], [1000.0]], 5, axis=0)
    assert effective_number(places, 1.0) == pytest.approx(2)
