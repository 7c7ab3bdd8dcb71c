"""What a trial writes to its study's storage: little, and enough."""

import json

import numpy as np
import optuna
import pytest
import torch
from torch import nn

from lrsearch.studies import ExpTestPruner
from lrsearch.studies.attributes import PVALUE, REASON, WINDOW_PREFIX
from lrsearch.studies.record import TrialRecorder
from lrsearch.training.exptest import ExpTest
from lrsearch.windows import WindowStats

ROWS = ("set_trial_user_attr", "set_trial_intermediate_value", "set_trial_param")


def window(**changes):
    fields = {
        "index": 0,
        "phase": "searching",
        "start": 0,
        "stop": 60,
        "length": 60,
        "correction": 1.0,
        "lr": 0.1,
        "n_effective": 60.0,
        "f_statistic": 12.345678,
        "sse_linear": 1.0,
        "sse_exponential": 0.5,
        "slope": -0.01,
        "t_statistic": -3.0,
        "pvalue": 0.001,
        "loss_first": 2.3,
        "loss_last": 0.3,
        "loss_mean": 1.0,
        "decision": "accept",
        "reason": "decay",
    }
    return WindowStats(**(fields | changes))


def asked(**options):
    study = optuna.create_study(**options)
    trial = study.ask()
    trial.suggest_float("lr", 1e-5, 1.0, log=True)
    return study, trial


CURVES = {
    "falling for ever": lambda t, rng: 100.0 - 0.009 * t + 0.1 * rng.standard_normal(t.size),
    "a slow decay": lambda t, rng: 0.1 + np.exp(-t / 3000.0) + 0.01 * rng.standard_normal(t.size),
    "plateaus": lambda t, rng: 1.0 + np.exp(-t / 10.0) + 1e-4 * rng.standard_normal(t.size),
    "a power law": lambda t, rng: (1.0 + t) ** -0.3 + 1e-3 * rng.standard_normal(t.size),
}


@pytest.mark.parametrize("mode", ["robust", "paper"])
@pytest.mark.parametrize("total", [None, 10_000])
@pytest.mark.parametrize("name", CURVES)
def test_a_trial_of_10_000_steps_writes_at_most_100_rows(name, total, mode, monkeypatch):
    storage = optuna.storages.InMemoryStorage()
    rows = []
    for method in ROWS:
        original = getattr(storage, method)

        def spy(*args, _original=original, **kwargs):
            rows.append(args)
            return _original(*args, **kwargs)

        monkeypatch.setattr(storage, method, spy)
    study, trial = asked(storage=storage)
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    controller = ExpTest(optimizer, trial=trial, full_batch=True, total_steps=total, mode=mode)
    losses = CURVES[name](np.arange(10_000), np.random.default_rng(0)).tolist()
    try:
        for loss in losses:
            controller.step(loss)
        assert controller.steps == 10_000
    except optuna.TrialPruned:
        assert mode == "paper"
    assert len(rows) <= 100
    for value in study.trials[0].user_attrs.values():
        assert len(json.dumps(value)) < 300


def test_an_attribute_is_small_json_whatever_the_numbers():
    nan, big = float("nan"), 1.2345678901234e300
    worst = window(
        start=10**9,
        stop=2 * 10**9,
        lr=1.2345678901234567e-300,
        f_statistic=float("inf"),
        pvalue=1.23456789e-300,
        slope=-big,
        n_effective=nan,
        loss_mean=big,
        reason="budget spent before a rate passed its test",
    )
    text = json.dumps(worst.as_attribute(), allow_nan=False)
    assert len(text) < 300
    assert json.loads(text)["F"] is None


def test_a_window_is_one_attribute_and_one_report():
    study, trial = asked()
    TrialRecorder(trial).window(window())
    frozen = study.trials[0]
    assert frozen.intermediate_values == {59: 1.0}
    assert frozen.user_attrs[f"{WINDOW_PREFIX}0"] == {
        "phase": "searching",
        "start": 0,
        "stop": 60,
        "lr": 0.1,
        "F": 12.35,
        "p": 0.001,
        "slope": -0.01,
        "n_eff": 60.0,
        "loss": 1.0,
        "decision": "accept",
        "reason": "decay",
    }


