"""A worker in a process of its own, and what it tells the one that started it."""

from __future__ import annotations

import pickle
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final, Literal, NoReturn

from lrsearch.engine.progress import SearchWatcher
from lrsearch.engine.workers.spec import WorkerSpec
from lrsearch.errors import LrsearchError
from lrsearch.training.loop import Progress

# What a worker is told.
STOP: Final = "stop"
LOOK: Final = "look"

Kind = Literal["ready", "started", "moved", "ended", "noted", "done", "failed"]


class WorkersError(LrsearchError, RuntimeError):
    """The workers of a search cannot go on."""


@dataclass(frozen=True, slots=True)
class Message:
    """What a worker says: an event for whoever watches, or how it ended itself."""

    kind: Kind
    content: tuple[Any, ...] = ()


class Teller:
    """A ``SearchWatcher`` that passes on what it is told to another process.

    Args:
        send: carries a message there; an ``OSError`` means that nobody listens any more.
    """

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send = send
        self._lock = threading.Lock()

    def say(self, kind: Kind, *content: Any) -> None:
        """Send a message; nothing if nobody listens any more."""
        try:
            with self._lock:
                self._send(Message(kind, content))
        except OSError:
            return

    def trial_started(self, name: str, lr: float, total: int) -> None:
        """Pass it on."""
        self.say("started", name, lr, total)

    def trial_moved(self, progress: Progress) -> None:
        """Pass it on."""
        self.say("moved", progress)

    def trial_ended(self, name: str, state: str, reason: str) -> None:
        """Pass it on."""
        self.say("ended", name, state, reason)

    def noted(self, text: str) -> None:
        """Pass it on."""
        self.say("noted", text)

    def beside(self, number: int) -> Teller:
        """Return itself: a worker has one."""
        return self


def pass_on(message: Message, watcher: SearchWatcher) -> None:
    """Tell a watcher what a worker said of its trials."""
    calls: dict[str, Callable[..., None]] = {
        "started": watcher.trial_started,
        "moved": watcher.trial_moved,
        "ended": watcher.trial_ended,
        "noted": watcher.noted,
    }
    calls[message.kind](*message.content)


def raise_failure(number: int, message: Message) -> NoReturn:
    """Raise what has ended worker ``number``, or what can be said of it."""
    words, trace, error = message.content
    if error is None:
        raise WorkersError(f"worker {number} failed: {words}")
    error.add_note(f"in worker {number}:\n{trace}")
    raise error


def main(spec: WorkerSpec, connection: Connection) -> None:
    """Body of a worker process.

    It ends by itself when the study is over, when it is told to stop, and when the one that started
    it has gone; a trial at hand is kept for whoever goes on with it. Ctrl-C in a terminal reaches
    all processes at once: here it means nothing, the one that started this one decides.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    teller = Teller(connection.send)
    try:
        from lrsearch.engine.workers.running import open_worker

        with open_worker(spec, watcher=teller, stop=stop) as worker:
            threading.Thread(
                target=_listen, args=(connection, stop, worker.look), daemon=True, name="listen"
            ).start()
            teller.say("ready")
            done = worker.run()
    except Exception as error:
        teller.say("failed", *failure(error))
        return
    teller.say("done", done)


def _listen(connection: Connection, stop: threading.Event, look: Any) -> None:
    while True:
        try:
            said = connection.recv()
        except (EOFError, OSError):
            stop.set()
            return
        if said == STOP:
            stop.set()
        elif said == LOOK:
            look()


def failure(error: Exception) -> tuple[str, str, Exception | None]:
    """What is said of an error: a line, the traceback, and the error itself where it can travel."""
    words = " ".join(f"{type(error).__name__}: {error}".split())
    trace = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a user's class does
        return words, trace, None
    return words, trace, error
