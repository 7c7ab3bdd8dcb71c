"""`largest_covariance_eigenvalue` against the dense route, on 60 000 x 784 and 1 000 000 x 256.

The dense route is what one writes without lrsearch: the whole data standardised in float64 (a copy,
then in place), C = X^T X / (s - 1), and all its eigenvalues (`eigvalsh`); "float32" is the same
without the conversion. Ours is timed as it comes (the matrix is built block by block up to 1024
features) and with the matrix-free search forced.

Paired: all in turn, in one process; ratios are medians over the rounds. Memory is the largest sum
of numpy's allocations beside the data (tracemalloc), in runs that are not timed. Data: float32,
random, eigenvalues falling as i^-1.5 like those of images, an offset per feature, one feature in
ten constant as MNIST's border is.

Run: OMP_NUM_THREADS=1 python benchmarks/covariance_eigenvalue.py
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from lrsearch.bounds import covariance, largest_covariance_eigenvalue

Data = NDArray[np.float32]

SHAPES = ((60_000, 784), (1_000_000, 256))
BLOCK = 10_000


def make_data(samples: int, features: int, seed: int = 0) -> Data:
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.standard_normal((features, features)))[0]
    deviations = np.arange(1, features + 1) ** -0.75
    mixing = (deviations[:, None] * rotation).astype(np.float32)
    offset = rng.uniform(0, 1, features).astype(np.float32)
    data = np.empty((samples, features), dtype=np.float32)
    for start in range(0, samples, BLOCK):
        rows = data[start : start + BLOCK]
        np.matmul(rng.standard_normal(rows.shape, dtype=np.float32), mixing, out=rows)
        rows += offset
    data[:, ::10] = 0.1
    return data


def dense_route(data: Data, dtype: type = np.float64) -> float:
    X = data.astype(dtype)
    X -= X.mean(axis=0)
    deviation = np.sqrt(np.einsum("ij,ij->j", X, X) / len(X))
    X /= np.where(deviation > 1e-6, deviation, np.inf)
    return float(np.linalg.eigvalsh(X.T @ X / (len(X) - 1))[-1])


def dense_float32(data: Data) -> float:
    return dense_route(data, np.float32)


def matrix_free(data: Data) -> float:
    with mock.patch.object(covariance, "DENSE_FEATURES", 0):
        return largest_covariance_eigenvalue(data)


ROUTES: dict[str, Callable[[Data], float]] = {
    "dense route": dense_route,
    "dense, float32": dense_float32,
    "ours, default": largest_covariance_eigenvalue,
    "ours, matrix-free": matrix_free,
}


def peak_bytes(route: Callable[[Data], float], data: Data) -> int:
    tracemalloc.start()
    route(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the rows, for a try")
    options = parser.parse_args()
    print("data             route              seconds   ratio  difference  extra MB")
    for samples, features in SHAPES:
        rows = int(samples * options.scale)
        data = make_data(rows, features)
        seconds: dict[str, list[float]] = {name: [] for name in ROUTES}
        values: dict[str, float] = {}
        for _ in range(options.rounds):
            for name, route in ROUTES.items():
                began = time.perf_counter()
                values[name] = route(data)
                seconds[name].append(time.perf_counter() - began)
        reference = np.array(seconds["dense route"])
        for name, route in ROUTES.items():
            ratio = float(np.median(np.array(seconds[name]) / reference))
            difference = abs(values[name] / values["dense route"] - 1.0)
            extra = peak_bytes(route, data) / 1e6
            print(
                f"{rows:>9} x {features:<4} {name:<18} {np.median(seconds[name]):8.2f} "
                f"{ratio:7.2f} {difference:11.1e} {extra:9.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
