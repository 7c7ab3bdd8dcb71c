"""The race before a study's first trial, on its record: each probe is a pruned trial."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from lrsearch.controllers.exptest import probe_window
from lrsearch.controllers.rungs import Probe, compare, compare_ends
from lrsearch.controllers.settings import ExpTestSettings
from lrsearch.engine.methods import LR
from lrsearch.engine.provenance import DataRecord
from lrsearch.engine.request import Prepared
from lrsearch.engine.result import DEVICE, SECONDS, STEPS, windows_row
from lrsearch.studies.attributes import PROBE, PVALUE, REASON, WINDOW_PREFIX
from lrsearch.tracking import RunTracker
from lrsearch.training.curve import CurveLog
from lrsearch.training.outbox import milliseconds
from lrsearch.training.probes import Race

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

RACE: Final = "lrsearch:race"
"""Study: what its race has found, what it cost beside the probes' steps, and when it was told."""

ENDS: Final = "lrsearch:ends"
"""Trial of a probe: validation loss where its rate had fallen to 0, by its steps until there."""

# Losses of a probe that an Optuna storage is told.
_REPORTS = 20


def record_race(
    study: optuna.Study,
    prepared: Prepared,
    run: RunTracker,
    *,
    uid: str,
    seen: DataRecord | None,
    device: str,
) -> None:
    """Write a race into a study and its tracker; go on with it if a process died over that.

    Args:
        study: without trials, but for probes of the same race.
        prepared: of the search, with a race that was run.
        run: of the study.
        uid: of the study.
        seen: how a tracker calls the data; None if nothing is recorded.
        device: on which the race was run.
    """
    race, request = prepared.start.race, prepared.request
    assert race is not None
    kept = study.user_attrs.get(RACE, {})
    # Told again after a kill, a point has the same time, and a tracker keeps one.
    at = int(kept.get("at", milliseconds()))
    told = {
        "rate": race.rate,
        "reason": race.reason,
        "first": race.first,
        "steps": race.steps,
        "forward_steps": race.forward_steps,
        "at": at,
    }
    if told != kept:
        study.set_user_attr(RACE, told)
    trials = study.get_trials(deepcopy=False)
    written = {trial.user_attrs.get(PROBE) for trial in trials}
    rest = [rung for rung in race.probes if rung not in written]
    for number, rung in enumerate(rest, start=len(trials)):
        child = run.child(
            f"{request.method} probe {number}, seed {request.seed}",
            tags={"lrsearch.kind": "probe", "lrsearch.method": request.method},
            uid=f"{uid}-{number}" if uid else None,
        )
        child.log_params(
            {
                "lr": race.rate_of(rung),
                "number": number,
                "seed": request.seed,
                "device": device,
            }
        )
        if seen is not None:
            child.log_input(seen.name, seen.digest, profile=seen.profile)
        _record_probe(study, number, race, rung, child, at, prepared.settings, device)


def race_steps(study: optuna.Study) -> int:
    """What a study's race cost beside the steps of its probes, in gradient steps."""
    found = study.user_attrs.get(RACE)
    return int(found["forward_steps"]) if isinstance(found, dict) else 0


def _record_probe(
    study: optuna.Study,
    number: int,
    race: Race,
    rung: int,
    run: RunTracker,
    at: int,
    settings: ExpTestSettings,
    device: str,
) -> None:
    probe, rate = race.probes[rung], race.rate_of(rung)
    dated = _Dated(run, at)
    ends = {steps + tail.losses.size: tail.end for steps, tail in sorted(probe.tails.items())}
    reason, pvalue = _fate(race, rung, probe)
    won = race.holds and rung == race.rung
    window = probe_window(settings, probe.losses, rate, won=won, reason=reason)
    _draw_curve(dated, probe, rate)
    dated.log_metrics(window.as_metrics(), step=window.last_step)
    for step, end in ends.items():
        if isfinite(end):
            dated.log_metrics({"val/loss": end}, step=step)
    dated.log_metrics({"steps": probe.steps}, step=probe.steps)
    run.log_table("windows", pd.DataFrame([windows_row(number, window)]))
    run.set_tags({"lrsearch.reason": reason, "lrsearch.decision": window.decision})
    run.finish("pruned")
    study.add_trial(
        _trial(
            rate,
            probe,
            reason,
            pvalue,
            {
                PROBE: rung,
                DEVICE: device,
                ENDS: {str(step): end if isfinite(end) else None for step, end in ends.items()},
                f"{WINDOW_PREFIX}0": window.as_attribute(),
            },
        )
    )


def _draw_curve(run: _Dated, probe: Probe, rate: float) -> None:
    """The losses at the constant rate, and those of the tail that follows the last of them."""
    steps = probe.losses.size
    tail = probe.tails.get(steps)
    curve = CurveLog(run, steps if tail is None else steps + tail.losses.size)
    curve.extend(probe.losses, 0, rate)
    if tail is not None:
        for lower in dict.fromkeys(tail.rates.tolist()):
            stair = np.flatnonzero(tail.rates == lower)
            curve.extend(tail.losses[stair], steps + int(stair[0]), lower)


class _Dated:
    """A tracker's run that is told everything at one time, in milliseconds since 1970."""

    def __init__(self, run: RunTracker, at: int) -> None:
        self._run, self._at = run, at

    def log_metrics(
        self, metrics: Mapping[str, float], step: int, *, timestamp: int | None = None
    ) -> None:
        self._run.log_metrics(metrics, step, timestamp=self._at if timestamp is None else timestamp)

    def log_steps(self, losses: ArrayLike, start: int, lr: float) -> None:
        self._run.log_steps(losses, start, lr)


def _fate(race: Race, rung: int, probe: Probe) -> tuple[str, float]:
    """Why a probe ended, and the p-value of that."""
    if probe.fate == "diverged":
        return "probe: diverged", 1.0
    if probe.fate == "dead":
        return "probe: dead, its weights get no gradient", 1.0
    if rung == race.rung:
        return f"probe: won, {race.reason}", _margin(race)
    rate, winner = race.rate_of(race.rung), race.probes[race.rung]
    test = compare_ends(probe, winner) or compare(probe, winner)
    if test.difference <= 0.0:  # at a constant rate, or by next to nothing
        return f"probe: no better than {rate:.4g} in the end", 1.0 - test.pvalue
    return f"probe: worse than {rate:.4g} by {test.difference:.3g}", 1.0 - test.pvalue


def _margin(race: Race) -> float:
    """Largest p-value of the winner against the rungs beside it; 1 without any."""
    winner = race.probes[race.rung]
    beside = [race.probes.get(race.rung + side) for side in (-1, 1)]
    tests = [
        compare_ends(winner, each) or compare(winner, each)
        for each in beside
        if each and each.fate == "alive"
    ]
    return max((test.pvalue for test in tests), default=1.0)


def _trial(
    rate: float, probe: Probe, reason: str, pvalue: float, attributes: dict[str, Any]
) -> FrozenTrial:
    stride = max(1, probe.losses.size // _REPORTS)
    return create_trial(
        state=TrialState.PRUNED,
        params={LR: rate},
        distributions={LR: FloatDistribution(rate / 2.0, rate * 2.0, log=True)},
        intermediate_values={
            step: min(float(loss), inf)
            for step, loss in enumerate(probe.losses)
            if step % stride == 0
        },
        user_attrs={
            REASON: reason,
            PVALUE: pvalue,
            STEPS: probe.steps,
            SECONDS: probe.seconds,
            **attributes,
        },
    )
