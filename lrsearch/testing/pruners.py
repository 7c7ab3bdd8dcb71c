"""A conformance suite for Optuna pruners, after the manner of ``optuna.testing.pytest_samplers``.

Optuna ships such suites for samplers and storages, but none for pruners. Inherit in a test module
and override the fixture with a factory:

    class TestMyPruner(PrunerTestCase):
        @pytest.fixture
        def pruner(self) -> Callable[[], BasePruner]:
            return lambda: MyPruner(alpha=0.05)

A pruner that judges a trial by its own curve alone inherits `CurvePrunerTestCase` as well.
"""

# ruff: noqa: D102  (a test's name is its sentence)
from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, PatientPruner
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

PrunerFactory = Callable[[], BasePruner]
Curve = dict[int, float]
"""Reported values by step, in the order of the reports."""

NAN, INF = math.nan, math.inf

FINITE_CURVES: dict[str, Curve] = {
    "one report": {0: 1.0},
    "one late report": {10**9: 1.0},
    "falling": {step: 2.0 * 0.9**step for step in range(20)},
    "rising": {step: 1.0 + 0.1 * step for step in range(20)},
    "constant": dict.fromkeys(range(20), 1.0),
    "zero": dict.fromkeys(range(20), 0.0),
    "negative": {step: -1.0 - 0.1 * step for step in range(20)},
    "alternating": {step: (-1.0) ** step for step in range(20)},
    "unsorted steps": {step: 1.0 / (1 + step) for step in (5, 1, 9, 0, 7, 3, 2, 8, 6, 4)},
    "gaps between steps": {step: 1.0 / (1 + step) for step in (0, 1, 10, 1000, 10**6)},
    "huge": {step: 1e300 * 0.9**step for step in range(20)},
    "huge of both signs": {step: 1.7e308 * (-1.0) ** step for step in range(20)},
    "tiny": {step: 1e-300 * 0.9**step for step in range(20)},
    "huge, then tiny": {step: 10.0 ** (300 - 30 * step) for step in range(20)},
}
NON_FINITE_CURVES: dict[str, Curve] = {
    "only nan": {0: NAN},
    "only inf": {0: INF},
    "only -inf": {0: -INF},
    "nan last": {0: 1.0, 1: 0.9, 2: 0.8, 3: 0.7, 4: 0.6, 5: NAN},
    "nan first": {0: NAN, 1: 0.9, 2: 0.8, 3: 0.7, 4: 0.6, 5: 0.5},
    "inf last": {0: 1.0, 1: 0.9, 2: 0.8, 3: 0.7, 4: 0.6, 5: INF},
    "-inf last": {0: 1.0, 1: 0.9, 2: 0.8, 3: 0.7, 4: 0.6, 5: -INF},
    "all nan": dict.fromkeys(range(20), NAN),
    "inf of both signs": {0: INF, 1: -INF, 2: 1.0, 3: 0.5, 4: NAN, 5: 0.2},
}
CURVES = {**FINITE_CURVES, **NON_FINITE_CURVES}

Direction = Literal["minimize", "maximize"]
DIRECTIONS: tuple[Direction, ...] = ("minimize", "maximize")
_WRITES = ("set_", "create_", "delete_", "record_")


class _PrunerSuite:
    """What both suites share: the fixture, and trials to judge."""

    lr_name = "lr"
    """Name of the parameter that every trial carries, for pruners that read the learning rate."""

    learning_rate = 0.1
    """Its value."""

    @pytest.fixture
    def pruner(self) -> PrunerFactory:
        """Return a factory of pruners; each call makes an equal, fresh one."""
        raise NotImplementedError("override the fixture `pruner` with a factory of pruners")

    def study(
        self,
        direction: Direction = "minimize",
        *,
        peers: int = 0,
        storage: BaseStorage | None = None,
        pruner: BasePruner | None = None,
    ) -> optuna.Study:
        """Return a study with as many completed trials as ``peers`` says."""
        study = optuna.create_study(direction=direction, storage=storage, pruner=pruner)
        for peer in range(peers):
            curve = {step: (1.0 + 0.1 * peer) * 0.8**step for step in range(20)}
            study.add_trial(self._trial(TrialState.COMPLETE, curve))
        return study

    def frozen(self, study: optuna.Study, curve: Curve) -> FrozenTrial:
        """Return a running trial of ``study`` that has reported ``curve``."""
        study.add_trial(self._trial(TrialState.RUNNING, curve))
        return study.get_trials(deepcopy=True)[-1]

    def asked(self, study: optuna.Study) -> optuna.Trial:
        """Return a trial that reports and asks for itself."""
        study.enqueue_trial({self.lr_name: self.learning_rate})
        trial = study.ask()
        trial.suggest_float(self.lr_name, 1e-6, 1.0, log=True)
        return trial

    def _trial(self, state: TrialState, curve: Curve) -> FrozenTrial:
        return optuna.trial.create_trial(
            state=state,
            value=curve[max(curve)] if state == TrialState.COMPLETE else None,
            params={self.lr_name: self.learning_rate},
            distributions={self.lr_name: FloatDistribution(1e-6, 1.0, log=True)},
            intermediate_values=curve,
        )


