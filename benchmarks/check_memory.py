"""Peak memory of training steps that `check` estimates and `memory.py` has no row for: Swin UNETR, and other sizes.

    python benchmarks/check_memory.py [--save]

Every row is a process of its own that makes two training steps of a bundle's own configuration on random volumes.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from bundle_step import BUNDLES, measure_apart
from measuring import add_save, in_own_process, memory_mib, save_rows
from memory import COLUMNS

SWIN = (
    ("swin_unetr_pretrain", [64, 64, 32]),
    ("swin_unetr_finetune", [64, 64, 32]),
    ("swin_unetr_finetune", [64, 64, 64]),
)
OTHER_SIZES = (
    ("adni_ldm", "diffusion", {"batch_size": 4}),
    ("mrnet_ldm", "autoencoder", {"image_size": [96, 96, 32], "compression": [4, 4, 4]}),
)
BATCH = 2  # crops


def measure_swin(bundle: str, roi: list[int]) -> dict[str, Any]:
    """Two steps in this process."""
    import time

    import torch
    from monai.bundle import ConfigParser

    torch.manual_seed(0)
    parser = ConfigParser()
    parser.read_config(BUNDLES / bundle / "configs" / "train.yaml")
    image = torch.rand(BATCH, 1, *roi) * 2 - 1
    mask = (torch.rand(BATCH, 1, *roi) > 0.7).float()
    crops = {"image": image, "target": image.clone(), "mask": mask, "label": mask.long()}
    knobs = {
        "roi_size": roi,
        "batch_size": BATCH,
        "epochs": 1,
        "iterations_per_epoch": 2,
        "amp": False,
        "device": "cpu",
    }
    for id, value in {**knobs, "warmup_iterations": 0, "lr_scheduler": None, "train#handlers": []}.items():
        if id.split("#")[0] in parser:
            parser[id] = value
    parser["train#dataloader"] = [crops] * 2
    before, started = memory_mib("VmRSS"), time.perf_counter()
    parser.get_parsed_content("train#trainer").run()
    seconds = (time.perf_counter() - started) / 2
    return {"seconds": seconds, "before_mib": before, "peak_mib": memory_mib("VmHWM")}


def cells(bundle: str, stage: str, size: list[int], latent: str, batch: int, result: dict[str, Any]) -> dict[str, str]:
    """A row in the form of ``memory.json``."""
    peak, before = (f"{result[key] * 2**20 / 1e9:.2f}" for key in ("peak_mib", "before_mib"))
    seconds = result["seconds"]
    seconds = sum(seconds) / len(seconds) if isinstance(seconds, list) else seconds
    voxels = "x".join(map(str, size))
    return dict(zip(COLUMNS, [bundle, stage, voxels, latent, str(batch), peak, before, f"{seconds:.1f}"], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swin", help=argparse.SUPPRESS)
    add_save(parser)
    args = parser.parse_args()
    if args.swin:
        print(json.dumps(measure_swin(*json.loads(args.swin))))
        return
    rows = []
    for bundle, roi in SWIN:
        result = in_own_process(__file__, ["--swin", json.dumps([bundle, roi])])
        rows.append(cells(bundle, "training", roi, "", BATCH, result))
    for bundle, stage, knobs in OTHER_SIZES:
        result = measure_apart(bundle, stage, 2, **knobs)
        size = result["image_size"]
        latent = result.get("latent_shape") or [n // c for n, c in zip(size, result["compression"])]
        batch = result["autoencoder_batch_size" if stage == "autoencoder" else "batch_size"]
        rows.append(cells(bundle, stage, size, "x".join(map(str, latent[-3:])), batch, result))
    for row in rows:
        print(f"| {' | '.join(row.values())} |", flush=True)
    if args.save:
        save_rows("check_memory", rows, keys=("bundle", "stage", "volume", "batch"))


if __name__ == "__main__":
    main()
