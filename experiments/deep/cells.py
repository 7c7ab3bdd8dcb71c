"""What the deep tables' cells share: sizes, images, a training in pieces, a note on what is cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

import pandas as pd
import torch

from experiments.deep.drivers import Method
from experiments.deep.models.network import Network
from experiments.deep.preparation import Preparation
from experiments.deep.speed import PRECISION, Speed
from experiments.deep.training import DeepRun
from experiments.epochs import Limits, train
from experiments.harness.cells import SEED, Cell, Measured
from experiments.harness.reproduction import Plan
from experiments.images import Images, read_images

WHOLE: Final = 50_000  # training images of either set
_SAVE_EVERY: Final = 30.0  # seconds: VGG-16 under ExpTest takes 0.3 GB, and an epoch a few seconds


def sizes(plan: Plan, *, epochs: int, batch_size: int = 128) -> dict[str, Any]:
    """Settings of a plan: rows, epochs, batch size, precision.

    Args:
        plan: a quick one is cut to what two CPU cores do in seconds.
        epochs, batch_size: of the paper.
    """
    precision = {PRECISION: plan.option(PRECISION)}
    if plan.quick:
        cut = {"rows": 12, "test_rows": 12, "epochs": plan.epochs or 2, "batch_size": 6}
        return {**cut, **precision}
    whole = {"rows": WHOLE, "test_rows": 10_000, "epochs": plan.epochs or epochs}
    return {**whole, "batch_size": batch_size, **precision}


@lru_cache(maxsize=2)
def images_of(
    dataset: str, data_dir: str | None, device: torch.device, rows: int, test_rows: int
) -> Images:
    """A set on the device, for all cells of a process that want it."""
    return read_images(dataset, data_dir, device, train=rows, test=test_rows)


def measure(
    cell: Cell,
    plan: Plan,
    given: Mapping[str, Any],
    *,
    dataset: str,
    network: Callable[[], Network],
    method: Method,
    prepare: Callable[[torch.Tensor], Preparation],
) -> Measured:
    """Train one network, from where it was left.

    Args:
        cell, plan: what.
        given: the reproduction's settings for the plan.
        dataset: of ``read_images``.
        network: builds it.
        method: optimizer and rule of the rate.
        prepare: of the training images' bytes.
    """
    speed = Speed.of(plan)
    images = images_of(dataset, plan.data_dir, speed.device, given["rows"], given["test_rows"])
    run = DeepRun(
        images,
        network,
        method,
        seed=cell[SEED],
        batch_size=given["batch_size"],
        epochs=given["epochs"],
        preparation=prepare(images.train),
        speed=speed,
    )
    limits = Limits(given["epochs"], plan.deadline, save_every=_SAVE_EVERY)
    done = train(run, limits, plan.checkpoint(given, cell))
    (row,) = done.rows
    last = done.history[0][-1]
    kept = ("restarts", "decays", "accepted_step")
    row |= {name: last[name] for name in kept if name in last}
    return replace(done, rows=[row | {"train_rows": len(images.train), "device": speed.text}])


def notes_on(rows: pd.DataFrame, *, epochs: int, quick: bool) -> list[str]:
    """Where the runs were trained and how long; unfinished runs; runs on a part of the data."""
    notes = [
        f"{device}: {len(runs)} runs, {runs['seconds'].sum() / 60.0:.1f} minutes in all"
        for device, runs in rows.groupby("device", sort=False)
    ]
    short = rows[(rows["epochs"] < epochs) & (rows["diverged"] == 0)]
    if len(short):
        notes.append(f"{len(short)} runs are not finished: these are their epochs so far.")
    if not quick and "train_rows" in rows:
        part = rows[rows["train_rows"] < WHOLE]
        if len(part):
            notes.append(
                f"{len(part)} runs saw {part['train_rows'].min():.0f} of {WHOLE} training images: "
                f"their gaps mean nothing."
            )
    return notes
