"""Progress on a terminal's stderr; silent where stderr is none."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Never

from tqdm import tqdm

from lrsearch.training.loop import Progress


class TerminalWatcher:
    """One bar per worker: step, loss, rate, rung, p-value and the time that is left.

    Args:
        place: line of its bar, counted from the cursor down.
        who: goes before all that is said, where there are several.
    """

    def __init__(self, place: int = 0, who: str = "") -> None:
        self._bar: tqdm[Never] | None = None
        self._shown = sys.stderr.isatty()
        self._place, self._who = place, who
        self._beside: list[TerminalWatcher] = []

    def __enter__(self) -> TerminalWatcher:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for each in [self, *self._beside]:
            each._close()

    def beside(self, number: int) -> TerminalWatcher:
        """A bar for worker ``number``."""
        watcher = TerminalWatcher(number, f"worker {number}: ")
        self._beside.append(watcher)
        return watcher

    def trial_started(self, name: str, lr: float, total: int) -> None:
        """A trial begins."""
        self._close()
        if self._shown:
            self._bar = tqdm(
                total=total,
                desc=f"{self._who}{name}",
                unit="step",
                postfix=f"lr {lr:.3g}",
                leave=False,
                file=sys.stderr,
                dynamic_ncols=True,
                position=self._place,
            )

    def trial_moved(self, progress: Progress) -> None:
        """A window was judged, or validation was looked at."""
        if self._bar is None:
            return
        tested = "" if progress.pvalue is None else f", p {progress.pvalue:.2g}"
        self._bar.set_postfix_str(
            f"loss {progress.loss:.4g}, lr {progress.lr:.3g}{tested}", refresh=False
        )
        self._bar.update(progress.step - self._bar.n)

    def trial_ended(self, name: str, state: str, reason: str) -> None:
        """A trial is over."""
        self._close()
        if self._shown:
            why = f": {reason}" if reason else ""
            self._say(f"{self._who}{name} {state}{why}")

    def noted(self, text: str) -> None:
        """Something is not as it was asked for: told without a terminal too."""
        self._close()
        self._say(f"lrsearch: note: {text}")

    def _say(self, text: str) -> None:
        # Above the bars of the others.
        tqdm.write(text, file=sys.stderr)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class CellBar:
    """One bar for the cells of a reproduction."""

    def __init__(self) -> None:
        self._bar: tqdm[Never] | None = None

    def __enter__(self) -> CellBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def started(self, name: str, *, total: int, kept: int) -> None:
        """So many cells, of which some are finished already."""
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=total, initial=kept, desc=name, unit="cell", file=sys.stderr, leave=False
            )

    def finished(self, cell: object) -> None:
        """One more cell is kept."""
        if self._bar is not None:
            self._bar.update()
