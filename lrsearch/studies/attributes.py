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

ACCEPTED: Final = "lrsearch:accepted"
"""Trial on a rung: ``{"trial": int, "step": int}``, the last step of the window that it passed.

Like `DOMINATED` it names the trial that wrote it, as the retry of a dead trial gets a copy of all
attributes; with another trial's number it says nothing."""

DOMINATED: Final = "lrsearch:dominated"
"""Trial on a rung: ``{"trial": int, "by": int}``, the trial on a higher rung for which it was
pruned."""

PROBE: Final = "lrsearch:probe"
"""Trial: rung of a probe of the race before the first trial, an int, negative above the first rate.
The probe is on no ladder, and no trial that a budget of trials counts."""

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

LEASED: Final = "lrsearch:leased"
"""Study: true where every worker holds a lease on its trial, so that one without may be reaped."""

LEASE: Final = "lrsearch:lease"
"""Trial: who works on it, see `lrsearch.studies.leases`; ``None`` while it waits for a worker."""

TURN: Final = "lrsearch:turn"
"""Trial whose worker died before it took a rung: ``{"trial": int, "after": int, "place": int}``.

It takes a rung behind the trial ``after``, which was the newest when it was claimed again, and
behind those with a lower place there; not when its own, older number says. With another trial's
number it says nothing."""

ATTEMPTS: Final = "lrsearch:attempts"
"""Trial: ``{"died": int, "last": str}``: how many workers died over it, and who was the last."""
