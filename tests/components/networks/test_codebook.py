from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from medical_diffusion_components.networks import codebook as module
from medical_diffusion_components.networks.codebook import EMACodebook, nearest_by_products, nearest_by_tree

STATE = ("codes", "ema_counts", "ema_sums", "initialised")


def volume(rows: Tensor) -> Tensor:
    """``(N, C)`` to ``(1, C, N, 1, 1)``."""
    return rows.t().reshape(1, rows.shape[1], rows.shape[0], 1, 1)


def started(codes: Tensor, count: float = 10.0, **settings: float) -> EMACodebook:
    """A codebook in the midst of training, with the given codes, each of the given running count."""
    book = EMACodebook(codes.shape[0], codes.shape[1], **settings)
    book.codes.copy_(codes)
    book.ema_counts.fill_(count)
    book.ema_sums.copy_(codes * count)
    book.initialised.fill_(True)
    return book


def snapshot(book: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in book.state_dict().items()}


def same_state(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# --- nearest codes ---


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


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("dim", [8, 12])
def test_latents_that_are_not_finite_are_an_error_and_change_nothing(dim: int, number: float) -> None:
    book = started(torch.randn(6, dim))
    before = snapshot(book)
    z = torch.randn(1, dim, 2, 3, 4)
    z[0, 1, 0, 2, 3] = number
    with pytest.raises(ValueError, match=r"finite latents, got 1 of"):
        book(z)
    assert same_state(before, book.state_dict())


# --- output ---


def test_output_is_the_nearest_codes_and_their_indices() -> None:
    book = started(torch.randn(9, 8))
    codes, z = book.codes.clone(), torch.randn(2, 8, 3, 4, 5)
    out = book(z)
    assert out.quantised.shape == z.shape and out.indices.shape == (2, 3, 4, 5)
    assert torch.equal(out.quantised, codes[out.indices].movedim(-1, 1))


def test_gradient_passes_straight_through() -> None:
    z, upstream = torch.randn(2, 8, 3, 4, 5, requires_grad=True), torch.randn(2, 8, 3, 4, 5)
    (started(torch.randn(9, 8))(z).quantised * upstream).sum().backward()
    assert torch.equal(z.grad, upstream)


def test_commitment_loss_and_its_gradient_have_their_closed_form() -> None:
    z = torch.randn(2, 8, 3, 4, 5, requires_grad=True)
    out = started(torch.randn(9, 8), commitment_weight=0.7)(z)
    out.commitment_loss.backward()
    difference = (z - out.quantised).detach()
    torch.testing.assert_close(out.commitment_loss.detach(), 0.7 * difference.square().mean())
    torch.testing.assert_close(z.grad, 0.7 * 2 * difference / z.numel())


def test_perplexity_and_used_codes_match_a_count_by_hand() -> None:
    codes = torch.eye(4)
    z = volume(codes[[0, 0, 1, 3]])
    out = started(codes).eval()(z)
    entropy = -(0.5 * torch.tensor(0.5).log() + 2 * 0.25 * torch.tensor(0.25).log())
    torch.testing.assert_close(out.perplexity, entropy.exp())
    assert out.used_codes == 3


def test_quantise_and_embed_agree_with_forward() -> None:
    book, z = started(torch.randn(9, 8)).eval(), torch.randn(2, 8, 3, 4, 5)
    out = book(z)
    assert torch.equal(book.quantise(z), out.quantised)
    assert torch.equal(book.embed(out.indices), out.quantised)
    assert torch.equal(book.nearest(z), out.indices)


def test_value_range_is_that_of_the_codes() -> None:
    low, high = started(torch.tensor([[-3.0, 1.0], [0.5, 2.0]])).value_range()
    assert (low, high) == (-3.0, 2.0) and low.ndim == high.ndim == 0


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_memory_format_of_the_input_is_kept(layout: torch.memory_format) -> None:
    z = torch.randn(2, 8, 3, 4, 5).contiguous(memory_format=layout)
    book = started(torch.randn(9, 8))
    assert book.quantise(z).is_contiguous(memory_format=layout)
    assert book(z).quantised.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("shape", [(2, 7, 3, 4, 5), (8, 3, 4, 5), (2, 8, 3, 4), (0, 8, 3, 4, 5)])
@pytest.mark.parametrize("method", ["forward", "nearest", "quantise"])
def test_error_on_a_wrong_shape_names_both(method: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as error:
        getattr(EMACodebook(5, 8), method)(torch.randn(shape))
    assert "(B, 8, H, W, D)" in str(error.value) and str(list(shape)) in str(error.value)


def test_error_on_indices_that_are_no_volume() -> None:
    with pytest.raises(ValueError, match=r"\(B, H, W, D\), got shape \[3\]"):
        EMACodebook(5, 8).embed(torch.tensor([0, 1, 2]))


@pytest.mark.parametrize(
    "setting",
    [
        {"num_codes": 0},
        {"dim": 0},
        {"chunk_size": 0},
        {"decay": 1.0},
        {"decay": -0.1},
        {"commitment_weight": -1},
        {"restart_threshold": -1},
        {"restart_threshold": float("inf")},
    ],
)
def test_error_on_a_setting_out_of_range_names_it(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        EMACodebook(**{"num_codes": 5, "dim": 8} | setting)


# --- initialisation ---


def test_first_batch_gives_the_codes_without_repetition() -> None:
    book = EMACodebook(20, 8, decay=0.999999)
    latents = torch.randn(60, 8)
    book._initialise(book._draw_candidates(latents))
    sources = (book.codes[:, None] == latents[None]).all(dim=2)
    assert (sources.sum(dim=1) == 1).all() and sources.any(dim=0).sum() == 20
    assert book.initialised


def test_initial_codes_are_those_of_the_first_batch_and_not_the_random_ones_of_construction() -> None:
    book, z = EMACodebook(20, 8), 50 + torch.randn(2, 8, 3, 4, 5)
    out = book(z)
    assert 0 < out.commitment_loss < 1 and out.restarted_codes == 0
    assert book.codes.min() > 40


def test_a_first_batch_smaller_than_the_codebook_is_repeated_with_little_noise() -> None:
    book, latents = EMACodebook(500, 8), torch.randn(30, 8)
    candidates = book._draw_candidates(latents)
    distances, sources = torch.cdist(candidates, latents, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
    assert torch.bincount(sources).min() == 16  # 500 / 30, floor
    assert (distances == 0).sum() == 30 and distances.max() < 0.01 * 3 * 8
    assert len(candidates.unique(dim=0)) == 500


def test_second_batch_does_not_initialise_again() -> None:
    book, z = EMACodebook(20, 8, decay=0.999), torch.randn(2, 8, 3, 4, 5)
    book(z)
    codes = book.codes.clone()
    book(torch.full_like(z, 100))
    moved = ((book.codes - codes).abs() > 1e-3).any(dim=1)
    assert moved.sum() == 1  # the one code nearest to that far point


def test_reloaded_codebook_does_not_initialise_again(tmp_path: Path) -> None:
    book = EMACodebook(20, 8)
    book(torch.randn(2, 8, 3, 4, 5))
    torch.save(book.state_dict(), tmp_path / "state.pt")
    reloaded = EMACodebook(20, 8)
    reloaded.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    z = torch.randn(2, 8, 3, 4, 5)
    torch.manual_seed(3)
    book(z)
    torch.manual_seed(3)
    reloaded(z)
    assert same_state(book.state_dict(), reloaded.state_dict())


def test_what_is_learned_is_in_the_state_dict() -> None:
    assert set(EMACodebook(5, 8).state_dict()) == set(STATE)
    assert not list(EMACodebook(5, 8).parameters())


def test_evaluation_changes_nothing() -> None:
    book = EMACodebook(20, 8).eval()
    before = snapshot(book)
    out = book(torch.randn(2, 8, 3, 4, 5))
    assert same_state(before, book.state_dict()) and out.restarted_codes == 0


# --- update ---


def test_update_follows_the_formula_of_the_paper() -> None:
    codes, counts = torch.randn(6, 8), torch.tensor([3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    book = started(codes, decay=0.9, restart_threshold=0.0)
    book.ema_counts.copy_(counts)
    book.ema_sums.copy_(codes * counts[:, None])
    z = torch.randn(2, 8, 3, 4, 5)
    rows, assigned = z.movedim(1, -1).reshape(-1, 8), book(z).indices.flatten()
    one_hot = torch.nn.functional.one_hot(assigned, 6).float()
    new_counts = 0.9 * counts + 0.1 * one_hot.sum(0)
    new_sums = 0.9 * codes * counts[:, None] + 0.1 * one_hot.t() @ rows
    torch.testing.assert_close(book.ema_counts, new_counts)
    torch.testing.assert_close(book.ema_sums, new_sums)
    torch.testing.assert_close(book.codes, new_sums / new_counts[:, None])


def test_a_code_without_users_stays_in_place_for_ever() -> None:
    codes = torch.tensor([[0.0, 0.0], [9.0, -9.0]])
    book = started(codes, decay=0.5, restart_threshold=0.0)
    for _ in range(300):  # 0.5^300 is no float32
        book(0.1 * torch.randn(1, 2, 2, 3, 4))
    assert book.ema_counts[1] == 0
    torch.testing.assert_close(book.codes[1], codes[1], rtol=1e-5, atol=0)
    book(volume(torch.tensor([[8.0, -8.0]])))  # and is still of use
    torch.testing.assert_close(book.codes[1], torch.tensor([8.0, -8.0]))


def test_codes_converge_to_the_means_of_clusters() -> None:
    centres = torch.tensor([[0.0, 5.0, 0.0], [5.0, 0.0, 1.0], [-5.0, 0.0, 2.0], [0.0, -5.0, 3.0]])
    book = started(centres + torch.rand(4, 3), decay=0.9)
    for _ in range(150):
        book(volume(centres[torch.randint(4, (64,))] + 0.1 * torch.randn(64, 3)))
    assert (book.codes - centres).norm(dim=1).max() < 0.1


# --- restarts ---


def test_a_code_restarts_at_a_latent_of_the_batch_when_its_count_falls_below_the_threshold() -> None:
    book = started(torch.tensor([[0.0, 0.0], [100.0, 100.0], [-100.0, 0.0]]), count=1.5)
    book.ema_counts[1] = 1.005  # falls to 0.995; the third falls to 1.485 and stays
    latents = torch.rand(30, 2)
    out = book(volume(latents))
    assert out.restarted_codes == 1
    assert (latents == book.codes[1]).all(dim=1).any()
    torch.testing.assert_close(book.codes[2], torch.tensor([-100.0, 0.0]))


def test_restarted_codes_stay_where_they_were_put() -> None:
    book = started(torch.cat([torch.zeros(1, 2), torch.full((5, 2), 100.0)]), count=1.0)
    book.ema_sums.mul_(1000)  # a stale sum far out, which would drag them back
    latents = torch.rand(30, 2)
    z = volume(latents)
    assert book(z).restarted_codes == 5
    for _ in range(20):
        assert book(z).restarted_codes == 0
        assert (book.codes[1:] >= 0).all() and (book.codes[1:] <= 1).all()


def test_a_restarted_code_has_69_batches_to_find_users() -> None:
    book = started(torch.tensor([[0.0, 0.0], [100.0, 100.0]]), count=1.0)
    z = volume(torch.rand(30, 2))
    book(z)
    book.codes[1], book.ema_sums[1] = 100.0, 200.0
    assert [int(book(z).restarted_codes) for _ in range(69)] == [0] * 68 + [1]


def test_several_codes_restart_at_different_latents() -> None:
    book = started(torch.full((9, 2), 100.0) + torch.rand(9, 2), count=0.5)
    latents = torch.rand(10, 2) * 4
    assert book(volume(latents)).restarted_codes == 9
    assert (book.codes[:, None] == latents[None]).all(dim=2).any(dim=0).sum() == 9


def test_codes_initialised_together_do_not_restart_together() -> None:
    book = EMACodebook(200, 2)
    book(volume(torch.rand(500, 2)))
    restarted = [int(book(volume(5 + 0.01 * torch.rand(30, 2))).restarted_codes) for _ in range(60)]
    assert sum(restarted) > 150 and max(restarted) <= 10


def test_threshold_zero_switches_restarts_off() -> None:
    book = started(torch.tensor([[0.0, 0.0], [100.0, 100.0]]), count=1e-3, restart_threshold=0.0)
    out = book(volume(torch.rand(30, 2)))
    assert out.restarted_codes == 0
    torch.testing.assert_close(book.codes[1], torch.tensor([100.0, 100.0]))


def test_a_codebook_larger_than_every_batch_stays_healthy() -> None:
    book = EMACodebook(600, 4)
    for _ in range(150):
        out = book(volume(torch.rand(40, 4)))
    assert all(torch.isfinite(tensor).all() for tensor in (book.codes, book.ema_counts, book.ema_sums))
    assert book.codes.min() > -0.1 and book.codes.max() < 1.1
    assert out.restarted_codes < 600 / 10  # not all of them in every batch
    assert out.used_codes > 35


# --- precision, randomness, devices ---


def test_half_precision_input_under_autocast_is_quantised_in_single_precision() -> None:
    books = [started(torch.randn(9, 8), restart_threshold=0.0) for _ in range(2)]
    books[1].load_state_dict(books[0].state_dict())
    z = torch.randn(2, 8, 3, 4, 5).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = books[0](z)
    expected = books[1](z.detach().float())
    assert out.quantised.dtype == torch.bfloat16 and torch.equal(out.quantised, expected.quantised.bfloat16())
    assert out.commitment_loss.dtype == torch.float32 and out.commitment_loss == expected.commitment_loss
    assert same_state(books[0].state_dict(), books[1].state_dict())
    out.quantised.sum().backward()
    assert z.grad.dtype == torch.bfloat16 and (z.grad == 1).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_casting_the_network_leaves_the_codebook_in_single_precision(dtype: torch.dtype) -> None:
    network = nn.Sequential(EMACodebook(5, 8))
    before = snapshot(network)
    network.to(dtype)
    assert same_state(before, network.state_dict())


def test_equal_seeds_give_equal_codebooks() -> None:
    def train(seed: int) -> dict[str, Tensor]:
        book, batches = EMACodebook(200, 8), torch.randn(4, 2, 8, 3, 4, 5)
        torch.manual_seed(seed)
        for z in batches:
            book(z)
        return book.state_dict()

    first = train(1)
    torch.manual_seed(0)
    assert same_state(first, train(1)) != same_state(first, train(2))


def test_training_on_a_device_never_makes_the_host_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    # A meta tensor has no values: whatever would read one (`item`, `if`, a size that depends on data) raises.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    book = EMACodebook(70, 8, chunk_size=7).to("meta")
    for depth in (1, 5):
        out = book(torch.randn(2, 8, 3, 4, depth, device="meta"))
    assert out.restarted_codes.device.type == "meta"
    with pytest.raises(RuntimeError):
        bool(out.restarted_codes)


def test_devices_without_the_check_keep_the_codebook_from_latents_that_are_not_finite(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocks = lambda book, latents: nearest_by_products(latents, book.codes, 16)  # noqa: E731
    monkeypatch.setattr(EMACodebook, "_nearest_rows", blocks)
    z = torch.randn(2, 8, 3, 4, 5)
    z[0, 3, 1, 1, 1] = float("nan")
    for book in (EMACodebook(20, 8), started(torch.randn(20, 8), count=0.5)):
        before = snapshot(book)
        out = book(z)
        assert out.commitment_loss.isnan() and out.restarted_codes == 0
        assert same_state(before, book.state_dict())


def test_sums_with_and_without_bincount_agree() -> None:
    book, rows, latents = EMACodebook(9, 8), torch.randint(8, (60,)), torch.randn(60, 8)
    counts, sums = book._sums_per_code(latents, rows)
    one_hot = torch.nn.functional.one_hot(rows, 9).float()
    assert torch.equal(counts, one_hot.sum(0))
    torch.testing.assert_close(sums, one_hot.t() @ latents)


# --- TorchScript ---


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.codebook = EMACodebook(30, 8, chunk_size=7)

    def forward(self, z: Tensor) -> Tensor:
        low, high = self.codebook.value_range()
        return self.codebook.quantise((z + 1) / 2 * (high - low) + low)


def test_scripted_network_equals_eager_and_loads_its_state(tmp_path: Path) -> None:
    network, z = Decoder().eval(), torch.rand(2, 8, 3, 4, 5) * 2 - 1
    torch.jit.script(Decoder()).save(str(tmp_path / "model.ts"))
    scripted = torch.jit.load(str(tmp_path / "model.ts"))
    scripted.load_state_dict(network.state_dict())
    assert torch.equal(scripted(z), network(z))


def test_scripted_codebook_serves_on_its_own() -> None:
    book, z = EMACodebook(30, 8, chunk_size=7).eval(), torch.randn(2, 8, 3, 4, 5)
    scripted = torch.jit.script(book)
    assert torch.equal(scripted.nearest(z), book.nearest(z))
    assert torch.equal(scripted.quantise(z), book.quantise(z))
    assert torch.equal(scripted.embed(book.nearest(z)), book.quantise(z))
    assert scripted.value_range() == book.value_range()
    with pytest.raises(torch.jit.Error, match="expected non-empty latents"):
        scripted.quantise(z[:, :7])


# --- several processes ---

SHARES = (3, 1)  # volumes per process: unequal on purpose


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(sum(SHARES), 8, 2, 3, 4, generator=generator) for _ in range(4)]


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=len(SHARES))
    torch.manual_seed(rank)
    shares = [z.split(SHARES)[rank] for z in batches()]

    given = torch.load(f"{folder}/given.pt", weights_only=True)
    book = EMACodebook(30, 8, restart_threshold=0.0)
    book.load_state_dict(given)
    outputs = [book(z) for z in shares]
    book.eval()
    if rank == 0:
        book(shares[0])  # evaluation may differ between processes: it waits for nobody

    # Inside DDP, as training runs it: from the first batch, with restarts, and a parameter so that DDP accepts it.
    network = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Conv3d(8, 8, 1), EMACodebook(100, 8)))
    restarted = 0
    for z in shares:
        network.module[1].ema_counts[::9] = 0.0
        out = network(z)
        (out.quantised.square().mean() + out.commitment_loss).backward()
        restarted += int(out.restarted_codes)
    candidates = network.module[1]._draw_candidates(torch.full((5, 8), float(rank)))
    torch.save(
        {
            "given": book.state_dict(),
            "perplexity": torch.stack([out.perplexity for out in outputs]),
            "used": torch.stack([out.used_codes for out in outputs]),
            "ddp": {name: getattr(network.module[1], name) for name in STATE},
            "restarted": restarted,
            "candidates": candidates,
        },
        f"{folder}/{rank}.pt",
    )
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def given_state() -> dict[str, Tensor]:
    torch.manual_seed(7)
    return started(torch.randn(30, 8)).state_dict()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, given_state: dict[str, Tensor]) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.save(given_state, folder / "given.pt")
    torch.multiprocessing.spawn(worker, (str(folder),), nprocs=len(SHARES))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(len(SHARES))]


needs_gloo = pytest.mark.skipif(sys.platform == "win32", reason="gloo over a file is not to be had on Windows")


@pytest.mark.slow
@needs_gloo
def test_processes_hold_the_same_codebook_to_the_bit(ranks: list[dict]) -> None:
    assert same_state(ranks[0]["given"], ranks[1]["given"])
    assert same_state(ranks[0]["ddp"], ranks[1]["ddp"])
    assert ranks[0]["restarted"] == ranks[1]["restarted"] > 0
    assert ranks[0]["ddp"]["initialised"]


@pytest.mark.slow
@needs_gloo
def test_processes_make_the_update_of_the_whole_batch(ranks: list[dict], given_state: dict[str, Tensor]) -> None:
    alone = EMACodebook(30, 8, restart_threshold=0.0)
    alone.load_state_dict(given_state)
    outputs = [alone(z) for z in batches()]
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(ranks[0]["given"][name], tensor)
    for rank in ranks:
        torch.testing.assert_close(rank["perplexity"], torch.stack([out.perplexity for out in outputs]))
        assert torch.equal(rank["used"], torch.stack([out.used_codes for out in outputs]))


@pytest.mark.slow
@needs_gloo
def test_drawn_latents_come_from_every_process(ranks: list[dict]) -> None:
    sources = ranks[0]["candidates"][:, 0]
    assert torch.equal(sources, torch.tensor([0.0, 1.0]).repeat(50))


def test_component_does_not_import_the_quantiser_of_monai() -> None:
    assert "monai" not in Path(module.__file__).read_text().lower()
