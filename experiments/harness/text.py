"""Tables as text."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from experiments.harness.comparing import FLAGGED, readable
from lrsearch.cli.tables import plain


def titled(
    title: str, table: pd.DataFrame, *, by: Sequence[str], digits: int, cut: bool = False
) -> str:
    """A comparison under its title, with a line that counts the gaps.

    Args:
        title: of the table.
        table: from ``comparison_table``.
        by: columns that name a line.
        digits: behind the point.
        cut: whether less was trained than what was published.
    """
    tested = int(table["standard_error"].notna().sum())
    beyond = int(table["flagged"].sum())
    note = (
        f"{beyond} of {tested} gaps beyond {FLAGGED:g} standard errors; "
        "mean ± sample deviation (runs); p by Welch's t-test"
    )
    if cut:
        title += (
            "\n(a quick cut: far less data and fewer steps than published, so gaps mean nothing)"
        )
    return f"{title}\n\n{plain(readable(table, by=by, digits=digits))}\n\n{note}"
