"""Time and memory of a training step of the first stage (generator and both discriminators) against its plainest form.

    python benchmarks/first_stage.py [--size 64 64 64] [--batch 2] [--codes 16384] [--runs 3] [--save]

The plain form is `plain_first_stage.py`: distance matrix and one-hot codebook, encoder and decoder run a second time
for the discriminators' step, PyTorch's default layout and layers. Same mathematics
(tests/benchmarks/test_first_stage.py: one step of either leaves the same weights), same sizes, same float32.

Each measurement is a process of its own, and the two take turns, so that a shared machine disturbs both equally. A process
trains on random volumes: one batch first, in which the codebook and the optimisers begin and which is not timed, then
--steps batches that are. Memory is the peak of the whole process (``VmHWM``; Linux), imports included. At the default
sizes the plain form needs about 16 GB.
"""

from __future__ import annotations

import argparse

from measuring import Laps, compare, memory_mib

VARIANTS = ("fast", "plain")


def make_trainer(args: argparse.Namespace, batches: list):  # type: ignore[no-untyped-def]
    """Networks, losses and optimisers with the paper's settings, and the adversarial terms in force."""
    import torch
    from plain_first_stage import PlainCodebook

    from medical_diffusion_components.engines.vqgan_trainer import VQGANTrainer
    from medical_diffusion_components.losses.adversarial import AdversarialSchedule
    from medical_diffusion_components.losses.perceptual import EfficientNetLite0Features, PerceptualLoss
    from medical_diffusion_components.losses.vqgan import VQGANLoss
    from medical_diffusion_components.networks.codebook import EMACodebook
    from medical_diffusion_components.networks.discriminators import PatchDiscriminator
    from medical_diffusion_components.networks.vqgan import VQGAN

    codebook = (EMACodebook if args.variant == "fast" else PlainCodebook)(args.codes, 8)
    network = VQGAN(codebook, base_channels=args.base_channels, compression=args.compression)
    discriminators = torch.nn.ModuleList([PatchDiscriminator(2), PatchDiscriminator(3)])
    if args.variant == "plain":
        network.to(memory_format=torch.contiguous_format), discriminators.to(memory_format=torch.contiguous_format)
    optimizers = [torch.optim.Adam(m.parameters(), lr=1.875e-5, betas=(0.5, 0.9)) for m in (network, discriminators)]
    loss = VQGANLoss(PerceptualLoss(EfficientNetLite0Features()))
    return VQGANTrainer(
        "cpu",
        1,
        batches,
        network,
        *discriminators,
        *optimizers,
        loss_function=loss,
        schedule=AdversarialSchedule(0, 0, 0),
    )


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Median times of a step, and the peak of this process in MiB."""
    import torch
    from ignite.engine import Events
    from plain_first_stage import plain_step

    torch.manual_seed(0)
    batches = [{"image": torch.rand(args.batch, 1, *args.size) * 2 - 1} for _ in range(1 + args.steps)]
    trainer = make_trainer(args, batches)
    laps = Laps()
    if args.variant == "fast":
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: laps.lap())
        trainer.run()
    else:
        for batch in batches:
            plain_step(trainer, batch["image"])
            laps.lap()
    return {**laps.medians(1), "mib": memory_mib("VmHWM")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=[64, 64, 64], metavar=tuple("HWD"), help="voxels")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--codes", type=int, default=16384)
    parser.add_argument("--compression", type=int, nargs=3, default=[2, 2, 2], metavar=tuple("HWD"))
    parser.add_argument("--base_channels", type=int, default=16)
    parser.add_argument("--steps", type=int, default=1, help="timed batches in each measurement")
    compare(__file__, parser, VARIANTS, "plain", measure)


if __name__ == "__main__":
    main()
