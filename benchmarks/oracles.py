"""FD and KID of the same features by torch-fidelity and by us: the largest relative difference.

    python benchmarks/oracles.py

torch-fidelity must be on the PYTHONPATH, such as the folder DIR of `pip install --no-deps --target DIR torch-
fidelity==0.4.0`. It is no dependency: it imports torchvision, which nothing here may need, and its wheel installs a
package ``tests``. Its formulas do not use torchvision, so an empty module takes its place. SciPy and prdc are oracles
in the plain tests.
"""

from __future__ import annotations

import argparse
import sys
from unittest.mock import MagicMock

import numpy as np
import torch

from medical_diffusion_components.metrics import frechet_distance, kernel_matrices, mmd_squared

SETS = ((60, 50, 8), (200, 200, 64), (300, 150, 192), (45, 45, 192))  # volumes, volumes, features


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for name in (
        "torchvision",
        "torchvision.transforms",
        "torchvision.transforms.functional",
        "torchvision.datasets",
        "torchvision.models",
    ):
        sys.modules.setdefault(name, MagicMock())
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    rng = np.random.default_rng(0)
    for n, m, features in SETS:
        x, y = rng.gamma(2.0, size=(n, features)), 0.3 + 1.1 * rng.gamma(2.0, size=(m, features))
        one, other = (fid_features_to_statistics(torch.from_numpy(part)) for part in (x, y))
        theirs = fid_statistics_to_metric(one, other, False)["frechet_inception_distance"]
        ours = frechet_distance(x, y).value
        line = f"{n} v {m}, {features} features: FD {ours:.8g} and {theirs:.8g}, apart {abs(ours / theirs - 1):.1e}"
        if n == m:  # its subsets have one size on both sides: one subset of all volumes
            both = (torch.from_numpy(part) for part in (x, y))
            settings = {"kid_subsets": 1, "kid_subset_size": n, "kid_degree": 3, "kid_coef0": 1.0, "verbose": False}
            theirs = kid_features_to_metric(*both, **settings)["kernel_inception_distance_mean"]
            kernels = kernel_matrices(x, y)
            ours = mmd_squared(kernels, np.arange(n), np.arange(m))
            line += f"; KID {ours:.8g} and {theirs:.8g}, apart {abs(ours / theirs - 1):.1e}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
