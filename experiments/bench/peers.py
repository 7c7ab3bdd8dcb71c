"""Other methods that set the learning rate, each run as its authors say, in the common budget.

Those from PyPI come with the extra ``peers``, and are imported when they are run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from inspect import signature
from itertools import islice
from math import ceil, nan
from typing import Any, Final

import torch
from torch import nn

from experiments.bench.courses import PeerOutcome, descend, outcome, trained_at
from experiments.bench.sweeps import minimum, run_fastai, run_lr_finder, slide, steep, valley
from lrsearch import TaskData, TrainingTask
from lrsearch.errors import MissingPackageError
from lrsearch.training.batches import Batches
from lrsearch.training.loop import build_model, evaluate, make_optimizer

__all__ = ["DEFAULT_RATES", "PEERS", "Peer", "PeerOutcome"]

# torch's own; descent has none worth the name, and 0.1 is that of PyTorch's examples.
DEFAULT_RATES: Final = {"sgd": 0.1, "momentum": 0.1, "adam": 1e-3, "adamw": 1e-3, "rmsprop": 1e-2}

# Modules of the packages on PyPI.
_MODULES: Final = {
    "dadaptation": "dadaptation",
    "dog-optimizer": "dog",
    "mechanic-pytorch": "mechanic_pytorch",
    "momo-opt": "momo",
    "parameterfree": "parameterfree",
    "prodigyopt": "prodigyopt",
    "schedulefree": "schedulefree",
    "torch-lr-finder": "torch_lr_finder",
}
_RECALIBRATION: Final = 50  # batches, as Schedule-Free's README has it

Run = Callable[[TrainingTask, TaskData, int], PeerOutcome]


@dataclass(frozen=True, slots=True)
class Peer:
    """A method.

    Attributes:
        run: trains a task on its data from a seed's weights, on that seed's batches.
        own_update: whether it has an update of its own, whatever the task's optimizer.
        package: on PyPI, or None.
    """

    run: Run
    own_update: bool
    package: str | None = None


def load_package(name: str) -> Any:
    """The module of a peer's package.

    Raises:
        MissingPackageError: if it is not installed.
    """
    try:
        return import_module(_MODULES[name])
    except ImportError as error:
        raise MissingPackageError(
            f"package {name!r} is not installed: pip install 'lrsearch[peers]'"
        ) from error


def _default(task: TrainingTask, data: TaskData, seed: int) -> PeerOutcome:
    return trained_at(task, data, seed, DEFAULT_RATES[task.optimizer])


def _plateau(task: TrainingTask, data: TaskData, seed: int) -> PeerOutcome:
    """``ReduceLROnPlateau`` on the validation loss of each epoch, from the default rate."""
    model = build_model(task, data, seed)
    lr = DEFAULT_RATES[task.optimizer]
    optimizer = make_optimizer(task.optimizer, list(model.parameters()), lr)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    rows, looks = len(data.validation), 0

    def look() -> None:
        nonlocal looks
        looks += 1
        scheduler.step(evaluate(task, model, data.validation).loss)

    course = descend(task, data, seed, model, optimizer, between=look)
    passes = looks * ceil(rows / (task.batch_size or rows))
    return outcome(task, data, model, course, lr=lr, forward_passes=passes)


def _mechanic(task: TrainingTask, data: TaskData, seed: int) -> PeerOutcome:
    """Mechanic around the task's optimizer at rate 1, as its README has it."""
    mechanize = load_package("mechanic-pytorch").mechanize
    model = build_model(task, data, seed)
    plain = make_optimizer(task.optimizer, list(model.parameters()), 1.0)
    taken = signature(type(plain)).parameters
    options = {name: value for name, value in plain.defaults.items() if name in taken}
    optimizer = mechanize(type(plain))(model.parameters(), **options)
    course = descend(task, data, seed, model, optimizer)
    return outcome(task, data, model, course, lr=nan)


def _lr_finder(task: TrainingTask, data: TaskData, seed: int) -> PeerOutcome:
    return run_lr_finder(load_package("torch-lr-finder"), task, data, seed)


def _adadelta(task: TrainingTask, data: TaskData, seed: int) -> PeerOutcome:
    model = build_model(task, data, seed)
    course = descend(task, data, seed, model, torch.optim.Adadelta(model.parameters()))
    return outcome(task, data, model, course, lr=nan)


