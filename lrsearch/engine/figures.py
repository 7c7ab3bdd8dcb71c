"""A replayed loss curve as one figure: windows, fits, p-values, decisions."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from lrsearch.engine.recorded import Replay
from lrsearch.errors import InvalidArgumentError
from lrsearch.figures import with_matplotlib, with_plotly
from lrsearch.figures.curve import JudgedCurve, loss_figure
from lrsearch.figures.description import Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

_TITLE_WIDTH = 130


def replay_figure(replay: Replay, *, title: str = "") -> Figure:
    """What the figure of a replay shows; see ``lrsearch.figures.curve.loss_figure``."""
    curve = JudgedCurve(
        steps=np.asarray(replay.curve.steps, dtype=np.float64),
        losses=np.asarray(replay.curve.losses, dtype=np.float64),
        windows=replay.windows,
        levels=[replay.level(window) for window in replay.windows],
        mode=replay.settings.mode,
        needed=replay.needed,
        carried_out=False,
    )
    lines = [fill(line, _TITLE_WIDTH) for line in title.splitlines()]
    return loss_figure(curve, title="\n".join(lines))


def draw_replay(replay: Replay, *, title: str = "") -> Drawing:
    """Draw the curve, its windows and, on every look of the search, the two fits that it compares.

    Args:
        replay: of a curve.
        title: above the figure.

    Raises:
        MissingPackageError: if matplotlib is not installed.
    """
    return with_matplotlib.draw(replay_figure(replay, title=title))


def save_replay(replay: Replay, path: str | Path, *, title: str = "") -> None:
    """Write the figure as PNG, or as what the file's suffix says; ``.html`` can be zoomed.

    Raises:
        MissingPackageError: if matplotlib, or plotly for a page, is not installed.
        ValueError: if the file cannot be written.
    """
    try:
        if Path(path).suffix.lower() == ".html":
            page = with_plotly.draw(replay_figure(replay, title=title))
            page.write_html(str(path), include_plotlyjs=True)
        else:
            draw_replay(replay, title=title).savefig(path, dpi=120)
    except (OSError, ValueError) as error:  # ValueError: a suffix that matplotlib does not know
        reason = " ".join(str(error).split())[:200]
        raise InvalidArgumentError(f"cannot write the figure {str(path)!r}: {reason}") from error
