"""Names of the attributes that lrsearch writes into an Optuna study.

All share the prefix ``lrsearch:``, so none collides with a user's own. Each value is small (well
below the 2045 characters that every storage takes) and plain JSON.
"""

from __future__ import annotations

from typing import Final

RUNG: Final = "lrsearch:rung"
"""Trial: ``{"ladder": int, "rung": int | None}``.

A ladder bears the number of the trial that began it. Rung 0 is the largest learning rate; ``None``
marks a trial that came when the ladder had no rung left inside the suggested range."""

REASON: Final = "lrsearch:reason"
"""Trial: why its rate was accepted, or why it was pruned, in a few words."""

PVALUE: Final = "lrsearch:pvalue"
"""Trial: p-value of the test that decided it."""

WINDOW_PREFIX: Final = "lrsearch:window:"
"""Trial: one attribute for each loss window, ``lrsearch:window:<index>``."""

STOP_REASON: Final = "lrsearch:stop_reason"
"""Study: why it stopped before its budget was spent, one sentence."""

MULTIPLIER: Final = "lrsearch:multiplier"
"""Trial: ``{"multiplier": float, "try": int | None}``.

What ``LipschitzSampler(tries=True)`` divided by the Lipschitz constant; the place of the multiplier
in its list marks a try, ``None`` a trial that took the best try's."""