def _own(package: str, name: str, task: TrainingTask, data: TaskData, seed: int) -> PeerOutcome:
    """An optimizer that is used as any other, with its defaults."""
    make = getattr(load_package(package), name)
    model = build_model(task, data, seed)
    course = descend(task, data, seed, model, make(model.parameters()))
    return outcome(task, data, model, course, lr=nan)


def _momo(name: str, task: TrainingTask, data: TaskData, seed: int) -> PeerOutcome:
    """MoMo steps by the loss; its lower bound is 0, which these losses have."""
    make = getattr(load_package("momo-opt"), name)
    model = build_model(task, data, seed)
    optimizer = make(model.parameters())
    course = descend(
        task, data, seed, model, optimizer, update=lambda loss: optimizer.step(loss=loss)
    )
    return outcome(task, data, model, course, lr=nan)


def _schedule_free(name: str, task: TrainingTask, data: TaskData, seed: int) -> PeerOutcome:
    """Schedule-Free evaluates its average, for which batch normalisation is counted anew."""
    make = getattr(load_package("schedulefree"), name)
    model = build_model(task, data, seed)
    optimizer = make(model.parameters())
    optimizer.train()
    course = descend(task, data, seed, model, optimizer)
    optimizer.eval()
    passes = _recalibrate(task, data, seed, model) if _has_batch_norm(model) else 0
    return outcome(task, data, model, course, lr=nan, forward_passes=passes)


def _dog(task: TrainingTask, data: TaskData, seed: int) -> PeerOutcome:
    """DoG with its polynomial average, and the first distance that its authors advise."""
    dog = load_package("dog-optimizer")
    model = build_model(task, data, seed)
    optimizer = dog.DoG(model.parameters(), reps_rel=1e-4 if _has_batch_norm(model) else 1e-6)
    averager = dog.PolynomialDecayAverager(model)

    def update(loss: torch.Tensor) -> None:
        optimizer.step()
        averager.step()

    course = descend(task, data, seed, model, optimizer, update=update)
    return outcome(task, data, averager.averaged_model, course, lr=nan)


def _has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in model.modules())


@torch.no_grad()
def _recalibrate(task: TrainingTask, data: TaskData, seed: int, model: nn.Module) -> int:
    """Show training batches to the running statistics; returns how many."""
    passes = 0
    for inputs, _ in islice(Batches(data.train, task.batch_size, seed), _RECALIBRATION):
        model(inputs)
        passes += 1
    return passes


def _own_peer(package: str, name: str) -> Peer:
    return Peer(partial(_own, package, name), True, package)


PEERS: Final[dict[str, Peer]] = {
    "default": Peer(_default, False),
    "fastai valley": Peer(partial(run_fastai, valley), False),
    "fastai slide": Peer(partial(run_fastai, slide), False),
    "fastai minimum": Peer(partial(run_fastai, minimum), False),
    "fastai steep": Peer(partial(run_fastai, steep), False),
    "torch-lr-finder": Peer(_lr_finder, False, "torch-lr-finder"),
    "ReduceLROnPlateau": Peer(_plateau, False),
    "Mechanic": Peer(_mechanic, False, "mechanic-pytorch"),
    "Adadelta": Peer(_adadelta, True),
    "COCOB": _own_peer("parameterfree", "COCOB"),
    "KT": _own_peer("parameterfree", "KT"),
    "Prodigy": _own_peer("prodigyopt", "Prodigy"),
    "D-Adaptation Adam": _own_peer("dadaptation", "DAdaptAdam"),
    "D-Adaptation SGD": _own_peer("dadaptation", "DAdaptSGD"),
    "Schedule-Free AdamW": Peer(partial(_schedule_free, "AdamWScheduleFree"), True, "schedulefree"),
    "Schedule-Free SGD": Peer(partial(_schedule_free, "SGDScheduleFree"), True, "schedulefree"),
    "DoG": Peer(_dog, True, "dog-optimizer"),
    "MoMo": Peer(partial(_momo, "Momo"), True, "momo-opt"),
    "MoMo-Adam": Peer(partial(_momo, "MomoAdam"), True, "momo-opt"),
}
