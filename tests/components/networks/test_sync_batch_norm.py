from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from warm_processes import processes

from medical_diffusion_components.distributed import leave_processes
from medical_diffusion_components.networks.sync_batch_norm import GlobalBatchNorm, sync_batch_norms

SHARES = (3, 1)  # volumes per process: unequal on purpose


def network() -> nn.Module:
    torch.manual_seed(1)
    made = nn.Sequential(
        nn.Conv3d(2, 3, 2), nn.Sequential(nn.BatchNorm3d(3, momentum=0.3), nn.Tanh()), nn.BatchNorm3d(3)
    )
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def batch() -> Tensor:
    return 4 + torch.randn(sum(SHARES), 2, 3, 4, 5, generator=torch.Generator().manual_seed(5))


def trained(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output, gradient of the input and of the parameters, and running statistics after one call."""
    x = x.clone().requires_grad_()
    out = module(x)
    out.square().square().sum().backward()
    gradients = {f"gradient of {name}": parameter.grad for name, parameter in module.named_parameters()}
    state = {name: value.clone() for name, value in module.state_dict().items()}
    return {"out": out.detach(), "x": x.grad, **gradients, **state}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=len(SHARES))
    found = trained(sync_batch_norms(network()), batch().split(SHARES)[rank])
    torch.save(found, f"{folder}/{rank}.pt")
    leave_processes()


@pytest.mark.slow
def test_processes_with_a_share_each_do_what_batch_norm_does_with_the_whole_batch(tmp_path) -> None:
    processes(len(SHARES), worker, str(tmp_path))
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(len(SHARES))]
    for name, expected in trained(network(), batch()).items():
        shares = [rank[name] for rank in ranks]
        if name in ("out", "x"):
            found = torch.cat(shares)
        else:
            found = sum(shares) if name.startswith("gradient") else shares[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3 if name.startswith("gradient") else 1e-4)


def test_alone_it_is_batch_norm_in_training_and_in_evaluation() -> None:
    plain, synced = network(), sync_batch_norms(network())
    for name, expected in trained(plain, batch()).items():
        assert torch.equal(trained(sync_batch_norms(network()), batch())[name], expected), name
    assert torch.equal(synced.eval()(batch()), network().eval()(batch()))


def test_every_batch_norm_is_exchanged_and_the_state_stays() -> None:
    plain, synced = network(), sync_batch_norms(network())
    assert [type(module) for module in synced.modules()].count(GlobalBatchNorm) == 2
    assert not any(isinstance(module, nn.BatchNorm3d) for module in synced.modules())
    before, after = plain.state_dict(), synced.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)


def test_a_batch_norm_that_would_not_be_the_same_is_refused() -> None:
    with pytest.raises(ValueError, match="0: expected a batch norm with parameters"):
        sync_batch_norms(nn.Sequential(nn.BatchNorm3d(3, affine=False)))
