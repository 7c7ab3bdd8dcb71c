"""Published figures beside measured ones, with a test of their difference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import nan, sqrt
from typing import TypeAlias

import numpy as np
import pandas as pd
from scipy.stats import ttest_ind_from_stats

# A gap is looked into beyond so many standard errors.
FLAGGED = 2.0


@dataclass(frozen=True, slots=True)
class Published:
    """A published mean of n runs.

    Attributes:
        mean: as printed.
        sd: the sample standard deviation (divisor n - 1); NaN if none was printed.
        n: number of runs.
        unit: of the last digit printed; its rounding is part of the error.
    """

    mean: float
    sd: float = nan
    n: int = 1
    unit: float = 0.0


# Published figures by the settings that name them.
Figures: TypeAlias = Mapping[tuple[object, ...], Published]


def of_population(mean: float, sd: float, n: int, *, unit: float) -> Published:
    """A figure that was printed with numpy's default deviation, whose divisor is n."""
    return Published(mean, sd * sqrt(n / (n - 1)), n, unit)


def compare(published: Published | None, values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean, sample deviation and n of both, their gap, its standard error and Welch's p-value.

    The standard error is sqrt(sd_1^2 / n_1 + sd_2^2 / n_2 + unit^2 / 12), the last term for the
    rounding of what was printed. The p-value is of Welch's t-test (unequal variances). NaN where a
    deviation is unknown.

    Args:
        published: None if there is no figure.
        values: measured ones; those that are not finite are left out and counted.
    """
    given = np.asarray(values, dtype=np.float64)
    finite = given[np.isfinite(given)]
    n = int(finite.size)
    mean = float(finite.mean()) if n else nan
    sd = float(finite.std(ddof=1)) if n > 1 else nan
    row: dict[str, float | int | None] = {
        "published": nan,
        "published_sd": nan,
        "published_n": None,
        "measured": mean,
        "measured_sd": sd,
        "measured_n": n,
        "not_finite": int(given.size - n),
        "gap": nan,
        "standard_error": nan,
        "pvalue": nan,
    }
    if published is None:
        return row
    row |= {
        "published": published.mean,
        "published_sd": published.sd,
        "published_n": published.n,
        "gap": mean - published.mean,
    }
    variances = (published.sd**2 / published.n, sd**2 / n if n > 1 else nan)
    rounding = published.unit**2 / 12.0
    error = sqrt(sum(variances) + rounding)
    if error > 0.0:
        row["standard_error"] = error
    if sum(variances) > rounding:  # else what was printed is too coarse for a test
        test = ttest_ind_from_stats(
            mean, sd, n, published.mean, published.sd, published.n, equal_var=False
        )
        row["pvalue"] = float(test.pvalue)
    return row


def comparison_table(
    results: pd.DataFrame,
    published: Figures,
    *,
    by: Sequence[str],
    value: str,
    order: Iterable[tuple[object, ...]] | None = None,
) -> pd.DataFrame:
    """One line per group of runs.

    Args:
        results: one row per run.
        published: figures by the values of ``by``.
        by: columns that make a group.
        value: the measured column.
        order: groups in the order wanted; default: as they come.
    """
    groups = {
        key if isinstance(key, tuple) else (key,): part[value].tolist()
        for key, part in results.groupby(list(by), sort=False, dropna=False)
    }
    keys = list(groups) if order is None else [key for key in order if key in groups]
    lines = [
        {**dict(zip(by, key, strict=True)), **compare(published.get(key), groups[key])}
        for key in keys
    ]
    table = pd.DataFrame(lines)
    if len(table):
        table["flagged"] = (table["gap"].abs() > FLAGGED * table["standard_error"]).astype(bool)
    return table


def readable(table: pd.DataFrame, *, by: Sequence[str], digits: int) -> list[dict[str, object]]:
    """The table as texts: mean ± deviation (n), for a terminal or a page."""

    def figure(mean: float, sd: float, n: float | None) -> str:
        if mean != mean:
            return "-"
        spread = f" ± {sd:.{digits}f}" if sd == sd else ""
        return f"{mean:.{digits}f}{spread}" + ("" if n is None or n != n else f" ({n:.0f})")

    lines: list[dict[str, object]] = []
    for row in table.to_dict("records"):
        error = row["standard_error"]
        lines.append(
            {
                **{name: row[name] for name in by},
                "published": figure(row["published"], row["published_sd"], row["published_n"]),
                "measured": figure(row["measured"], row["measured_sd"], row["measured_n"]),
                "not finite": row["not_finite"] or "",
                "gap": f"{row['gap']:+.{digits}f}" if row["gap"] == row["gap"] else "-",
                "in s.e.": f"{row['gap'] / error:+.1f}" if error == error and error > 0 else "-",
                "p": f"{row['pvalue']:.2g}" if row["pvalue"] == row["pvalue"] else "-",
                "": "beyond 2 s.e." if row["flagged"] else "",
            }
        )
    return lines
