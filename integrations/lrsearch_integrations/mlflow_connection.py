"""The line to one MLflow store: calls that may fail without harm to the training."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from lrsearch_integrations.mlflow_api import MlflowClient
from lrsearch_integrations.mlflow_store import is_refusal, shown

RETRY_SECONDS = 30.0

logger = logging.getLogger("lrsearch")


class Connection:
    """The client of a store, shared by a run and its children, and its present health."""

    def __init__(self, client: MlflowClient, uri: str) -> None:
        self.client = client
        self.uri = uri
        # Of the last call that the store refused for good.
        self.refusal: Exception | None = None
        # What went wrong last, in a line; "" once a call went well again.
        self.trouble = ""
        self._retry_at = 0.0
        self._warned: set[str] = set()

    @property
    def resting(self) -> bool:
        """Whether the store failed so recently that another try would only cost time."""
        return time.monotonic() < self._retry_at

    def wake(self) -> None:
        """Try again at once."""
        self._retry_at = 0.0

    def write(self, call: Callable[[], object], what: str) -> bool:
        """Make one call; False if the store failed and the call is worth another try.

        What the store refuses for good (a run that is deleted, a parameter that would change)
        counts as done. Either kind of trouble is told once, in one line.
        """
        try:
            call()
        except Exception as error:  # whatever the store's own libraries raise
            lines = str(error).strip().splitlines() or [type(error).__name__]
            reason = shown(lines[0])[:200]
            if is_refusal(error):
                self.refusal = error
                self.tell("refused", f"refused to {what}: {reason}")
                return True
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self.trouble = reason
            self.tell("failed", f"failed to {what}; the training goes on: {reason}")
            return False
        self._retry_at, self.trouble = 0.0, ""
        return True

    def tell(self, kind: str, message: str) -> None:
        """Warn the user, once of each kind of trouble."""
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning("MLflow at %s %s", shown(self.uri), message)
