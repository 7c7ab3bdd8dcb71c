"""The race before a study's first trial, on its record: each probe is a pruned trial."""

from __future__ import annotations

from math import inf
from typing import Any, Final

import optuna
import pandas as pd
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from lrsearch.controllers.exptest import ExpTestSettings, probe_window
from lrsearch.controllers.race import Probe, compare
from lrsearch.engine.methods import LR
from lrsearch.engine.progress import SearchWatcher
from lrsearch.engine.result import SECONDS, STEPS, windows_row
from lrsearch.studies.attributes import PROBE, PVALUE, REASON, WINDOW_PREFIX
from lrsearch.tracking import RunTracker
from lrsearch.training.curve import CurveLog
from lrsearch.training.probes import Race

RACE: Final = "lrsearch:race"
"""Study: what its race has found, and what it cost beside the probes' steps."""

# Losses of a probe that an Optuna storage is told.
_REPORTS = 20


def record_race(
    study: optuna.Study,
    race: Race,
    run: RunTracker,
    settings: ExpTestSettings,
    watcher: SearchWatcher,
    *,
    uid: str,
    method: str,
) -> None:
    """Write a race into a study and its tracker. A study that has one already keeps it.

    Args:
        study: without trials.
        race: what was found.
        run: of the study.
        settings: ExpTest's, whose F-test is told of each probe.
        watcher: is told what won.
        uid: of the study.
        method: of the search.
    """
    if RACE in study.user_attrs:
        return
    for number, (rung, probe) in enumerate(race.probes.items()):
        _record_probe(
            study,
            race,
            rung,
            probe,
            run.child(
                f"{method} probe {number}",
                tags={"lrsearch.kind": "probe", "lrsearch.method": method},
                uid=f"{uid}-probe-{number}" if uid else None,
            ),
            settings,
        )
    study.set_user_attr(
        RACE,
        {
            "rate": race.rate,
            "reason": race.reason,
            "first": race.first,
            "steps": race.steps,
            "forward_steps": race.forward_steps,
        },
    )
    watcher.noted(
        f"race of {len(race.probes)} rates, {race.steps} steps: lr={race.rate:.4g}, {race.reason}"
    )


def race_steps(study: optuna.Study) -> int:
    """What a study's race cost beside the steps of its probes, in gradient steps."""
    found = study.user_attrs.get(RACE)
    return int(found["forward_steps"]) if isinstance(found, dict) else 0


def _record_probe(
    study: optuna.Study,
    race: Race,
    rung: int,
    probe: Probe,
    run: RunTracker,
    settings: ExpTestSettings,
) -> None:
    rate, steps = race.rate_of(rung), probe.losses.size
    reason, pvalue = _fate(race, rung, probe)
    window = probe_window(settings, probe.losses, rate, won=rung == race.rung, reason=reason)
    CurveLog(run, steps).extend(probe.losses, 0, rate)
    run.log_params({"lr": rate, "number": rung})
    run.log_metrics(window.as_metrics(), step=window.last_step)
    run.log_metrics({"steps": steps}, step=window.last_step)
    run.log_table("windows", pd.DataFrame([windows_row(len(study.trials), window)]))
    run.set_tags({"lrsearch.reason": reason, "lrsearch.decision": window.decision})
    run.finish("pruned")
    study.add_trial(
        _trial(rate, probe, reason, pvalue, {f"{WINDOW_PREFIX}0": window.as_attribute()})
    )


def _fate(race: Race, rung: int, probe: Probe) -> tuple[str, float]:
    """Why a probe ended, and the p-value of that."""
    if rung == race.rung:
        return f"probe: won, {race.reason}", _margin(race)
    if probe.fate == "diverged":
        return "probe: diverged", 1.0
    if probe.fate == "dead":
        return "probe: dead, its weights get no gradient", 1.0
    test = compare(probe, race.probes[race.rung])
    return f"probe: worse than {race.rate:.4g} by {test.difference:.3g}", 1.0 - test.pvalue


def _margin(race: Race) -> float:
    """Largest p-value of the winner against the rungs beside it; 1 without any."""
    winner = race.probes[race.rung]
    beside = [race.probes.get(race.rung + side) for side in (-1, 1)]
    pvalues = [compare(winner, each).pvalue for each in beside if each and each.fate == "alive"]
    return max(pvalues, default=1.0)


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
            PROBE: True,
            REASON: reason,
            PVALUE: pvalue,
            STEPS: int(probe.losses.size),
            SECONDS: probe.seconds,
            **attributes,
        },
    )
