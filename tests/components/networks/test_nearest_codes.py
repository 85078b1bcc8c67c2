from __future__ import annotations

import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from medical_diffusion_components.networks.codebook import EMACodebook
from medical_diffusion_components.networks.nearest_codes import nearest_by_products, nearest_by_tree


@pytest.mark.parametrize("dim", [1, 3, 8, 10, 11, 16])
def test_nearest_codes_are_those_of_brute_force(dim: int) -> None:
    book = EMACodebook(70, dim, chunk_size=32)
    z = torch.randn(2, dim, 3, 5, 7)
    expected = cdist(z.movedim(1, -1).reshape(-1, dim).double(), book.codes.double()).argmin(axis=1)
    assert book.nearest(z).flatten().tolist() == expected.tolist()


@pytest.mark.parametrize("chunk_size", [1, 7, 256])
def test_nearest_codes_do_not_depend_on_the_size_of_blocks(chunk_size: int) -> None:
    latents, codes = torch.randn(50, 8), torch.randn(33, 8)
    assert torch.equal(nearest_by_products(latents, codes, chunk_size), nearest_by_tree(latents, codes))


@pytest.mark.parametrize("method", [nearest_by_tree, lambda z, c: nearest_by_products(z, c, 64)])
@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-5])
def test_near_ties_far_from_the_origin_are_still_resolved(method, spread: float) -> None:
    codes = 100 + spread * torch.randn(300, 8)
    codes[0] = -50  # one stray code, so that the mean of the codes is not where the others are
    latents = 100 + spread * torch.randn(200, 8)
    distances = torch.from_numpy(cdist(latents.double(), codes.double()))
    reached = distances.gather(1, method(latents, codes)[:, None])[:, 0]
    torch.testing.assert_close(reached, distances.min(dim=1).values, rtol=1e-6, atol=0)


def test_products_tell_apart_what_float32_does_in_many_dimensions_far_from_the_origin() -> None:
    steps = torch.randint(-3, 4, (500, 64))  # of one unit in the last place
    latents, codes = (8190 + steps.float() / 2048).split([200, 300])
    distances = (steps[:200, None] - steps[None, 200:]).square().sum(2)
    found = nearest_by_products(latents, codes, 64)
    assert torch.equal(distances.gather(1, found[:, None])[:, 0], distances.min(dim=1).values)


def test_products_in_single_precision_would_not_resolve_them() -> None:
    codes, latents = 100 + 1e-3 * torch.randn(300, 8), 100 + 1e-3 * torch.randn(200, 8)
    plain = (codes.square().sum(1) / 2 - latents @ codes.t()).argmin(1)
    assert (plain != nearest_by_tree(latents, codes)).float().mean() > 0.5


@pytest.mark.parametrize("method", [nearest_by_tree, lambda z, c: nearest_by_products(z, c, 100)])
def test_duplicated_codes_are_searched_without_trouble(method) -> None:
    codes = torch.cat([torch.zeros(3000, 8), torch.ones(1, 8), torch.zeros(3000, 8)])
    found = method(torch.cat([torch.full((50, 8), 0.9), torch.full((50, 8), 0.1)]), codes)
    assert (found[:50] == 3000).all() and (found[50:] != 3000).all()


def test_blocks_take_the_lowest_index_of_equal_codes() -> None:
    codes = torch.tensor([[5.0, 5.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert nearest_by_products(torch.zeros(9, 2), codes, 4).tolist() == [1] * 9


def test_no_block_of_distances_exceeds_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    plain = torch.addmm

    def watched(*args, **kwargs) -> Tensor:
        sizes.append(tuple(args[1].shape))
        return plain(*args, **kwargs)

    monkeypatch.setattr(torch, "addmm", watched)
    EMACodebook(20, 12, chunk_size=16)(torch.randn(1, 12, 2, 5, 4))
    assert sizes == [(16, 12), (16, 12), (8, 12)]
