"""One study of each method on a tiny task: the account, the choice, and how it ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torch import nn

from lrsearch import Split, TaskData, TrainingTask, search
from lrsearch.engine import METHODS
from lrsearch.errors import InvalidArgumentError, InvalidTypeError, MissingPackageError
from lrsearch.tracking import NullRun

MakeLine = Callable[..., Any]
FULL_RUN = 400


def ladder_of(method: str) -> str | None:
    """The start of a search whose first rate is to be too high: the bound's, where there is one."""
    return "bound" if method == "exptest" else None


@pytest.mark.parametrize("method", METHODS)
def test_steps_are_every_training_pass_of_every_trial(
    make_line: MakeLine, scale_bound: Callable[[float], None], method: str
) -> None:
    scale_bound(30.0)  # so that exptest restarts, and baselines diverge
    line = make_line()
    factors = (0.1, 1.0) if method == "lipschitz" else None  # tries are pruned
    result = search(
        line.task, method=method, multipliers=factors, start=ladder_of(method), tracker="none"
    )
    assert result.steps == line.spy.forwards
    assert result.steps == result.trials["steps"].sum()
    assert (result.trials["state"] == "PRUNED").any()
    assert result.steps > result.trials["steps"].max()


@pytest.mark.parametrize("method", METHODS)
def test_equal_seeds_give_equal_results_and_other_seeds_other_ones(
    make_line: MakeLine, method: str
) -> None:
    first, again, other = (
        search(make_line(epochs=8).task, method=method, seed=seed, tracker="none")
        for seed in (1, 1, 2)
    )
    assert first.as_json()["trials"][0]["lr"] == again.as_json()["trials"][0]["lr"]
    assert (first.lr, first.value, first.val_loss, first.steps) == (
        again.lr,
        again.value,
        again.val_loss,
        again.steps,
    )
    assert first.value != other.value


def test_methods_of_one_seed_are_paired(make_line: MakeLine) -> None:
    starts, orders = set(), set()
    for method in METHODS:
        spy = (line := make_line(epochs=6)).spy
        search(line.task, method=method, seed=3, tracker="none")
        starts.update(spy.starts)
        orders.update(tuple(batches[:20]) for batches in spy.batches if len(batches) >= 20)
    assert len(starts) == 1
    assert len(orders) == 1
    assert len(set(next(iter(orders)))) == 20  # reshuffled, not the same batches again

    other = make_line(epochs=6)
    search(other.task, method="grid", seed=4, tracker="none")
    assert starts.isdisjoint(other.spy.starts)


@pytest.mark.parametrize("method", ["grid", "random", "tpe"])
def test_the_choice_is_made_on_validation_and_never_on_test(
    make_line: MakeLine, method: str
) -> None:
    # On this test split the least trained model is the best: hindsight would choose otherwise.
    line = make_line(test_sign=-1.0)
    result = search(line.task, method=method, tracker="none")
    done = result.trials[result.trials["state"] == "COMPLETE"]
    chosen = done.loc[done["val_loss"].idxmin()]
    assert result.lr == chosen["lr"]
    assert result.value == chosen["test_metric"]
    assert result.val_loss == chosen["val_loss"]
    assert result.train_loss == chosen["train_loss"]
    assert result.oracle_value == done["test_metric"].min()
    assert result.oracle_value < 0.98 * result.value


def test_the_oracle_of_an_accuracy_is_its_largest() -> None:
    result = search("wine-logistic", method="grid", epochs=2, tracker="none")
    assert result.direction == "maximize"
    assert result.oracle_value == result.trials["test_metric"].max()


def test_grid_points_that_diverge_are_pruned_and_the_rest_goes_on(make_line: MakeLine) -> None:
    result = search(make_line().task, method="grid", tracker="none")
    states = result.trials.set_index("state")
    assert set(states.loc[["PRUNED"], "reason"]) == {"diverged"}
    assert result.trials["lr"].nunique() == 9
    assert result.lr < states.loc[["PRUNED"], "lr"].min()
    assert math.isfinite(result.value)
    assert result.stop_reason == "all trials done"


