"""Size and power of the tests on curves of known shape, with Wilson intervals.

Run: python benchmarks/calibration.py --replicates 1000
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from scipy.signal import lfilter
from scipy.stats import binomtest

from lrsearch.stats import exponential_test, plateau_test

Shape = Callable[[np.random.Generator, int], np.ndarray]


def iid(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(size=n)


def autoregressive(correlation: float) -> Shape:
    """AR(1) noise of unit variance."""

    def sample(rng: np.random.Generator, n: int) -> np.ndarray:
        noise = rng.normal(size=n + 500) * np.sqrt(1.0 - correlation**2)
        return np.asarray(lfilter([1.0], [1.0, -correlation], noise))[500:]

    return sample


def over(curve: Callable[[np.ndarray], np.ndarray], noise: Shape = iid) -> Shape:
    """A curve over the window [0, 1], in noise deviations, with noise."""
    return lambda rng, n: curve(np.linspace(0.0, 1.0, n)) + noise(rng, n)


NO_DECAY: dict[str, Shape] = {
    "flat": iid,
    "linear fall": over(lambda x: -10 * x),
    "linear rise": over(lambda x: 10 * x),
    "saturating rise": over(lambda x: 10 * (1 - np.exp(-4 * x))),
    "explosive rise": over(lambda x: 10 * np.expm1(4 * x) / np.expm1(4)),
    "accelerating fall": over(lambda x: -10 * x**3),
    "AR(1) 0.5": autoregressive(0.5),
    "AR(1) 0.8": autoregressive(0.8),
    "AR(1) 0.9": autoregressive(0.9),
    "AR(1) 0.95": autoregressive(0.95),
    "AR(1) 0.9, linear fall": over(lambda x: -10 * x, autoregressive(0.9)),
    "t3 noise": lambda rng, n: rng.standard_t(3, size=n),
    "fading noise": lambda rng, n: rng.normal(size=n) * np.linspace(3.0, 0.3, n),
}
DECAY: dict[str, Shape] = {
    "decay, exponent 1": over(lambda x: 10 / -np.expm1(-1) * np.exp(-x)),
    "decay, exponent 4": over(lambda x: 10 * np.exp(-4 * x)),
    "decay, exponent 20": over(lambda x: 10 * np.exp(-20 * x)),
    "decay, t3 noise": lambda rng, n: (
        10 * np.exp(-4 * np.linspace(0, 1, n)) + rng.standard_t(3, size=n)
    ),
    "decay, AR(1) 0.5": over(lambda x: 10 * np.exp(-4 * x), autoregressive(0.5)),
    "decay, AR(1) 0.9": over(lambda x: 10 * np.exp(-4 * x), autoregressive(0.9)),
    "two decays": over(lambda x: 5 * np.exp(-20 * x) + 5 * np.exp(-2 * x)),
    "power law": lambda rng, n: 10 * (1 + np.arange(n)) ** -0.5 + rng.normal(size=n),
    "shoulder, then decay": over(lambda x: 10 * np.exp(-6 * np.maximum(x - 0.3, 0.0))),
}
# Losses around 1 with noise of 10 %; a fall of 5 % over the window is what matters.
SLOPES: dict[str, Shape] = {
    "plateau": lambda rng, n: 1.0 + 0.1 * rng.normal(size=n),
    "plateau, AR(1) 0.8": lambda rng, n: 1.0 + 0.1 * autoregressive(0.8)(rng, n),
    "falls by 5 %": lambda rng, n: 1.025 - 0.05 * np.linspace(0, 1, n) + 0.1 * rng.normal(size=n),
    "falls by 30 %": lambda rng, n: 1.15 - 0.3 * np.linspace(0, 1, n) + 0.1 * rng.normal(size=n),
    "rises by 30 %": lambda rng, n: 0.85 + 0.3 * np.linspace(0, 1, n) + 0.1 * rng.normal(size=n),
}


def share(hits: int, trials: int) -> str:
    interval = binomtest(hits, trials).proportion_ci(method="wilson")
    return f"{hits / trials:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--lengths", type=int, nargs="+", default=[50, 200, 1000])
    parser.add_argument("--alpha", type=float, default=0.05)
    options = parser.parse_args()
    count, alpha = options.replicates, options.alpha
    for title, shapes in (("Accepted although no decay", NO_DECAY), ("Accepted, a decay", DECAY)):
        print(f"\n{title} (alpha = {alpha}, n = {count})")
        print(f"{'shape':<24} {'N':>5}  {'robust':<24} {'paper':<24}")
        for name, shape in shapes.items():
            for n in options.lengths:
                hits = {"robust": 0, "paper": 0}
                rng = np.random.default_rng([n, len(name)])
                for _ in range(count):
                    losses = shape(rng, n)
                    for mode in hits:
                        hits[mode] += exponential_test(losses, alpha=alpha, mode=mode).passed
                print(
                    f"{name:<24} {n:>5}  {share(hits['robust'], count):<24} "
                    f"{share(hits['paper'], count):<24}"
                )
    print("\nCalled a plateau / undecided")
    print(
        f"{'shape':<24} {'N':>5}  {'robust: plateau':<24} {'undecided':<24} {'paper: plateau':<24}"
    )
    for name, shape in SLOPES.items():
        for n in options.lengths:
            rng = np.random.default_rng([n, len(name)])
            plateau = undecided = paper = 0
            for _ in range(count):
                losses = shape(rng, n)
                verdict = plateau_test(losses, alpha=alpha).verdict
                plateau += verdict == "plateau"
                undecided += verdict == "undecided"
                paper += plateau_test(losses, alpha=alpha, mode="paper").verdict == "plateau"
            print(
                f"{name:<24} {n:>5}  {share(plateau, count):<24} "
                f"{share(undecided, count):<24} {share(paper, count):<24}"
            )


if __name__ == "__main__":
    main()
