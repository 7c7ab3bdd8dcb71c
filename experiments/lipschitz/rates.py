"""1/L of [L]'s linear models: as the notebooks compute it, and how the printed ones come about."""

from __future__ import annotations

from collections.abc import Iterator
from math import nan
from typing import Any, Final

import numpy as np

from experiments.lipschitz.data import Floats, load, mnist, scaled
from experiments.lipschitz.published import (
    COVERTYPE_FIRST,
    COVERTYPE_ROWS,
    NEWS_ROWS,
    RATES2,
    TABLE1,
)
from lrsearch.bounds.lipschitz import linear_regression_lipschitz, lipschitz_constant

# Columns of ones: the notebook prepends them twice to Online News.
BIAS: Final = {"news": 2}
# K of the least-squares sets, rounded by hand in the notebook: (911 + 118) / 2, and
# (1622.6 + 4637) / 2 with the mean longitude's sign turned. The others it computes.
ROUNDED_K: Final = {"boston": 514.5, "california": 3129.8}
SPLIT: Final = 0.7  # share trained on, of Iris and Digits

Line = dict[str, Any]


def inputs_of(name: str, raw: Floats) -> Floats:
    """Features as a least-squares or logistic model of [L] takes them: bias, scaled to sum 1."""
    return scaled(raw, bias=BIAS.get(name, 1))


def notebook_k(name: str, raw: Floats) -> float:
    """K of [L] 7.1, of the features *before* they are scaled, as the notebook takes it.

    The text says that the scaled data give the Lipschitz constants; with its K, of the order of
    1 / m, the first term of L would vanish.

    Args:
        name: of the data set.
        raw: unscaled features, shape (m, n); the notebook counts the bias for Online News alone.
    """
    if name in ROUNDED_K:
        return ROUNDED_K[name]
    columns = np.column_stack([np.ones((len(raw), BIAS[name])), raw]) if name in BIAS else raw
    return float(columns.mean(axis=0).sum() + columns.max(axis=0).mean()) / 2


def least_squares_rate(inputs: Floats, targets: Floats, k: float) -> float:
    """1 / |K/m ‖X^T X‖ - ‖y^T X‖ / m| with Frobenius norms, [L] 4.1 as the notebook has it.

    The package's :func:`linear_regression_lipschitz` takes spectral norms instead.

    Args:
        inputs: X, shape (m, n), scaled.
        targets: y, shape (m,).
        k: bound on the weights.
    """
    m = len(inputs)
    curvature = k * float(np.linalg.norm(inputs.T @ inputs)) / m
    return 1.0 / abs(curvature - float(np.linalg.norm(targets @ inputs)) / m)


def text_rate(inputs: Floats, targets: Floats) -> float:
    """1/L with K of the scaled data, as [L] 7.1 reads and this package computes it."""
    return 1.0 / linear_regression_lipschitz(inputs, targets)


def classes_rate(inputs: Floats, classes: int) -> float:
    """2m / ‖X‖ ([L] 5.1), or k m / ((k - 1) ‖X‖) ([L] 5.2), with the Frobenius norm.

    Args:
        inputs: X, shape (m, n).
        classes: k.
    """
    loss = "binary_cross_entropy" if classes == 2 else "cross_entropy"
    norm = float(np.linalg.norm(inputs))
    return 1.0 / lipschitz_constant(loss, batch_size=len(inputs), k_z=norm, classes=classes)


def _line(dataset: str, published: float, how: str, value: float, verdict: str) -> Line:
    return {
        "dataset": dataset,
        "published": published,
        "computed": value,
        "ratio": value / published,
        "how": how,
        "verdict": verdict,
    }


def recomputed_table1(data_dir: str | None) -> list[Line]:
    """Every 1/L of Table 1: what was computed, and how near it is to what was printed."""
    lines = []
    for name in ("boston", "california", "energy", "news"):
        lines += list(_least_squares_lines(name, data_dir))
    lines += list(_binary_lines(data_dir))
    lines.append(_split_line("iris", TABLE1["iris"].rate))
    return lines


