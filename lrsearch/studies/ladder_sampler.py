"""ExpTest as an Optuna sampler: the learning rate comes down a ladder, one rung a trial."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, TypeAlias

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from lrsearch.errors import InvalidArgumentError, require_in_open_unit_interval, require_positive
from lrsearch.studies.attributes import ATTEMPTS, PVALUE, REASON, RUNG, STOP_REASON, TURN
from lrsearch.studies.exptest_pruner import ExpTestPruner
from lrsearch.studies.owned_parameter import OwnedParameterSampler
from lrsearch.studies.rungs import Rung, Scale, Search, read_rung, was_queued

_PATIENCE_SECONDS = 2.0
_SHORTEST_NAP_SECONDS = 0.001
_LONGEST_NAP_SECONDS = 0.05
_Birth: TypeAlias = tuple[str, int, datetime | None]


class ExpTestSampler(OwnedParameterSampler):
    """Propose ``lr_max * beta**k`` for the learning rate, one rung lower after each pruned trial.

    Use it together with a pruner that rejects a rate which is too large, such as
    `ExpTestPruner`. All trials of one configuration form a *ladder*: they differ in the learning
    rate alone. A completed trial, or a next rung below the suggested range, ends the ladder; then
    the next configuration begins. Where the learning rate is the only parameter that is free, the
    study stops instead and keeps the reason as its attribute `STOP_REASON`.

    Exactness: concurrent trials get distinct rungs, each once. Optuna's storages have no
    compare-and-swap, but every trial has a number of its own; a new trial waits until each
    running trial with a lower number has recorded its rung (it does so within milliseconds of its
    birth), so rungs are handed out in the order of the numbers. One that was queued again by a
    `Reaper`, before it took a rung, stands behind all that were there when it was claimed. A trial
    waits two seconds at most for each of those before it, in case a worker died in between.

    The answer is that of one worker: a completed trial ends its ladder once every higher rung was
    rejected. With ``ExpTest(trial=...)`` a trial whose rate passes the test ends those on lower
    rungs of its ladder at their next window; should it come to grief later, their rungs are tried
    again. Meanwhile no rung below it is handed out.

    A trial that failed says nothing of its rate: its rung is tried again (twice). An enqueued
    value of the learning rate wins, and that trial stands on no ladder; an enqueued configuration
    without one begins a ladder of its own. A worker that comes when no rung is left for it takes
    a value from the base sampler; ``waits(study)`` tells beforehand.

    Args:
        lr_max: rate of rung 0, cut at the upper end of the suggested range, which is also the
            default.
        beta: ratio of a rung to the one above it, in (0, 1).
        lr_name: name of the parameter, as given to ``trial.suggest_float``.
        base_sampler: sampler of all other parameters; `TPESampler(seed=seed)` if None.
        seed: seed of that default.
        stop_when_found: stop a study whose only parameter is the learning rate once a trial on
            the ladder completes or no rung is left; False begins another ladder.

    Raises:
        InvalidArgumentError: if an argument is out of range; at a suggestion, if ``lr_max`` lies
            below the suggested range.
        InvalidTypeError: if an argument is of the wrong kind.

    Example:
        >>> import optuna
        >>> study = optuna.create_study(sampler=ExpTestSampler(beta=0.1))
        >>> trial = study.ask()
        >>> trial.suggest_float("lr", 1e-5, 1.0, log=True)
        1.0
        >>> _ = study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        >>> study.ask().suggest_float("lr", 1e-5, 1.0, log=True)
        0.1
    """

    def __init__(
        self,
        lr_max: float | None = None,
        *,
        beta: float = 0.33,
        lr_name: str = "lr",
        base_sampler: BaseSampler | None = None,
        seed: int | None = None,
        stop_when_found: bool = True,
    ) -> None:
        super().__init__(lr_name=lr_name, base_sampler=base_sampler, seed=seed)
        self._scale = Scale(
            lr_max=None if lr_max is None else require_positive("lr_max", lr_max),
            beta=require_in_open_unit_interval("beta", beta),
        )
        self._stop_when_found = bool(stop_when_found)
        # Trials that were awaited in vain, so that a dead worker costs its survivors one wait
        # and not one wait a trial. No part of the search: losing it costs time alone.
        self._given_up: set[_Birth] = set()

    def waits(self, study: optuna.Study) -> bool:
        """Whether a worker should wait before it asks for a trial.

        True where every sensible rung is being tried, as below a rung that was accepted and still
        trains, but one may be free again later. While it is True a trial on the ladder runs, so
        ask again when one has ended. False once the study is decided, and in studies that can
        begin another ladder.
        """
        return self._stop_when_found and self._search(_all_trials(study)).waits()

    def verdict(self, study: optuna.Study) -> str | None:
        """Why a study of the learning rate alone is over, in one sentence; None if it is not.

        What the trials say now. `STOP_REASON` holds the same, but when the last two trials of a
        study end within a moment, neither of their workers may see the other's end and write it.
        """
        search = self._search(_all_trials(study))
        return search.verdict() if self._stop_when_found and search.is_alone() else None

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Take a rung, unless the learning rate is fixed or a retry brings its rung along."""
        if "failed_trial" in trial.system_attrs and _says_why_it_ended(trial):
            _record(study, trial, REASON, "")  # That was the end of another attempt.
        fixed = self._lr_name in trial.params or self._lr_name in _fixed_params(trial)
        if not fixed and read_rung(trial) is None:
            self._take_rung(study, trial)
        super().before_trial(study, trial)

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        """Return what the ladder has settled, and the base sampler's values for the rest.

        The base is asked for the rest alone: TPE would else publish values that are never used.
        """
        settled = self._settled_values(study, trial, search_space)
        open_space = {name: each for name, each in search_space.items() if name not in settled}
        if settled and not open_space:
            return settled
        sampled = super().sample_relative(study, trial, open_space)
        return {**sampled, **settled}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Propose the rung's rate, or the ladder's value of any other parameter."""
        settled = self._settled_values(study, trial, {param_name: param_distribution})
        if param_name in settled:
            return settled[param_name]
        return super().sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Pass on to the base sampler; explain a pruned trial; stop the study if it is decided."""
        super().after_trial(study, trial, state, values)
        if state == TrialState.PRUNED and not _says_why_it_ended(trial):
            self._explain(study, trial)
        if self._stop_when_found:
            self._stop_if_decided(study, trial, state)

    def _explain(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Record why ``trial`` was pruned, where its pruner could not: pruners write nothing."""
        pruner = study.pruner
        judge = pruner
        if not isinstance(judge, ExpTestPruner):
            judge = ExpTestPruner(lr_name=self._lr_name)
        rejected, reason, pvalue = judge.verdict(trial)
        if not rejected:
            reason = f"pruned by {type(pruner).__name__} or the objective; its curve: {reason}"
        for name, value in ((REASON, reason), (PVALUE, pvalue)):
            study._storage.set_trial_user_attr(trial._trial_id, name, value)

    def _own_value(
        self, study: optuna.Study, trial: FrozenTrial, distribution: FloatDistribution
    ) -> float | None:
        top = self._scale.top(distribution)
        if top < distribution.low:
            raise InvalidArgumentError(
                f"lr_max={top!r} lies below the range of {self._lr_name!r}, "
                f"[{distribution.low!r}, {distribution.high!r}]: raise lr_max or lower the range"
            )
        # A wrapper that forgets before_trial leaves the rung to be taken here.
        place = read_rung(trial) or self._take_rung(study, trial)
        if place.rung is None:
            return None
        rate = self._scale.rate(place.rung, distribution)
        if rate is None:
            _record(study, trial, RUNG, Rung(place.ladder, None)._asdict())
        return rate

    def _take_rung(self, study: optuna.Study, trial: FrozenTrial) -> Rung:
        if was_queued(trial):
            place = Rung(trial.number, 0)
        else:
            if ATTEMPTS in trial.user_attrs:
                self._stand_behind(study, trial)
            trials = self._trials_after_elders(study, trial)
            taken = next(read_rung(each) for each in trials if each.number == trial.number)
            if taken is not None:  # meanwhile, by a worker that has the trial now
                trial.user_attrs[RUNG] = taken._asdict()
                return taken
            search = self._search(trials)
            one_ladder = self._stop_when_found and search.is_alone()
            place = search.choose(trial.number, one_ladder=one_ladder)
        _record(study, trial, RUNG, place._asdict())
        return place

    def _stand_behind(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Let ``trial`` come after all that are there: they did not wait for it in the queue.

        Whoever comes later finds it running, and waits as long as its turn is the old one.
        """
        trials = _all_trials(study)
        newest = max(each.number for each in trials)
        last = max(place for number, place, _ in map(_turn, trials) if number == newest)
        turn = {"trial": trial.number, "after": newest, "place": last + 1}
        _record(study, trial, TURN, turn)

    def _trials_after_elders(self, study: optuna.Study, trial: FrozenTrial) -> list[FrozenTrial]:
        """Return all trials once every running one before it has taken its rung.

        Queued trials are not awaited: they get their number long before they start, and take no
        rung of a ladder that another trial began. Nothing but the rung itself tells that a trial
        has one: a relational storage reads attributes and parameters one after the other, so a
        trial can show parameters that are newer than its attributes.
        """

        def elders_without_rung(trials: list[FrozenTrial]) -> list[FrozenTrial]:
            return [
                each
                for each in trials
                if _turn(each) < _turn(trial)
                and each.state == TrialState.RUNNING
                and read_rung(each) is None
                and not was_queued(each)
            ]

        return self._await(study, elders_without_rung, in_turn=True)

    def _settled_values(
        self, study: optuna.Study, trial: FrozenTrial, space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return those values of ``space`` that earlier trials of the same ladder have settled."""
        place = read_rung(trial)
        names = space.keys() - {self._lr_name}
        if place is None or place.rung is None or place.ladder == trial.number or not names:
            return {}

        def elders(trials: list[FrozenTrial]) -> list[FrozenTrial]:
            return [
                each
                for each in trials
                if _turn(each) < _turn(trial)
                and (other := read_rung(each)) is not None
                and other.ladder == place.ladder
                and other.rung is not None
            ]

        def elders_to_ask(trials: list[FrozenTrial]) -> list[FrozenTrial]:
            members = elders(trials)
            missing = {name for name in names if all(name not in each.params for each in members)}
            return [each for each in members if each.state == TrialState.RUNNING and missing]

        members = elders(self._await(study, elders_to_ask))
        settled: dict[str, Any] = {}
        for name in names:
            for each in members:
                if name in each.params and _fits(space[name], each, name):
                    settled[name] = each.params[name]
                    break
        return settled

    def _await(
        self,
        study: optuna.Study,
        pending: Callable[[list[FrozenTrial]], list[FrozenTrial]],
        *,
        in_turn: bool = False,
    ) -> list[FrozenTrial]:
        """Return all trials as soon as none is pending, or when patience ends.

        Args:
            study: whose trials.
            pending: which of them are waited for.
            in_turn: whether they wait for each other. Each may then take as much longer as there
                are others before it: it gives those up no sooner than this trial does.
        """
        began = time.monotonic()
        first: _Birth | None = None
        deadline = began
        nap = _SHORTEST_NAP_SECONDS
        while True:
            trials = _all_trials(study)
            births = [_birth(study, each) for each in sorted(pending(trials), key=_turn)]
            left = [place for place, each in enumerate(births) if each not in self._given_up]
            if not left:
                return trials
            now = time.monotonic()
            if first is None or (in_turn and births[left[0]] != first):
                first = births[left[0]]
                steps = left[0] + 1 if in_turn else 1
                deadline = max(began + steps * _PATIENCE_SECONDS, now + _PATIENCE_SECONDS)
            elif now >= deadline:
                self._given_up.update([first] if in_turn else births)
                continue
            time.sleep(nap)
            nap = min(1.5 * nap, _LONGEST_NAP_SECONDS)

    def _stop_if_decided(self, study: optuna.Study, trial: FrozenTrial, state: TrialState) -> None:
        """Stop this worker if any worker's trials have decided a study of one parameter."""
        ended = copy.copy(trial)
        ended.state = state  # The storage learns it only after this hook.
        trials = [ended if each.number == trial.number else each for each in _all_trials(study)]
        search = self._search(trials)
        verdict = search.verdict() if search.is_alone() else None
        if verdict is None:
            return
        if study._storage.get_study_user_attrs(study._study_id).get(STOP_REASON) != verdict:
            study._storage.set_study_user_attr(study._study_id, STOP_REASON, verdict)
        with suppress(RuntimeError):  # Raised outside of study.optimize: the caller asks and tells.
            study.stop()

    def _search(self, trials: Sequence[FrozenTrial]) -> Search:
        return Search(trials, self._lr_name, self._scale)


def _all_trials(study: optuna.Study) -> list[FrozenTrial]:
    # Not study.get_trials: under Hyperband that shows one bracket, and ladders span all of them.
    return study._storage.get_all_trials(study._study_id, deepcopy=False)


def _turn(trial: FrozenTrial) -> tuple[int, int, int]:
    """Where a trial stands in the order in which rungs are taken; no two stand at one place."""
    turn = trial.user_attrs.get(TURN)
    if turn is None or turn["trial"] != trial.number:  # that of a dead trial, copied to its retry
        return trial.number, 0, trial.number
    return turn["after"], turn["place"], trial.number


def _birth(study: optuna.Study, trial: FrozenTrial) -> _Birth:
    """Names the worker of a trial, as it were: each that claims it starts it anew."""
    return study.study_name, trial.number, trial.datetime_start


def _record(study: optuna.Study, trial: FrozenTrial, name: str, value: Any) -> None:
    study._storage.set_trial_user_attr(trial._trial_id, name, value)
    trial.user_attrs[name] = value  # As Trial.set_user_attr does for the worker's own copy.


def _fixed_params(trial: FrozenTrial) -> dict[str, Any]:
    fixed: dict[str, Any] = trial.system_attrs.get("fixed_params", {})
    return fixed


def _says_why_it_ended(trial: FrozenTrial) -> bool:
    """Whether ``trial`` has a reason for its end; why its rate was accepted is none."""
    reason = str(trial.user_attrs.get(REASON, ""))
    return bool(reason) and not reason.startswith("accepted:")


def _fits(distribution: BaseDistribution, other: FrozenTrial, name: str) -> bool:
    """Whether the value that ``other`` has for ``name`` is one of ``distribution``."""
    try:
        return distribution._contains(distribution.to_internal_repr(other.params[name]))
    except ValueError:  # No longer a choice; Optuna forbids that, and says so better than we.
        return False