def test_weights_that_break_in_the_very_last_step_count_as_diverged(
    make_line: MakeLine, scale_bound: Callable[[float], None]
) -> None:
    scale_bound(1e30)
    # One step: its loss is finite, the weights after it are not.
    result = search(make_line(epochs=1, batch_size=None).task, method="grid", tracker="none")
    assert set(result.trials["state"]) == {"PRUNED"}
    assert set(result.trials["reason"]) == {"diverged"}
    assert math.isnan(result.lr)


@pytest.mark.parametrize("batch_size", [16, None])
def test_a_bound_that_is_too_high_costs_pruned_rungs_below_each_other(
    make_line: MakeLine, scale_bound: Callable[[float], None], batch_size: int | None
) -> None:
    scale_bound(30.0)
    line = make_line(epochs=40 if batch_size else FULL_RUN, batch_size=batch_size)
    result = search(line.task, beta=0.5, start="bound", tracker="none")
    table = result.trials
    top = table["lr"].iloc[0]
    for rung, rate in enumerate(table["lr"]):
        assert rate == pytest.approx(top * 0.5**rung, rel=1e-12)
    assert len(table) > 3
    pruned = table.iloc[:-1]
    assert set(pruned["state"]) == {"PRUNED"}
    assert pruned["reason"].str.len().gt(3).all()
    assert pruned["pvalue"].between(0.0, 1.0).all()
    assert table["state"].iloc[-1] == "COMPLETE"
    assert result.lr == table["lr"].iloc[-1]
    assert result.stop_reason.startswith(f"trial {len(table) - 1} completed with lr=")
    assert (pruned["steps"] < FULL_RUN).all()
    assert table["steps"].iloc[-1] == FULL_RUN
    assert set(result.windows["trial"]) == set(range(len(table)))


