"""A trial whose process dies at any moment, and which others go on with: as if nobody had died."""

from __future__ import annotations

import itertools
import logging
import os
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from torch import Tensor, nn

from lrsearch import Split, TaskData, TrainingTask
from lrsearch.controllers.settings import ExpTestSettings
from lrsearch.engine.methods import make_plan
from lrsearch.engine.objective import Objective
from lrsearch.engine.progress import SilentWatcher
from lrsearch.engine.provenance import DataRecord
from lrsearch.engine.result import DEVICE, SECONDS, STEPS
from lrsearch.engine.start import Start
from lrsearch.studies.attributes import ATTEMPTS, REASON, WINDOW_PREFIX
from lrsearch.tracking import NullRun
from lrsearch.training.keeping import TrainingLeft
from lrsearch.training.lipschitz import LipschitzEstimate

STEPS_AN_EPOCH = 4
# Rates and levels at which a few dozen steps hold windows that are accepted, and decays.
TUNED = {"sgd": (0.2, 0.6), "momentum": (0.06, 0.6), "adam": (0.3, 0.9), "rmsprop": (0.1, 0.6)}


_never_before = itertools.count()


class Killed(BaseException):
    """The process is dead."""


@dataclass
class Fate:
    """Counts what a process does to the world, and kills it; the dead do nothing any more."""

    left: float = float("inf")
    done: int = 0

    def act(self) -> None:
        if self.done >= self.left:
            raise Killed
        self.done += 1


@dataclass
class Store:
    """What a tracker's SQL store keeps of one run, whoever writes it."""

    points: set[tuple[str, int, int, float]] = field(default_factory=set)
    timed: bool = False
    losses: dict[int, tuple[float, float]] = field(default_factory=dict)
    params: dict[str, object] = field(default_factory=dict)
    tags: dict[str, object] = field(default_factory=dict)
    tables: dict[str, Any] = field(default_factory=dict)
    statuses: list[str] = field(default_factory=list)

    def curve(self) -> Counter[tuple[str, int, float]]:
        """How often each value is there; wall time differs from run to run."""
        return Counter((k, step, v) for k, _, step, v in self.points if k != "seconds")


class StoredRun(NullRun):
    """A process's hand on a store."""

    def __init__(self, store: Store, fate: Fate) -> None:
        self._store, self._fate = store, fate
        # A new process's table is made from what it is told.
        self._losses: dict[int, tuple[float, float]] = {}

    def log_metrics(
        self, metrics: Mapping[str, float], step: int, *, timestamp: int | None = None
    ) -> None:
        for key, value in metrics.items():
            self._fate.act()
            at = next(_never_before) if timestamp is None else timestamp
            self._store.points.add((key, at, step, value))
            self._store.timed |= timestamp is not None

    def log_steps(self, losses: Any, start: int, lr: float) -> None:
        self._fate.act()
        self._losses |= {start + i: (float(loss), lr) for i, loss in enumerate(losses)}

    def log_params(self, params: Mapping[str, object]) -> None:
        self._fate.act()
        self._store.params = {**params, **self._store.params}

    def set_tags(self, tags: Mapping[str, object]) -> None:
        self._fate.act()
        self._store.tags |= tags

    def log_table(self, name: str, table: Any) -> None:
        self._fate.act()
        self._store.tables[name] = table

    def child(
        self, name: str, *, tags: Any = None, uid: str | None = None, ready: Any = None
    ) -> StoredRun:
        assert uid == "study-0"
        return self

    def finish(self, status: str) -> None:
        self._fate.act()
        self._store.losses = self._losses
        self._store.statuses.append(status)

    def leave(self) -> None:
        self._fate.act()
        self._store.statuses.append("left")


