"""An epoch of the second stage on cached latents against the same epoch that encodes every batch.

    python benchmarks/cached_latents.py [--bundles adni_ldm lidc_ldm] [--volumes 4] [--batch 2] [--runs 3] [--save]

Both train with everything that the bundle's train.yaml says, at its own sizes, on random volumes. "cached" reads what
`cache_latents` has written, as training does; "encoding" has the volumes ready in memory and sends each through the first
stage, without gradients. The two take turns. Encoding once, which the cache costs before its first epoch (each volume and
its mirror image), is reported separately, in epochs of "encoding".
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from bundle_step import BUNDLES, LDM_BUNDLES
from measuring import add_save, in_own_process, save_rows


class Encode:
    """Volume -> latent, as `cache_latents` does, of the volume or of its mirror image."""

    def __init__(self, first_stage: Any, flip_axis: int) -> None:
        self.first_stage = first_stage.eval()
        self.flip_axis = flip_axis

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        import torch

        image = data["image"].flip(1 + self.flip_axis) if torch.rand(()) < 0.5 else data["image"]
        with torch.no_grad():
            return {**data, "image": self.first_stage.encode_stage_2_inputs(image[None])[0]}


def configuration(bundle: str, folder: Path, batch: int):  # type: ignore[no-untyped-def]
    """The parser of the bundle's second stage for the volumes in ``folder``, without handlers."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(BUNDLES / bundle / "configs" / "train.yaml")
    knobs = {"dataset_dir": str(folder / "volumes"), "output_dir": str(folder), "models_dir": str(folder / "models")}
    knobs["axcodes"] = "RAS"  # as random volumes are written
    for id, value in {**knobs, "device": "cpu", "batch_size": batch, "epochs": 1}.items():
        parser[id] = value
    parser["train#handlers"] = []
    parser["encode#preprocessing_settings"] = {}  # names the cache, here a temporary one
    return parser


def write_random_volumes(folder: Path, size: list[int], number: int) -> None:
    import nibabel
    import numpy as np

    from medical_diffusion_components.files import write_json

    folder.mkdir()
    cases = {"training": range(number), "validation": [number], "test": [number + 1]}
    for index in range(number + 2):
        volume = np.random.default_rng(index).uniform(-1, 1, size).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / f"{index}.nii")
    listed = {
        split: [{"image": f"{i}.nii", "case_id": str(i), "patient_id": str(i)} for i in indices]
        for split, indices in cases.items()
    }
    write_json(folder / "dataset.json", listed)


def measure(bundle: str, volumes: int, batch: int, runs: int) -> dict[str, Any]:
    """Seconds of epochs of either kind, and of encoding everything once, in this process."""
    import torch
    from ignite.engine import Engine, Events
    from monai.data import Dataset
    from torch.utils.data import DataLoader

    from medical_diffusion_components.weights import save_weights

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cached = configuration(bundle, folder, batch)
        size = list(cached.get_parsed_content("image_size"))
        write_random_volumes(folder / "volumes", size, volumes)
        first_stage = configuration(bundle, folder, batch).get_parsed_content("autoencoder_def")
        save_weights(first_stage, folder / "models" / "model_autoencoder.pt", {})
        start = time.perf_counter()
        cached.get_parsed_content("train#dataset")
        once = time.perf_counter() - start

        encoding = configuration(bundle, folder, batch)
        preprocessing = encoding.get_parsed_content("encode").keywords["preprocessing"]
        items = [preprocessing(case) for case in encoding.get_parsed_content("train_cases")]
        encode = Encode(first_stage, encoding.get_parsed_content("flip_axis"))
        encoding["train#dataloader"] = DataLoader(Dataset(items, encode), batch_size=batch, shuffle=True)

        trainers = {
            name: parser.get_parsed_content("train#trainer")
            for name, parser in {"cached": cached, "encoding": encoding}.items()
        }
        done = dict.fromkeys(trainers, 0)

        def count(engine: Engine, name: str) -> None:
            done[name] += 1

        for name, trainer in trainers.items():
            trainer.add_event_handler(Events.ITERATION_COMPLETED, count, name)
        seconds: dict[str, list[float]] = {name: [] for name in trainers}
        for _ in range(runs + 1):  # the first of each is not counted
            for name, trainer in trainers.items():
                before = done[name]
                start = time.perf_counter()
                trainer.run()
                seconds[name].append(time.perf_counter() - start)
                if done[name] - before != -(-volumes // batch):
                    raise RuntimeError(f"expected {-(-volumes // batch)} batches, got {done[name] - before}")
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    made = {"volumes": volumes, "batch": batch, "runs": runs}
    return {"bundle": bundle, "size": size, **made, "seconds": medians, "encoding_once": once}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", nargs="+", choices=LDM_BUNDLES, default=LDM_BUNDLES)
    parser.add_argument("--volumes", type=int, default=4, help="in an epoch")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3, help="timed epochs of each kind")
    parser.add_argument("--measure", choices=LDM_BUNDLES, help=argparse.SUPPRESS)
    add_save(parser)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.volumes, args.batch, args.runs)))
        return

    for bundle in args.bundles:
        sizes = ["--volumes", str(args.volumes), "--batch", str(args.batch), "--runs", str(args.runs)]
        row = in_own_process(__file__, [*sizes, "--measure", bundle])
        row["ratio"] = row["seconds"]["encoding"] / row["seconds"]["cached"]
        row["cache_costs_epochs"] = row["encoding_once"] / row["seconds"]["encoding"]
        print(
            f"{bundle:12}{'x'.join(map(str, row['size'])):>12}   encoding / cached: {row['ratio']:.1f}   "
            f"making the cache: {row['cache_costs_epochs']:.1f} epochs of encoding",
            flush=True,
        )
        if args.save:
            save_rows("cached_latents", [row], keys=("bundle",))


if __name__ == "__main__":
    main()
