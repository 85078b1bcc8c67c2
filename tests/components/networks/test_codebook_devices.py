"""Precision, devices, random state and TorchScript of the codebook."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from codebooks_for_tests import same_state, snapshot, started
from torch import Tensor, nn

from medical_diffusion_components.networks.codebook import EMACodebook
from medical_diffusion_components.networks.nearest_codes import nearest_by_products


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


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