class Restless(nn.Module):
    """Draws from every generator, and has a state that no ``state_dict`` holds."""

    passes: Tensor

    def __init__(self, fate: Callable[[], Fate]) -> None:
        super().__init__()
        self._fate = fate
        self.register_buffer("passes", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self._fate().act()
            self.passes += 1
            noise = random.random() + np.random.random()  # noqa: NPY002 - the global one
            return x * (1.0 + 1e-3 * self.passes + 1e-2 * noise)
        return x


def make_data(seed: int) -> TaskData:
    generator = torch.Generator().manual_seed(seed)

    def split(rows: int) -> Split:
        inputs = torch.randn(rows, 4, generator=generator)
        return Split(inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0.5).long())

    return TaskData(split(50), split(20), split(20), outputs=3, name="toy")


class World:
    """Everything that outlives a process: study, store, checkpoints."""

    def __init__(
        self, folder: Path, method: str, optimizer: str, *, every: int | None = 3, **changes: Any
    ) -> None:
        self.folder, self.every, self.store, self.fate = folder, every, Store(), Fate()
        self.task = TrainingTask(
            name="toy",
            data=make_data,
            model=lambda data: nn.Sequential(
                nn.Linear(4, 8),
                nn.BatchNorm1d(8),
                Restless(lambda: self.fate),
                nn.Dropout(0.2),
                nn.ReLU(),
                nn.Linear(8, 3),
            ),
            **({"epochs": 10, "batch_size": 16, "optimizer": optimizer} | changes),
        )
        rate, alpha = 0.05, 0.05
        if method == "exptest" and optimizer in TUNED:
            rate, alpha = TUNED[optimizer]
        self.data = make_data(0)
        total = self.task.epochs * (STEPS_AN_EPOCH if self.task.batch_size else 1)
        # The papers' windows are short enough for several in so few steps.
        self.settings = ExpTestSettings(mode="paper", alpha=alpha, total_steps=total)
        self.method = method
        estimate = LipschitzEstimate(1.0, 1.0, 20.0, rate, -1) if method == "lipschitz" else None
        self.start = Start("bound", rate, "by hand", estimate=estimate)
        self.plan = make_plan(method, rate, self.settings, 0, None, epochs=self.task.epochs)
        pruner = optuna.pruners.NopPruner() if method == "exptest" else self.plan.pruner
        self.study = optuna.create_study(pruner=pruner)
        self.study.enqueue_trial({"lr": rate})
        self.trial_id = self.study.ask()._trial_id
        for name in ("set_trial_user_attr", "set_trial_intermediate_value"):
            self._watch(name)
        self.objective: Objective | None = None

    def _watch(self, name: str) -> None:
        plain = getattr(self.study._storage, name)

        def watched(*arguments: Any) -> Any:
            self.fate.act()
            return plain(*arguments)

        setattr(self.study._storage, name, watched)

    def process(self, fate: Fate, **options: Any) -> Any:
        """One process works on the trial; what came out of it."""
        self.fate = fate
        self.objective = Objective(
            task=self.task,
            data=self.data,
            plan=self.plan,
            settings=self.settings,
            seed=0,
            run=StoredRun(self.store, fate),
            kind="trial",
            method=self.method,
            watcher=SilentWatcher(),
            start=self.start,
            uid="study",
            seen=DataRecord("toy", "0", "{}"),
            keep_model=True,
            checkpoints=None if self.every is None else self.folder,
            checkpoint_steps=self.every,
            **options,
        )
        # None of a process's generators is in the state in which another one's was.
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - the global one
        try:
            return self.objective(optuna.Trial(self.study, self.trial_id))
        except optuna.TrialPruned as error:
            return f"pruned: {error}"

    def record(self) -> dict[str, Any]:
        """All that a user would look at."""
        assert self.objective is not None
        (trial,) = self.study.get_trials()
        attributes = {k: v for k, v in trial.user_attrs.items() if k != SECONDS}
        model, figure = self.objective.chosen_model, self.objective.chosen_figure
        with np.printoptions(threshold=10**6):
            drawn = repr(figure)
        return {
            "attributes": attributes,
            "reports": trial.intermediate_values,
            "points": self.store.curve(),
            "losses": dict(sorted(self.store.losses.items())),
            "params": self.store.params,
            "tags": {key: value for key, value in self.store.tags.items() if value != ""},
            "windows": [{k: repr(v) for k, v in row.items()} for row in self.objective.windows],
            "figure": drawn,
            "weights": None if model is None else [*everything(model)],
        }


