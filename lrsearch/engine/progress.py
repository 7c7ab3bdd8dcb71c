"""What the engine tells whoever watches a search."""

from __future__ import annotations

from typing import Protocol

from lrsearch.training.loop import Progress


class SearchWatcher(Protocol):
    """Is told about trials; the command line draws a progress bar from it."""

    def trial_started(self, name: str, lr: float, total: int) -> None:
        """A trial, such as "exptest rung 0", begins at a rate, with so many steps before it."""

    def trial_moved(self, progress: Progress) -> None:
        """A window was judged, or validation was looked at."""

    def trial_ended(self, name: str, state: str, reason: str) -> None:
        """A trial is over: "complete", "pruned" or "failed"."""

    def noted(self, text: str) -> None:
        """Something is not as it was asked for, in a sentence."""

    def beside(self, number: int) -> SearchWatcher:
        """A watcher of worker ``number``, one of several at the same time."""


class SilentWatcher:
    """Watches and says nothing."""

    def trial_started(self, name: str, lr: float, total: int) -> None:
        """Say nothing."""

    def trial_moved(self, progress: Progress) -> None:
        """Say nothing."""

    def trial_ended(self, name: str, state: str, reason: str) -> None:
        """Say nothing."""

    def noted(self, text: str) -> None:
        """Say nothing."""

    def beside(self, number: int) -> SearchWatcher:
        """Return itself."""
        return self
