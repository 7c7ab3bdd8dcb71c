"""Learning rates from a Lipschitz constant, as an Optuna sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from lrsearch.errors import InvalidArgumentError, require_positive
from lrsearch.studies.attributes import MULTIPLIER
from lrsearch.studies.owned_parameter import OwnedParameterSampler
from lrsearch.studies.tries import choose

LipschitzFunction = Callable[[dict[str, Any]], float]


class LipschitzSampler(OwnedParameterSampler):
    """Propose ``multiplier / lipschitz`` for the learning rate, clipped into the suggested range.

    Trial number n takes multiplier n modulo their count, so any number of workers goes through
    them in turn. Every other parameter goes to ``base_sampler``; enqueued values win.

    With ``tries=True`` each multiplier is tried once, and every later trial takes that of the best
    try: the one with the best last reported value, in the study's direction. `TryPruner` cuts the
    tries short. That is how AdaMo ([L] 7.4) begins, with x in {0.1, 0.5, 1.0} tried for 5 epochs.
    Tries that failed lose; with several workers a trial that begins while tries still run takes
    the best of those that have ended. All of it stands in the study's storage, so a fresh sampler
    goes on where another stopped.

    Args:
        lipschitz: the Lipschitz constant of the loss, positive (1 / learning rate); or a function
            of the trial's other parameters, a dict from name to value, that returns it. Such
            a function sees what the trial has suggested so far: suggest the learning rate after
            the parameters that it reads. To search in several processes it must be picklable.
        lr_name: name of the parameter, as given to ``trial.suggest_float``.
        multipliers: factors to try, positive, at least one.
        base_sampler: sampler of all other parameters; `TPESampler(seed=seed)` if None.
        seed: seed of that default.
        tries: whether the first trials are tries that choose the multiplier of all others.

    Raises:
        InvalidArgumentError: if an argument is out of range; at a suggestion, if ``lipschitz``
            returns no positive finite number or reads a parameter not yet suggested, or with
            ``tries`` if the study has several objectives.
        InvalidTypeError: if an argument, or what ``lipschitz`` returns, is of the wrong kind.

    Example:
        >>> import optuna
        >>> study = optuna.create_study(sampler=LipschitzSampler(4.0, multipliers=(1.0, 2.0)))
        >>> [study.ask().suggest_float("lr", 1e-5, 1.0, log=True) for _ in range(3)]
        [0.25, 0.5, 0.25]
    """

    def __init__(
        self,
        lipschitz: float | LipschitzFunction,
        *,
        lr_name: str = "lr",
        multipliers: Sequence[float] = (1.0,),
        base_sampler: BaseSampler | None = None,
        seed: int | None = None,
        tries: bool = False,
    ) -> None:
        super().__init__(lr_name=lr_name, base_sampler=base_sampler, seed=seed)
        self._lipschitz: float | LipschitzFunction = (
            lipschitz if callable(lipschitz) else require_positive("lipschitz", lipschitz)
        )
        self._multipliers = tuple(require_positive("multipliers", each) for each in multipliers)
        if not self._multipliers:
            raise InvalidArgumentError("multipliers must hold at least one number, got none")
        self._tries = bool(tries)

    def _own_value(
        self, study: optuna.Study, trial: FrozenTrial, distribution: FloatDistribution
    ) -> float:
        constant = self._constant(trial)
        if self._tries:
            multiplier = self._tried(study, trial)
        else:
            multiplier = self._multipliers[trial.number % len(self._multipliers)]
        return min(max(multiplier / constant, distribution.low), distribution.high)

    def _tried(self, study: optuna.Study, trial: FrozenTrial) -> float:
        # Through the storage: under Hyperband the study shows one bracket alone.
        storage, study_id = study._storage, study._study_id
        directions = storage.get_study_directions(study_id)
        if len(directions) != 1:
            raise InvalidArgumentError(
                f"tries needs a study with one objective, by which the best try is found; got "
                f"{len(directions)}: pass tries=False"
            )
        choice = choose(
            storage.get_all_trials(study_id, deepcopy=False),
            trial,
            self._multipliers,
            lr_name=self._lr_name,
            direction=directions[0],
        )
        kept = choice.as_attribute()
        storage.set_trial_user_attr(trial._trial_id, MULTIPLIER, kept)
        trial.user_attrs[MULTIPLIER] = kept  # as Trial.set_user_attr does for the worker's own copy
        return choice.multiplier

    def _constant(self, trial: FrozenTrial) -> float:
        if not callable(self._lipschitz):
            return self._lipschitz
        params = dict(trial.params)  # The learning rate itself is never among them here.
        try:
            constant = self._lipschitz(params)
        except KeyError as error:
            raise InvalidArgumentError(
                f"lipschitz reads parameter {error}, which trial {trial.number} has not suggested: "
                f"suggest {self._lr_name!r} after the parameters that lipschitz reads"
            ) from error
        return require_positive(f"the value of lipschitz({params!r})", constant)
