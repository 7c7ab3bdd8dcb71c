"""The loop that is left at any step and gone on with; its parts alone."""

from __future__ import annotations

import copy
import itertools
import logging
import random

import numpy as np
import pytest
import torch
from torch import nn

from lrsearch.controllers.exptest import Decision
from lrsearch.errors import InvalidArgumentError, InvalidTypeError
from lrsearch.tracking import NullRun
from lrsearch.training.batches import Batches
from lrsearch.training.checkpoints import Checkpoint
from lrsearch.training.exptest import ExpTest
from lrsearch.training.keeping import Keeper, TrainingLeft
from lrsearch.training.loop import SilentObserver, build_model, make_optimizer, train
from lrsearch.training.outbox import Outbox
from lrsearch.training.task import OPTIMIZERS, Split, TaskData, TrainingTask


def make_data(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def split(rows):
        inputs = torch.randn(rows, 4, generator=generator)
        return Split(inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0.5).long())

    return TaskData(split(50), split(20), split(20), outputs=3)


DATA = make_data()
# So that ExpTest winds the weights back within the training.
TOO_HIGH = {"sgd": 40.0, "momentum": 20.0, "rmsprop": 1.0, "adam": 3.0, "adamw": 3.0}


def make_task(**changes):
    options = {
        "data": make_data,
        "model": lambda data: nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3)
        ),
        "epochs": 100,
        "batch_size": 16,
    }
    return TrainingTask(name="toy", **(options | changes))


class Losses(SilentObserver):
    """An observer that is a part of the checkpoint."""

    def __init__(self):
        self.seen = []

    def recorded(self, losses, start, lr):
        self.seen.append((start, losses.tolist(), lr))

    def validated(self, validation, progress):
        self.seen.append((progress.step, validation.loss, progress.loss))

    def state_dict(self):
        return {"seen": list(self.seen)}

    def load_state_dict(self, state):
        self.seen = list(state["seen"])


