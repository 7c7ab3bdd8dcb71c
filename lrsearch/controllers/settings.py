"""What a user may choose of ExpTest, and what follows from it at once."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from lrsearch.errors import (
    InvalidArgumentError,
    require_choice,
    require_in_open_unit_interval,
    require_number,
)
from lrsearch.stats.convergence import MODES, Mode

# Windows shorter than this carry no verdict: an F-test on five points is a coin.
ROBUST_FLOOR = 30
PAPER_FLOOR = 4


@dataclass(frozen=True, slots=True)
class ExpTestSettings:
    """What a user may choose.

    Attributes:
        alpha: level of the tests, in (0, 1).
        beta: factor of a restart or a decay, in (0, 1).
        mode: "robust" or "paper" (Algorithm 1 as printed, with the globally best fit).
        full_batch: whether every step sees the whole data set; then c_w = 1.
        total_steps: gradient steps of the whole run, restarts included; None if not known.
        anneal: share of ``total_steps`` at the end over which the rate falls to 0 by a line, in
            [0, 1]; 0 for none.
        raced: the rate has won a race, so its first window is recorded and ends the search unless
            it diverges: what a race has compared, one curve alone cannot undo.
    """

    alpha: float = 0.05
    beta: float = 0.33
    mode: Mode = "robust"
    full_batch: bool = False
    total_steps: int | None = None
    anneal: float = 0.0
    raced: bool = False

    def __post_init__(self) -> None:
        require_in_open_unit_interval("alpha", self.alpha)
        require_in_open_unit_interval("beta", self.beta)
        require_choice("mode", self.mode, MODES)
        if self.total_steps is not None:
            steps = require_number("total_steps", self.total_steps)
            if not (1 <= steps < inf) or steps != int(steps):
                raise InvalidArgumentError(
                    f"total_steps must be a positive whole number or None, got {self.total_steps!r}"
                )
        if not 0.0 <= require_number("anneal", self.anneal) <= 1.0:
            raise InvalidArgumentError(f"anneal must lie in [0, 1], got {self.anneal!r}")
        if self.anneal and self.total_steps is None:
            raise InvalidArgumentError(
                f"anneal needs total_steps, or no end is known, got anneal={self.anneal!r}"
            )

    @property
    def floor(self) -> int:
        """Fewest steps of a window."""
        return ROBUST_FLOOR if self.mode == "robust" else PAPER_FLOOR

    @property
    def annealing_from(self) -> float:
        """Step after which the rate falls to 0; infinite if it does not."""
        if not self.anneal or self.total_steps is None:
            return inf
        return self.total_steps * (1.0 - self.anneal)

    def share_at(self, step: int) -> float:
        """The rate of the step after ``step`` ones, relative to what it is without annealing."""
        if step <= self.annealing_from or self.total_steps is None:
            return 1.0
        return max(self.total_steps - step, 1) / (self.anneal * self.total_steps)

    def level(self, looks: int) -> float:
        """Level of a test after so many earlier looks at the same window."""
        return self.alpha if self.mode == "paper" else self.alpha / 2.0 ** (looks + 1)

    @property
    def probe(self) -> int:
        """Steps after which the first loss is asked for: at once only where windows may be tiny."""
        return self.floor if self.mode == "robust" else 1
