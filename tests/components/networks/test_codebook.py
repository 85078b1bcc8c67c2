from __future__ import annotations

from pathlib import Path

import pytest
import torch
from codebooks_for_tests import STATE, same_state, snapshot, started, volume

from medical_diffusion_components.networks import codebook as module
from medical_diffusion_components.networks.codebook import EMACodebook


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


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


def test_few_codes_restart_at_latents_themselves_although_the_batch_is_smaller_than_the_codebook() -> None:
    book = started(torch.cat([torch.rand(4, 2), torch.full((12, 2), 100.0)]))
    book.ema_counts[[9, 12, 15]] = 0.5
    latents = torch.rand(6, 2)
    assert book(volume(latents)).restarted_codes == 3
    equal = (book.codes[[9, 12, 15], None] == latents[None]).all(dim=2)
    assert equal.any(dim=1).all() and equal.any(dim=0).sum() == 3, "no latent twice, and none with noise"


def test_the_first_batch_restarts_no_code_however_few_use_it() -> None:
    book = EMACodebook(200, 2)
    assert book(volume(torch.rand(30, 2))).restarted_codes == 0
    assert book(volume(torch.rand(30, 2))).restarted_codes > 0


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


def test_component_does_not_import_the_quantiser_of_monai() -> None:
    assert "monai" not in Path(module.__file__).read_text().lower()
