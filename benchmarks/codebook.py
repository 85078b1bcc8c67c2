"""Time and memory of one training forward: `EMACodebook` against MONAI's `EMAQuantizer`, side by side.

    python benchmarks/codebook.py [--runs 3] [--latents 2 8 16 16 64] [--codes 16384] [--save]

Each measurement is a process of its own, and the two quantisers take turns, so that a shared machine
disturbs both equally. A process builds its quantiser, makes one call on a small input (libraries load, threads
start), then one timed call on the full input. Memory is the process's peak resident set during that call
(``VmHWM``; Linux) less what was resident before. Where the kernel does not let the peak start anew before the
call, an earlier peak (imports) may count against either. Both quantise the same latents with codes from the
same distribution.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from pathlib import Path

from measuring import compare, memory_mib

VARIANTS = ("EMACodebook", "EMAQuantizer")


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Seconds and additional peak memory of one training forward in this process."""
    import torch

    torch.manual_seed(0)
    shape, codes = args.latents, args.codes
    if args.variant == "EMACodebook":
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
    return {"seconds": seconds, "mib": max(memory_mib("VmHWM") - before, 0.1)}  # the kernel counts in pages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, nargs=5, default=[2, 8, 16, 16, 64], metavar=tuple("BCHWD"))
    parser.add_argument("--codes", type=int, default=16384)
    compare(__file__, parser, VARIANTS, "EMAQuantizer", measure)


if __name__ == "__main__":
    main()
