"""The figures of a study, and of several side by side: rates, outcomes, steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from lrsearch.figures.description import (
    Bars,
    Figure,
    Level,
    Mark,
    Marker,
    Note,
    Panel,
    Series,
    finite_of,
    range_of,
    spans_decades,
)

Outcome = Literal["complete", "pruned", "failed"]

_OUTCOMES: Final[dict[Outcome, tuple[str, Marker, str]]] = {
    "complete": ("#1a7f37", "circle", "trained to the end"),
    "pruned": ("#c0392b", "cross", "ended early"),
    "failed": ("#57606a", "triangle", "failed"),
}
_METHODS: Final[tuple[tuple[str, Marker], ...]] = (
    ("#d1242f", "circle"),
    ("#0969da", "square"),
    ("#8250df", "triangle"),
    ("#bf8700", "circle"),
    ("#1b7c83", "square"),
)
# More notes than this would cover each other.
_NOTES: Final = 14
_LOG_RATIO: Final = 2.0
# Fewer trials would have columns as wide as the page.
_FEWEST: Final = 5.0


@dataclass(frozen=True, slots=True)
class TriedRate:
    """One trial of a study.

    Attributes:
        number: of the trial.
        lr: rate at which it began.
        outcome: what became of it.
        steps: gradient steps spent.
        reason: why it was accepted or ended, in words.
        val_loss, value: validation loss and test metric; NaN where it has none.
    """

    number: int
    lr: float
    outcome: Outcome
    steps: int
    reason: str = ""
    val_loss: float = float("nan")
    value: float = float("nan")

    @property
    def words(self) -> str:
        """The trial in a line."""
        loss = f", validation loss {self.val_loss:.4g}" if np.isfinite(self.val_loss) else ""
        reason = f": {self.reason}" if self.reason else ""
        return f"trial {self.number}, lr = {self.lr:.3g}{reason}{loss}, {self.steps:,} steps"


@dataclass(frozen=True, slots=True)
class StudyPoints:
    """A study as a figure sees it.

    Attributes:
        method, seed: what was asked.
        trials: in order of their numbers.
        lr, value, val_loss: the answer; NaN if there is none.
    """

    method: str
    seed: int
    trials: Sequence[TriedRate]
    lr: float
    value: float
    val_loss: float

    @property
    def steps(self) -> int:
        """Gradient steps of all trials."""
        return sum(trial.steps for trial in self.trials)


def ladder_figure(study: StudyPoints, *, start: float, start_name: str, title: str = "") -> Figure:
    """The rates of a study in the order in which they were tried, what became of them, their cost.

    Args:
        study: at least one trial.
        start: rate where the search began.
        start_name: what that rate is called.
        title: above the figure.
    """
    trials = study.trials
    rates = [trial.lr for trial in trials]
    log = max(rates) >= _LOG_RATIO * min(rates)
    left = trials[0].number - 0.5
    ends = (left, max(trials[-1].number + 0.9, left + _FEWEST))
    ticks = [(float(trial.number), str(trial.number)) for trial in trials[:: len(trials) // 20 + 1]]
    few = len(trials) <= _NOTES
    panels = [
        Panel(
            y_label="learning rate",
            series=_by_outcome(trials, lambda trial: trial.lr),
            marks=_choice(study),
            levels=[Level(start, start_name)] if min(rates) <= 10.0 * start else [],
            notes=[_note(trial) for trial in trials if trial.reason] if few else [],
            x_range=ends,
            x_ticks=ticks,
            y_range=range_of([*rates, start], log=log),
            y_log=log,
            height=2.8,
        )
    ]
    losses = [trial.val_loss for trial in trials]
    if finite_of(losses).size > 1:
        decades = spans_decades(losses)
        panels.append(
            Panel(
                y_label="validation loss",
                series=_by_outcome(trials, lambda trial: trial.val_loss, named=False),
                x_range=ends,
                x_ticks=ticks,
                y_range=range_of(losses, log=decades),
                y_log=decades,
                height=1.6,
            )
        )
    panels.append(
        Panel(
            y_label="steps spent",
            x_label="trial",
            bars=[
                Bars(
                    np.array([float(trial.number) for trial in trials]),
                    np.array([float(trial.steps) for trial in trials]),
                    [_OUTCOMES[trial.outcome][0] for trial in trials],
                    [f"{trial.steps:,}" for trial in trials],
                )
            ],
            x_range=ends,
            x_ticks=ticks,
            y_range=(0.0, 1.18 * max(1, *(trial.steps for trial in trials))),
            height=1.4,
        )
    )
    return Figure(title, panels)


def comparison_figure(
    studies: Sequence[StudyPoints], *, metric: str, better: str, title: str = ""
) -> Figure:
    """Test metric and validation loss against the rate, and the steps of each method.

    Args:
        studies: of one task; several seeds of a method share a color.
        metric: name of the test metric.
        better: "higher" or "lower".
        title: above the figure.
    """
    methods = list(dict.fromkeys(study.method for study in studies))
    rates = [trial.lr for study in studies for trial in study.trials]
    ends = range_of(rates, log=True)
    panels = [
        _against_rate(
            studies,
            methods,
            ends,
            f"test {metric} ({better} is better)",
            "value",
            worst_on_top=better == "lower",
        ),
        # The legend above says it for both.
        _unnamed(
            _against_rate(studies, methods, ends, "validation loss", "val_loss", worst_on_top=True)
        ),
        _steps(studies, methods),
    ]
    return Figure(title, panels)


def _by_outcome(
    trials: Sequence[TriedRate], value: Callable[[TriedRate], float], *, named: bool = True
) -> list[Series]:
    series = []
    for outcome, (color, marker, name) in _OUTCOMES.items():
        shown = [t for t in trials if t.outcome == outcome and np.isfinite(value(t))]
        if shown:
            series.append(
                Series(
                    np.array([float(trial.number) for trial in shown]),
                    np.array([value(trial) for trial in shown]),
                    color,
                    name if named else "",
                    line="none",
                    marker=marker,
                    size=7.0,
                    words=[trial.words for trial in shown],
                )
            )
    return series


def _choice(study: StudyPoints) -> list[Mark]:
    """The trial that the study chose; none if it found no rate."""
    chosen = [t for t in study.trials if t.lr == study.lr and t.outcome == "complete"]
    return [Mark(float(t.number), "#57606a", 0.7, "chosen") for t in chosen[:1]]


def _note(trial: TriedRate) -> Note:
    short = trial.reason if len(trial.reason) <= 24 else f"{trial.reason[:23]}…"
    return Note(trial.number, trial.lr, short, _OUTCOMES[trial.outcome][0])


def _against_rate(
    studies: Sequence[StudyPoints],
    methods: Sequence[str],
    ends: tuple[float, float] | None,
    label: str,
    field: Literal["value", "val_loss"],
    *,
    worst_on_top: bool,
) -> Panel:
    everything = [getattr(trial, field) for study in studies for trial in study.trials]
    log = spans_decades(everything)
    height = range_of(everything, log=log)
    worst = height[worst_on_top] if height else 0.0
    series, marks = [], []
    for method in methods:
        color, marker = _look(methods, method)
        own = [study for study in studies if study.method == method]
        trials = [trial for study in own for trial in study.trials]
        done = [trial for trial in trials if np.isfinite(getattr(trial, field))]
        ended = [trial for trial in trials if not np.isfinite(getattr(trial, field))]
        series.append(_cloud(done, field, color, marker, method))
        if ended:
            # On the worse edge: they have no value, but they were tried.
            edge = np.full(len(ended), worst)
            x = np.array([trial.lr for trial in ended])
            words = [trial.words for trial in ended]
            name = f"{method}: ended early"
            series.append(
                Series(x, edge, color, name, "none", marker="cross", size=6.0, words=words)
            )
        answered = [study for study in own if np.isfinite(study.lr)]
        if answered:
            series.append(
                Series(
                    np.array([study.lr for study in answered]),
                    np.array([getattr(study, field) for study in answered]),
                    color,
                    f"{method}: its choice",
                    line="none",
                    marker="star",
                    # Where methods agree, the later star shows inside the earlier one.
                    size=max(18.0 - 6.0 * methods.index(method), 6.0),
                    words=[
                        f"{study.method}, seed {study.seed}: lr = {study.lr:.3g}"
                        for study in answered
                    ],
                )
            )
        if method in ("exptest", "lipschitz"):
            marks += [Mark(study.lr, color, width=0.6) for study in answered]
    return Panel(
        y_label=label,
        x_label="learning rate",
        series=series,
        marks=marks,
        x_log=True,
        x_range=ends,
        y_log=log,
        y_range=height,
        height=2.6,
    )


def _unnamed(panel: Panel) -> Panel:
    return replace(panel, series=[replace(series, name="") for series in panel.series])


def _cloud(
    trials: Sequence[TriedRate], field: str, color: str, marker: Marker, name: str
) -> Series:
    ordered = sorted(trials, key=lambda trial: trial.lr)
    return Series(
        np.array([trial.lr for trial in ordered], dtype=np.float64),
        np.array([getattr(trial, field) for trial in ordered], dtype=np.float64),
        color,
        name,
        line="none",
        marker=marker,
        size=5.0,
        ink=0.7,
        words=[trial.words for trial in ordered],
    )


def _steps(studies: Sequence[StudyPoints], methods: Sequence[str]) -> Panel:
    """Mean steps of each method over its seeds, restarts and every point of a grid included."""
    means = np.array(
        [np.mean([study.steps for study in studies if study.method == name]) for name in methods]
    )
    most = max(float(means.max()), 1.0)
    places = np.arange(len(methods), dtype=np.float64)
    return Panel(
        y_label="steps per study",
        bars=[
            Bars(
                places,
                means,
                [_look(methods, name)[0] for name in methods],
                [f"{mean:,.0f} ({mean / most:.0%})" for mean in means],
            )
        ],
        x_ticks=list(zip(places.tolist(), methods, strict=True)),
        x_range=(-0.6, len(methods) - 0.4),
        y_range=(0.0, 1.18 * most),
        height=1.5,
    )


def _look(methods: Sequence[str], method: str) -> tuple[str, Marker]:
    return _METHODS[methods.index(method) % len(_METHODS)]
