"""The way to ``experiments/``, which a checkout has and the installed package has not."""

from __future__ import annotations

from argparse import Namespace
from importlib import import_module
from typing import Any

from lrsearch.errors import InvalidArgumentError, MissingPackageError, require_at_least


def catalogue() -> dict[str, str]:
    """Names and titles of the reproductions.

    Raises:
        MissingPackageError: outside a checkout.
    """
    titles: dict[str, str] = _experiments("experiments.catalogue").titles()
    return titles


def session(options: Namespace, *, watcher: object) -> Any:
    """Run what the options ask for; a ``Session`` of ``experiments.harness.session``.

    Raises:
        MissingPackageError: outside a checkout.
        ValueError: on options that are not allowed.
    """
    _check(options)
    harness = _experiments("experiments.harness.session")
    plan = harness.Plan(scale=options.scale, seeds=options.seeds, data_dir=options.data_dir)
    return harness.reproduce(
        options.name,
        plan,
        out=options.out,
        workers=options.workers,
        fresh=options.fresh,
        minutes=options.minutes,
        tracker="none" if options.no_tracking else "mlflow",
        tracking_uri=options.tracking_uri,
        watcher=watcher,
    )


def bench(options: Namespace, *, watcher: object) -> Any:
    """Run the panel that the options ask for; a ``Reproduced`` of ``experiments.harness``.

    Raises:
        MissingPackageError: outside a checkout.
        ValueError: on options that are not allowed.
    """
    _check(options)
    return _experiments("experiments.bench.running").bench(
        options.panel,
        quick=options.quick,
        only=options.only,
        report_only=options.report,
        out=options.out,
        workers=options.workers,
        minutes=options.minutes,
        fresh=options.fresh,
        data_dir=options.data_dir,
        watcher=watcher,
    )


def _check(options: Namespace) -> None:
    if options.workers is not None:
        require_at_least("workers", options.workers, 1)
    if not options.minutes >= 0.0:  # NaN too
        raise InvalidArgumentError(f"minutes must be at least 0, got {options.minutes!r}")


def _experiments(module: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != "experiments":
            raise
        raise MissingPackageError(
            "experiments live in a checkout, not in the installed package: clone the repository "
            "and pip install -e '.[dev]' in it"
        ) from error