def _least_squares_lines(name: str, data_dir: str | None) -> Iterator[Line]:
    raw, targets = load(name, data_dir)
    row, inputs = TABLE1[name], inputs_of(name, raw)
    k = notebook_k(name, raw)
    found = least_squares_rate(inputs, targets, k)
    how = f"notebook: bias, Frobenius, K = {k:.6g} of raw features"
    if name == "news":
        yield _line(name, row.rate, how, found, "of the part")
        size = found * NEWS_ROWS / len(raw)
        yield _line(name, row.rate, "the same, times 39 644 / 9 874 (1/L goes as m)", size, "near")
    elif name == "boston":
        yield _line(name, row.notebook_rate, how, found, "hit: the notebook's output")
        yield _line(name, row.rate, how, found, "not hit: printed 9.316 must be a slip")
        yield _line(name, row.implied, "0.1 x the ratio of the printed epochs", found, "agrees")
    else:
        yield _line(name, row.rate, how, found, "hit")
    yield _line(
        name,
        row.rate,
        "text: K of the scaled features, spectral norms",
        text_rate(inputs, targets),
        "not hit",
    )


def _binary_lines(data_dir: str | None) -> Iterator[Line]:
    row = TABLE1["breast-cancer"]
    raw, _ = load("breast-cancer", data_dir)
    yield _line(
        "breast-cancer", row.rate, "bias, Frobenius, all 569 rows", _rate2(scaled(raw)), "hit"
    )
    plain = raw / raw.sum(axis=0)
    yield _line("breast-cancer", row.rate, "no bias, Frobenius", _rate2(plain), "not hit")
    spectral = 2 * len(raw) / float(np.linalg.norm(scaled(raw), 2))
    yield _line("breast-cancer", row.rate, "bias, spectral", spectral, "not hit")
    raw, _ = load("covertype", data_dir)
    found = _rate2(scaled(raw))
    for published, rows, verdict in (
        (TABLE1["covertype"].rate, COVERTYPE_FIRST, "near: the first rows are no random ones"),
        (RATES2["Cover Type"], COVERTYPE_ROWS, "hit, to the sample's error"),
    ):
        how = f"bias + 9 features, Frobenius, times ({rows} / {len(raw)})^1.5"
        size = found * (rows / len(raw)) ** 1.5
        yield _line("covertype", published, how, size, verdict)


def _rate2(inputs: Floats) -> float:
    return classes_rate(inputs, 2)


def _split_line(name: str, published: float) -> Line:
    """Whether random splits give the figure: mean over a hundred of them, and the range."""
    raw, targets = load(name, None)
    classes = len(np.unique(targets))
    found = [classes_rate(raw[train_rows(len(raw), seed)[0]], classes) for seed in range(100)]
    inside = min(found) <= published <= max(found)
    return _line(
        name,
        published,
        f"raw features, Frobenius, 70 % drawn: {min(found):.4g} to {max(found):.4g} of 100 draws",
        float(np.mean(found)),
        "within the draws; no seed is known" if inside else "not hit",
    )


def train_rows(rows: int, seed: int) -> tuple[Any, Any]:
    """Row numbers of the 70 % trained on, and of the rest."""
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(np.arange(rows), train_size=SPLIT, random_state=seed)
    return train, test


def recomputed_table2(data_dir: str | None) -> list[Line]:
    """Every 1/L of Table 2, but Breast cancer's and Covertype's, which are those of Table 1."""
    images = mnist(data_dir)[0].inputs.double().numpy()
    found = classes_rate(images, 10)
    lines = [_split_line("iris", RATES2["Iris"]), _split_line("digits", RATES2["Digits"])]
    lines.append(
        _line(
            "mnist",
            RATES2["MNIST"],
            "each pixel standardised, Frobenius, m = 60 000",
            found,
            "not hit: the notebook's norm, of float32, lost 0.8 % to rounding",
        )
    )
    summed = four_sums(images)
    if summed == summed:
        lines.append(
            _line(
                "mnist",
                RATES2["MNIST"],
                "the same, squares summed in four float32 sums",
                10 * len(images) / (9 * summed),
                "near: such a sum loses as much",
            )
        )
    return lines


def four_sums(inputs: Floats) -> float:
    """The Frobenius norm from four running sums of single precision, as one SSE register adds.

    Args:
        inputs: any shape; NaN if its size is no multiple of four.
    """
    squares = np.square(inputs.astype(np.float32)).ravel()
    if squares.size % 4:
        return nan
    sums = np.zeros(4, np.float32)
    for part in np.array_split(squares.reshape(-1, 4), 64):
        sums = np.add.accumulate(np.vstack([sums, part]), axis=0, dtype=np.float32)[-1]
    return float(np.sqrt(sums.astype(np.float64).sum()))
