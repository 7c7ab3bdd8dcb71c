"""One MLflow run: what is logged goes to its spool, and from there to the store."""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import signal
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from io import BytesIO
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from lrsearch.errors import require_choice
from lrsearch.tracking import RunStatus
from lrsearch_integrations.mlflow_delivery import LEFT
from lrsearch_integrations.mlflow_model import model_files
from lrsearch_integrations.mlflow_sender import Sender
from lrsearch_integrations.mlflow_store import context_tags, quiet
from lrsearch_integrations.mlflow_values import (
    PARAM_LENGTH,
    TAG_LENGTH,
    number,
    safe_key,
    table_files,
    texts,
)
from lrsearch_integrations.spool import Header, RunTakenError, SpoolError, milliseconds, new_uid

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike

# So many values are worth a request at once; fewer wait for the sender's next turn.
FLUSH_METRICS = 1000
# The longest that a training waits for the store, when a run ends or its id is asked for.
WAIT_SECONDS = 10.0

_STATE = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
# A statistic may be undefined while the training is sound; any other value that is not finite
# means that the training has diverged.
_STATISTICS = ("window/", "bound/", "lipschitz/")

logger = logging.getLogger("lrsearch")


def begin_run(
    sender: Sender,
    experiment: str,
    name: str,
    tags: Mapping[str, object],
    *,
    uid: str | None = None,
    parent: str = "",
    parent_run_id: str = "",
    run_id: str = "",
    owned: bool = True,
    ready: Callable[[], None] | None = None,
) -> MlflowRun:
    """Open a run; it is created by the sender, when the store answers.

    Args:
        sender: to the store.
        experiment: name of the experiment.
        name: how the run is shown.
        tags: short texts.
        uid: a name of the caller's own, by which the store is searched first; None for a new one.
        parent: uid of the run that it is nested in.
        parent_run_id: the store's id of that run, where it is known.
        run_id: the store's id of this run, where it existed before.
        owned: whether whoever writes also closes it.
        ready: see ``RunTracker.child``.

    Raises:
        SpoolError: if the spool cannot be written, or another process writes this run.
    """
    header = Header(
        uid=uid or new_uid(),
        tracking_uri=sender.connection.uri,
        experiment=experiment,
        name=name,
        tags={**context_tags(), **texts(tags, TAG_LENGTH)},
        start_time=milliseconds(),
        parent=parent,
        parent_run_id=parent_run_id,
        run_id=run_id,
        owned=owned,
        named=uid is not None and not run_id,
    )
    return MlflowRun(sender, header, ready)


