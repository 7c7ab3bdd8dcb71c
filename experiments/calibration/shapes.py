"""Loss curves of known shape: what the tests must accept, must not accept, and only report.

Curves are in noise deviations: a drop of 10 is ten times the root mean square of the noise over
the window, whatever its tails, its correlation or its profile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

FloatArray = NDArray[np.float64]
Curve = Callable[[int], FloatArray]

DROP = 10.0


@dataclass(frozen=True)
class Noise:
    """Noise with root mean square 1 over the window.

    Attributes:
        correlation: of neighbours; AR(1), stationary from the first loss on.
        profile: standard deviation at the first and the last loss, linear between, up to scale.
        tails: degrees of freedom of Student's t; None for normal noise.
    """

    correlation: float = 0.0
    profile: tuple[float, float] = (1.0, 1.0)
    tails: float | None = None

    def deviation(self, n: int) -> FloatArray:
        """Standard deviation at each of n losses, shape (n,)."""
        profile = np.linspace(*self.profile, n)
        return profile / np.sqrt(np.mean(profile**2))

    def sample(self, rng: np.random.Generator, replicates: int, n: int) -> FloatArray:
        """Shape (replicates, n)."""
        shape = (replicates, n)
        if self.tails is None:
            noise = rng.standard_normal(shape)
        else:
            noise = rng.standard_t(self.tails, shape) * np.sqrt(1.0 - 2.0 / self.tails)
        r = self.correlation
        if r:
            noise[:, 1:] *= np.sqrt(1.0 - r * r)
            noise = lfilter([1.0], [1.0, -r], noise, axis=1)
        return np.asarray(noise * self.deviation(n))

    def whiten(self, values: FloatArray) -> FloatArray:
        """Multiply by Sigma^(-1/2): of noise, independent draws of variance 1. Shape (n, ...)."""
        n, r = len(values), self.correlation
        scaled = (values.T / self.deviation(n)).T
        white = scaled.copy()
        white[1:] = (scaled[1:] - r * scaled[:-1]) / np.sqrt(1.0 - r * r)
        return white


@dataclass(frozen=True)
class Shape:
    """A curve with noise. ``curve(n)`` has shape (n,), in noise deviations."""

    name: str
    curve: Curve
    noise: Noise = field(default_factory=Noise)

    def sample(self, rng: np.random.Generator, replicates: int, n: int) -> FloatArray:
        """Independent windows, shape (replicates, n)."""
        return self.curve(n) + self.noise.sample(rng, replicates, n)


def over(function: Callable[[FloatArray], FloatArray]) -> Curve:
    """A curve over the window [0, 1]."""
    return lambda n: function(np.linspace(0.0, 1.0, n))


def falling(curve: Curve, drop: float = DROP) -> Curve:
    """The curve, scaled so that its first value lies ``drop`` above its last, 0."""

    def scaled(n: int) -> FloatArray:
        values = curve(n)
        return drop * (values - values[-1]) / (values[0] - values[-1])

    return scaled


def flat(n: int) -> FloatArray:
    return np.zeros(n)


def line(drop: float) -> Curve:
    return over(lambda x: -drop * x)


def exponential(exponent: float, drop: float = DROP) -> Curve:
    return falling(over(lambda x: np.exp(-exponent * x)), drop)


def power_law(power: float) -> Curve:
    return falling(lambda n: np.asarray((1.0 + np.arange(n)) ** -power, np.float64))


def loud_first(height: float) -> Curve:
    return lambda n: height * (np.arange(n) == 0)


def step(at: float, drop: float) -> Curve:
    return over(lambda x: np.asarray(-drop * (x >= at), np.float64))


FADING, GROWING = Noise(profile=(3.0, 0.3)), Noise(profile=(0.3, 3.0))
HEAVY = Noise(tails=3.0)
CORRELATIONS = (0.5, 0.8, 0.9, 0.95)

NO_DECAY = (
    Shape("flat", flat),
    *(Shape(f"linear fall of {drop}", line(drop)) for drop in (3, 10, 100)),
    Shape("linear rise of 10", line(-10.0)),
    Shape("saturating rise", exponential(4.0, -DROP)),
    Shape("explosive rise", over(lambda x: DROP * np.expm1(4.0 * x) / np.expm1(4.0))),
    Shape("accelerating fall", over(lambda x: -DROP * x**3)),
    *(Shape(f"flat, AR(1) {r}", flat, Noise(r)) for r in CORRELATIONS),
    *(Shape(f"linear fall of 3, AR(1) {r}", line(3.0), Noise(r)) for r in CORRELATIONS),
    *(Shape(f"linear fall of 10, AR(1) {r}", line(10.0), Noise(r)) for r in CORRELATIONS),
    Shape("flat, fading noise", flat, FADING),
    Shape("flat, growing noise", flat, GROWING),
    Shape("linear fall of 10, fading noise", line(10.0), FADING),
    Shape("linear fall of 10, growing noise", line(10.0), GROWING),
    Shape("flat, t3 noise", flat, HEAVY),
    Shape("linear fall of 10, t3 noise", line(10.0), HEAVY),
    Shape("shoulder, fall just begun", over(lambda x: -DROP * np.maximum(x - 0.7, 0.0))),
    Shape("one loud first loss of 10", loud_first(10.0)),
    Shape("one loud first loss of 100", loud_first(100.0)),
)
DECAY = (
    *(Shape(f"exponent {k}", exponential(k)) for k in (1, 2, 4, 8, 20)),
    Shape("exponent 4, t3 noise", exponential(4.0), HEAVY),
    *(Shape(f"exponent 4, AR(1) {r}", exponential(4.0), Noise(r)) for r in (0.5, 0.8, 0.9)),
    Shape("exponent 4, fading noise", exponential(4.0), FADING),
    Shape("exponent 4, growing noise", exponential(4.0), GROWING),
    Shape("exponents 20 and 2", falling(over(lambda x: np.exp(-20 * x) + np.exp(-2 * x)))),
    *(Shape(f"power law {p}", power_law(p)) for p in (0.25, 0.5, 1.0)),
)
# Neither a decay nor not one: only reported.
BETWEEN = (
    Shape("shoulder, then decay", over(lambda x: DROP * np.exp(-6.0 * np.maximum(x - 0.3, 0.0)))),
    *(Shape(f"step down at {at}", step(at, DROP)) for at in (0.1, 0.5, 0.9)),
    Shape("step up at 0.5", step(0.5, -DROP)),
    Shape("falls, then rises", over(lambda x: DROP * np.abs(2.0 * x - 1.0))),
)


@dataclass(frozen=True)
class Slope:
    """Losses around 1 on a straight line, for the plateau test.

    Attributes:
        fall: over the first window [loss].
        noise: its law.
        size: its standard deviation [loss].
    """

    name: str
    fall: float
    noise: Noise = field(default_factory=Noise)
    size: float = 0.05

    def sample(self, rng: np.random.Generator, replicates: int, n: int, windows: int) -> FloatArray:
        """Runs of ``windows`` times n losses, shape (replicates, windows * n) [loss]."""
        steps = np.arange(windows * n)
        mean = 1.0 + self.fall * (0.5 - (steps + 0.5) / n)
        return mean + self.size * self.noise.sample(rng, replicates, windows * n)


MARGIN = 0.05  # of ``plateau_test``
_NOISES = {
    "": Noise(),
    ", AR(1) 0.8": Noise(0.8),
    ", AR(1) 0.95": Noise(0.95),
    ", fading noise": FADING,
    ", t3 noise": HEAVY,
}
SLOPES = tuple(
    Slope(name + suffix, fall, noise)
    for name, fall in (
        ("plateau", 0.0),
        ("falls by the margin", MARGIN),
        ("falls by twice the margin", 2.0 * MARGIN),
    )
    for suffix, noise in _NOISES.items()
)
