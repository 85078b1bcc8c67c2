"""Peak memory of training at the bundles' own sizes: a Markdown table.

    python benchmarks/memory.py [--bundles adni_ldm lidc_ldm] [--stages autoencoder] [--batch_size 2] [--save]

Every row is a process of its own that makes two training steps (in the second the optimiser's state is there) with
everything that the bundle's configuration says: sizes, batch, networks, losses, optimisers. The peak is that of the
whole process (``VmHWM``; Linux), of which about 0.5 GB are imported libraries; data that a real run keeps in memory come
on top (`cache_rate`). The second stage's own batches of 10 to 50 latents are for GPUs; another one can be given.
"""

from __future__ import annotations

import argparse

from bundle_step import LDM_BUNDLES, STAGES, measure_apart
from measuring import add_save, save_rows

COLUMNS = ("bundle", "stage", "volume", "latent", "batch", "peak GB", "of it before the first step", "seconds a step")


def row(bundle: str, stage: str, steps: int, **overrides: int) -> dict[str, str]:
    """Cells of one measurement."""
    result = measure_apart(bundle, stage, steps, **overrides)
    batch = result["autoencoder_batch_size" if stage == "autoencoder" else "batch_size"]
    size = result["image_size"]
    latent = result.get("latent_shape") or [s // c for s, c in zip(size, result["compression"])]
    seconds = sum(result["seconds"]) / len(result["seconds"])
    sizes = ("x".join(map(str, voxels)) for voxels in (size, latent[-3:]))
    gigabytes = (f"{mib * 2**20 / 1e9:.1f}" for mib in (result["peak_mib"], result["before_mib"]))
    return dict(zip(COLUMNS, [bundle, stage, *sizes, str(batch), *gigabytes, f"{seconds:.1f}"], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", nargs="+", choices=LDM_BUNDLES, default=LDM_BUNDLES)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--batch_size", type=int, help="latents; the bundle's own by default")
    parser.add_argument("--steps", type=int, default=2)
    add_save(parser)
    args = parser.parse_args()

    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    for bundle in args.bundles:
        for stage in args.stages:
            given = stage == "diffusion" and args.batch_size
            batch = {"batch_size": given} if given else {}
            cells = row(bundle, stage, args.steps, **batch)
            print(f"| {' | '.join(cells.values())} |", flush=True)
            if args.save:
                save_rows("memory", [cells], keys=("bundle", "stage"))


if __name__ == "__main__":
    main()
