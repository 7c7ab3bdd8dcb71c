"""Several workers of one study, wherever an engine has them run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Protocol

from lrsearch.engine.progress import SearchWatcher
from lrsearch.engine.workers.placement import (
    Placement,
    checked_per_device,
    cuda_devices,
    placements,
)
from lrsearch.engine.workers.pool import LocalPool
from lrsearch.engine.workers.spec import WorkerSpec
from lrsearch.errors import InvalidArgumentError, MissingPackageError, require_choice


class Crew(Protocol):
    """Runs a study's trials with several workers.

    Others' are registered under ``lrsearch.crews``: classes that take ``per_device``.
    """

    def run(self, spec: WorkerSpec, watcher: SearchWatcher) -> int:
        """Work until the study is over; returns how many trials were ended here.

        Raises:
            KeyboardInterrupt: after Ctrl-C, when the workers have kept their trials.
            Exception: what ended a worker.
        """


@dataclass(frozen=True, slots=True)
class LocalCrew:
    """Processes on this machine."""

    seats: Sequence[Placement]

    def run(self, spec: WorkerSpec, watcher: SearchWatcher) -> int:
        """Work until the study is over; returns how many trials were ended here."""
        return LocalPool(spec, self.seats, watcher).run()


def crew_of(workers: int | str | Sequence[str], per_device: int) -> Crew:
    """Workers in processes of their own, be it one.

    Raises:
        InvalidArgumentError, InvalidTypeError: if there are no such workers.
        MissingPackageError: if they need a package that is not installed.
    """
    if workers == "ray":
        return _registered("ray", checked_per_device(per_device))
    return LocalCrew(placements(workers, per_device))


def checked_crew(workers: int | str | Sequence[str], per_device: int) -> Crew | None:
    """Who runs the trials; None for this process itself. Raises what ``crew_of`` raises."""
    crew = crew_of(workers, per_device)
    return None if workers == 1 else crew


def checked_device(device: str, crew: Crew | None) -> str:
    """The device of a single worker.

    Raises:
        InvalidArgumentError: if there is no such device, or several workers have theirs.
    """
    if device == "cpu":
        return device
    if crew is not None:
        raise InvalidArgumentError(
            f"device is for a single worker, got {device!r}: several have theirs by "
            "workers='cuda' or workers='cuda:0,1'"
        )
    numbered = [f"cuda:{number}" for number in range(len(cuda_devices()))]
    known = ("cpu", "cuda", *numbered) if numbered else ("cpu",)
    require_choice("device", device, known)
    return "cuda:0" if device == "cuda" else device


def race_device(device: str, crew: Crew | None) -> str:
    """Where the race before the trials is run: the single worker's device, or a crew's first."""
    if isinstance(crew, LocalCrew) and crew.seats[0].device != "cpu":
        return crew.seats[0].label
    return device


def _registered(name: str, per_device: int) -> Crew:
    for entry in entry_points(group="lrsearch.crews", name=name):
        try:
            make: Callable[..., Crew] = entry.load()
        except ImportError as error:
            raise MissingPackageError(
                f"workers={name!r} needs a package that is not installed ({error.name}): "
                f"pip install 'lrsearch[{name}]'"
            ) from error
        return make(per_device=per_device)
    raise MissingPackageError(f"workers={name!r} is not installed: pip install 'lrsearch[{name}]'")
