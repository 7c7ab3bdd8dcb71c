"""One trial: what it tells tracker, trial and watcher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from lrsearch import search
from lrsearch.tracking import NullRun
from lrsearch.training.loop import Progress

MakeLine = Callable[..., Any]


class KeptRun(NullRun):
    """A tracker's run in memory."""

    def __init__(self, name: str, tags: Mapping[str, object] | None = None) -> None:
        self.name, self.tags = name, dict(tags or {})
        self.metrics: dict[str, dict[int, float]] = {}
        self.params: dict[str, object] = {}
        self.tables: dict[str, Any] = {}
        self.children: list[KeptRun] = []
        self.status = ""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        assert not self.status
        for key, value in metrics.items():
            self.metrics.setdefault(key, {})[step] = value

    def log_params(self, params: Mapping[str, object]) -> None:
        assert self.params.keys().isdisjoint(params)  # "each key once"
        self.params.update(params)

    def set_tags(self, tags: Mapping[str, object]) -> None:
        self.tags.update(tags)

    def log_table(self, name: str, table: Any) -> None:
        self.tables[name] = table

    def child(
        self,
        name: str,
        *,
        tags: Mapping[str, object] | None = None,
        uid: str | None = None,
        ready: Any = None,
    ) -> KeptRun:
        self.children.append(KeptRun(name, tags))
        return self.children[-1]

    def finish(self, status: Any) -> None:
        assert not self.status
        self.status = status


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> KeptRun:
    top = KeptRun("study")
    monkeypatch.setattr("lrsearch.engine.record.find_tracker", lambda name: lambda **_: top)
    return top


def test_a_baseline_trial_records_its_whole_loss_curve_and_its_outcome(
    run: KeptRun, make_line: MakeLine
) -> None:
    result = search(make_line().task, method="grid", tracker="fake")
    assert [child.name for child in run.children] == [f"grid trial {n}, seed 0" for n in range(9)]
    for child, (_, row) in zip(run.children, result.trials.iterrows(), strict=True):
        assert child.tags["lrsearch.kind"] == "baseline"
        assert child.tags["lrsearch.method"] == "grid"
        assert child.params == {
            "lr": row["lr"],
            "number": row["number"],
            "seed": 0,
            "device": "cpu",
        }
        assert child.metrics["steps"] == {row["steps"]: row["steps"]}
        if row["state"] == "COMPLETE":
            assert list(child.metrics["train/loss"]) == list(range(400))
            assert child.metrics["train/lr"] == {0: row["lr"], 400: row["lr"]}
            assert child.metrics["val/loss"][400] == row["val_loss"]
            assert child.metrics["test/mse"] == {400: row["test_metric"]}
            assert child.metrics["train/final_loss"] == {400: row["train_loss"]}
            assert 10 <= len(child.metrics["val/loss"]) <= 40
        else:
            assert "test/mse" not in child.metrics
            assert child.tags["lrsearch.reason"] == "diverged"


def test_an_exptest_trial_records_losses_once_and_every_window(
    run: KeptRun, make_line: MakeLine, scale_bound: Callable[[float], None]
) -> None:
    scale_bound(30.0)
    result = search(make_line().task, start="bound", tracker="fake")
    best = run.children[-1]
    assert best.tags["lrsearch.kind"] == "trial"
    losses = best.metrics["train/loss"]
    windows = result.windows[result.windows["trial"] == len(run.children) - 1]
    assert list(losses) == list(range(windows["stop"].max()))
    np.testing.assert_allclose(
        [best.metrics["window/slope"][stop - 1] for stop in windows["stop"]], windows["slope"]
    )
    np.testing.assert_allclose(
        [best.metrics["window/lr"][stop - 1] for stop in windows["stop"]], windows["lr"]
    )
    assert best.tables["windows"].equals(windows.reset_index(drop=True))
    assert run.tables["windows"].equals(result.windows)
    assert run.tables["study"].equals(result.trials)


def test_the_studys_run_says_what_was_asked_and_what_came_out(
    run: KeptRun, make_line: MakeLine
) -> None:
    result = search(make_line().task, method="random", seed=5, tracker="fake")
    expected = {
        "task": "line",
        "method": "random",
        "mode": "robust",
        "alpha": 0.05,
        "beta": 0.33,
        "epochs": 40,
        "batch_size": 16,
        "optimizer": "sgd",
        "loss": "mse",
        "seed": 5,
        "total_steps": 400,
    }
    assert expected.items() <= run.params.items()
    assert {"lrsearch", "torch", "optuna", "numpy", "python", "device"} <= run.params.keys()
    assert {"bound/lr_max", "bound/lambda_max", "bound/residual"} <= run.metrics.keys()
    assert run.metrics["train/lr"] == {0: result.lr}
    assert run.metrics["steps"] == {0: result.steps}
    assert run.metrics["test/mse"] == {0: result.value}
    assert run.tags["lrsearch.stop_reason"] == "all trials done"


def test_a_study_without_an_answer_records_what_it_cost_and_no_nan(
    run: KeptRun, make_line: MakeLine, scale_bound: Callable[[float], None]
) -> None:
    scale_bound(1e4)
    result = search(make_line().task, trials=2, start="bound", tracker="fake")
    assert run.metrics["steps"] == {0: result.steps}
    assert not {"train/lr", "train/loss", "val/loss", "test/mse"} & run.metrics.keys()
    assert run.status == "complete"


def test_the_watcher_hears_of_every_trial_in_order(
    make_line: MakeLine, scale_bound: Callable[[float], None]
) -> None:
    scale_bound(30.0)
    heard: list[tuple[Any, ...]] = []

    class Watcher:
        def trial_started(self, name: str, lr: float, total: int) -> None:
            heard.append(("start", name, lr, total))

        def trial_moved(self, progress: Progress) -> None:
            assert 0 < progress.step <= progress.total == 400
            heard.append(("move",))

        def trial_ended(self, name: str, state: str, reason: str) -> None:
            heard.append(("end", name, state, reason))

    result = search(make_line().task, start="bound", tracker="none", watcher=Watcher())
    expected: list[tuple[Any, ...]] = []
    for _, row in result.trials.iterrows():
        name = f"exptest rung {row['number']}"
        expected.append(("start", name, row["lr"], 400))
        expected.append(("end", name, row["state"].lower(), row["reason"]))
    assert [each for each in heard if each[0] != "move"] == expected
    assert ("move",) in heard


def test_the_median_pruner_gives_its_reason_and_no_p_value(make_line: MakeLine) -> None:
    result = search(make_line().task, method="tpe", tracker="none")
    cut = result.trials[result.trials["reason"] == "worse than the median trial"]
    assert len(cut) > 0
    assert cut["pvalue"].isna().all()
    assert (cut["steps"] < 400).all()
