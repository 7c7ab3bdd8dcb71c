"""A sampler that owns one learning rate and leaves every other parameter to another sampler."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, TypeGuard

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from lrsearch.errors import InvalidArgumentError, InvalidTypeError


def is_rate_range(distribution: BaseDistribution | None) -> TypeGuard[FloatDistribution]:
    """Whether ``distribution`` is a range of learning rates: continuous, with positive values."""
    return (
        isinstance(distribution, FloatDistribution)
        and distribution.step is None
        and distribution.high > 0.0
    )


class OwnedParameterSampler(BaseSampler):
    """Base class of samplers that own the float parameter ``lr_name``.

    A child says in `_own_value` what it proposes. Every other parameter, and all six hooks, go to
    ``base_sampler``. The owned name goes there too where it is no range of learning rates: asked
    as an integer, as a category, on a grid (``step``), or with no positive value in the range.

    A child keeps what it knows in the study's storage, not in itself: Optuna hands the same
    instance to all threads and a fresh one to each process. Under `HyperbandPruner` it sees only
    the view of its bracket, on which ``study.user_attrs`` and the like do not exist; use
    ``study._storage`` and ``study._study_id``.

    Args:
        lr_name: name of the owned parameter, as given to ``trial.suggest_float``.
        base_sampler: sampler of everything else; `TPESampler(seed=seed)` if None.
        seed: seed of that default; a ``base_sampler`` of your own brings its own.

    Raises:
        InvalidTypeError: if ``lr_name`` is no string or ``base_sampler`` no sampler.
        InvalidArgumentError: if ``lr_name`` is empty.
    """

    def __init__(
        self,
        *,
        lr_name: str = "lr",
        base_sampler: BaseSampler | None = None,
        seed: int | None = None,
    ) -> None:
        if not isinstance(lr_name, str):
            raise InvalidTypeError(f"lr_name must be a string, got {lr_name!r}")
        if not lr_name:
            raise InvalidArgumentError("lr_name must name a parameter, got an empty string")
        if base_sampler is not None and not isinstance(base_sampler, BaseSampler):
            raise InvalidTypeError(
                f"base_sampler must be an optuna.samplers.BaseSampler or None, got {base_sampler!r}"
            )
        self._lr_name = lr_name
        self._base = TPESampler(seed=seed) if base_sampler is None else base_sampler

    @abstractmethod
    def _own_value(
        self, study: optuna.Study, trial: FrozenTrial, distribution: FloatDistribution
    ) -> float | None:
        """Return the learning rate to propose, or None to leave it to the base sampler."""

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Propose the owned learning rate, or what the base sampler proposes."""
        if param_name == self._lr_name and is_rate_range(param_distribution):
            value = self._own_value(study, trial, param_distribution)
            if value is not None:
                return float(value)
        return self._base.sample_independent(study, trial, param_name, param_distribution)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the base sampler's space without the owned name."""
        space = self._base.infer_relative_search_space(study, trial)
        return {name: each for name, each in space.items() if name != self._lr_name}

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        """Return the base sampler's values for ``search_space``."""
        return self._base.sample_relative(study, trial, search_space)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Pass on to the base sampler."""
        self._base.before_trial(study, trial)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Pass on to the base sampler."""
        self._base.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Pass on to the base sampler: nothing here is random."""
        self._base.reseed_rng()
