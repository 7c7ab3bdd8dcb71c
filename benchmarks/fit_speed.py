"""The exponential fit against scipy's curve_fit with good starts: seconds and sums of squares.

Paired: both fit the same windows in turn, in one process. Run: python benchmarks/fit_speed.py
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit

from lrsearch.stats import fit_exponential


def decay(x: np.ndarray, amplitude: float, exponent: float, offset: float) -> np.ndarray:
    return amplitude * np.exp(-exponent * x) + offset


def one_window(rng: np.random.Generator, n: int) -> tuple[np.ndarray, float]:
    exponent = 10.0 ** rng.uniform(-0.5, 1.5)
    x = np.linspace(0.0, 1.0, n)
    return decay(x, 2.0, exponent, 0.5) + rng.normal(0.0, 0.1, n), exponent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    print("n       ours ms  curve_fit ms  ratio   worse SSE  better SSE  curve_fit failed")
    for n in (20, 50, 200, 1000, 5000, 100_000):
        ours, theirs, ratios = [], [], []
        worse = better = failed = 0
        for _ in range(options.windows if n <= 5000 else max(3, options.windows // 20)):
            losses, exponent = one_window(rng, n)
            began = time.perf_counter()
            fit = fit_exponential(losses)
            ours.append(time.perf_counter() - began)
            x = np.linspace(0.0, 1.0, n)
            began = time.perf_counter()
            try:
                # The true values: the best start that there is.
                found, _ = curve_fit(decay, x, losses, p0=(2.0, exponent, 0.5))
            except (RuntimeError, OptimizeWarning):
                failed += 1
                continue
            finally:
                theirs.append(time.perf_counter() - began)
            ratios.append(theirs[-1] / ours[-1])
            if found[0] < 0.0 or found[1] < 0.0:
                continue  # not a decay: another problem than ours
            sse = float(np.sum((losses - decay(x, *found)) ** 2))
            worse += fit.sse > sse * (1.0 + 1e-9)
            better += fit.sse < sse * (1.0 - 1e-9)
        print(
            f"{n:<7} {1e3 * np.median(ours):7.3f}  {1e3 * np.median(theirs):12.3f}  "
            f"{np.median(ratios):5.2f}  {worse:9d}  {better:10d}  {failed:16d}"
        )


if __name__ == "__main__":
    main()