def test_without_any_rate_that_decays_lr_is_nan_and_the_reason_is_given() -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(60, 3, generator=generator)

    class Deaf(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            # A loss that jumps about and never falls, whatever the rate.
            return super().forward(0.0 * x) * 0.0 + torch.randn(len(x), 1, generator=generator)

    split = Split(inputs, torch.zeros(60, 1))
    task = TrainingTask(
        name="noise",
        data=lambda seed: TaskData(split, split, split, outputs=1),
        model=lambda data: Deaf(3, 1),
        loss="mse",
        metric="mse",
        epochs=40,
        batch_size=6,
    )
    result = search(task, tracker="none", beta=0.1)
    assert math.isnan(result.lr)
    assert math.isnan(result.value)
    assert math.isnan(result.oracle_value)
    assert set(result.trials["state"]) == {"PRUNED"}
    assert "no lr from the suggested range is left" in result.stop_reason
    assert result.steps >= result.trials["steps"].sum() > 0
    # All probes are dead: the race has no winner, and says so.
    assert result.start == "bound"
    assert result.start_note.startswith("started at the bound from the data: no rate held")
    probes = result.trials["reason"].str.startswith("probe: dead")
    assert 0 < probes.sum() < len(result.trials)


@pytest.mark.parametrize("method", METHODS)
def test_trials_bounds_their_number(make_line: MakeLine, method: str) -> None:
    for count in (1, 3):
        result = search(make_line(epochs=2).task, method=method, trials=count, tracker="none")
        trials = result.trials[~result.trials["reason"].str.startswith("probe: ")]
        assert len(trials) == (1 if method in ("exptest", "lipschitz") else count)


def test_a_users_own_optimizer_epochs_and_batch_size_win(make_line: MakeLine) -> None:
    line = make_line()
    result = search(
        line.task,
        method="grid",
        trials=1,
        epochs=3,
        batch_size=40,
        optimizer="adam",
        tracker="none",
    )
    assert result.steps == 3 * 4
    assert line.task.epochs == 40


# --- trouble ---------------------------------------------------------------------------------


class Runs(NullRun):
    """A tracker that keeps how each run ended."""

    def __init__(self, name: str = "study") -> None:
        self.name = name
        self.ends: list[str] = []
        self.children: list[Runs] = []
        self.tags: dict[str, object] = {}

    def child(
        self, name: str, *, tags: Any = None, uid: str | None = None, ready: Any = None
    ) -> Runs:
        self.children.append(Runs(name))
        return self.children[-1]

    def set_tags(self, tags: Any) -> None:
        self.tags.update(tags)

    def finish(self, status: Any) -> None:
        self.ends.append(status)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    top = Runs()
    monkeypatch.setattr("lrsearch.engine.record.find_tracker", lambda name: lambda **_: top)
    return top


@pytest.mark.parametrize("method", METHODS)
def test_an_error_in_the_users_model_fails_trial_and_study_and_comes_through(
    make_line: MakeLine, runs: Runs, tmp_path: Path, method: str
) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    line = make_line(fail_at=15)
    with pytest.raises(RuntimeError, match="the user's own trouble"):
        search(
            line.task,
            method=method,
            start=ladder_of(method),
            storage=storage,
            study_name="s",
            tracker="fake",
            max_failures=1,
        )
    trial, *queued = optuna.load_study(study_name="s", storage=storage).trials
    assert trial.state == optuna.trial.TrialState.FAIL
    assert {each.state for each in queued} <= {optuna.trial.TrialState.WAITING}
    assert trial.user_attrs["lrsearch:steps"] == 14  # the failing pass took no step
    assert runs.ends == ["failed"]
    assert [child.ends for child in runs.children] == [["failed"]]


def test_a_model_that_cannot_be_built_leaves_no_run_open(runs: Runs, make_line: MakeLine) -> None:
    def broken(data: TaskData) -> nn.Module:
        raise RuntimeError("no such layer")

    with pytest.raises(RuntimeError, match="no such layer"):
        search(replace(make_line().task, model=broken), tracker="fake", max_failures=1)
    assert runs.ends == ["failed"]
    assert runs.tags["lrsearch.reason"] == "RuntimeError: no such layer"
    assert runs.children == []


def test_each_run_ends_as_its_trial_did(
    make_line: MakeLine, runs: Runs, scale_bound: Callable[[float], None]
) -> None:
    scale_bound(30.0)
    result = search(make_line().task, start="bound", tracker="fake")
    ends = [child.ends for child in runs.children]
    assert ends == [[state.lower()] for state in result.trials["state"]]
    assert runs.ends == ["complete"]
    assert runs.tags["lrsearch.trials_complete"] == 1
    assert [child.tags.get("lrsearch.reason", "") for child in runs.children] == list(
        result.trials["reason"]
    )


@pytest.mark.parametrize("method", ["grid", "exptest"])
def test_a_search_that_was_cut_short_goes_on_where_it_stopped(
    make_line: MakeLine, scale_bound: Callable[[float], None], tmp_path: Path, method: str
) -> None:
    scale_bound(30.0)
    keep = {"storage": f"sqlite:///{tmp_path / 'study.db'}", "study_name": "kept"}
    asked: dict[str, Any] = {"method": method, "start": ladder_of(method), "tracker": "none"}
    whole = search(make_line().task, **asked)
    part = search(make_line().task, trials=2, **asked, **keep)
    assert len(part.trials) == 2
    line = make_line()
    resumed = search(line.task, resume=True, **asked, **keep)
    # The second session paid only for what the first had not done; the account holds both.
    assert line.spy.forwards == resumed.steps - part.steps
    if method == "exptest":
        assert list(resumed.trials["lr"]) == list(whole.trials["lr"])
        assert resumed.steps == whole.steps
        assert (resumed.lr, resumed.value) == (whole.lr, whole.value)
    else:
        assert len(resumed.trials) == 9
    # A study that has been decided is read, not run again.
    line = make_line()
    again = search(line.task, resume=True, **asked, **keep)
    assert line.spy.forwards == 0
    assert (again.lr, again.value, again.steps) == (resumed.lr, resumed.value, resumed.steps)


def test_a_rung_whose_training_broke_down_is_tried_again_when_resumed(
    make_line: MakeLine, scale_bound: Callable[[float], None], tmp_path: Path
) -> None:
    scale_bound(30.0)
    keep = {"storage": f"sqlite:///{tmp_path / 'study.db'}", "study_name": "kept"}
    asked: dict[str, Any] = {"start": "bound", "tracker": "none"}
    whole = search(make_line().task, **asked)
    with pytest.raises(RuntimeError, match="the user's own trouble"):
        search(make_line(fail_at=20).task, max_failures=1, **asked, **keep)
    resumed = search(make_line().task, resume=True, **asked, **keep)
    broken = resumed.trials[resumed.trials["state"] == "FAIL"]
    assert len(broken) == 1
    number = int(broken["number"].iloc[0])
    assert number >= 1
    others = resumed.trials.drop(broken.index)
    assert list(others["lr"]) == list(whole.trials["lr"])
    assert broken["lr"].iloc[0] == others["lr"].iloc[number]
    assert resumed.steps == whole.steps + broken["steps"].iloc[0]
    assert resumed.lr == whole.lr


@pytest.mark.parametrize(
    "change", [{"method": "tpe"}, {"seed": 1}, {"beta": 0.5}, {"epochs": 3}, {"optimizer": "adam"}]
)
def test_a_study_is_not_resumed_as_another_one(
    make_line: MakeLine, tmp_path: Path, change: dict[str, Any]
) -> None:
    keep = {"storage": f"sqlite:///{tmp_path / 'study.db'}", "study_name": "kept"}
    asked: dict[str, Any] = {"method": "grid", "epochs": 2, "tracker": "none", **keep}
    search(make_line().task, trials=2, **asked)
    with pytest.raises(InvalidArgumentError, match=f"'kept' is a study with {next(iter(change))}="):
        search(make_line().task, resume=True, **(asked | change))
    assert len(search(make_line().task, resume=True, trials=3, **asked).trials) == 3


def test_a_study_is_not_resumed_with_another_weight_decay(
    make_line: MakeLine, tmp_path: Path
) -> None:
    keep = {"storage": f"sqlite:///{tmp_path / 'study.db'}", "study_name": "kept"}
    asked: dict[str, Any] = {"method": "grid", "tracker": "none", **keep}
    task = make_line(epochs=1).task
    search(task, trials=1, **asked)
    with pytest.raises(InvalidArgumentError, match=r"'kept' is a study with weight_decay=None"):
        search(replace(task, weight_decay=0.1), resume=True, **asked)


@pytest.mark.parametrize("method", ["exptest", "grid"])
def test_a_tasks_weight_decay_is_trained_with(make_line: MakeLine, method: str) -> None:
    """The line has no noise, so that only a decay keeps its loss from going to zero."""
    task = make_line(epochs=20).task
    options: dict[str, Any] = {"method": method, "tracker": "none"}
    plain = search(replace(task, weight_decay=0.0), **options)
    decayed = search(replace(task, weight_decay=1.0), **options)
    assert decayed.trials["train_loss"].min() > 3.0 * plain.trials["train_loss"].min()


def test_a_taken_study_name_is_refused_in_one_line(make_line: MakeLine, tmp_path: Path) -> None:
    keep = {"storage": f"sqlite:///{tmp_path / 'study.db'}", "study_name": "taken"}
    search(make_line(epochs=1).task, method="grid", trials=1, tracker="none", **keep)
    with pytest.raises(InvalidArgumentError, match=r"study_name 'taken' is taken .*resume") as info:
        search(make_line(epochs=1).task, method="grid", trials=1, tracker="none", **keep)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("bad", "error", "names"),
    [
        ({"method": "gird"}, ValueError, "method"),
        ({"mode": "fast"}, ValueError, "mode"),
        ({"alpha": 1.0}, ValueError, "alpha"),
        ({"alpha": float("nan")}, ValueError, "alpha"),
        ({"alpha": "0.05"}, TypeError, "alpha"),
        ({"beta": 0.0}, ValueError, "beta"),
        ({"epochs": 0}, ValueError, "epochs"),
        ({"epochs": 2.5}, TypeError, "epochs"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"batch_size": "32"}, TypeError, "batch_size"),
        ({"optimizer": "lion"}, ValueError, "optimizer"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": 2**32}, ValueError, "seed"),
        ({"seed": None}, TypeError, "seed"),
        ({"trials": 0}, ValueError, "trials"),
        ({"trials": "3"}, TypeError, "trials"),
        ({"workers": 0}, ValueError, "workers"),
        ({"workers": 2}, ValueError, "task 'line' cannot be sent to other processes"),
        ({"workers": "cuda"}, ValueError, "workers: no CUDA device"),
        ({"workers": "gpu"}, ValueError, "workers"),
        ({"workers": 2.0}, TypeError, "workers"),
        ({"per_device": 0}, ValueError, "per_device"),
        ({"device": "cuda"}, ValueError, "device"),
        ({"device": "tpu"}, ValueError, "device"),
        ({"checkpoint_seconds": 0}, ValueError, "checkpoint_seconds"),
        ({"max_failures": 0}, ValueError, "max_failures"),
        ({"max_failures": 1.5}, TypeError, "max_failures"),
        ({"resume": True}, ValueError, "resume"),
        ({"start": "top"}, ValueError, "start"),
        ({"start": "lipschitz", "method": "grid"}, ValueError, "start"),
        ({"start": "bound", "method": "lipschitz"}, ValueError, "start"),
        ({"multipliers": (1.0,)}, ValueError, "multipliers"),
        ({"multipliers": (1.0, 2.0), "start": "lipschitz"}, ValueError, "multipliers"),
        ({"multipliers": (), "method": "lipschitz"}, TypeError, "multipliers"),
        ({"multipliers": "1", "method": "lipschitz"}, TypeError, "multipliers"),
        ({"multipliers": (1.0, 0.0), "method": "lipschitz"}, ValueError, "multipliers"),
        ({"multipliers": (1.0, "2"), "method": "lipschitz"}, TypeError, "multipliers"),
        ({"method": "lipschitz", "optimizer": "momentum", "trials": 3}, ValueError, "trials"),
        ({"storage": "nonsense"}, ValueError, "storage"),
        ({"storage": "sqlite:////no/such/folder/x.db"}, ValueError, "storage"),
    ],
)
def test_bad_input_names_its_argument_before_anything_is_trained(
    make_line: MakeLine, bad: dict[str, Any], error: type[Exception], names: str
) -> None:
    line = make_line()
    with pytest.raises(error, match=names) as info:
        search(line.task, tracker="none", **bad)
    assert isinstance(info.value, (InvalidArgumentError, InvalidTypeError))
    assert "\n" not in str(info.value)
    assert line.spy.forwards == 0


