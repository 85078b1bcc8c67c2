from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from ignite.engine import Engine

from medical_diffusion_components.reports.segmentation_montage import SegmentationMontage, SegmentationPictures


def case(number: int) -> dict:
    label = torch.zeros(3, 10, 20, 6)
    label[0], label[1, :5], label[2, number] = 0.5, 1, 2
    return {"image": torch.full((1, 10, 20, 6), number / 10), "pred": label, "label": label.flip(1)}


def test_predictions_and_labels_are_drawn_as_the_classes_of_their_one_hot_form() -> None:
    pictures = SegmentationPictures(num_volumes=2)
    pictures.collect([case(6), case(7), case(8)])
    images, predicted, drawn = pictures.volumes.values()
    assert len(images) == 2, "no more than asked for"
    np.testing.assert_array_equal(images[1], np.full((10, 20, 6), np.float32(0.7)))
    expected = np.zeros((10, 20, 6), dtype=int)
    expected[:5], expected[7] = 1, 2
    np.testing.assert_array_equal(predicted[1], expected)
    np.testing.assert_array_equal(drawn[1], expected[::-1])


def test_a_montage_is_drawn_after_every_validation_by_the_first_rank(tmp_path: Path) -> None:
    for rank, epochs in ((0, [1, 2]), (1, [])):
        shown = []
        writer = SimpleNamespace(add_figure=lambda name, figure, epoch, shown=shown: shown.append((name, epoch)))
        engine = Engine(lambda *_: [case(6)])
        engine.state.rank = rank
        SegmentationMontage(tmp_path / str(rank), writer, spacing=(1.0, 2.0, 3.0)).attach(engine)
        engine.run([0, 0], max_epochs=2)
        assert shown == [("segmentation", epoch) for epoch in epochs]
        names = [path.name for path in sorted(tmp_path.glob(f"{rank}/*.png"))]
        assert names == [f"segmentation_{epoch:05d}.png" for epoch in epochs]
