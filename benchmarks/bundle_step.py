"""Training steps of a bundle's stage, with networks, losses and optimisers from the bundle's own configuration.

    python benchmarks/bundle_step.py adni_ldm autoencoder --steps 3 --set image_size="[32, 32, 32]"

Prints JSON: seconds of each step after the first, the process's peak memory, what was resident before the first
step's tensors, and the sizes in use. Volumes and latents are random numbers: what they show does not change the cost,
but for the search in the codebook, which is about a tenth of the first stage's time at most. Every term of the first
stage counts from the first batch on, which is the costly phase of training. `memory.py` and `growth.py` use it. With
--operations also the floating-point operations of a step, those of convolutions and matrix products, in units of 1e12;
the times are then longer.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from measuring import in_own_process, memory_mib

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
LDM_BUNDLES = sorted(path.parents[1].name for path in BUNDLES.glob("*/configs/train_autoencoder.yaml"))
STAGES = {"autoencoder": "train_autoencoder.yaml", "diffusion": "train.yaml"}
# In place of the data: as many random batches as there are steps. Nothing is written, so there are no handlers.
RANDOM_DATA = {
    "autoencoder": {
        "adversarial_start": 0,
        "adversarial_warmup": 0,
        "adversarial_ramp": 0,
        "autoencoder_epochs": 1,
        "train#dataloader": "$[{'image': torch.rand(@autoencoder_batch_size, @image_channels, *@image_size) * 2 - 1}] * %d",
    },
    "diffusion": {
        "epochs": 1,
        "train#dataloader": "$[{'image': torch.randn(@batch_size, *@latent_shape).clamp(-1, 1)}] * %d",
    },
}
SHOWN = {
    "autoencoder": ("image_size", "compression", "num_codes", "autoencoder_batch_size", "amp"),
    "diffusion": ("image_size", "latent_shape", "denoiser_channels", "batch_size", "amp"),
}


def configuration(bundle: str, stage: str, steps: int, overrides: dict[str, Any]):  # type: ignore[no-untyped-def]
    """The parser of the stage's configuration with random data."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(BUNDLES / bundle / "configs" / STAGES[stage])
    knobs = RANDOM_DATA[stage] | overrides | {"train#handlers": [], "device": "cpu"}
    unknown = [id for id in overrides if id not in parser]
    if unknown:
        raise ValueError(f"{bundle}'s {STAGES[stage]} has no {unknown}")
    for id, value in knobs.items():
        parser[id] = value % steps if id == "train#dataloader" else value
    return parser


@contextmanager
def counted_operations() -> Iterator[Callable[[], int]]:
    """Counts the operations inside by torch's own formulas; its ``FlopCounterMode`` cannot follow ``autograd.grad``."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    class Counter(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            if (formula := flop_registry.get(func._overloadpacket)) is not None:
                self.total += formula(*args, **(kwargs or {}), out_val=result)
            return result

    with Counter() as counter:
        yield lambda: counter.total


def measure(bundle: str, stage: str, steps: int, overrides: dict[str, Any], operations: bool = False) -> dict[str, Any]:
    """Train for ``steps`` batches in this process, and count the operations if asked for."""
    import torch
    from ignite.engine import Events

    torch.manual_seed(0)
    parser = configuration(bundle, stage, steps, overrides)
    before = memory_mib("VmRSS")
    if stage == "diffusion":
        parser.get_parsed_content("generator")  # in training it holds the averaged weights
    trainer, seconds = parser.get_parsed_content("train#trainer"), []
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda _: seconds.append(-time.perf_counter()))

    @trainer.on(Events.ITERATION_COMPLETED)
    def note() -> None:
        seconds[-1] += time.perf_counter()

    with counted_operations() if operations else nullcontext(lambda: 0) as counted:
        trainer.run()
    if len(seconds) != steps:
        raise RuntimeError(f"expected {steps} steps, the trainer made {len(seconds)}")
    sizes = {id: parser.get_parsed_content(id) for id in SHOWN[stage]}
    return {
        "bundle": bundle,
        "stage": stage,
        "seconds": seconds[1:] or seconds,
        "peak_mib": memory_mib("VmHWM"),
        "before_mib": before,
        **({"tera_operations": counted() / 1e12 / steps} if operations else {}),
        **{id: list(value) if isinstance(value, (list, tuple)) else value for id, value in sizes.items()},
    }


def measure_apart(bundle: str, stage: str, steps: int, **overrides: Any) -> dict[str, Any]:
    """:func:`measure` in a process of its own, so that its peak is its own."""
    arguments = [bundle, stage, "--steps", str(steps)]
    for id, value in overrides.items():
        arguments += ["--set", f"{id}={json.dumps(value)}"]
    return in_own_process(__file__, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder below bundles/")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="KNOB=JSON", help="a knob of the configuration")
    parser.add_argument("--operations", action="store_true", help="count the floating-point operations of a step, too")
    args = parser.parse_args()
    overrides = {id: json.loads(value) for id, value in (text.split("=", 1) for text in args.set)}
    print(json.dumps(measure(args.bundle, args.stage, args.steps, overrides, args.operations)))


if __name__ == "__main__":
    main()