def test_bad_tasks_are_refused(make_line: MakeLine) -> None:
    with pytest.raises(InvalidTypeError, match="task must be a TrainingTask or a name, got int"):
        search(7, tracker="none")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="'wine-logistc' is unknown; did you mean"):
        search("wine-logistc", tracker="none")
    task = replace(make_line().task, data=lambda seed: (1, 2))
    with pytest.raises(InvalidTypeError, match="data of task 'line' must return TaskData, got tup"):
        search(task, tracker="none")


def test_a_tracker_that_is_not_installed_is_an_error_only_if_it_was_asked_for(
    make_line: MakeLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise MissingPackageError(f"no tracker {name!r}")

    monkeypatch.setattr("lrsearch.engine.record.find_tracker", missing)
    small: dict[str, Any] = {"method": "grid", "trials": 1, "epochs": 1}
    assert search(make_line().task, **small).run_id == ""
    for asked in ({"tracker": "mlflow"}, {"tracking_uri": "sqlite:///x.db"}):
        with pytest.raises(MissingPackageError):
            search(make_line().task, **small, **asked)


def test_optunas_own_verbosity_is_left_as_it_was(make_line: MakeLine) -> None:
    before = optuna.logging.get_verbosity()
    search(make_line(epochs=1).task, method="grid", trials=1, tracker="none")
    assert optuna.logging.get_verbosity() == before
