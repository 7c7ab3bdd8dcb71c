"""How many independent points a window of correlated losses is worth."""

from __future__ import annotations

from lrsearch.stats.series import FloatArray

_LARGEST_CORRELATION = 0.999


def lag_one_autocorrelation(residual: FloatArray) -> float:
    """Lag-1 autocorrelation of residuals, corrected for the bias of short series.

    r = sum(u_t u_{t+1}) / sum(u_t^2) is biased downward by about (1 + 4 r) / n when a trend has
    been removed (Kendall 1954; the 4 counts the fitted curve): left alone, short windows of
    strongly correlated noise would look more independent than they are.

    Args:
        residual: shape (window,), mean zero.

    Returns:
        A value in [-1, 0.999]; 0 for residuals that are all zero.
    """
    power = float(residual @ residual)
    if power == 0.0:
        return 0.0
    raw = float(residual[1:] @ residual[:-1]) / power
    return min(raw + (1.0 + 4.0 * max(raw, 0.0)) / residual.size, _LARGEST_CORRELATION)


def effective_sample_size(residual: FloatArray, *, fewest: float = 0.0) -> float:
    """Number of independent points that determine a mean or a trend as well as these do.

    n (1 - r) / (1 + r) with r the lag-1 autocorrelation: the variance of a slow trend's coefficient
    under AR(1) noise grows by (1 + r) / (1 - r). Negative correlation is not rewarded.

    Args:
        residual: shape (window,).
        fewest: smallest answer. A curve without noise (full-batch descent) leaves a smooth misfit
            that looks like perfect correlation; a few points must remain for it to be judged by
            the size of its misfit.

    Returns:
        At most n, and at least the smaller of ``fewest`` and n.
    """
    n = residual.size
    r = max(lag_one_autocorrelation(residual), 0.0)
    return max(n * (1.0 - r) / (1.0 + r), min(fewest, float(n)))
