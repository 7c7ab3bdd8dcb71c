"""Pure statistics of loss curves: fits, the F-test, the plateau test, windows (numpy, scipy)."""

from lrsearch.stats.convergence import MODES, FTestResult, Mode, exponential_test
from lrsearch.stats.divergence import explosion_threshold, first_divergence
from lrsearch.stats.exponential import ExponentialFit, fit_exponential
from lrsearch.stats.line import LineFit, fit_line
from lrsearch.stats.plateau import PlateauResult, plateau_test
from lrsearch.stats.window import window_correction, window_length

__all__ = [
    "MODES",
    "ExponentialFit",
    "FTestResult",
    "LineFit",
    "Mode",
    "PlateauResult",
    "explosion_threshold",
    "exponential_test",
    "first_divergence",
    "fit_exponential",
    "fit_line",
    "plateau_test",
    "window_correction",
    "window_length",
]