class MlflowRun:
    """One MLflow run, spooled to disk and sent in batches; a ``RunTracker``.

    As a context manager it finishes itself: complete, pruned (``optuna.TrialPruned``) or failed.
    A run that this process opened and never finished is closed as failed when Python exits, or is
    ended by SIGTERM; after a SIGKILL the next study, or ``lrsearch sync``, closes it.
    """

    def __init__(
        self, sender: Sender, header: Header, ready: Callable[[], None] | None = None
    ) -> None:
        self._sender = sender
        self._header = header
        self._spooled = sender.spool.begin(header, ready)
        self._delivery = sender.add(self._spooled)
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._known_params: set[str] = set()
        self._unsent = 0
        self._nonfinite_steps = 0
        self._last_nonfinite: int | None = None
        self._diverged = False
        self._closed = False
        self._warned = False
        _open_runs.add(self)
        _catch_sigterm()

    @property
    def run_id(self) -> str:
        """MLflow's id of this run; "" while the store cannot be reached."""
        self._sender.wait(lambda: bool(self._delivery.run_id), WAIT_SECONDS)
        return self._delivery.run_id

    @property
    def uid(self) -> str:
        """The run's own name, in the tag ``lrsearch.trial_uid``."""
        return self._header.uid

    @property
    def tracking_uri(self) -> str:
        """The store that holds the run."""
        return self._sender.connection.uri

    def log_metrics(
        self, metrics: Mapping[str, float], step: int, *, timestamp: int | None = None
    ) -> None:
        """Record values at a step; their time is now unless given, in milliseconds since 1970.

        Values that are not finite are counted (tag ``lrsearch.nonfinite_steps``) and not sent,
        because SQL stores replace them and the UI then hides the curve; the first in a training
        metric is recorded as ``diverged_at_step``.
        """
        now, at = milliseconds() if timestamp is None else timestamp, int(step)
        finite: dict[str, float] = {}
        with self._lock:
            for key, given in metrics.items():
                value = number(key, given)
                if math.isfinite(value):
                    finite[safe_key(key)] = value
                else:
                    self._note_nonfinite(key, now, at)
            if finite:
                self._write("m", now, at, finite)
                self._unsent += len(finite)
            if self._unsent >= FLUSH_METRICS:
                self._nudge()

    def log_steps(self, losses: ArrayLike, start: int, lr: float) -> None:
        """Keep the loss of every step, for the artifact ``curves/steps.parquet``.

        Args:
            losses: shape (steps,), the training losses from ``start`` on; any value.
            start: step of the first of them.
            lr: the rate that gave them.
        """
        values = np.ascontiguousarray(losses, dtype="<f8")
        with self._lock:
            self._write("s", int(start), float(lr), b64encode(values.tobytes()).decode())

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record settings; the first value of a key stays."""
        with self._lock:
            new = {
                key: value
                for key, value in texts(params, PARAM_LENGTH).items()
                if key not in self._known_params
            }
            self._known_params |= new.keys()
            if new:
                self._write("p", new)
                self._nudge()

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Record or replace short texts."""
        with self._lock:
            self._write("t", texts(tags, TAG_LENGTH))
            self._nudge()

    def log_input(
        self, name: str, digest: str, *, context: str = "training", profile: str = "{}"
    ) -> None:
        """Record the data set that the run saw; MLflow shows it beside the run.

        Args:
            name: of the data set.
            digest: of its content, at most 36 characters.
            context: what it was used for.
            profile: what is known of it, as JSON.
        """
        source = '{"source": "lrsearch"}'
        content = {"name": name, "digest": digest[:36], "context": context}
        with self._lock:
            self._write("i", content | {"profile": profile, "source": source})
            self._nudge()

    def log_table(self, name: str, table: pd.DataFrame) -> None:
        """Store a table as the artifacts ``name.parquet`` and ``name.csv``."""
        self._add_files(table_files(name, table))

    def log_text(self, name: str, text: str) -> None:
        """Store a text as an artifact of that name."""
        self._add_files({name: text.encode()})

    def log_figure(self, name: str, figure: Any) -> None:
        """Store a figure: of matplotlib as ``name.png``, of plotly as ``name.html``."""
        if hasattr(figure, "to_html"):
            page = figure.to_html(include_plotlyjs=True, full_html=True)
            self._add_files({f"{name.removesuffix('.html')}.html": page.encode()})
            return
        stream = BytesIO()
        figure.savefig(stream, format="png", dpi=150, bbox_inches="tight")
        self._add_files({f"{name.removesuffix('.png')}.png": stream.getvalue()})

    def log_model(self, name: str, model: Any, example: Any) -> None:
        """Store a torch module; ``mlflow.pytorch.load_model("runs:/ID/NAME")`` has it back.

        Args:
            name: of the artifacts' folder.
            model: the module, in evaluation mode; its traced graph is stored.
            example: inputs of shape (rows, ...), for the signature.
        """
        try:
            with quiet():
                files = model_files(model, example)
        except Exception as error:  # a model that cannot be traced costs the model alone
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self._warn(f"cannot store the model: {lines[0][:200]}")
            return
        self._add_files({f"{name}/{file}": content for file, content in files.items()})

    def child(
        self,
        name: str,
        *,
        tags: Mapping[str, object] | None = None,
        uid: str | None = None,
        ready: Callable[[], None] | None = None,
    ) -> MlflowRun:
        """Open a run nested in this one; ``lrsearch.kind`` is "trial" unless given.

        Args:
            name: how the run is shown.
            tags: short texts.
            uid: a name of the caller's own, by which a later process goes on with the same run.
            ready: is called once no other process writes that run, and again and again while one
                does; what it raises is passed on, and the run stays as it is.

        Raises:
            SpoolError: if the spool cannot be written, or another process writes this run.
        """
        end = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                return begin_run(
                    self._sender,
                    self._header.experiment,
                    name,
                    {"lrsearch.kind": "trial", **(tags or {})},
                    uid=uid,
                    parent=self._header.uid,
                    parent_run_id=self._header.run_id,
                    ready=ready,
                )
            except RunTakenError:
                # Whoever sends what a dead process has left lets go of it soon.
                if time.monotonic() > end:
                    raise
                if ready is not None:
                    ready()
            time.sleep(0.05)

    def flush(self) -> bool:
        """Wait until the store has everything, at most ``WAIT_SECONDS``; False if it has not."""
        return self._sender.wait(
            lambda: self._delivery.up_to_date or self._delivery.done, WAIT_SECONDS
        )

    def finish(self, status: RunStatus, *, end_time: int | None = None, wait: bool = True) -> None:
        """Close the run: FINISHED, KILLED (pruned) or FAILED.

        The tag ``lrsearch.trial_state`` tells them apart in Optuna's words. Waits until the store
        has everything, at most ``WAIT_SECONDS``, and not at all while it does not answer. A second
        call does nothing. A run that somebody else has opened stays open.

        Args:
            status: how the run ended.
            end_time: when it ended, in milliseconds since 1970; None means now.
            wait: False for a caller who waits for many runs at once, later.

        Raises:
            InvalidArgumentError: if the status is not one of ``RunStatus``.
        """
        require_choice("status", status, get_args(RunStatus))
        with self._lock:
            if self._closed:
                return
            if self._header.owned:
                self._write("t", {"lrsearch.trial_state": _STATE[status]})
            end = milliseconds() if end_time is None else end_time
            self._write("e", status if self._header.owned else LEFT, end)
            self._closed = True
            _open_runs.discard(self)
        if not wait:
            self._nudge()
            return
        # A study ends when its trials are told, too.
        alone = bool(self._header.parent)
        if not self._sender.wait(
            lambda: not self._sender.holds(self._delivery) and (alone or self._sender.settled),
            WAIT_SECONDS,
        ):
            self._tell_what_is_left()

    def leave(self) -> None:
        """Stop writing; the run stays open in the store, for whoever goes on with its uid.

        Waits until the store has everything, at most ``WAIT_SECONDS``, and not at all while it does
        not answer: then the rest stays in the spool, free for whoever goes on here, or ``lrsearch
        sync``. A second call does nothing.
        """
        with self._lock:
            if self._closed:
                return
            self._write("e", LEFT, milliseconds())
            self._closed = True
            _open_runs.discard(self)
        if not self._sender.wait(lambda: not self._sender.holds(self._delivery), WAIT_SECONDS):
            self._sender.let_go(self._delivery)

    def require_store(self) -> None:
        """Wait for the run to be created, so that what can never work is known at once.

        Raises:
            StoreError: if the store refuses.
        """
        connection = self._sender.connection
        self._sender.wait(
            lambda: bool(self._delivery.run_id) or connection.refusal is not None, WAIT_SECONDS
        )
        if connection.refusal is not None and not self._delivery.run_id:
            _open_runs.discard(self)
            self._closed = True
            self._sender.forget(self._delivery)
            raise connection.refusal

    def __enter__(self) -> MlflowRun:
        """Return the run itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish the run with the status that the body earned."""
        if kind is None:
            self.finish("complete")
            return
        from optuna import TrialPruned

        self.finish("pruned" if issubclass(kind, TrialPruned) else "failed")

    def _note_nonfinite(self, key: str, now: int, step: int) -> None:
        if step != self._last_nonfinite:
            self._last_nonfinite = step
            self._nonfinite_steps += 1
            self._write("t", {"lrsearch.nonfinite_steps": str(self._nonfinite_steps)})
        if not self._diverged and not key.startswith(_STATISTICS):
            self._diverged = True
            self._write("m", now, step, {"diverged_at_step": float(step)})

    def _add_files(self, files: Mapping[str, bytes]) -> None:
        with self._lock:
            for name, content in files.items():
                # Its folder may be gone once the run has ended.
                with self._forgiving():
                    kept = "" if self._closed else self._spooled.add_file(content)
                    self._write("f", name, kept)
            self._nudge()

    def _write(self, *record: Any) -> None:
        if self._closed:
            self._warn("was told to log after the end of a run, and does not")
            return
        with self._forgiving():
            self._spooled.write(*record)

    @contextlib.contextmanager
    def _forgiving(self) -> Any:
        """A full disk costs the record, not the training."""
        try:
            yield
        except SpoolError as error:
            self._warn(f"loses what it cannot keep: {error}")

    def _nudge(self) -> None:
        self._unsent = 0
        self._sender.nudge()

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("MLflow tracking of %r %s", self._header.name, message)

    def _tell_what_is_left(self) -> None:
        connection = self._sender.connection
        connection.tell(
            "left",
            f"does not have everything yet; it is kept in {self._sender.spool.folder}, and "
            "lrsearch sync sends it",
        )

    def _close_at_exit(self) -> None:
        if self._process != os.getpid():
            return  # a forked copy: the run belongs to the parent process
        self.finish("failed")


_open_runs: set[MlflowRun] = set()


@atexit.register
def _close_open_runs() -> None:
    # Children were opened last, and end before their parents.
    for run in sorted(_open_runs, key=lambda each: each._header.start_time, reverse=True):
        run._close_at_exit()


def _catch_sigterm() -> None:
    """Close runs on SIGTERM too, where nobody else has a say in what it does."""
    if (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    ):
        signal.signal(signal.SIGTERM, _end_on_sigterm)


def _end_on_sigterm(number: int, frame: FrameType | None) -> None:
    _close_open_runs()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
