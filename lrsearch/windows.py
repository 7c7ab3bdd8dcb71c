"""The record of one judged window: what was seen, what was tested, what was decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite, log10
from typing import Any, Literal

Phase = Literal["searching", "training"]
Kind = Literal["continue", "accept", "decay", "restart", "stop"]


@dataclass(frozen=True, slots=True)
class WindowStats:
    """One look at a window of losses.

    Attributes:
        index: number of the look, from 0.
        phase: "searching" (F-test) or "training" (plateau test).
        start, stop: steps of the first loss and one past the last, counted from 0 over the run.
        length: steps that were planned for the window.
        correction: c_w of Eq. 53; 1 for full-batch descent, and where the window is the
            longest without it.
        lr: learning rate of the window (first parameter group).
        n_effective: independent losses that the window is worth.
        f_statistic, sse_linear, sse_exponential: of the F-test; NaN in the training phase.
        slope, t_statistic: of the line [loss per step]; t for dependent losses in robust mode.
        pvalue: of the test that decided: F-test while searching, slope test while training.
        loss_first, loss_last, loss_mean: of the window.
        decision: what followed.
        reason: why, in words.
    """

    index: int
    phase: Phase
    start: int
    stop: int
    length: int
    correction: float
    lr: float
    n_effective: float
    f_statistic: float
    sse_linear: float
    sse_exponential: float
    slope: float
    t_statistic: float
    pvalue: float
    loss_first: float
    loss_last: float
    loss_mean: float
    decision: Kind
    reason: str

    @property
    def log10_pvalue(self) -> float:
        """Of a p-value too small to chart; -300 where it is zero."""
        return log10(max(self.pvalue, 1e-300)) if isfinite(self.pvalue) else self.pvalue

    @property
    def last_step(self) -> int:
        """Step of the window's last loss."""
        return max(self.stop - 1, 0)

    def as_dict(self) -> dict[str, Any]:
        """All fields by name, for a table's row."""
        return asdict(self)

    def as_metrics(self) -> dict[str, float]:
        """The numbers under the metric names that every tracker gets; only finite ones."""
        metrics = {
            "window/f_statistic": self.f_statistic,
            "window/pvalue": self.pvalue,
            "window/log10_pvalue": self.log10_pvalue,
            "window/slope": self.slope,
            "window/t_statistic": self.t_statistic,
            "window/length": float(self.stop - self.start),
            "window/n_effective": self.n_effective,
            "window/correction": self.correction,
            "window/sse_linear": self.sse_linear,
            "window/sse_exponential": self.sse_exponential,
            "window/lr": self.lr,
        }
        return {key: value for key, value in metrics.items() if isfinite(value)}

    def as_attribute(self) -> dict[str, Any]:
        """The few fields that a study's storage keeps: JSON, under 300 bytes."""
        return {
            "phase": self.phase,
            "start": self.start,
            "stop": self.stop,
            "lr": self.lr,
            "F": _short(self.f_statistic),
            "p": _short(self.pvalue),
            "slope": _short(self.slope),
            "n_eff": _short(self.n_effective),
            "loss": _short(self.loss_mean),
            "decision": self.decision,
            "reason": self.reason,
        }


def rejects(attribute: Mapping[str, Any]) -> bool:
    """Whether a window recorded by ``as_attribute`` rejected its learning rate."""
    return attribute.get("decision") == "restart"


def _short(value: float) -> float | None:
    """Four digits, and None for what JSON has no word for."""
    return float(f"{value:.4g}") if isfinite(value) else None
