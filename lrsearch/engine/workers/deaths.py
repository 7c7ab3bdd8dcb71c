"""Deaths of workers: made up for, unless something kills whoever comes."""

from __future__ import annotations

import logging
from typing import Final

from lrsearch.engine.workers.process import WorkersError

# So many deaths without a trial that ended between them: something kills whoever comes.
MOST_DEATHS: Final = 5

logger = logging.getLogger("lrsearch")


class Deaths:
    """Counts the deaths of a crew's workers since a trial has ended."""

    def __init__(self) -> None:
        self._count = 0

    def trial_ended(self) -> None:
        """A worker has brought something to its end."""
        self._count = 0

    def another(self, number: int, how: str) -> None:
        """Worker ``number`` is gone, and is to be started again.

        Args:
            number: of the worker.
            how: it ended, in words that go on from "worker 1 ended".

        Raises:
            WorkersError: if it is not worth while.
        """
        self._count += 1
        if self._count >= MOST_DEATHS:
            raise WorkersError(
                f"worker {number} ended {how}, the {self._count}th death in a row without a trial "
                "that ended: is memory short? The study is kept; go on with resume"
            )
        logger.warning(
            "worker %d ended %s; its trial goes on from its last checkpoint", number, how
        )
