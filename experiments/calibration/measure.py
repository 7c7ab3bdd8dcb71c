"""How often each test says yes: one cell is one test on one shape at one length.

Pure: a cell is a small dict, its numbers depend on the cell, the seed and the replicates alone, so
cells may be measured in any order, in any process, and again.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Any

import numpy as np
from scipy.stats import binomtest

from experiments.calibration.oracle import oracle_power
from experiments.calibration.shapes import (
    BETWEEN,
    DECAY,
    NO_DECAY,
    SLOPES,
    FloatArray,
    Shape,
    Slope,
)
from experiments.calibration.window_tests import WINDOW_TESTS
from lrsearch.controllers.exptest import WATCH_LENGTHS, ExpTestState, judge
from lrsearch.controllers.replay import first_look, search_verdict
from lrsearch.controllers.settings import ExpTestSettings

Cell = dict[str, Any]

GROUPS = {"no decay": NO_DECAY, "decay": DECAY, "between": BETWEEN}
_SHAPES = {shape.name: shape for shapes in GROUPS.values() for shape in shapes}
_SLOPES = {slope.name: slope for slope in SLOPES}
# A search looks at 1, 2 and 4 window lengths; losses around 2.3 with a noise of 0.02.
SEARCH_LEVEL, SEARCH_NOISE, SEARCH_LENGTHS = 2.3, 0.02, 4
# A steady fall is accepted at the last look by design; these hold still.
STILL = tuple(
    shape.name for shape in NO_DECAY if shape.name.startswith(("flat", "one loud first loss"))
)
SOUGHT = ("linear fall of 10", "exponent 4", "exponent 4, AR(1) 0.8", "power law 0.5")

LENGTHS = {"full": (10, 20, 50, 100, 200, 500, 1000, 5000), "quick": (20, 50)}
RUN_LENGTHS = {"full": (50, 200), "quick": (50,)}
REPLICATES = {"full": 2000, "quick": 40}
# curve_fit takes its time: the notebook's test is measured up to here.
NOTEBOOK_LONGEST = 1000
_QUICK = (
    "flat", "linear fall of 10", "saturating rise", "flat, AR(1) 0.9", "flat, fading noise",
    "one loud first loss of 10", "exponent 1", "exponent 4", "exponent 4, AR(1) 0.5",
    "shoulder, then decay", "plateau", "falls by the margin",
)  # fmt: skip
_CHUNK = 4_000_000  # losses drawn at a time


def cells(scale: str) -> list[Cell]:
    """All cells of a scale, "full" or "quick", each {"group", "shape", "n", "test"}.

    Groups: "no decay", "decay" and "between" are single windows of n losses; "search" is a whole
    search whose first look is at n losses; "watch" a whole watch for a plateau from n losses on.
    """
    found = [
        _cell(group, shape.name, n, test)
        for group, shapes in GROUPS.items()
        for shape in shapes
        for test in WINDOW_TESTS
        for n in LENGTHS[scale]
        if test != "notebook" or n <= NOTEBOOK_LONGEST
    ]
    for n in RUN_LENGTHS[scale]:
        found += [_cell("search", name, n, "robust") for name in STILL + SOUGHT]
        found += [_cell("watch", slope.name, n, "plateau") for slope in SLOPES]
    return found if scale == "full" else [cell for cell in found if cell["shape"] in _QUICK]


def measure(cell: Cell, *, replicates: int, seed: int = 0, alpha: float = 0.05) -> dict[str, Any]:
    """Count how often the cell's test says yes.

    "Yes" is a decay for windows, an accepted rate for searches, a plateau for watches.

    Args:
        cell: of ``cells``.
        replicates: independent windows or runs.
        seed: of the random numbers; every cell draws its own.
        alpha: level of the test.

    Returns:
        ``hits``, ``replicates``, ``share``, the 95 % Wilson interval ``low`` and ``high``;
        ``oracle``, the largest power that any test has (for "decay", else NaN); for runs also
        ``median_steps`` and ``p90_steps`` until yes (NaN if never).

    Raises:
        KeyError: for a group, shape or test that there is not.
    """
    rng = np.random.default_rng(_seed(cell, seed))
    n, group = int(cell["n"]), cell["group"]
    steps: list[int] = []
    if group == "watch":
        hits = _watches(_SLOPES[cell["shape"]], rng, replicates, n, alpha, steps)
    elif group == "search":
        hits = _searches(_SHAPES[cell["shape"]], rng, replicates, n, alpha, steps)
    else:
        test = WINDOW_TESTS[cell["test"]]
        windows = _chunks(_SHAPES[cell["shape"]], rng, replicates, n)
        hits = sum(test(losses) < alpha for losses in windows)
    interval = binomtest(hits, replicates).proportion_ci(method="wilson")
    known = group == "decay"
    nan = float("nan")
    return {
        "hits": hits,
        "replicates": replicates,
        "share": hits / replicates,
        "low": interval.low,
        "high": interval.high,
        "oracle": oracle_power(_SHAPES[cell["shape"]], n, alpha) if known else nan,
        "median_steps": float(np.median(steps)) if steps else nan,
        "p90_steps": float(np.quantile(steps, 0.9)) if steps else nan,
    }


def _cell(group: str, shape: str, n: int, test: str) -> Cell:
    return {"group": group, "shape": shape, "n": n, "test": test}


def _seed(cell: Cell, seed: int) -> int:
    """The tests of one shape and length see the same windows: they are compared in pairs."""
    text = f"{cell['group']}|{cell['shape']}|{cell['n']}|{seed}"
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big")


def _chunks(
    shape: Shape, rng: np.random.Generator, replicates: int, n: int
) -> Iterable[FloatArray]:
    size = max(1, _CHUNK // n)
    for start in range(0, replicates, size):
        yield from shape.sample(rng, min(size, replicates - start), n)


def _searches(
    shape: Shape,
    rng: np.random.Generator,
    replicates: int,
    n: int,
    alpha: float,
    steps: list[int],
) -> int:
    """Rates accepted; ``steps`` takes the length at which each was."""
    settings = ExpTestSettings(alpha=alpha)
    lr = 2.0 * np.sqrt(2.0) / np.e * SEARCH_LEVEL / n
    first = SEARCH_LEVEL + SEARCH_NOISE * float(shape.curve(n)[0])
    # A first loss that lies higher makes the windows longer; noise makes them a little so.
    points = round(1.1 * SEARCH_LENGTHS * first_look(settings, first, lr=lr))
    for curve in _chunks(shape, rng, replicates, points):
        verdict = search_verdict(settings, SEARCH_LEVEL + SEARCH_NOISE * curve, lr=lr)
        if verdict is not None and verdict.kind == "accept" and verdict.window is not None:
            steps.append(verdict.window.stop)
    return len(steps)


def _watches(
    slope: Slope,
    rng: np.random.Generator,
    replicates: int,
    n: int,
    alpha: float,
    steps: list[int],
) -> int:
    """Plateaus called; ``steps`` takes the length at which each was."""
    settings = ExpTestSettings(alpha=alpha)
    size = max(1, _CHUNK // (WATCH_LENGTHS * n))
    for start in range(0, replicates, size):
        for losses in slope.sample(rng, min(size, replicates - start), n, WATCH_LENGTHS):
            length = watch(settings, losses, n)
            if length is not None:
                steps.append(length)
    return len(steps)


def watch(settings: ExpTestSettings, losses: FloatArray, n: int) -> int | None:
    """Losses at which a window that begins with n is called a plateau; None if it never is."""
    state = ExpTestState(
        phase="training", initial_loss=float(losses[0]), raw_length=n, correction=1.0, length=n
    )
    while state.start == 0 and state.length is not None:
        length = state.length
        state, decision = judge(settings, state, losses[:length], 0.1)
        if decision.kind == "decay":
            return length
    return None
