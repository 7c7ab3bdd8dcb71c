"""The three tests that are compared, each as: losses -> p-value."""

from __future__ import annotations

from collections.abc import Callable

from experiments.exptest.notebook_fit import notebook_f_test
from lrsearch.stats import exponential_test
from lrsearch.stats.series import FloatArray


def notebook(losses: FloatArray) -> float:
    """The authors' published test; a fit that fails ends their training: not accepted."""
    try:
        return notebook_f_test(losses)[1]
    except (RuntimeError, TypeError):
        return 1.0


def plain(losses: FloatArray) -> float:
    """Algorithm 1 with the global fit among decays."""
    return exponential_test(losses, mode="paper").pvalue


def robust(losses: FloatArray) -> float:
    """The default of the package."""
    return exponential_test(losses, mode="robust").pvalue


WINDOW_TESTS: dict[str, Callable[[FloatArray], float]] = {
    "notebook": notebook,
    "plain": plain,
    "robust": robust,
}
