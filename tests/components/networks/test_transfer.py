from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from monai.networks.nets import SwinUNETR

from medical_diffusion_components.networks.transfer import PARTS, start_from, transfer_weights
from medical_diffusion_components.weights import WeightsError, save_weights


def swin(out_channels: int = 3, **changed) -> SwinUNETR:
    sizes = {"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "window_size": 2, **changed}
    return SwinUNETR(in_channels=sizes.pop("in_channels", 1), out_channels=out_channels, **sizes)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    return save_weights(swin(out_channels=1), tmp_path_factory.mktemp("pretrained") / "model.pt", {"data": "phantoms"})


def test_all_but_the_head_comes_from_the_file(pretrained: Path) -> None:
    network, found = swin(), torch.load(pretrained, weights_only=True)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    report = transfer_weights(network, pretrained)
    after = network.state_dict()
    assert set(report.left) == {"out.conv.conv.weight", "out.conv.conv.bias"} == set(report.unused)
    assert set(report.loaded) == after.keys() - report.left.keys()
    assert all(torch.equal(after[name], found[name]) for name in report.loaded)
    assert all(torch.equal(after[name], before[name]) for name in report.left)
    assert "(3, 12, 1, 1, 1), in the file (1, 12, 1, 1, 1)" in report.left["out.conv.conv.weight"]


def test_only_the_encoder_can_be_loaded(pretrained: Path) -> None:
    network = swin()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    report = transfer_weights(network, pretrained, ["encoder"])
    assert {name.split(".")[0] for name in report.loaded} == {
        "swinViT", "encoder1", "encoder2", "encoder3", "encoder4", "encoder10",
    }  # fmt: skip
    assert {name.split(".")[0] for name in report.left} == {f"decoder{n}" for n in range(1, 6)} | {"out"}
    assert all(torch.equal(network.state_dict()[name], before[name]) for name in report.left)
    assert any(not torch.equal(network.state_dict()[name], before[name]) for name in report.loaded)


def test_the_parts_and_the_head_are_the_whole_network() -> None:
    prefixes = (*PARTS["encoder"], *PARTS["decoder"], "out.")
    assert all(sum(name.startswith(p) for p in prefixes) == 1 for name in swin().state_dict())


def test_a_head_of_the_same_shape_goes_with_the_decoder(pretrained: Path) -> None:
    assert transfer_weights(swin(out_channels=1), pretrained).left == {}
    assert "out.conv.conv.bias" in transfer_weights(swin(out_channels=1), pretrained, ["encoder"]).left


def test_the_transferred_network_computes_what_the_pretrained_did(pretrained: Path) -> None:
    source, network = swin(out_channels=1), swin()
    source.load_state_dict(torch.load(pretrained, weights_only=True))
    transfer_weights(network, pretrained)
    volume = torch.randn(1, 1, 64, 32, 32)
    features = []
    for model in (source, network):
        model.out.register_forward_hook(lambda _, inputs, __: features.append(inputs[0]))
        with torch.no_grad():
            model.eval()(volume)
    torch.testing.assert_close(features[0], features[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    "changed, told",
    [
        ({"feature_size": 24}, "the file's feature_size is 12, the network's 24"),
        ({"window_size": 4}, "the file's window_size is 2, the network's 4"),
        ({"depths": [1, 2, 1, 1]}, r"the file's depths is \[1, 1, 1, 1\], the network's \[1, 2, 1, 1\]"),
        ({"num_heads": [1, 1, 4, 8]}, r"the file's num_heads is \[1, 2, 4, 8\], the network's \[1, 1, 4, 8\]"),
        ({"in_channels": 2}, "the file's image_channels is 1, the network's 2"),
    ],
)
def test_weights_of_another_size_are_refused_with_the_knob_to_change(
    pretrained: Path, changed: dict, told: str
) -> None:
    network = swin(**changed)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(WeightsError, match=told):
        transfer_weights(network, pretrained)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_a_tensor_too_few_or_too_many_is_an_error(pretrained: Path, tmp_path: Path, change: str) -> None:
    state = torch.load(pretrained, weights_only=True)
    if change == "missing":
        del state["encoder3.layer.conv2.conv.weight"]
    else:
        state["encoder3.layer.conv9.conv.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "model.pt")
    what = {"missing": "missing", "extra": "unexpected"}[change]
    with pytest.raises(WeightsError, match=rf"Tensors: 1 {what} \(such as encoder3\.layer\.conv\d\.conv\.weight\)$"):
        transfer_weights(swin(), tmp_path / "model.pt")


def test_a_file_that_is_not_there_or_no_state_dict_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nowhere\.pt, but there is no such file"):
        transfer_weights(swin(), tmp_path / "nowhere.pt")
    torch.save({"model": swin().state_dict()}, tmp_path / "wrapped.pt")
    with pytest.raises(WeightsError, match=r"wrapped\.pt holds no plain state dict"):
        transfer_weights(swin(), tmp_path / "wrapped.pt")
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(WeightsError, match=r"text\.pt cannot be read as weights"):
        transfer_weights(swin(), tmp_path / "text.pt")


@pytest.mark.parametrize("parts", [[], ["encodr"]])
def test_unknown_parts_are_refused(pretrained: Path, parts: list[str]) -> None:
    with pytest.raises(ValueError, match="must be some of encoder, decoder"):
        transfer_weights(swin(), pretrained, parts)


def test_what_training_starts_from_is_written_down(pretrained: Path, tmp_path: Path) -> None:
    report = start_from(swin(), pretrained, ["encoder"], tmp_path)
    told = json.loads((tmp_path / "transfer.json").read_text())
    assert told["pretrained"]["sha256"] == hashlib.sha256(pretrained.read_bytes()).hexdigest() == report.sha256
    assert told["pretrained"]["loaded"] == list(report.loaded) and told["made_from"] == "phantoms"
    assert start_from(swin(), None, ["encoder"], tmp_path) is None
    assert json.loads((tmp_path / "transfer.json").read_text()) == {"pretrained": None}
