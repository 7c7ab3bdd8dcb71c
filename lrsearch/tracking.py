"""What a study tells an experiment tracker, and how a tracker is found.

Nothing here knows a tracker: adapters register under the entry point groups
``lrsearch.trackers``, ``lrsearch.uis``, ``lrsearch.syncs`` and ``lrsearch.curves``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from lrsearch.errors import MissingPackageError

if TYPE_CHECKING:
    # For the reader's types alone: nothing loads.
    import pandas as pd
    from numpy.typing import ArrayLike

RunStatus = Literal["complete", "pruned", "failed"]


class StepTracker(Protocol):
    """What a training tells while it runs."""

    def log_metrics(
        self, metrics: Mapping[str, float], step: int, *, timestamp: int | None = None
    ) -> None:
        """Record values at a step (gradient steps, counted from 0).

        Their time is now unless given, in milliseconds since 1970. It is given alone where a
        training may be gone on with, which tells some values twice: a store keeps one of those
        that agree in key, time, step and value.
        """

    def log_steps(self, losses: ArrayLike, start: int, lr: float) -> None:
        """Keep the loss of every step from ``start`` on, shape (steps,), for a table at the end."""


class RunTracker(StepTracker, Protocol):
    """One run of an experiment tracker: a study, or one of its trials.

    Calls never raise because of the tracker's own troubles and never wait for each value: an
    implementation buffers and writes in batches.
    """

    @property
    def run_id(self) -> str:
        """The tracker's own name of this run ("" if nothing is recorded)."""

    @property
    def tracking_uri(self) -> str:
        """The store that holds the run ("" if nothing is recorded)."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record settings; each key once."""

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Record or replace short texts."""

    def log_input(
        self, name: str, digest: str, *, context: str = "training", profile: str = "{}"
    ) -> None:
        """Record which data the run saw; ``profile`` is JSON."""

    def log_table(self, name: str, table: pd.DataFrame) -> None:
        """Store a table as the artifacts ``name.parquet`` and ``name.csv``."""

    def log_text(self, name: str, text: str) -> None:
        """Store a text as the artifact ``name``."""

    def log_figure(self, name: str, figure: Any) -> None:
        """Store a figure: of matplotlib as ``name.png``, of plotly as ``name.html``."""

    def log_model(self, name: str, model: Any, example: Any) -> None:
        """Store a torch module as the model ``name``; its signature is that of ``example``."""

    def child(
        self,
        name: str,
        *,
        tags: Mapping[str, object] | None = None,
        uid: str | None = None,
        ready: Callable[[], None] | None = None,
    ) -> RunTracker:
        """Open a run nested in this one.

        Args:
            name: how it is shown.
            tags: short texts.
            uid: a name of the caller's own, by which a later process goes on with the same run.
            ready: is called once nobody else here writes that run, which may have been waited for,
                and before anything of it is changed. What it raises is passed on: the run stays as
                others have left it.
        """

    def finish(self, status: RunStatus) -> None:
        """Write what is buffered and close the run with its true status."""

    def leave(self) -> None:
        """Write what is buffered and stop; the run stays open for whoever goes on with its uid."""


class NullRun:
    """A run that records nothing."""

    run_id = ""
    tracking_uri = ""

    def log_metrics(
        self, metrics: Mapping[str, float], step: int, *, timestamp: int | None = None
    ) -> None:
        """Record nothing."""

    def log_steps(self, losses: ArrayLike, start: int, lr: float) -> None:
        """Record nothing."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record nothing."""

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Record nothing."""

    def log_input(
        self, name: str, digest: str, *, context: str = "training", profile: str = "{}"
    ) -> None:
        """Record nothing."""

    def log_table(self, name: str, table: pd.DataFrame) -> None:
        """Record nothing."""

    def log_text(self, name: str, text: str) -> None:
        """Record nothing."""

    def log_figure(self, name: str, figure: Any) -> None:
        """Record nothing."""

    def log_model(self, name: str, model: Any, example: Any) -> None:
        """Record nothing."""

    def child(
        self,
        name: str,
        *,
        tags: Mapping[str, object] | None = None,
        uid: str | None = None,
        ready: Callable[[], None] | None = None,
    ) -> RunTracker:
        """Return another run that records nothing."""
        return NullRun()

    def finish(self, status: RunStatus) -> None:
        """Do nothing."""

    def leave(self) -> None:
        """Do nothing."""


class OpenStudyRun(Protocol):
    """How an adapter opens the run of a study."""

    def __call__(
        self,
        *,
        experiment: str,
        name: str,
        tracking_uri: str | None = None,
        tags: Mapping[str, object] | None = None,
        uid: str | None = None,
    ) -> RunTracker:
        """Open a run called ``name`` in ``experiment`` of the store at ``tracking_uri``.

        ``uid`` is a name of the caller's own, by which a later process goes on with the same run.
        """


class ServeUi(Protocol):
    """How an adapter serves its user interface."""

    def __call__(self, tracking_uri: str | None, port: int) -> int:
        """Serve the store at ``tracking_uri`` until interrupted; returns an exit status."""


@dataclass(frozen=True, slots=True)
class RecordedCurve:
    """A loss curve that somebody has kept.

    Attributes:
        steps: gradient steps, rising; a tracker may have kept every tenth only.
        losses: one per step [loss]; one that is not finite means that the run diverged there.
        lr: learning rate of the first step; None if not kept.
    """

    steps: Sequence[int]
    losses: Sequence[float]
    lr: float | None = None


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What became of the runs that waited for one store.

    Attributes:
        tracking_uri: the store, without passwords.
        sent: runs that the store now has whole.
        left: runs that still wait.
        alive: runs that a living process writes.
        trouble: why some are left; "" if none is.
    """

    tracking_uri: str
    sent: int
    left: int
    alive: int
    trouble: str = ""


