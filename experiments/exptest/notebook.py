"""ExpTest as the authors' notebooks run it, defects included (ZanChaudhry/ExpTest @1dcc5aa).

Beside the reproductions alone: it is here so that a published figure can be traced to its cause.
What it does apart from Algorithm 1:

* the F-test is that of ``notebook_fit``: four fitted parameters, three counted;
* MNIST: a failed F-test lowers the rate and keeps the weights; the gradients' sums leave out the
  first window's first step and every window's last, and go on over windows that pass; a window
  whose corrected length is its own is never tested, nor is one of 0 or 1 steps;
* housing: a restart draws *new* weights; no window is corrected;
* rounding is Python's, half to even.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import e, isfinite, nan, sqrt

import torch
from scipy import stats
from torch import Tensor, nn

from experiments.exptest.notebook_fit import notebook_f_test
from experiments.exptest.training import Story
from lrsearch import Decision
from lrsearch.stats import fit_line

FTest = Callable[[Sequence[float]], tuple[float, float]]


class NotebookExpTest:
    """The notebooks' controller of plain gradient descent.

    Args:
        optimizer: of one parameter group.
        alpha, beta: as in [E].
        parameters: those whose gradients are summed for Eq. 53; None where nothing is corrected
            (California Housing).
        reinitialise: draws new weights at a failed F-test; None keeps the weights (MNIST).
        f_test: gives (F, p) of a window.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        alpha: float = 0.05,
        beta: float = 0.33,
        parameters: Sequence[nn.Parameter] | None = None,
        reinitialise: Callable[[], None] | None = None,
        f_test: FTest = notebook_f_test,
    ) -> None:
        self._optimizer, self._alpha, self._beta = optimizer, alpha, beta
        self._parameters, self._reinitialise, self._f_test = parameters, reinitialise, f_test
        self._initial_loss: float | None = None
        self._losses: list[float] = []
        self._window, self._full_window = 0, 0
        self._path, self._vector = 0.0, self._no_vector()
        self._searching = True
        self._steps = 0
        self.looks: list[tuple[int, str, int, float, bool]] = []

    @property
    def lr(self) -> float:
        """Present learning rate."""
        return float(self._optimizer.param_groups[0]["lr"])

    def step(self, loss: Tensor) -> Decision:
        """Take note of a step's loss; at the window's end test it."""
        value = float(loss)
        self._losses.append(value)
        self._steps += 1
        seen = len(self._losses)
        # The notebooks' chain of branches, in their order.
        if self._initial_loss is None:
            self._initial_loss = value
            self._plan()
        elif self._parameters is not None and seen == self._window:
            self._full_window = self._corrected()
        elif seen == self._full_window:
            return self._test()
        elif self._parameters is not None and seen < self._window:
            self._add_gradients(self._parameters)
        return Decision("continue", self.lr)

    def story(self) -> Story:
        """What it did, for a table."""
        failed = [kind for _, kind, _, _, passed in self.looks if not passed]
        accepted = [at for at, kind, _, _, passed in self.looks if kind == "F" and passed]
        return Story(
            self.lr, failed.count("F"), failed.count("t"), accepted[0] if accepted else None
        )

    def _plan(self) -> None:
        """Eq. 52 with the run's first loss."""
        length = 2.0 * sqrt(2.0) * (self._initial_loss or 0.0) / (self.lr * e)
        self._window = round(length) if isfinite(length) else 0
        self._full_window = self._window if self._parameters is None else 0

    def _corrected(self) -> int:
        displacement = float(torch.linalg.vector_norm(torch.cat(self._vector)))
        if displacement == 0.0 or not isfinite(self._path / displacement):
            return self._window
        return round(self._path / displacement * self._window)

    def _add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        grads = [p.grad.flatten() for p in parameters if p.grad is not None]
        self._path += float(torch.linalg.vector_norm(torch.cat(grads)))
        torch._foreach_add_(self._vector, grads)

    def _no_vector(self) -> list[Tensor]:
        return [torch.zeros(p.numel()) for p in self._parameters or ()]

    def _test(self) -> Decision:
        kind = "F" if self._searching else "t"
        pvalue = self._f_pvalue() if self._searching else slope_pvalue(self._losses)
        passed = pvalue < self._alpha
        self.looks.append((self._steps - 1, kind, len(self._losses), pvalue, passed))
        self._losses = []
        if passed:
            self._searching = False
            return Decision("accept" if kind == "F" else "continue", self.lr)
        for group in self._optimizer.param_groups:
            group["lr"] *= self._beta
        if self._searching and self._reinitialise is not None:
            self._reinitialise()
        self._path, self._vector = 0.0, self._no_vector()
        self._plan()
        return Decision("restart" if self._searching else "decay", self.lr)

    def _f_pvalue(self) -> float:
        try:
            return self._f_test(self._losses)[1]
        except (RuntimeError, TypeError, ValueError):
            return nan  # the notebook's training ends here; ours goes on at a lower rate


def slope_pvalue(losses: Sequence[float]) -> float:
    """Lower tail of slope / standard error on N - 2 degrees of freedom; NaN without a slope."""
    line = fit_line(losses)
    if not line.slope_stderr > 0.0:
        return nan
    return float(stats.t.cdf(line.slope / line.slope_stderr, line.n - 2))