@pytest.mark.parametrize("decision", ["restart", "stop"])
def test_a_rejected_rate_ends_the_trial_with_its_reason(decision):
    study, trial = asked()
    with pytest.raises(optuna.TrialPruned, match=r"flat \(p = 0.7\)"):
        TrialRecorder(trial).window(window(decision=decision, reason="flat", pvalue=0.7))
    attributes = study.trials[0].user_attrs
    assert (attributes[REASON], attributes[PVALUE]) == ("flat", 0.7)
    assert f"{WINDOW_PREFIX}0" in attributes


def test_the_studys_own_pruner_has_its_say():
    study, trial = asked(pruner=optuna.pruners.ThresholdPruner(upper=0.5))
    with pytest.raises(optuna.TrialPruned, match="pruned by the study's pruner"):
        TrialRecorder(trial).window(window())
    assert study.trials[0].user_attrs[REASON] == "pruned by the study's pruner"


def test_a_resumed_trial_is_not_judged_by_a_window_that_lies_before_it():
    study, trial = asked(pruner=ExpTestPruner())
    first = window(index=0, stop=60, decision="continue")
    second = window(index=1, start=60, stop=120, decision="restart", reason="flat", pvalue=0.7)
    TrialRecorder(trial).window(first)
    # Its worker is killed as soon as the second window is written; the next one goes on from a
    # checkpoint before the first.
    trial.set_user_attr(f"{WINDOW_PREFIX}1", second.as_attribute())
    resumed = TrialRecorder(optuna.Trial(study, trial._trial_id))
    resumed.window(first)
    with pytest.raises(optuna.TrialPruned, match="flat"):
        resumed.window(second)
    assert study.trials[0].user_attrs[REASON] == "flat"


def test_quiet_windows_are_thinned_out_and_decisions_are_not():
    study, trial = asked()
    recorder = TrialRecorder(trial)
    for i in range(100):
        decision = "decay" if i == 70 else "continue"
        recorder.window(window(index=i, start=30 * i, stop=30 * i + 30, decision=decision))
    kept = [v for k, v in study.trials[0].user_attrs.items() if k.startswith(WINDOW_PREFIX)]
    assert [v["stop"] for v in kept[:8]] == [30 * i for i in range(1, 9)]
    assert [v["start"] for v in kept if v["decision"] == "decay"] == [2100]
    assert 15 <= len(kept) <= 25


def test_a_trial_of_two_objectives_gets_attributes_alone():
    study, trial = asked(directions=["minimize", "maximize"])
    TrialRecorder(trial).window(window())
    assert f"{WINDOW_PREFIX}0" in study.trials[0].user_attrs
    assert study.trials[0].intermediate_values == {}


def test_a_fixed_trial_records_too():
    trial = optuna.trial.FixedTrial({"lr": 0.1})
    TrialRecorder(trial).window(window())
    assert trial.user_attrs[f"{WINDOW_PREFIX}0"]["decision"] == "accept"


def test_an_accepted_rate_says_why_with_its_p_value():
    study, trial = asked()
    TrialRecorder(trial).window(window(decision="accept", reason="decay", pvalue=0.001))
    attributes = study.trials[0].user_attrs
    assert attributes[REASON] == "accepted: decay"
    assert attributes[PVALUE] == 0.001


def test_a_resumed_trial_goes_on_numbering_its_windows():
    study, trial = asked()
    TrialRecorder(trial).window(window(index=0, start=0, stop=60))
    TrialRecorder(trial).window(window(index=1, start=60, stop=120))
    kept = [key for key in study.trials[0].user_attrs if key.startswith(WINDOW_PREFIX)]
    assert sorted(kept) == [f"{WINDOW_PREFIX}0", f"{WINDOW_PREFIX}1"]