class Sync(Protocol):
    """How an adapter sends what could not be sent while it was recorded."""

    def __call__(
        self, folder: Path | None = None, tracking_uri: str | None = None
    ) -> Sequence[SyncReport]:
        """Send what waits in ``folder``; only what is meant for ``tracking_uri``, if given."""


class ReadCurve(Protocol):
    """How an adapter reads the loss curve of a run."""

    def __call__(
        self, run_id: str, *, metric: str = "train/loss", tracking_uri: str | None = None
    ) -> RecordedCurve:
        """Read the values of ``metric`` in the run ``run_id`` of the store at ``tracking_uri``."""


def find_tracker(name: str) -> OpenStudyRun:
    """Load the adapter that is registered as ``name`` under ``lrsearch.trackers``.

    Raises:
        MissingPackageError: if none is registered, or its framework is not installed.
    """
    adapter: OpenStudyRun = _find("lrsearch.trackers", name)
    return adapter


def find_ui(name: str) -> ServeUi:
    """Load the user interface that is registered as ``name`` under ``lrsearch.uis``.

    Raises:
        MissingPackageError: if none is registered, or its framework is not installed.
    """
    serve: ServeUi = _find("lrsearch.uis", name)
    return serve


def find_sync(name: str) -> Sync:
    """Load what sends the spool of the adapter that is registered under ``lrsearch.syncs``.

    Raises:
        MissingPackageError: if none is registered, or its framework is not installed.
    """
    sync: Sync = _find("lrsearch.syncs", name)
    return sync


def find_curves(name: str) -> ReadCurve:
    """Load the reader of curves that is registered as ``name`` under ``lrsearch.curves``.

    Raises:
        MissingPackageError: if none is registered, or its framework is not installed.
    """
    read: ReadCurve = _find("lrsearch.curves", name)
    return read


def _find(group: str, name: str) -> Any:
    for entry in entry_points(group=group, name=name):
        try:
            return entry.load()
        except ImportError as error:
            raise MissingPackageError(
                f"tracker {name!r} needs a package that is not installed ({error.name}): "
                f"pip install 'lrsearch[{name}]'"
            ) from error
    raise MissingPackageError(
        f"no tracker {name!r} is installed: pip install 'lrsearch[{name}]', or choose 'none'"
    )
