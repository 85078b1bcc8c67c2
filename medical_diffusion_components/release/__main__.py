"""Everything that is published, into one folder: ``python -m medical_diffusion_components.release --out dist``."""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from medical_diffusion_components.files import file_hash, write_atomically
from medical_diffusion_components.release.bundle_archive import build_bundle
from medical_diffusion_components.release.distributions import build_distributions
from medical_diffusion_components.weights import RELEASED

SUMS = "SHA256SUMS"


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m medical_diffusion_components.release", description=__doc__)
    parser.add_argument("--repository", type=Path, default=Path(), help="folder with setup.cfg and bundles")
    parser.add_argument("--out", type=Path, default=Path("dist"), help="where the files go")
    parser.add_argument("--bundles", nargs="*", help="names; default: all that come with weights")
    parser.add_argument(
        "--models_dir", type=Path, help="weights of the one bundle named, in place of those it comes with"
    )
    options = parser.parse_args(argv)
    folders = sorted(path.parents[1] for path in (options.repository / "bundles").glob("*/configs/metadata.json"))
    if options.bundles:
        unknown = sorted(set(options.bundles) - {folder.name for folder in folders})
        if unknown:
            parser.error(f"no bundles of these names: {', '.join(unknown)}")
        folders = [folder for folder in folders if folder.name in options.bundles]
    if options.models_dir and len(folders) != 1:
        parser.error("--models_dir is for one bundle: name it with --bundles")
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONHASHSEED"] = "0"  # of the processes to come: TorchScript writes constants in the order of a set
    made = build_distributions(options.repository, options.out)
    for folder in folders:
        if options.models_dir is None and not (folder / RELEASED / "model.pt").is_file():
            print(f"{folder.name}: left out, it comes with no weights", flush=True)
            continue
        # TorchScript numbers what it compiles in a process: each bundle gets one of its own
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            made.append(process.submit(build_bundle, folder, options.out, options.models_dir).result())
        print(f"{folder.name}: {made[-1]} ({made[-1].stat().st_size / 1e6:.1f} MB)", flush=True)
    sums = "".join(f"{file_hash(path)}  {path.name}\n" for path in sorted(made))
    write_atomically(options.out / SUMS, lambda temporary: temporary.write_text(sums))


if __name__ == "__main__":
    main()
