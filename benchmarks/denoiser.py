"""Time and memory of the denoiser, forward and backward, against its plainest form.

    python benchmarks/denoiser.py [--batch 4] [--latent 32 32 32] [--base_channels 32] [--runs 3] [--save]

The plain form is `plain_denoiser.py`: Conv3d with k x k x 1 kernels, einsum attention, PyTorch's own norms. Same
mathematics (tests/components/networks/test_denoiser.py: equal outputs and gradients in float64), same weights and sizes.
"fast" and "plain" compute in float32, "fast-bfloat16" is the fast form under bfloat16 autocast, which pays only on
processors that multiply bfloat16 in hardware.

Each measurement is a process of its own, and the three take turns, so that a shared machine disturbs all equally. A process
makes one untimed pass, then --steps timed ones. Memory is the peak of the whole process (``VmHWM``; Linux), imports
included. At the default batch the plain form needs about 16 GB, at 8 more than 24 GB.
"""

from __future__ import annotations

import argparse

from measuring import Laps, compare, memory_mib

VARIANTS = ("fast", "fast-bfloat16", "plain")


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Median times of a forward and backward pass, and the peak of this process in MiB."""
    import plain_denoiser
    import torch

    from medical_diffusion_components.networks.denoiser import Denoiser

    torch.manual_seed(0)
    network = Denoiser(base_channels=args.base_channels)
    noisy, noise = torch.randn(2, args.batch, 8, *args.latent)
    timesteps = torch.randint(0, 300, (args.batch,))
    laps = Laps()
    for _ in range(1 + args.steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=args.variant == "fast-bfloat16"):
            if args.variant == "plain":
                predicted = plain_denoiser.denoiser(network, noisy, timesteps)
            else:
                predicted = network(noisy, timesteps)
        (predicted.float() - noise).abs().mean().backward()
        network.zero_grad(set_to_none=True)
        laps.lap()
    return {**laps.medians(1), "mib": memory_mib("VmHWM")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--latent", type=int, nargs=3, default=[32, 32, 32], metavar=tuple("HWD"))
    parser.add_argument("--base_channels", type=int, default=32)
    parser.add_argument("--steps", type=int, default=1, help="timed passes in each measurement")
    compare(__file__, parser, VARIANTS, "plain", measure)


if __name__ == "__main__":
    main()