def everything(model: nn.Module) -> Iterator[list[float]]:
    for tensor in [*model.parameters(), *model.buffers()]:
        yield tensor.detach().flatten().tolist()


@contextmanager
def mortal_files(monkeypatch: pytest.MonkeyPatch, world: World) -> Iterator[None]:
    """Between any two names of a file a process may die too."""
    replace = Path.replace

    def replacing(path: Path, target: Path) -> Path:
        world.fate.act()
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replacing)
        yield


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figure is drawn, and no disk waited for: that takes longer than the trainings."""
    monkeypatch.setattr("lrsearch.engine.attempt.log_picture", lambda *_: None)
    monkeypatch.setattr(os, "fsync", lambda _: None)


_known: dict[str, tuple[Any, dict[str, Any], int]] = {}


def uninterrupted(folder: Path, *arguments: Any, **changes: Any) -> tuple[Any, dict[str, Any], int]:
    """What a process without a keeper does, and how often it acts with one."""
    name = repr((arguments, changes))
    if name not in _known:
        plain = World(folder / "plain", *arguments, every=None, **changes)
        value = plain.process(Fate())
        kept, fate = World(folder / "kept", *arguments, **changes), Fate()
        assert kept.process(fate) == value
        assert_same(kept.record(), plain.record())
        _known[name] = value, plain.record(), fate.done
    value, record, acts = _known[name]
    return value, dict(record), acts


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for key, value in expected.items():
        if key == "points":
            # Two that a training tells of one step are one where they come in one millisecond.
            assert set(found[key]) == set(value)
            assert found[key] <= value
        else:
            assert found[key] == value, key


OPTIMIZERS = ("sgd", "momentum", "adam", "rmsprop")
LONG = {"epochs": 20}  # for a window after the first
CASES = [
    *(("exptest", optimizer, LONG) for optimizer in OPTIMIZERS),
    ("exptest", "adamw", {}),  # its rate is rejected
    *((method, optimizer, {}) for method in ("lipschitz", "grid") for optimizer in OPTIMIZERS),
    ("tpe", "sgd", {}),
    ("lipschitz", "momentum", {"batch_size": None}),
]


def test_the_cases_hold_what_is_to_be_gone_on_with(tmp_path: Path) -> None:
    """Else the tests below would see none of it."""
    decisions: dict[str, list[str]] = {}
    for method, optimizer, changes in CASES[:5]:
        world = World(tmp_path / optimizer, method, optimizer, **changes)
        world.process(Fate())
        assert world.objective is not None
        decisions[optimizer] = [row["decision"] for row in world.objective.windows]
    assert decisions.pop("adamw") == ["restart"]
    assert all({"accept", "decay"} <= set(each) for each in decisions.values())


@pytest.mark.parametrize(("method", "optimizer", "changes"), CASES)
def test_whoever_dies_when_the_trial_is_the_same(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    optimizer: str,
    changes: dict[str, Any],
) -> None:
    value, expected, acts = uninterrupted(tmp_path, method, optimizer, **changes)
    draw = random.Random(f"{method} {optimizer}")
    for attempt in range(3):
        every = draw.choice([1, 3, 7])
        world = World(tmp_path / str(attempt), method, optimizer, every=every, **changes)
        deaths = 0
        with mortal_files(monkeypatch, world), warnings.catch_warnings():
            warnings.simplefilter("error")  # Optuna warns of a second report of a step
            while True:
                fate = Fate(draw.uniform(1, acts) if deaths < 6 else float("inf"))
                try:
                    assert world.process(fate) == value
                    break
                except Killed:
                    deaths += 1
        assert deaths > 0
        assert_same(world.record(), expected)
        world.objective.discard(0)  # type: ignore[union-attr]
        assert list(world.folder.iterdir()) == []


@pytest.mark.parametrize(("method", "optimizer"), [("exptest", "sgd"), ("lipschitz", "adam")])
def test_a_process_may_die_before_any_single_thing_that_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, optimizer: str
) -> None:
    value, expected, acts = uninterrupted(tmp_path, method, optimizer, epochs=3)
    for moment in range(acts):
        world = World(tmp_path / str(moment), method, optimizer, every=5, epochs=3)
        with mortal_files(monkeypatch, world):
            with pytest.raises(Killed):
                world.process(Fate(moment))
            assert world.process(Fate()) == value
        assert_same(world.record(), expected)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def dead_after(world: World, fraction: float, acts: int) -> World:
    with pytest.raises(Killed):
        world.process(Fate(int(fraction * acts)))
    return world


@pytest.mark.parametrize(("method", "optimizer", "changes"), CASES[::2])
@pytest.mark.parametrize("fraction", [0.4, 0.6, 0.8])
def test_from_a_damaged_checkpoint_the_one_before_it_gives_the_same(
    tmp_path: Path,
    method: str,
    optimizer: str,
    changes: dict[str, Any],
    fraction: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    value, expected, acts = uninterrupted(tmp_path, method, optimizer, **changes)
    world = dead_after(World(tmp_path / "w", method, optimizer, **changes), fraction, acts)
    cut(world.folder / "trial-0.pt")
    assert world.process(Fate()) == value
    assert_same(world.record(), expected)
    (told,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert told.endswith("trial-0.pt' is damaged: took the one before it")


def test_with_both_damaged_the_trial_starts_over_and_comes_to_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    value, expected, acts = uninterrupted(tmp_path, "exptest", "momentum")
    world = dead_after(World(tmp_path / "w", "exptest", "momentum"), 0.8, acts)
    for path in world.folder.iterdir():
        cut(path)
    assert world.process(Fate()) == value
    found = world.record()
    # What both processes told has two times, and so is there twice.
    assert set(found.pop("points")) == set(expected.pop("points"))
    assert_same(found, expected)
    assert "starting over" in caplog.text


def leaving(at: int, reason: BaseException) -> Any:
    """Says to leave after so many steps of this process."""
    steps = 0

    def interrupted() -> BaseException | None:
        nonlocal steps
        steps += 1
        return reason if steps == at else None

    return interrupted


@pytest.mark.parametrize(("keep", "every"), [(True, 1000), (False, 1000), (False, 3)])
@pytest.mark.parametrize(("method", "optimizer", "changes"), CASES[:-1:3])
def test_a_trial_that_is_left_stays_open_and_costs_what_was_not_kept(
    tmp_path: Path, method: str, optimizer: str, changes: dict[str, Any], keep: bool, every: int
) -> None:
    value, expected, _ = uninterrupted(tmp_path, method, optimizer, **changes)
    world = World(tmp_path / "w", method, optimizer, every=every, **changes)
    trained = 0
    original = Restless.forward

    def counting(module: Restless, x: Tensor) -> Tensor:
        nonlocal trained
        trained += module.training
        return original(module, x)

    Restless.forward = counting  # type: ignore[method-assign]
    try:
        leave = leaving(8, TrainingLeft("the machine goes", keep=keep))
        with pytest.raises(TrainingLeft):
            world.process(Fate(), interrupted=leave)
        attributes = world.study.get_trials()[0].user_attrs
        assert STEPS not in attributes
        assert SECONDS not in attributes
        assert world.store.statuses == ["left"]
        assert world.process(Fate()) == value
    finally:
        Restless.forward = original  # type: ignore[method-assign]
    assert_same(world.record(), expected)
    assert len(world.store.statuses) == 2
    lost = 0 if keep else 8 if every > 8 else 2
    assert trained == expected["attributes"][STEPS] + lost


def test_another_reason_ends_the_trial_and_stands_on_record(tmp_path: Path) -> None:
    world = World(tmp_path, "exptest", "momentum")
    reason = optuna.TrialPruned("dominated by trial 7")
    end = leaving(30, reason)
    assert world.process(Fate(), interrupted=end) == "pruned: dominated by trial 7"
    attributes = world.study.get_trials()[0].user_attrs
    assert attributes[REASON] == world.store.tags["lrsearch.reason"] == "dominated by trial 7"
    assert attributes[STEPS] == 30
    assert world.store.statuses == ["pruned"]
    # Optuna was not told: whoever comes next tells it the same, and trains no step.
    before = world.record()
    assert world.process(Fate()) == "pruned: dominated by trial 7"
    assert_same(world.record(), before)


def passes_of(world: World) -> float:
    """How often the trained model of the world's last process has seen a batch."""
    assert world.objective is not None
    model = world.objective.chosen_model
    assert isinstance(model, nn.Sequential)
    return model[2].get_buffer("passes").item()


