"""A codebook that several processes train together."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.distributed as dist
from codebooks_for_tests import STATE, same_state, started
from torch import Tensor, nn
from warm_processes import processes

from medical_diffusion_components.distributed import leave_processes
from medical_diffusion_components.networks.codebook import EMACodebook

SHARES = (3, 1)  # volumes per process: unequal on purpose


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(sum(SHARES), 8, 2, 3, 4, generator=generator) for _ in range(4)]


def drawn(shares: Tensor) -> dict[int, Tensor]:
    """Candidates for a codebook with fewer codes than the whole batch has latents, and for one with more."""
    books = [EMACodebook(number, 8) for number in (12, 50)]
    torch.manual_seed(11)
    return {book.num_codes: book._draw_candidates(shares.flatten(0, 1), volumes=len(shares)) for book in books}


def volumes() -> Tensor:
    return torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(6))  # (volume, place, channel)


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
    network = nn.parallel.DistributedDataParallel(
        nn.Sequential(nn.Conv3d(8, 8, 1), EMACodebook(100, 8)), broadcast_buffers=False
    )
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
            "drawn": drawn(volumes()[rank :: len(SHARES)]),
        },
        f"{folder}/{rank}.pt",
    )
    del network  # else it would be the last to hold the group, and end it
    leave_processes()


@pytest.fixture(scope="module")
def given_state() -> dict[str, Tensor]:
    torch.manual_seed(7)
    return started(torch.randn(30, 8)).state_dict()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, given_state: dict[str, Tensor]) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.save(given_state, folder / "given.pt")
    processes(len(SHARES), worker, str(folder))
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
    """Five latents of either process for 100 codes: ten times each, all but the first with a little noise."""
    sources = ranks[0]["candidates"]
    assert torch.equal(sources, ranks[1]["candidates"])
    assert (sources.round()[:, 0] == 0).sum() == 50 and (sources - sources.round()).abs().max() < 0.05
    assert sources[:10].sum() == 5 * 8


@pytest.mark.slow
@needs_gloo
@pytest.mark.parametrize("num_codes", [12, 50])
def test_drawn_latents_are_those_that_one_process_draws_from_the_whole_batch(ranks: list[dict], num_codes: int) -> None:
    expected = drawn(volumes())[num_codes]
    assert len(expected.unique(dim=0)) == num_codes
    for rank in ranks:
        torch.testing.assert_close(rank["drawn"][num_codes], expected, rtol=0, atol=1e-6)
