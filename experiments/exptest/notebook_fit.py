"""The F-test of the authors' notebooks, with its two defects kept (ZanChaudhry/ExpTest @1dcc5aa).

It is not Algorithm 1. ``curve_fit`` is handed a function of four arguments after x and fits all of
them, the overflow guard ``max_exponent`` too, from 1: the curve it fits is ``a exp(-b x) + c``
while b x is at most about 1 and then drops to c, a jump. The degrees of freedom count three.
"""

from __future__ import annotations

import warnings

import numpy as np
from scipy import stats
from scipy.optimize import curve_fit

from lrsearch.stats.line import fit_line
from lrsearch.stats.series import FloatArray, Losses, as_losses


def notebook_f_test(losses: Losses, *, start: int = 0) -> tuple[float, float]:
    """F and p of the notebooks "Learning_Rate_Range" (MNIST) and "Cali_Housing".

    F = (SSE_lin - SSE_exp) / (SSE_exp / (N - 3)), p = 1 - cdf of F on (1, N - 3): the upper tail is
    taken by subtraction, so p is 0 below 1e-16, as in the notebooks.

    Args:
        losses: shape (window,) [loss].
        start: step of the first loss; the notebooks' fit counts steps over the whole run, which its
            starting values (1, 1, 1, 1) do not survive for long.

    Returns:
        (F, p); F below 0 (and p = 1) where the curve fits worse than the line, NaN where it
        overflows.

    Raises:
        RuntimeError: if ``curve_fit`` does not converge.
        TypeError: for fewer than 4 losses.
        ValueError: if a loss is not finite.
        (All three end the notebooks' training.)
    """
    y = as_losses(losses)
    x = start + np.arange(y.size, dtype=np.float64)

    def model(
        x: FloatArray, a: float, b: float, c: float, max_exponent: float = 700.0
    ) -> FloatArray:
        exponent = -b * x
        return a * np.where(exponent < -max_exponent, 0.0, np.exp(exponent)) + c

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = curve_fit(model, x, y)[0]
        sse = float(np.sum((y - model(x, *found)) ** 2))
        return _f_test(y, sse)


def notebook_line_f_test(losses: Losses) -> tuple[float, float]:
    """F and p of the notebooks "Alpha_&_Beta_Range" and "Batch_Size_Range".

    Their "exponential" is ``a (-b x) + c``: a straight line. It explains what the line explains, so
    F is 0 and p is 1 on every window (up to rounding, which is left out here).

    Args:
        losses: shape (window,), at least 4 points [loss].
    """
    y = as_losses(losses)
    return _f_test(y, fit_line(y).sse)


def _f_test(y: FloatArray, sse_exponential: float) -> tuple[float, float]:
    df = y.size - 3
    with np.errstate(all="ignore"):
        statistic = (np.float64(fit_line(y).sse) - sse_exponential) / (sse_exponential / df)
        return float(statistic), float(1.0 - stats.f.cdf(statistic, 1, df))