def test_a_trial_whose_end_nobody_was_told_is_not_trained_again(tmp_path: Path) -> None:
    world = World(tmp_path, "grid", "adam")
    value = world.process(Fate())
    before, passes = world.record(), passes_of(world)
    again = world.process(Fate(), interrupted=lambda: AssertionError("a step was trained"))
    assert again == value
    assert_same(world.record(), before)
    assert passes_of(world) == passes


def test_windows_of_a_dead_process_are_written_over(tmp_path: Path) -> None:
    value, expected, acts = uninterrupted(tmp_path, "exptest", "adam", **LONG)
    world = World(tmp_path / "w", "exptest", "adam", every=1000, **LONG)
    dead_after(world, 0.5, acts)
    names = [k for k in world.study.get_trials()[0].user_attrs if k.startswith(WINDOW_PREFIX)]
    assert len(names) >= 2
    assert world.process(Fate()) == value
    assert_same(world.record(), expected)


def test_without_a_folder_nothing_is_held_back_and_no_time_is_given(tmp_path: Path) -> None:
    world = World(tmp_path, "grid", "sgd", every=None)
    world.process(Fate())
    assert world.store.points
    assert not world.store.timed
    assert list(tmp_path.iterdir()) == []
    world.objective.discard(0)  # type: ignore[union-attr]


