"""The line to one MLflow store: calls that may fail without harm to the training."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from lrsearch_integrations.mlflow_api import MlflowClient, MlflowException
from lrsearch_integrations.mlflow_store import shown

RETRY_SECONDS = 30.0

logger = logging.getLogger("lrsearch")


class Connection:
    """The client of a store, shared by a run and its children, and its present health."""

    def __init__(self, client: MlflowClient, uri: str) -> None:
        self.client = client
        self.uri = uri
        self._retry_at = 0.0
        self._warned: set[str] = set()

    @property
    def resting(self) -> bool:
        """Whether the store failed so recently that another try would only cost time."""
        return time.monotonic() < self._retry_at

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
                self._warn("refused", f"refused to {what}: {reason}")
                return True
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self._warn("failed", f"failed to {what}; the training goes on: {reason}")
            return False
        self._retry_at = 0.0
        return True

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning("MLflow at %s %s", shown(self.uri), message)


def is_refusal(error: Exception) -> bool:
    """Whether the store has understood the request and says no, now and later."""
    if not isinstance(error, MlflowException):
        return False
    status = int(error.get_http_status_code())  # type: ignore[no-untyped-call]  # unannotated
    return 400 <= status < 500 and status not in (408, 429)
