"""Time and memory of one training forward: `EMACodebook` against MONAI's `EMAQuantizer`, side by side.

    python benchmarks/codebook.py [--runs 3] [--latents 2 8 16 16 64] [--codes 16384] [--save]

Each measurement is a process of its own, and the two quantisers take turns, so that a shared machine
disturbs both alike. A process builds its quantiser, makes one call on a small input (libraries load, threads
start), then one timed call on the full input. Memory is the process's peak resident set during that call
(``VmHWM``; Linux) less what was resident before. Where the kernel does not let the peak start anew before the
call, an earlier peak (imports) may count against either. Both quantise the same latents with codes from the
same distribution.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from pathlib import Path

from measuring import add_save, memory_mib, save_result, take_turns

VARIANTS = ("EMACodebook", "EMAQuantizer")


def measure(variant: str, shape: list[int], codes: int) -> dict[str, float]:
    """Seconds and additional peak memory of one training forward in this process."""
    import torch

    torch.manual_seed(0)
    if variant == "EMACodebook":
        from medical_diffusion_components.networks.codebook import EMACodebook

        quantiser = EMACodebook(codes, shape[1])
        quantiser.initialised.fill_(True)  # random normal codes, as in MONAI's; restarts and update are timed too
    else:
        from monai.networks.layers.vector_quantizer import EMAQuantizer

        quantiser = EMAQuantizer(3, codes, shape[1])
    latents = torch.randn(shape, requires_grad=True)
    quantiser(torch.randn(1, shape[1], 2, 2, 2))
    with contextlib.suppress(OSError):  # not permitted in some containers
        Path("/proc/self/clear_refs").write_text("5")
    before = memory_mib("VmRSS")
    start = time.perf_counter()
    quantiser(latents)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "mib": memory_mib("VmHWM") - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="measurements of each quantiser")
    parser.add_argument("--latents", type=int, nargs=5, default=[2, 8, 16, 16, 64], metavar=tuple("BCHWD"))
    parser.add_argument("--codes", type=int, default=16384)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    add_save(parser)
    args = parser.parse_args()
    if args.variant:
        print(json.dumps(measure(args.variant, args.latents, args.codes)))
        return

    size = ["--codes", str(args.codes), "--latents", *map(str, args.latents)]
    medians = take_turns(__file__, size, VARIANTS, args.runs)
    ours, theirs = medians["EMACodebook"], medians["EMAQuantizer"]
    print(f"time ratio   EMAQuantizer / EMACodebook: {theirs['seconds'] / ours['seconds']:.1f}")
    print(f"memory ratio EMAQuantizer / EMACodebook: {theirs['mib'] / max(ours['mib'], 0.1):.1f}")
    if args.save:
        save_result("codebook", {"latents": args.latents, "codes": args.codes, "runs": args.runs, "medians": medians})


if __name__ == "__main__":
    main()
