"""When a loss curve is beyond hope, with no need of a window."""

from __future__ import annotations

from math import inf, isfinite
from statistics import median

import numpy as np

from lrsearch.stats.exponential import UnitExponential, exponential_of
from lrsearch.stats.series import Losses, Series, as_losses, standardize

# The curve explodes when RUN losses in a row lie above FACTOR times the typical early loss: single
# spikes, and the jump of a rate that is merely high, are left to the tests.
EARLY = 10
FACTOR = 10.0
RUN = 5
# One loss alone is enough where it dwarfs the curve's start beyond any noise. An explosion within
# the first ten losses hides from their median, so that of the first three counts.
START = 3
BEYOND_NOISE = 1e8
# A spike stands above this many times the start of the curve, and above its noise.
SPIKE_FACTOR = 3.0
SPIKE_NOISE = 4.0
# A decay must leave the first loss behind by this share of its fall.
NET_FALL = 0.25
# A climb is longer than this many typical steps.
CLIMB = 10.0


def explosion_threshold(early: Losses) -> float:
    """Loss above which a curve explodes: 10 times the median size of its first 10 finite losses.

    Args:
        early: shape (any,), the first losses; only the first 10 count.

    Returns:
        The threshold [loss]; infinity while fewer than 10 are known, or if they are all zero.
    """
    return _multiple(early, EARLY, FACTOR)


def beyond_noise(start: Losses) -> float:
    """Loss that no noise explains: 1e8 times the median size of the first 3 finite losses.

    Args:
        start: shape (any,), the first losses; only the first 3 count.

    Returns:
        The threshold [loss]; infinity while fewer than 3 are known, or if they are all zero.
    """
    return _multiple(start, START, BEYOND_NOISE)


def _multiple(losses: Losses, count: int, factor: float) -> float:
    first = [abs(x) for x in as_losses(losses)[:count].tolist() if isfinite(x)]
    return inf if len(first) < count else factor * median(first) or inf


def first_divergence(losses: Losses, *, threshold: float | None = None) -> int | None:
    """Index of the loss at which the curve has diverged, or None.

    Diverged: a loss that is not finite, the fifth in a row above the threshold, or a single one
    ``beyond_noise``.

    Args:
        losses: shape (points,) in the order of the steps [loss].
        threshold: see ``explosion_threshold``; taken from these losses by default.
    """
    y = as_losses(losses)
    bad = np.flatnonzero(~np.isfinite(y))
    end = int(bad[0]) if bad.size else y.size
    limit = explosion_threshold(y[:end]) if threshold is None else threshold
    above = np.concatenate([[0], np.cumsum(y[:end] > limit)])
    runs = np.flatnonzero(above[RUN:] - above[:-RUN] == RUN)
    alone = np.flatnonzero(y[START:end] > beyond_noise(y[:end]))
    ends = [int(runs[0]) + RUN - 1] if runs.size else []
    ends += [int(alone[0]) + START] if alone.size else []
    ends += [end] if bad.size else []
    return min(ends, default=None)


def has_spike(losses: Losses, *, factor: float = SPIKE_FACTOR) -> bool:
    """Does a curve jump above ``factor`` times its start?

    The start is that of the fitted decay A exp(-B t) + C, or the first loss if that lies further
    below than noise explains: 4 robust standard deviations of the residuals (1.4826 times their
    median size), which are allowed for once more above the start.

    Args:
        losses: shape (window,), at least 4 points [loss].
        factor: 3 leaves the heavy tails of mini-batch losses alone; 1 suits full-batch descent,
            where every jump above the start is the rate's doing.

    Returns:
        False for a constant window, or one that is not all finite.
    """
    series = standardize(losses, minimum=4)
    return not series.degenerate and _spikes(series, exponential_of(series), factor)


def is_unstable(losses: Losses, *, factor: float = SPIKE_FACTOR) -> bool:
    """Is a curve that fits a decay the trace of a rate that is too high?

    Such a rate can throw the weights to a far, flat place (dead units): the loss jumps up, then
    falls to the level of a constant prediction and stays there, in the shape of a decay. Two signs
    tell: a spike (see ``has_spike``), or a decay that only undoes its own jump, as it ends less
    than a quarter of its fall below the first loss, give or take 2 robust standard deviations.

    Args:
        losses: shape (window,), at least 4 points [loss].
        factor: as for ``has_spike``.

    Returns:
        False for a constant window, or one that is not all finite.
    """
    series = standardize(losses, minimum=4)
    if series.degenerate:
        return False
    fit = exponential_of(series)
    if _spikes(series, fit, factor):
        return True
    fall = -fit.amplitude * float(np.expm1(-fit.rate * (series.values.size - 1)))
    end = fit.amplitude + fit.offset - fall
    return float(series.values[0]) - end + 0.5 * _margin(fit) < NET_FALL * fall


def relapses(losses: Losses, *, share: float = NET_FALL) -> bool:
    """Does a curve without noise climb back by a share of its fall?

    For full-batch descent alone: there a long rise is the rate's doing, and one above 2 / sharpness
    throws the weights out of each valley that they have found. Mini-batch noise climbs too. The
    little noise that dropout leaves does not count: a climb is ten times the median step.

    Args:
        losses: shape (window,) [loss].
        share: of the fall from the first loss to the lowest.

    Returns:
        False where the loss never falls, or one is not finite.
    """
    y = as_losses(losses)
    if y.size < 2 or not np.all(np.isfinite(y)):
        return False
    fall = float(y[0] - y.min())
    climb = float(np.max(y - np.minimum.accumulate(y)))
    return climb > max(share * fall, CLIMB * float(np.median(np.abs(np.diff(y))))) and fall > 0.0


def _spikes(series: Series, fit: UnitExponential, factor: float) -> bool:
    start = min(fit.amplitude + fit.offset, float(series.values[0]) + _margin(fit))
    # factor times the start, on the losses' own zero: location / scale here.
    height = (factor - 1.0) * abs(start + series.location / series.scale)
    return bool(np.max(series.values[1:]) > start + height + _margin(fit))


def _margin(fit: UnitExponential) -> float:
    return SPIKE_NOISE * 1.4826 * float(np.median(np.abs(fit.residual)))