def run(task, *, lr, controlled, path=None, every=7, leave_at=None, keep=False):
    """One process: fresh objects that go on where the file is."""
    model = build_model(task, DATA, seed=1)
    optimizer = make_optimizer(task.optimizer, list(model.parameters()), lr)
    controller = None
    if controlled:
        controller = ExpTest(optimizer, model=model, total_steps=task.epochs * 4)
    losses, steps, keeper = Losses(), itertools.count(1), None
    if path is not None:
        keeper = Keeper(
            Checkpoint(path),
            {"losses": losses},
            steps=every,
            interrupted=lambda: TrainingLeft(keep=keep) if next(steps) == leave_at else None,
        )
    outcome = train(
        task,
        DATA,
        model=model,
        optimizer=optimizer,
        seed=3,
        controller=controller,
        observer=losses,
        keeper=keeper,
    )
    windows = [] if controller is None else [repr(window) for window in controller.windows]
    tensors = [t.tolist() for t in [*model.parameters(), *model.buffers()]]
    return repr(outcome), tensors, losses.seen, windows


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("controlled", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_training_that_is_left_again_and_again_ends_bit_for_bit_as_one(
    tmp_path, optimizer, controlled, keep
):
    lr = TOO_HIGH[optimizer] if controlled else 0.01
    task = make_task(optimizer=optimizer, epochs=100 if controlled else 12)
    whole = run(task, lr=lr, controlled=controlled)
    if controlled:
        decisions = [window for window in whole[3] if "decision='restart'" in window]
        assert decisions
    draw, processes = random.Random(f"{optimizer} {controlled}"), 0
    while True:
        processes += 1
        leave_at = draw.randint(8, 90 if controlled else 20) if processes < 12 else None
        try:
            found = run(
                task,
                lr=lr,
                controlled=controlled,
                path=tmp_path / "a.pt",
                leave_at=leave_at,
                keep=keep,
            )
            break
        except TrainingLeft:
            pass
    assert processes > 2
    assert found == whole


def test_the_batches_of_an_epoch_are_not_drawn_again():
    split = Split(torch.arange(50.0).reshape(50, 1), torch.zeros(50))
    whole = Batches(split, 16, seed=0)
    expected = [inputs.flatten().tolist() for _ in range(3) for inputs, _ in whole]
    first, seen = Batches(split, 16, seed=0), []
    list(first)
    for inputs, _ in first:
        seen.append(inputs.flatten().tolist())
        state = copy.deepcopy(first.state_dict())
        second = Batches(split, 16, seed=5)
        second.load_state_dict(state)
        rest = [inputs.flatten().tolist() for _ in range(2) for inputs, _ in second]
        assert seen + rest == expected[4:]
    assert len(seen) == 4


@pytest.mark.parametrize(("seconds", "saves"), [(10.0, [10, 20, 30]), (1000.0, [])])
def test_a_keeper_saves_whenever_its_seconds_are_over(tmp_path, monkeypatch, seconds, saves):
    now = 0.0
    monkeypatch.setattr("lrsearch.training.keeping.time.monotonic", lambda: now)
    saved = []
    keeper = Keeper(Checkpoint(tmp_path / "a.pt"), seconds=seconds, saved=lambda: saved.append(now))
    model = nn.Linear(1, 1)
    assert not keeper.begin(model, make_optimizer("sgd", list(model.parameters()), 0.1))
    for step in range(1, 36):
        now = float(step)
        keeper.stepped(step)
    assert saved == saves


def test_without_a_file_a_keeper_only_asks_whether_to_go_on():
    asked = []
    keeper = Keeper(interrupted=lambda: asked.append(1), steps=1)
    keeper.stepped(1)
    assert asked == [1]
    assert not keeper.save()


@pytest.mark.parametrize("options", [{"seconds": 0.0}, {"steps": 0}])
def test_intervals_are_positive(options):
    with pytest.raises(InvalidArgumentError, match=next(iter(options))):
        Keeper(**options)


def test_a_controller_without_a_state_cannot_be_kept(tmp_path):
    class Forgetful:
        def step(self, loss):
            return Decision("continue", 0.1)

    model = nn.Linear(1, 1)
    optimizer = make_optimizer("sgd", list(model.parameters()), 0.1)
    with pytest.raises(InvalidTypeError, match=r"controller must have .* got Forgetful"):
        Keeper(Checkpoint(tmp_path / "a.pt")).begin(model, optimizer, Forgetful())
    assert not Keeper().begin(model, optimizer, Forgetful())


class Told(NullRun):
    def __init__(self):
        self.entries = []

    def log_metrics(self, metrics, step, *, timestamp=None):
        self.entries.append((dict(metrics), step, timestamp))

    def log_steps(self, losses, start, lr):
        self.entries.append((list(losses), start, lr))


def test_an_outbox_passes_on_what_two_checkpoints_have(monkeypatch):
    times = itertools.count(1000)
    monkeypatch.setattr("lrsearch.training.outbox.milliseconds", lambda: next(times))
    told = Told()
    outbox = Outbox(told)
    outbox.log_metrics({"a": 1.0}, 0)
    outbox.log_steps(np.array([0.5, np.nan]), 0, 0.1)
    outbox.release()  # the first checkpoint has them
    assert told.entries == []
    outbox.log_metrics({"a": 2.0}, 1)
    outbox.release()
    (metrics, losses) = told.entries
    assert metrics == ({"a": 1.0}, 0, 1000)
    assert (losses[0][0], losses[1:]) == (0.5, (0, 0.1))
    outbox.drain()
    outbox.log_metrics({"a": 3.0}, 2, timestamp=7)
    assert told.entries[2:] == [({"a": 2.0}, 1, 1001), ({"a": 3.0}, 2, 7)]


def test_a_second_warning_of_a_full_disk_is_not_needed(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    keeper = Keeper(Checkpoint(tmp_path / "file" / "a.pt"))
    with caplog.at_level(logging.WARNING, "lrsearch"):
        assert [keeper.save(), keeper.save()] == [False, False]
    assert len(caplog.records) == 1
