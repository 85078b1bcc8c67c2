"""The random deformation: invertible, smooth, of the size asked for."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from medical_diffusion_components.cohorts.warps import Diffeomorphism, random_velocity, sample, smooth_noise


def test_sampling_equals_scipy():
    rng = np.random.default_rng(0)
    volume = rng.standard_normal((2, 10, 20, 30)).astype(np.float32)
    index = (rng.random((4, 5, 6, 3)) * [9, 19, 29]).astype(np.float32)
    expected = [map_coordinates(channel, np.moveaxis(index, -1, 0), order=1) for channel in volume]
    got = sample(torch.from_numpy(volume), torch.from_numpy(index))
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_linear_velocity_gives_the_matrix_exponential():
    # v = M x: the flow is expm(M) x, away from the borders of the grid
    matrix = torch.tensor([[0.10, 0.05, 0.0], [-0.08, 0.02, 0.03], [0.0, 0.06, -0.12]])
    nodes = torch.stack(torch.meshgrid(*[torch.arange(-20.0, 21.0, 2)] * 3, indexing="ij"))  # (3, X, Y, Z)
    velocity = torch.einsum("ij,jxyz->ixyz", matrix, nodes)
    warp = Diffeomorphism(velocity, (-20, -20, -20), 2.0, np.eye(3))
    points = torch.tensor([[5.0, -3.0, 8.0], [0.0, 0.0, 0.0], [-7.0, 6.0, 1.0]])
    torch.testing.assert_close(warp.forward(points), points @ torch.matrix_exp(matrix).T, atol=0.02, rtol=0)


def test_the_inverse_undoes_the_deformation():
    rng = np.random.default_rng(1)
    matrix = np.array([[1.1, 0.05, 0.0], [0.0, 0.9, 0.02], [0.03, 0.0, 1.05]])
    warp = Diffeomorphism(random_velocity(rng, (30, 35, 32), 5.0, {20.0: 4.0}), (-75, -85, -80), 5.0, matrix)
    points = torch.from_numpy(rng.uniform(-45, 45, (500, 3))).float()
    assert (warp.forward(points) - points).norm(dim=-1).mean() > 3  # mm: there is something to undo
    assert (warp.inverse(warp.forward(points)) - points).norm(dim=-1).max() < 0.5


def test_noise_has_unit_variance_and_the_correlation_of_its_scale():
    field = smooth_noise(np.random.default_rng(2), (60, 70, 80), sigma=2.0)
    assert abs(field.std() - 1) < 0.1
    # white noise under a Gaussian filter correlates as exp(-d^2 / 4 sigma^2)
    assert abs(np.mean(field[3:] * field[:-3]) - np.exp(-9 / 16)) < 0.1


@pytest.mark.parametrize("symmetry", [0.0, 0.7, 1.0])
def test_the_halves_move_as_alike_as_asked(symmetry):
    rng = np.random.default_rng(3)
    velocity = random_velocity(rng, (50, 40, 30), 4.0, {8.0: 2.0}, symmetry).numpy()
    mirrored = velocity[:, ::-1] * np.array([-1, 1, 1]).reshape(3, 1, 1, 1)
    assert abs(np.corrcoef(velocity.ravel(), mirrored.ravel())[0, 1] - symmetry) < 0.1
    assert abs(velocity.std() - 2.0) < 0.2


def test_a_mirroring_matrix_is_refused():
    with pytest.raises(ValueError, match="determinant"):
        Diffeomorphism(torch.zeros(3, 4, 5, 6), (0, 0, 0), 1.0, np.diag([-1, 1, 1]))
