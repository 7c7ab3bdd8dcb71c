"""From a run's spool to MLflow: each record once, whatever dies in between.

What was sent is noted after each request. A process that is killed between the two sends a piece
again: metrics carry the time of their logging, and stores drop a point that they have; everything
else replaces itself. A run is created with a tag of its own, by which whoever comes later finds it.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from shutil import copyfile
from typing import Any, Final, TypeVar

from lrsearch_integrations.mlflow_api import (
    Dataset,
    DatasetInput,
    InputTag,
    Metric,
    Param,
    Run,
    RunTag,
)
from lrsearch_integrations.mlflow_connection import Connection
from lrsearch_integrations.mlflow_store import alone, experiment_id
from lrsearch_integrations.mlflow_values import steps_file
from lrsearch_integrations.mlflow_view import install_views
from lrsearch_integrations.spool import SpooledRun

BATCH: Final = 1000  # MLflow's limit for one request
_TEXTS: Final = 100
UID: Final = "lrsearch.trial_uid"
PARENT: Final = "mlflow.parentRunId"
# A request that takes longer may have been made more than once, by the client's own retries.
_DOUBTFUL_SECONDS: Final = 5.0
# Longer than it takes another process from a search that finds no run to its creation, judged by
# what it took here. Whoever looks again so long after its own creation sees everybody who has not
# seen it.
_SETTLE_SECONDS: Final = 2.0
_SETTLE_FACTOR: Final = 3.0
# How a writer ends that leaves the run to others: nothing more comes, and the run stays open.
LEFT: Final = "left"
_STATUS: Final = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}

_T = TypeVar("_T")


@dataclass(slots=True)
class _Piece:
    """What one chunk of records asks for, by kind."""

    metrics: list[Metric] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    end: tuple[str, int] | None = None


class Delivery:
    """Sends one run's records.

    Args:
        run: the spooled run.
        connection: to the store.
        run_id_of: gives the store's id of another run by its uid; "" while it has none.

    Attributes:
        left: whether somebody else may have the run now; then nothing more is sent from here.
    """

    def __init__(
        self, run: SpooledRun, connection: Connection, run_id_of: Callable[[str], str]
    ) -> None:
        self.run = run
        self.header = run.header
        self._connection = connection
        self._run_id_of = run_id_of
        self._mark = run.mark
        self.left = False

    @property
    def run_id(self) -> str:
        """The store's id; "" before the run is created."""
        return self._mark.run_id

    @property
    def experiment_id(self) -> str:
        """The store's id of the experiment; "" before the run is created."""
        return self._mark.experiment_id

    @property
    def up_to_date(self) -> bool:
        """Whether the store has all that was written so far."""
        return bool(self._mark.run_id) and self._mark.offset >= self.run.size

    @property
    def unsent(self) -> int:
        """Bytes that the store does not have."""
        return max(0, self.run.size - self._mark.offset)

    @property
    def done(self) -> bool:
        """Whether the run is closed and the store has everything."""
        return self._mark.closed and self.up_to_date

    def step(self) -> bool:
        """Send the next piece; False if there is none, or the store failed."""
        if not self._mark.run_id and not self._create():
            return False
        if self.up_to_date:
            return False
        chunk = self.run.read(self._mark.offset, most=BATCH)
        if chunk.end == self._mark.offset or not self._send(_sorted(chunk.records)):
            return False
        self._note(offset=chunk.end)
        return True

    def _note(self, **changes: Any) -> None:
        self._mark = replace(self._mark, **changes)
        self.run.set_mark(self._mark)

    def _create(self) -> bool:
        parent = ""
        if self.header.parent:
            parent = self.header.parent_run_id or self._run_id_of(self.header.parent)
            if not parent:
                return False
        made: list[tuple[str, str]] = []
        began = time.monotonic()
        done = self._connection.write(
            lambda: made.append(self._created(parent)), f"open the run {self.header.name!r}"
        )
        if not done or time.monotonic() - began > _DOUBTFUL_SECONDS:
            self._note(doubtful=True)
        if not made:
            return False
        self._note(run_id=made[0][0], experiment_id=made[0][1])
        return True

    def _created(self, parent: str) -> tuple[str, str]:
        client, header = self._connection.client, self.header
        known = self._mark.experiment_id
        experiment = known or experiment_id(client, header.experiment, self._connection.uri)
        if not known:
            with contextlib.suppress(Exception):  # a comfort, which an older server may refuse
                install_views(client, experiment)
        asked = self._mark.creating
        self._note(creating=True, doubtful=self._mark.doubtful or asked)
        began = time.monotonic()
        # One process at a time looks and creates, where that can be had.
        with alone(self._connection.uri) if header.key else contextlib.nullcontext(True) as safe:
            agreed = safe or bool(parent)
            looks = asked or header.key or header.named
            found = self._twins(experiment) if looks else []
            if found and (agreed or found[0].info.status != "RUNNING"):
                return self._adopted(found[0]), experiment
            run_id = "" if found else self._new(experiment, parent)
        if not agreed:
            run_id = self._settled(run_id, experiment, time.monotonic() - began)
        return run_id, experiment

    def _new(self, experiment: str, parent: str) -> str:
        header = self.header
        run = self._connection.client.create_run(
            experiment,
            start_time=header.start_time,
            tags={**header.tags, UID: self._key} | ({PARENT: parent} if parent else {}),
            run_name=header.name,
        )
        return str(run.info.run_id)

    @property
    def _key(self) -> str:
        return self.header.key or self.header.uid

    def _adopted(self, run: Run) -> str:
        """Go on with a run that is there; one that was over is no longer."""
        run_id, header = str(run.info.run_id), self.header
        goes_on = header.named or (header.key and not header.parent)
        if goes_on and run.info.status != "RUNNING":
            self._connection.client.update_run(run_id, status="RUNNING")
        return run_id

    def _settled(self, mine: str, experiment: str, took: float) -> str:
        """Agree with processes that look for the same run meanwhile: the first one counts.

        Args:
            mine: id of the run created here; "" if another's was found, which may yet yield.
            experiment: id of the experiment.
            took: seconds that it took here to look and create.

        Raises:
            OSError: if no run is left.
        """
        time.sleep(max(_SETTLE_SECONDS, _SETTLE_FACTOR * took))
        found = self._twins(experiment)
        if not found:
            raise OSError("the run of this study has gone while it was being opened")
        chosen = str(found[0].info.run_id)
        if mine and mine != chosen:
            self._connection.client.delete_run(mine)
        return chosen if chosen == mine else self._adopted(found[0])

    def _twins(self, experiment: str) -> list[Run]:
        """Runs of this uid, the first one first: a slow server may have made several."""
        found = self._connection.client.search_runs(
            [experiment], filter_string=f"tags.`{UID}` = '{self._key}'", max_results=100
        )
        return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))

    def _send(self, piece: _Piece) -> bool:
        # Kind by kind: one parameter that the store refuses would cost the whole request.
        params = [Param(key, value) for key, value in piece.params.items()]
        tags = [RunTag(key, value) for key, value in piece.tags.items()]
        return (
            all(self._log("log parameters", params=part) for part in _parts(params, _TEXTS))
            and all(self._log("set tags", tags=part) for part in _parts(tags, _TEXTS))
            and all(self._log("log metrics", metrics=part) for part in _parts(piece.metrics, BATCH))
            and self._log_inputs(piece.inputs)
            and self._store(piece.files)
            and (piece.end is None or self._close(*piece.end))
        )

    def _log(self, what: str, **values: Any) -> bool:
        return self._connection.write(
            partial(self._connection.client.log_batch, self._mark.run_id, **values), what
        )

    def _log_inputs(self, inputs: list[dict[str, Any]]) -> bool:
        if not inputs:
            return True
        datasets = [
            DatasetInput(
                Dataset(
                    name=each["name"],
                    digest=each["digest"],
                    source_type="lrsearch",
                    source=each["source"],
                    profile=each["profile"],
                ),
                [InputTag("mlflow.data.context", each["context"])],
            )
            for each in inputs
        ]
        return self._connection.write(
            partial(self._connection.client.log_inputs, self._mark.run_id, datasets=datasets),
            "log the data set",
        )

    def _store(self, files: Mapping[str, str]) -> bool:
        for name, kept in files.items():
            path = self.run.file(kept)
            if path.exists() and not self._upload(name, path):
                return False
        return True

    def _upload(self, name: str, content: Path) -> bool:
        place = PurePosixPath(name)
        folder = None if place.parent == PurePosixPath(".") else str(place.parent)
        with tempfile.TemporaryDirectory(prefix="lrsearch-") as temporary:
            file = Path(temporary, place.name)
            copyfile(content, file)
            return self._connection.write(
                lambda: self._connection.client.log_artifact(self._mark.run_id, str(file), folder),
                f"store the artifact {name!r}",
            )

    def _close(self, status: str, end_time: int) -> bool:
        client, run_id = self._connection.client, self._mark.run_id
        with tempfile.TemporaryDirectory(prefix="lrsearch-") as temporary:
            steps = Path(temporary, "steps.parquet")
            if steps_file(self.run, steps) and not self._upload("curves/steps.parquet", steps):
                return False
        if status != LEFT and not self._connection.write(
            lambda: client.set_terminated(run_id, _STATUS[status], end_time), "close a run"
        ):
            return False
        if self._mark.doubtful and not self._connection.write(
            self._drop_twins, "look for doubles of a run"
        ):
            return False
        self._note(closed=True)
        return True

    def _drop_twins(self) -> None:
        for twin in self._twins(self._mark.experiment_id):
            if twin.info.run_id != self._mark.run_id:
                self._connection.client.delete_run(twin.info.run_id)


def _parts(values: list[_T], most: int) -> list[list[_T]]:
    return [values[begin : begin + most] for begin in range(0, len(values), most)]


def _sorted(records: list[list[Any]]) -> _Piece:
    piece = _Piece()
    for kind, *content in records:
        piece.end = None  # an end that something follows is none: somebody has gone on
        if kind == "m":
            at, step, values = content
            piece.metrics += [Metric(key, value, at, step) for key, value in values.items()]
        elif kind == "p":
            piece.params |= content[0]
        elif kind == "t":
            piece.tags |= content[0]
        elif kind == "f":
            piece.files[content[0]] = content[1]
        elif kind == "i":
            piece.inputs.append(content[0])
        elif kind == "e":
            piece.end = (content[0], content[1])
        # "s", every step's loss, becomes a table when the run ends; "o", that somebody goes on
        # with the run, has no counterpart; what a later version writes is passed over.
    return piece
