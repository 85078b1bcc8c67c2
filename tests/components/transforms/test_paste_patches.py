from __future__ import annotations

import torch

from medical_diffusion_components.transforms.paste_patches import PastePatchesd


def test_holes_come_from_the_painted_volume_and_the_rest_from_the_original() -> None:
    mask = torch.zeros(1, 3, 4, 5)
    mask[:, 1, 2:, :2] = 1
    data = {"pred": torch.full((2, 3, 4, 5), 7.0), "target": torch.rand(2, 3, 4, 5), "mask": mask}
    pasted = PastePatchesd("pred")(data)["pred"]
    assert (pasted[:, 1, 2:, :2] == 7).all() and (pasted == 7).sum() == 2 * 4
    assert torch.equal(pasted[:, mask[0] == 0], data["target"][:, mask[0] == 0])
    assert (data["pred"] == 7).all()
