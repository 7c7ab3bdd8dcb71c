"""One thread that carries what runs have written in the spool to an MLflow store."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable

from lrsearch_integrations.mlflow_connection import Connection
from lrsearch_integrations.mlflow_delivery import Delivery
from lrsearch_integrations.spool import Spool, SpooledRun, SpoolError

# A request costs the same for one value as for dozens, and while it is made up the training waits
# for the interpreter. So the pause between two grows with what the last one took.
SHORTEST_PAUSE = 2.0
LONGEST_PAUSE = 10.0
SHARE = 0.005
DRAIN_SECONDS = 10.0


class Sender:
    """Sends in the background; whoever logs never waits for the store.

    Args:
        connection: to the store.
        spool: where runs are kept until the store has them.
    """

    def __init__(self, connection: Connection, spool: Spool) -> None:
        self.connection = connection
        self.spool = spool
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._deliveries: dict[str, Delivery] = {}
        self._known: dict[str, str] = {}
        self._nudged = False
        self._thread: threading.Thread | None = None
        self._process = os.getpid()

    def add(self, run: SpooledRun) -> Delivery:
        """Carry a run from now on."""
        delivery = Delivery(run, self.connection, self.run_id_of)
        with self._changed:
            self._deliveries[delivery.header.uid] = delivery
        self.nudge()
        return delivery

    def nudge(self) -> None:
        """Have what has been written sent now, without a pause; does not wait for it."""
        if self._process != os.getpid():
            return  # a forked copy: the parent's thread reads the same files
        with self._changed:
            self._nudged = True
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, daemon=True, name="lrsearch")
                self._thread.start()
            self._changed.notify_all()

    def wait(self, ready: Callable[[], bool], seconds: float) -> bool:
        """Let the thread work until something is so; False if time is up, or the store fails."""
        if self._process != os.getpid():
            return False
        self.nudge()
        end = time.monotonic() + seconds
        with self._changed:
            while not ready():
                left = end - time.monotonic()
                if left <= 0 or self.connection.resting:
                    return ready()
                self._changed.wait(min(left, 0.5))
        return True

    def deliver(self, delivery: Delivery) -> bool:
        """Send all that a run has written so far, here and now; False if the store failed."""
        with self._sending:
            while not (delivery.left or self.connection.resting) and delivery.step():
                with self._changed:
                    self._changed.notify_all()
            if delivery.run_id:
                self._known[delivery.header.uid] = delivery.run_id
        return delivery.up_to_date

    @property
    def settled(self) -> bool:
        """Whether the store has all that was written so far, and ended runs are put away."""
        with self._changed:
            return all(each.up_to_date and not each.done for each in self._deliveries.values())

    def drain(self) -> bool:
        """Wait until the store has everything, for as long as it gets on; False if it has not."""
        left = self._unsent
        while not self.wait(lambda: self.settled, DRAIN_SECONDS):
            now = self._unsent
            if self.connection.resting or now >= left:
                return False
            left = now
        return True

    @property
    def _unsent(self) -> int:
        with self._changed:
            return sum(each.unsent for each in self._deliveries.values())

    def run_id_of(self, uid: str) -> str:
        """The store's id of a run that is sent from here, or was left here; "" if it has none."""
        if uid in self._known:
            return self._known[uid]
        spooled = self.spool.find(uid)
        return "" if spooled is None else spooled.mark.run_id

    def _work(self) -> None:
        pause = SHORTEST_PAUSE
        while True:
            with self._changed:
                idle = not self._deliveries
                if not self._nudged:
                    self._changed.wait(None if idle else pause)
                self._nudged = False
                deliveries = list(self._deliveries.values())
            began = time.thread_time()
            for delivery in deliveries:
                # Whatever goes wrong with one run must not end the thread for all.
                with contextlib.suppress(OSError, ValueError):
                    self.deliver(delivery)
                if delivery.done:
                    self.forget(delivery)
            pause = min(max(SHORTEST_PAUSE, (time.thread_time() - began) / SHARE), LONGEST_PAUSE)
            with self._changed:
                self._changed.notify_all()

    def forget(self, delivery: Delivery) -> None:
        """Let go of a run that the store has; its folder goes too, once no other run needs it."""
        with self._sending:
            if delivery.left:  # let go of meanwhile: its folder may be another's now
                return
            delivery.left = True
            _remove(self.spool, delivery.run, delivery.header.uid)
        if delivery.header.parent:
            _remove_ended(self.spool, delivery.header.parent)
        self._drop(delivery)

    def let_go(self, delivery: Delivery) -> None:
        """Leave a run to others, with what the store does not have yet: its folder stays."""
        with self._sending:
            if not delivery.left:
                delivery.left = True
                delivery.run.release()
        self._drop(delivery)

    def holds(self, delivery: Delivery) -> bool:
        """Whether there is still something to do about a run."""
        with self._changed:
            return self._deliveries.get(delivery.header.uid) is delivery

    def _drop(self, delivery: Delivery) -> None:
        # Once its folder is free somebody here may have gone on with the run: theirs stays.
        with self._changed:
            if self.holds(delivery):
                del self._deliveries[delivery.header.uid]


def _remove(spool: Spool, run: SpooledRun, uid: str) -> None:
    if _has_children(spool, uid):
        run.release()
    else:
        run.remove()


def _remove_ended(spool: Spool, uid: str) -> None:
    """Remove a run that has ended and of which the store has everything, if nobody writes it."""
    run = spool.find(uid)
    if run is None or not _has_ended(run) or not run.acquire():
        return
    if _has_ended(run):  # nobody has gone on with it before it was locked
        _remove(spool, run, uid)
    else:
        run.release()


def _has_ended(run: SpooledRun) -> bool:
    with contextlib.suppress(SpoolError):  # gone meanwhile
        mark = run.mark
        return mark.closed and mark.offset >= run.size
    return False


def _has_children(spool: Spool, uid: str) -> bool:
    return any(header.parent == uid for header, _ in spool.entries())
