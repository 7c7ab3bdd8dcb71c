"""Every method of the panel behind one call: what it chose on a task from a seed, and its bill."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from functools import partial
from inspect import signature
from io import StringIO
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import lrsearch
from experiments.bench.bank import BankRuns, Measures, train_bank
from experiments.bench.courses import PeerOutcome, failure
from experiments.bench.panel import BANK, OWN, PEER, REPLAY, SEARCH, Method, Panel
from experiments.bench.peers import PEERS, load_package
from experiments.bench.replayed import (
    constant_guess,
    grid,
    random_search,
    tpe_hyperband,
    tpe_median,
)
from experiments.bench.tasks import make_task
from experiments.harness.cells import Cell, Measured, Row
from experiments.harness.reproduction import SEED, Plan
from lrsearch import TaskData, TrainingTask
from lrsearch.errors import InvalidArgumentError, MissingPackageError

REPLAYS: Final[Mapping[str, Callable[..., PeerOutcome]]] = {
    "grid": grid,
    "random": random_search,
    "tpe-median": tpe_median,
    "tpe-hyperband": tpe_hyperband,
}
# What the panel itself gives to a call.
_GIVEN: Final = {
    SEARCH: ("task", "seed", "tracker", "tracking_uri", "optimizer", "data_dir", "watcher"),
    REPLAY: ("runs", "seed_at", "seed"),
    BANK: ("task", "data", "seeds"),
}
_HEAD: Final = 7  # columns of a kept bank before its checks
_UNTUNED: Final = "adam"  # what a task is made with for methods that have their own update

Float32 = NDArray[np.float32]


def check_methods(panel: Panel) -> None:
    """Hold names and options against the registries.

    Raises:
        InvalidArgumentError: naming the key of a method or an option that there is not.
    """
    registries = {REPLAY: REPLAYS, PEER: PEERS}
    calls: dict[str, Callable[..., Any]] = {SEARCH: lrsearch.search, BANK: train_bank}
    for name, method in panel.methods.items():
        key = f"{'ablations' if method.of else 'methods'}.{name}"
        registry: Iterable[str] | None = registries.get(method.kind)
        if registry is not None and method.name not in registry:
            raise InvalidArgumentError(
                f"{key}.name must be one of {', '.join(registry)}; got {method.name!r}"
            )
        allowed: set[str] = set()
        if method.kind != PEER:
            call = REPLAYS[method.name] if method.kind == REPLAY else calls[method.kind]
            allowed = set(signature(call).parameters) - set(_GIVEN[method.kind])
        if unknown := sorted(set(method.options) - allowed):
            raise InvalidArgumentError(
                f"{key}.options holds the unknown option {unknown[0]!r}: allowed are "
                f"{', '.join(sorted(allowed)) or 'none'}"
            )


def own_updates() -> list[str]:
    """Names of the peers that have an update of their own."""
    return [name for name, peer in PEERS.items() if peer.own_update]


def not_installed(panel: Panel) -> dict[str, str]:
    """Methods whose package is missing, and which it is."""
    missing = {}
    for name, method in panel.methods.items():
        package = PEERS[method.name].package if method.kind == PEER else None
        if package is not None:
            try:
                load_package(package)
            except MissingPackageError:
                missing[name] = package
    return missing


def measure(cell: Cell, plan: Plan) -> Measured:
    """Run one cell with all of its seeds. What a method raises becomes a failed row.

    Args:
        cell: of ``Panel.cells``.
        plan: has the folder of the data.
    """
    optimizer = _UNTUNED if cell["optimizer"] == OWN else cell["optimizer"]
    task = make_task(cell["base"], cell["shift"], optimizer, data_dir=plan.data_dir)
    data = [task.data(seed) for seed in range(cell["seeds"])]
    options = json.loads(cell["options"])
    if cell["kind"] == BANK:
        return _bank(task, data, options)
    run = partial(_peer, cell["name"]) if cell["kind"] == PEER else partial(_searched, options)
    rows = [_row(seed, partial(run, task, each, seed)) for seed, each in enumerate(data)]
    return Measured(rows)


def replay(method: Method, runs: BankRuns) -> list[Row]:
    """The rows of a replayed method, one a seed of the bank."""
    call = partial(REPLAYS[method.name], runs, **method.options)
    seeded = "seed" in signature(REPLAYS[method.name]).parameters
    return [
        _row(int(seed), partial(call, seed_at=at, **({"seed": int(seed)} if seeded else {})))
        for at, seed in enumerate(runs.seeds)
    ]


def _row(seed: int, run: Callable[[], PeerOutcome]) -> Row:
    began = time.perf_counter()
    try:
        found = run()
    except MissingPackageError:  # nothing that a method did
        raise
    except Exception as error:  # whatever it raises is what it gave
        return _failed(seed, began, error)
    return {
        SEED: seed,
        "lr": found.lr,
        "steps": found.steps,
        "train_loss": found.train_loss,
        "val_loss": found.val_loss,
        "val_metric": found.val_metric,
        "test_metric": found.test_metric,
        "seconds": time.perf_counter() - began,
        "failed": found.diverged,
        "reason": found.reason,
    }


def _failed(seed: int, began: float, error: Exception) -> Row:
    nan = float("nan")
    measured = dict.fromkeys(
        ("lr", "steps", "train_loss", "val_loss", "val_metric", "test_metric"), nan
    )
    seconds = time.perf_counter() - began
    return {SEED: seed, **measured, "seconds": seconds, "failed": True, "reason": failure(error)}


def _peer(name: str, task: TrainingTask, data: TaskData, seed: int) -> PeerOutcome:
    # What others print and warn of is not the panel's to say.
    with redirect_stdout(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PEERS[name].run(task, data, seed)


def _searched(
    options: Mapping[str, Any], task: TrainingTask, data: TaskData, seed: int
) -> PeerOutcome:
    found = lrsearch.search(task, **options, seed=seed, tracker="none")
    numbers = (found.lr, found.train_loss, found.val_loss, found.value)
    return PeerOutcome(
        lr=found.lr,
        steps=found.steps,
        train_loss=found.train_loss,
        val_loss=found.val_loss,
        val_metric=float("nan"),  # a search chooses by the loss, and keeps that alone
        test_metric=found.value,
        diverged=not all(np.isfinite(number) for number in numbers),
        reason=found.stop_reason,
    )


def _bank(task: TrainingTask, data: list[TaskData], options: Mapping[str, Any]) -> Measured:
    began = time.perf_counter()
    seeds = range(len(data))
    try:
        runs = train_bank(task, data, seeds, **options)
    except Exception as error:  # told in the report: nothing is compared without a bank
        return Measured([_failed(seed, began, error) for seed in seeds])
    seconds = (time.perf_counter() - began) / len(data)
    rows: list[Row] = [
        {
            SEED: seed,
            "steps": int(runs.checked[-1]),
            "seconds": seconds,
            "failed": False,
            "guess": constant_guess(task, each),
        }
        for seed, each in enumerate(data)
    ]
    return Measured(rows, [pack(runs, at) for at in range(len(data))])


def pack(runs: BankRuns, at: int) -> Float32:
    """What is kept of a seed's runs, shape (1 + rates, 7 + checks).

    The first row holds the steps of the checks; each other one a rate, its loss and metric on
    train, validation and test, and its checks. The losses of single steps are left out.
    """
    parts = (runs.train, runs.validation, runs.test)
    measured = [getattr(part, name)[at] for part in parts for name in ("loss", "metric")]
    packed = np.full((1 + len(runs.rates), _HEAD + len(runs.checked)), np.nan, np.float32)
    packed[0, _HEAD:] = runs.checked
    packed[1:, :_HEAD] = np.stack([runs.rates, *measured], axis=1)
    packed[1:, _HEAD:] = runs.checks[at]
    return packed


def unpack(packed: Mapping[int, Float32]) -> BankRuns:
    """The bank of what was kept of each of its seeds; its curves have no steps."""
    kept = np.stack([packed[seed][1:] for seed in packed])
    first = next(iter(packed.values()))
    parts = [Measures(kept[:, :, 1 + 2 * i], kept[:, :, 2 + 2 * i]) for i in range(3)]
    return BankRuns(
        rates=first[1:, 0],
        seeds=np.asarray(list(packed)),
        curves=np.empty((*kept.shape[:2], 0), np.float32),
        checked=first[0, _HEAD:].astype(np.int64),
        checks=kept[:, :, _HEAD:],
        train=parts[0],
        validation=parts[1],
        test=parts[2],
    )