class PrunerTestCase(_PrunerSuite):
    """What every pruner must satisfy.

    A pruner answers a question and does nothing else: its verdict is a plain ``bool``, depends on
    the study and the trial alone, exists for whatever a training may report, and costs no write.
    (Optuna's own successive halving and Hyperband keep their rungs in the storage, so they do not
    pass `test_writes_nothing`; as samplers and workers are many, think twice before doing so.)
    """

    @pytest.mark.parametrize("direction", DIRECTIONS)
    @pytest.mark.parametrize("peers", [0, 6])
    @pytest.mark.parametrize("name", CURVES)
    def test_answers_with_a_plain_bool_and_no_warning(
        self, pruner: PrunerFactory, name: str, peers: int, direction: Direction
    ) -> None:
        study = self.study(direction, peers=peers, pruner=pruner())
        trial = self.asked(study)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for step, value in CURVES[name].items():
                trial.report(value, step)
                assert type(trial.should_prune()) is bool

    @pytest.mark.parametrize("direction", DIRECTIONS)
    @pytest.mark.parametrize("peers", [0, 6])
    def test_never_prunes_without_reports(
        self, pruner: PrunerFactory, peers: int, direction: Direction
    ) -> None:
        study = self.study(direction, peers=peers, pruner=pruner())
        assert not self.asked(study).should_prune()

    @pytest.mark.parametrize("name", CURVES)
    def test_leaves_the_trial_as_it_is(self, pruner: PrunerFactory, name: str) -> None:
        study = self.study(peers=6)
        trial = self.frozen(study, CURVES[name])
        before = copy.deepcopy(trial)
        pruner().prune(study, trial)
        assert vars(trial) == vars(before)

    @pytest.mark.parametrize("name", CURVES)
    def test_writes_nothing(
        self, pruner: PrunerFactory, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        study = self.study(peers=6)
        trial = self.frozen(study, CURVES[name])
        writes: list[str] = []

        def spy(method: str) -> Callable[..., None]:
            return lambda *args, **kwargs: writes.append(method)

        for method in dir(study._storage):
            if method.startswith(_WRITES):
                monkeypatch.setattr(study._storage, method, spy(method))
        pruner().prune(study, trial)
        assert writes == []

    @pytest.mark.parametrize("name", CURVES)
    def test_verdict_does_not_depend_on_what_the_instance_saw_before(
        self, pruner: PrunerFactory, name: str
    ) -> None:
        study = self.study(peers=6)
        used = pruner()
        for curve in CURVES.values():
            used.prune(study, self.frozen(study, curve))
        trial = self.frozen(study, CURVES[name])
        verdict = pruner().prune(study, trial)
        assert used.prune(study, trial) == verdict
        assert used.prune(study, trial) == verdict

    def test_survives_pickling(self, pruner: PrunerFactory) -> None:
        study = self.study(peers=6)
        original = pruner()
        original.prune(study, self.frozen(study, CURVES["falling"]))
        restored = pickle.loads(pickle.dumps(original))
        for curve in CURVES.values():
            trial = self.frozen(study, curve)
            assert restored.prune(study, trial) == original.prune(study, trial)

    @pytest.mark.parametrize("patience", [0, 3])
    @pytest.mark.parametrize("name", ["falling", "rising", "one report", "unsorted steps"])
    def test_can_be_made_patient(self, pruner: PrunerFactory, name: str, patience: int) -> None:
        study = self.study(peers=6)
        trial = self.frozen(study, CURVES[name])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            patient = PatientPruner(pruner(), patience=patience)
        # Patience ends only on a curve that no longer improves; then the pruner itself decides.
        expected = name == "rising" and pruner().prune(study, trial)
        assert patient.prune(study, trial) == expected

    @pytest.mark.parametrize("name", CURVES)
    def test_works_on_a_bracket_of_hyperband(self, pruner: PrunerFactory, name: str) -> None:
        study = self.study(peers=6)
        trial = self.frozen(study, CURVES[name])
        # A view that forbids most of Study; its only bracket holds all trials.
        bracket = HyperbandPruner(max_resource=9)._create_bracket_study(study, 0)
        assert pruner().prune(bracket, trial) == pruner().prune(study, trial)

    @pytest.mark.parametrize("kind", ["sqlite", "journal"])
    def test_verdict_is_the_same_on_every_storage(
        self, pruner: PrunerFactory, kind: str, tmp_path: Path
    ) -> None:
        in_memory = self.study(peers=6)
        with _open_storage(kind, tmp_path) as storage:
            stored = self.study(peers=6, storage=storage)
            for name in ("falling", "rising", "unsorted steps", *NON_FINITE_CURVES):
                expected = pruner().prune(in_memory, self.frozen(in_memory, CURVES[name]))
                assert pruner().prune(stored, self.frozen(stored, CURVES[name])) == expected, name

    def test_lets_a_study_of_two_objectives_run_unpruned(self, pruner: PrunerFactory) -> None:
        study = optuna.create_study(directions=["minimize", "maximize"], pruner=pruner())
        trial = self.asked(study)
        with pytest.raises(NotImplementedError):
            trial.should_prune()
        study.tell(trial, [1.0, 2.0])
        assert study.trials[0].state == TrialState.COMPLETE


class CurvePrunerTestCase(_PrunerSuite):
    """What a pruner must satisfy that judges a loss curve by itself, without peers."""

    too_few_points = 3
    """So many finite reports never suffice for a verdict."""

    curve_length = 200
    """So many reports always suffice, at `learning_rate` and with losses near 1."""

    def verdict(
        self, pruner: PrunerFactory, curve: Curve, direction: Direction = "minimize"
    ) -> bool:
        """Return what a fresh pruner says of ``curve`` in a study without other trials."""
        study = self.study(direction)
        return bool(pruner().prune(study, self.frozen(study, curve)))

    def decay(self, noise: float = 0.0) -> Curve:
        """Return an exponential decay to a positive level, with normal noise."""
        steps = np.arange(self.curve_length)
        errors = noise * np.random.default_rng(0).standard_normal(self.curve_length)
        return _curve(0.1 + 2.0 * np.exp(-6.0 * steps / self.curve_length) + errors)

    def rise(self, noise: float = 0.0) -> Curve:
        """Return a loss that doubles along a straight line, with normal noise."""
        errors = noise * np.random.default_rng(0).standard_normal(self.curve_length)
        return _curve(np.linspace(1.0, 2.0, self.curve_length) + errors)

    def test_never_prunes_with_too_few_points(self, pruner: PrunerFactory) -> None:
        for count in range(1, self.too_few_points + 1):
            for slope in (-0.1, 0.0, 0.1):
                curve = {step: 1.0 + slope * step for step in range(count)}
                assert not self.verdict(pruner, curve), curve

    @pytest.mark.parametrize("value", [NAN, INF, -INF])
    @pytest.mark.parametrize("before", [0, 1, 5, 50])
    def test_prunes_at_once_when_the_last_value_is_not_finite(
        self, pruner: PrunerFactory, before: int, value: float
    ) -> None:
        curve = {step: loss for step, loss in self.decay().items() if step < before}
        assert self.verdict(pruner, {**curve, before: value})
        # "Last" goes by the step, not by the order of the reports.
        assert self.verdict(pruner, {before: value, **curve})

    @pytest.mark.parametrize("seed", range(3))
    def test_verdict_does_not_depend_on_the_order_of_reports(
        self, pruner: PrunerFactory, seed: int
    ) -> None:
        for curve in (self.decay(), self.rise(), self.decay(0.1), self.rise(0.1)):
            steps = np.random.default_rng(seed).permutation(len(curve)).tolist()
            shuffled = {step: curve[step] for step in steps}
            assert self.verdict(pruner, shuffled) == self.verdict(pruner, curve)

    @pytest.mark.parametrize("noise", [0.0, 0.001])
    def test_never_prunes_an_exponential_decay(self, pruner: PrunerFactory, noise: float) -> None:
        study = self.study(pruner=pruner())
        trial = self.asked(study)
        for step, loss in self.decay(noise).items():
            trial.report(loss, step)
            assert not trial.should_prune(), f"after {step + 1} reports"

    @pytest.mark.parametrize("noise", [0.0, 0.01])
    def test_prunes_a_rising_curve(self, pruner: PrunerFactory, noise: float) -> None:
        assert self.verdict(pruner, self.rise(noise))

    def test_does_not_ask_for_the_direction_of_the_study(self, pruner: PrunerFactory) -> None:
        for curve in (self.decay(), self.rise(), self.rise(0.01), *CURVES.values()):
            minimizing = self.verdict(pruner, curve, "minimize")
            assert self.verdict(pruner, curve, "maximize") == minimizing, curve


def _curve(losses: np.ndarray[Any, np.dtype[np.float64]]) -> Curve:
    return dict(enumerate(losses.tolist()))


@contextmanager
def _open_storage(kind: str, folder: Path) -> Iterator[BaseStorage]:
    if kind == "journal":
        yield JournalStorage(JournalFileBackend(str(folder / "journal.log")))
        return
    storage = RDBStorage(f"sqlite:///{folder / 'study.db'}")
    try:
        yield storage
    finally:
        storage.engine.dispose()
