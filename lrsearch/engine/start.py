"""Where a search starts: at the winner of a race, the data's bound, 1 / L, or the papers' rate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from lrsearch.controllers.race import RaceSettings
from lrsearch.engine.bound import RateBound, rate_bound
from lrsearch.engine.lipschitz import first_estimate, papers_first_rate
from lrsearch.errors import InvalidArgumentError, require_choice
from lrsearch.stats.convergence import Mode
from lrsearch.training.lipschitz import LipschitzEstimate
from lrsearch.training.probes import Race, run_race
from lrsearch.training.task import TaskData, TrainingTask

STARTS: Final = ("race", "bound", "lipschitz")
# Methods whose trials ExpTest watches over from a start of the user's choice, or can.
_STARTING: Final = ("exptest", "lipschitz")


@dataclass(frozen=True, slots=True)
class Start:
    """The rate at which a search begins.

    Attributes:
        kind: "race", "bound" or "lipschitz": what the rate rests on.
        rate: of the ladder's top, or of a multiplier of 1.
        how: how it was found, in a few words.
        bound: from the data, if it was asked for.
        estimate: of the first batch, if it was asked for.
        note: why it is not what was asked for; "" if it is.
        race: that was run, whether or not it has a winner; None if none was, or by another process.
    """

    kind: str
    rate: float
    how: str
    bound: RateBound | None = None
    estimate: LipschitzEstimate | None = None
    note: str = ""
    race: Race | None = None

    @property
    def raced(self) -> bool:
        """Whether the rate has won a race."""
        return self.kind == "race"


def checked_start(method: str, start: str | None, mode: Mode) -> str | None:
    """Where a method starts: the user's choice, or the method's own.

    Returns:
        "race", "bound", "lipschitz" (then ExpTest watches over the ladder), or None: the method's
        own.

    Raises:
        InvalidArgumentError: if the method has no such choice.
    """
    if start is None:
        ladder = "bound" if mode == "paper" else "race"
        return ladder if method == "exptest" else None
    require_choice("start", start, STARTS)
    if method not in _STARTING:
        raise InvalidArgumentError(
            f"start goes with method 'exptest' or 'lipschitz', got start={start!r} with method "
            f"{method!r}: leave it out"
        )
    if method == "lipschitz" and start != "lipschitz":
        raise InvalidArgumentError(
            f"start must be 'lipschitz' or left out with method 'lipschitz', got {start!r}: "
            "use method 'exptest'"
        )
    if mode == "paper" and start == "race":
        raise InvalidArgumentError(
            "start must be 'bound' or 'lipschitz' with mode 'paper', got 'race': use mode 'robust'"
        )
    return start


def find_start(
    task: TrainingTask,
    data: TaskData,
    mode: Mode,
    seed: int,
    *,
    method: str,
    start: str | None,
    race: RaceSettings | None = None,
    device: str = "cpu",
) -> Start:
    """The rate at which a search begins.

    Where no rate holds in a race, or the first batch gives no Lipschitz constant (a dead layer),
    the bound from the data stands in, and ``note`` says so.

    Args:
        task, data, mode, seed: what is trained; the seed of weights and batches.
        method: of the search.
        start: from ``checked_start``.
        race: how a race is run; needed where ``start`` is "race".
        device: on which it is run.

    Raises:
        ValueError: if a Lipschitz constant is wanted of a model without a linear layer.
    """
    if start == "race":
        assert race is not None
        found = run_race(task, data, seed, race, device=device)
        if not found.holds:
            why = f"no rate held in the race of {len(found.probes)}"
            note = f"started at the bound from the data: {why}"
            return replace(_from_data(task, data, mode, note=note), race=found)
        how = f"race of {len(found.probes)} rates: {found.reason}"
        return Start("race", found.rate, how, race=found)
    plain = method == "lipschitz" and start is None
    if not plain and start != "lipschitz":
        return _from_data(task, data, mode)
    fixed = papers_first_rate(task, mode) if plain else None
    if fixed is not None:
        return Start("lipschitz", *fixed)
    estimate = first_estimate(task, data, mode, seed)
    if estimate.reason:
        why = f"no Lipschitz constant from the first batch ({estimate.reason})"
        return _from_data(task, data, mode, note=f"started at the bound from the data: {why}")
    return Start("lipschitz", estimate.lr, "1 / L of the first batch", estimate=estimate)


def _from_data(task: TrainingTask, data: TaskData, mode: Mode, note: str = "") -> Start:
    bound = rate_bound(task, data, mode)
    return Start("bound", bound.lr_max, bound.method, bound=bound, note=note)
