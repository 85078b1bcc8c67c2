from __future__ import annotations

import copy

import pytest
import torch
from ignite.engine import Events
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from medical_diffusion_components.engines.inpainting_trainer import InpaintingEvaluator, InpaintingTrainer
from medical_diffusion_components.losses.inpainting import InpaintingLoss
from medical_diffusion_components.transforms.rand_mask_patches import RandMaskPatchesd


def batch(seed: int = 0, size: tuple = (2, 1, 10, 6, 5), meta: bool = False) -> dict:
    generator = torch.Generator().manual_seed(seed)
    whole = torch.rand(size, generator=generator) * 2 - 1
    mask = RandMaskPatchesd("image", (3, 2, 2), share=0.3).set_random_state(seed)
    items = [mask({"image": MetaTensor(volume) if meta else volume}) for volume in whole]
    return {key: torch.stack([item[key] for item in items]) for key in items[0]} | {"case_id": ["a", "b"]}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv3d(1, 1, 3, padding=1)


def trained(net: nn.Module, data: list[dict], lr: float = 0.1, **settings) -> list[dict[str, Tensor]]:
    outputs = []
    trainer = InpaintingTrainer(
        "cpu", 1, data, net, torch.optim.SGD(net.parameters(), lr), InpaintingLoss(), **settings
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: outputs.append(engine.state.output))
    trainer.run()
    return outputs


def test_a_step_is_gradient_descent_on_the_loss_of_the_painted_volume() -> None:
    net, by_hand, data = network(), network(), batch()
    (output,) = trained(net, [data])
    terms = InpaintingLoss()(by_hand(data["image"]), data["target"], data["mask"])
    terms.loss.backward()
    with torch.no_grad():
        for parameter in by_hand.parameters():
            parameter -= 0.1 * parameter.grad
    for found, expected in zip(net.parameters(), by_hand.parameters()):
        torch.testing.assert_close(found, expected)
    assert output.keys() == {"loss", "l1", "l1_masked", "l1_rest", "ms_ssim_loss"}
    assert all(output[name].item() == pytest.approx(value.item()) for name, value in terms._asdict().items())
    assert not any(value.requires_grad for value in output.values())


def test_training_lowers_the_loss() -> None:
    """To 0.77 of it, in steps so short that it falls from each fifth to the next: long ones jump about a minimum of L1,
    and where they land is a matter of rounding."""
    losses = [output["loss"].item() for output in trained(network(), [batch()] * 30, lr=0.03)]
    assert losses[-1] < 0.85 * losses[0]
    assert all(later < earlier for earlier, later in zip(losses[::5], losses[5::5]))


def test_the_gradient_is_clipped_if_so_wished() -> None:
    net = network()
    before = copy.deepcopy(net)
    trained(net, [batch()], lr=1.0, gradient_clip=0.01)
    step = torch.cat([(a - b).flatten() for a, b in zip(net.parameters(), before.parameters())])
    assert step.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_autocast_reaches_the_network_and_not_the_loss() -> None:
    seen = []

    class Spy(nn.Conv3d):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(super().forward(x).dtype)
            return super().forward(x)

    (output,) = trained(Spy(1, 1, 3, padding=1), [batch()], amp=True)
    assert seen == [torch.bfloat16] and output["loss"].dtype == torch.float32


def judged(net: nn.Module, data: dict, **settings) -> dict[str, Tensor]:
    evaluator = InpaintingEvaluator("cpu", [data], net, InpaintingLoss(), **settings)
    evaluator.run()
    return evaluator.state.output


def test_the_evaluator_judges_each_volume_by_itself() -> None:
    net, data, loss = network(), batch(), InpaintingLoss()
    output = judged(net, data)
    with torch.no_grad():
        pred = net(data["image"])
    torch.testing.assert_close(output["pred"], pred)
    for place in range(2):
        one = slice(place, place + 1)
        terms = loss(pred[one], data["target"][one], data["mask"][one])
        for name, value in terms._asdict().items():
            assert output[name][place].item() == pytest.approx(value.item())


def test_similarity_of_holes_and_rest_looks_at_these_voxels_alone() -> None:
    class Wrong(nn.Module):
        """Right where the mask is ``value``, and wrong elsewhere."""

        def __init__(self, data: dict, value: int) -> None:
            super().__init__()
            self.answer = torch.where(data["mask"] == value, data["target"], -data["target"])

        def forward(self, x: Tensor) -> Tensor:
            return self.answer

    data = batch()
    holes_right, rest_right = judged(Wrong(data, 1), data), judged(Wrong(data, 0), data)
    assert holes_right["ms_ssim_masked"].min() > 0.9999 and holes_right["ms_ssim_rest"].max() < 0.9
    assert rest_right["ms_ssim_rest"].min() > 0.9999 and rest_right["ms_ssim_masked"].max() < 0.9
    for output in (holes_right, rest_right):
        assert (output["ms_ssim"] <= torch.minimum(output["ms_ssim_masked"], output["ms_ssim_rest"]) + 1e-6).all()
    assert holes_right["l1_masked"].max() == 0 and rest_right["l1_rest"].max() == 0


def test_the_network_does_not_learn_from_evaluation() -> None:
    net = network()
    before = copy.deepcopy(net.state_dict())
    output = judged(net.train(), batch())
    assert not net.training and not output["pred"].requires_grad
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_whole_volumes_go_through_an_inferer_and_metadata_stay_outside() -> None:
    data, plain = batch(meta=True), batch()
    output = judged(network(), data, inferer=SlidingWindowInferer((10, 6, 5)))
    torch.testing.assert_close(output["pred"], judged(network(), plain)["pred"])
    assert not any(isinstance(value, MetaTensor) for value in output.values())