def test_a_full_disk_costs_the_checkpoint_and_not_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    value, expected, _ = uninterrupted(tmp_path, "grid", "adam")
    world = World(tmp_path / "w", "grid", "adam")

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert world.process(Fate()) == value
    assert_same(world.record(), expected)
    (told,) = [r.getMessage() for r in caplog.records if r.name == "lrsearch"]
    assert told.endswith("No space left on device: the training goes on without a new checkpoint")


def test_the_device_is_on_record(tmp_path: Path) -> None:
    world = World(tmp_path, "grid", "sgd")
    world.process(Fate(), device="cpu")
    assert world.study.get_trials()[0].user_attrs[DEVICE] == "cpu"
    assert world.store.params["device"] == "cpu"


def test_the_reason_of_a_run_that_was_closed_for_dead_does_not_stay(tmp_path: Path) -> None:
    # Its worker died as soon as the run was open, and others have closed it and queued the trial.
    world = World(tmp_path, "grid", "sgd")
    world.store.tags = {"lrsearch.reason": "the process ended without a word"}
    world.study._storage.set_trial_user_attr(world.trial_id, ATTEMPTS, {"died": 1, "last": ""})
    world.process(Fate())
    assert world.store.statuses == ["complete"]
    assert world.store.tags["lrsearch.reason"] == ""
