"""The method "lipschitz": rates renewed each epoch, tries of multipliers, and ExpTest as guard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from torch import nn

from lrsearch import Split, TaskData, TrainingTask, compare, search
from lrsearch.bounds import lipschitz_constant
from lrsearch.engine.lipschitz import first_estimate
from lrsearch.engine.methods import TRY_EPOCHS
from lrsearch.errors import InvalidArgumentError
from lrsearch.tracking import NullRun
from lrsearch.training.loop import first_batch

MakeLine = Callable[..., Any]
CLASSES, FEATURES, ROWS, BATCH = 3, 4, 120, 20


def clusters(seed: int) -> TaskData:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(ROWS) % CLASSES
    centres = 3.0 * torch.randn(CLASSES, FEATURES, generator=generator)
    inputs = centres[labels] + torch.randn(ROWS, FEATURES, generator=generator)
    split = Split(inputs, labels)
    return TaskData(split, split, split, CLASSES, "clusters")


def make_task(**changes: Any) -> TrainingTask:
    task = TrainingTask(
        "clusters",
        data=clusters,
        model=lambda data: nn.Sequential(
            nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, data.outputs)
        ),
        epochs=8,
        batch_size=BATCH,
    )
    return replace(task, **changes)


class Kept(NullRun):
    """A tracker's run in memory."""

    def __init__(self) -> None:
        self.metrics: dict[str, dict[int, float]] = {}
        self.params: dict[str, object] = {}
        self.tags: dict[str, object] = {}
        self.children: list[Kept] = []

    def log_metrics(self, metrics: Any, step: int) -> None:
        for key, value in metrics.items():
            self.metrics.setdefault(key, {})[step] = value

    def log_params(self, params: Any) -> None:
        self.params.update(params)

    def set_tags(self, tags: Any) -> None:
        self.tags.update(tags)

    def child(
        self, name: str, *, tags: Any = None, uid: str | None = None, ready: Any = None
    ) -> Kept:
        self.children.append(Kept())
        self.children[-1].tags = {"name": name, **(tags or {})}
        return self.children[-1]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Kept:
    top = Kept()
    monkeypatch.setattr("lrsearch.engine.record.find_tracker", lambda name: lambda **_: top)
    return top


def constant_of_first_batch(task: TrainingTask, seed: int = 0, mode: str = "robust") -> float:
    """By hand: K_z of the first batch, with the weights that training starts from."""
    data = clusters(seed)
    torch.manual_seed(seed)
    model = task.model(data)
    inputs, _ = first_batch(task, data, seed)
    assert isinstance(model, nn.Sequential)
    k_z = float(torch.linalg.vector_norm(model[:-1](inputs).detach()))
    return lipschitz_constant(
        "cross_entropy", batch_size=BATCH, k_z=k_z, classes=CLASSES, supremum=mode == "robust"
    )


# --- plain -----------------------------------------------------------------------------------


def test_the_first_epoch_has_1_over_l_of_the_batch_that_training_sees_first() -> None:
    seen: list[torch.Tensor] = []

    class Noting(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                seen.append(x)
            return super().forward(x)  # type: ignore[no-any-return]

    task = make_task()
    noting = make_task(
        model=lambda data: Noting(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    )
    result = search(noting, method="lipschitz", tracker="none")
    assert result.lr == pytest.approx(1.0 / constant_of_first_batch(task), rel=1e-5)
    assert torch.equal(seen[0], first_batch(task, clusters(0), 0)[0])
    assert result.start == "lipschitz"
    assert result.start_note == ""
    assert len(result.trials) == 1
    assert len(result.windows) == 0
    paper = search(noting, method="lipschitz", mode="paper", tracker="none")
    assert paper.lr == pytest.approx(1.0 / constant_of_first_batch(task, mode="paper"), rel=1e-5)
    assert paper.lr > 4.0 * result.lr


def test_the_rate_is_renewed_after_each_epoch_and_on_record(run: Kept) -> None:
    task = make_task()
    result = search(task, method="lipschitz", tracker="fake")
    (trial,) = run.children
    per_epoch = ROWS // BATCH
    starts = [epoch * per_epoch for epoch in range(task.epochs)]
    assert trial.tags["lrsearch.kind"] == "trial"
    assert trial.tags["lrsearch.method"] == "lipschitz"
    for key in ("lipschitz/constant", "lipschitz/k_z", "lipschitz/lr"):
        assert list(trial.metrics[key]) == starts
    rates = trial.metrics["lipschitz/lr"]
    assert rates[0] == result.lr
    np.testing.assert_allclose(
        list(rates.values()), [1.0 / c for c in trial.metrics["lipschitz/constant"].values()]
    )
    assert len(set(rates.values())) == task.epochs
    # The rate's line changes where the rate does: before and at each first step of an epoch.
    shown = trial.metrics["train/lr"]
    assert {step: shown[step] for step in starts} == pytest.approx(rates)
    for start, following in pairwise(starts):
        assert shown[following - 1] == pytest.approx(rates[start])
    assert list(trial.metrics["train/loss"]) == list(range(task.epochs * per_epoch))
    # Nothing is renewed that would not be trained with.
    assert result.trials["lr_final"].iloc[0] == pytest.approx(rates[starts[-1]])
    assert run.metrics["bound/lr_max"] == {0: result.lr}
    assert run.metrics["lipschitz/lr"] == {0: result.lr}
    assert "bound/lambda_max" not in run.metrics
    assert run.params["start"] == "lipschitz"
    assert run.params["bound_method"] == "1 / L of the first batch"


def test_one_multiplier_scales_every_epochs_rate(run: Kept) -> None:
    task = make_task()
    result = search(task, method="lipschitz", multipliers=(0.25,), tracker="fake")
    (trial,) = run.children
    assert result.lr == pytest.approx(0.25 / constant_of_first_batch(task), rel=1e-5)
    for step, rate in trial.metrics["lipschitz/lr"].items():
        assert trial.metrics["train/lr"][step] == pytest.approx(0.25 * rate, rel=1e-9)


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam", "adamw"])
def test_the_papers_first_rate_is_a_thousandth_where_mode_is_paper(optimizer: str) -> None:
    task = make_task(optimizer=optimizer)
    paper = search(task, method="lipschitz", mode="paper", tracker="none")
    assert paper.lr == pytest.approx(1e-3, rel=1e-12)
    robust = search(task, method="lipschitz", tracker="none")
    assert robust.lr == pytest.approx(first_estimate(task, clusters(0), "robust", 0).lr)
    for result in (paper, robust):
        assert result.trials["lr_final"].iloc[0] != result.lr


def test_squared_errors_are_bounded_for_any_output_unless_mode_is_paper(
    make_line: MakeLine,
) -> None:
    """|K_a - ‖y‖| goes to zero as the fit gets good; torch's loss is twice the papers'."""
    task = make_line().task
    data = task.data(0)
    inputs, _ = first_batch(task, data, 0)
    torch.manual_seed(0)
    model = task.model(data)
    k_z = float(torch.linalg.vector_norm(inputs))
    k_a = float(torch.linalg.vector_norm(model(inputs).detach()))
    batches = torch.split(data.train.targets, 16)
    norm = max(float(torch.linalg.vector_norm(batch)) for batch in batches)
    for mode, slope in (("robust", k_a + norm), ("paper", abs(k_a - norm))):
        estimate = first_estimate(task, data, mode, 0)  # type: ignore[arg-type]
        assert estimate.lipschitz == pytest.approx(2.0 * slope * k_z / 16, rel=1e-4)
    result = search(task, method="lipschitz", tracker="none")
    assert result.value < 0.1


def test_a_rate_that_diverges_leaves_no_answer() -> None:
    task = make_task(data=lambda seed: huge(clusters(seed)))
    result = search(task, method="lipschitz", multipliers=(1e30,), tracker="none")
    assert result.lr != result.lr
    assert list(result.trials["state"]) == ["PRUNED"]
    assert list(result.trials["reason"]) == ["diverged"]


def huge(data: TaskData) -> TaskData:
    return replace(data, train=Split(data.train.inputs * 1e6, data.train.targets))


# --- tries -----------------------------------------------------------------------------------


def test_multipliers_are_tried_and_the_best_is_trained_in_full() -> None:
    task = make_task(epochs=12)
    factors = (1e-4, 1.0, 1e-3)
    result = search(task, method="lipschitz", multipliers=factors, tracker="none")
    table, per_epoch = result.trials, ROWS // BATCH
    unit = 1.0 / constant_of_first_batch(task)
    np.testing.assert_allclose(table["lr"], unit * np.array([*factors, 1.0]), rtol=1e-5)
    assert list(table["state"]) == ["PRUNED"] * 3 + ["COMPLETE"]
    assert list(table["steps"]) == [TRY_EPOCHS * per_epoch] * 3 + [12 * per_epoch]
    assert result.steps == table["steps"].sum()
    assert all(
        reason.startswith("tried for 5 epochs: validation loss") for reason in table["reason"][:3]
    )
    assert result.lr == table["lr"].iloc[3]
    assert result.stop_reason == f"trial 3 trained the best try in full, lr={result.lr!r}"


def test_a_try_that_diverges_costs_its_steps_and_loses() -> None:
    task = make_task(epochs=12, data=lambda seed: huge(clusters(seed)))
    result = search(task, method="lipschitz", multipliers=(1e30, 1e-3), tracker="none")
    assert list(result.trials["state"]) == ["PRUNED", "PRUNED", "COMPLETE"]
    assert result.trials["reason"].iloc[0] == "diverged"
    assert result.lr == result.trials["lr"].iloc[1]
    assert result.steps == result.trials["steps"].sum()


def test_where_every_try_diverges_there_is_no_answer() -> None:
    task = make_task(epochs=12, data=lambda seed: huge(clusters(seed)))
    result = search(task, method="lipschitz", multipliers=(1e30, 1e31), tracker="none")
    assert set(result.trials["reason"]) == {"diverged"}
    assert len(result.trials) == 3
    assert result.lr != result.lr
    assert result.stop_reason == "all trials done"


def test_momentum_tries_adamos_three_starts_where_mode_is_paper(run: Kept) -> None:
    task = make_task(optimizer="momentum")
    result = search(task, method="lipschitz", mode="paper", tracker="fake")
    np.testing.assert_allclose(result.trials["lr"][:3], [0.01, 0.05, 0.1], rtol=1e-9)
    assert len(result.trials) == 4
    assert run.params["bound_method"] == "AdaMo's x times 1 - momentum"
    names = [child.tags["name"] for child in run.children]
    assert names == [
        *(f"lipschitz try {n}, seed 0" for n in range(3)),
        "lipschitz trial 3, seed 0",
    ]
    # K starts at x: x <- 0.9 x + 0.1 L, and torch's rate is 0.1 / K.
    for child, x in zip(run.children, (0.1, 0.5, 1.0), strict=False):
        (step, constant), *_ = child.metrics["lipschitz/constant"].items()
        assert child.metrics["lipschitz/lr"][step] == pytest.approx(
            0.1 / (0.9 * x + 0.1 * constant), rel=1e-6
        )


def test_momentum_tries_multiples_of_1_over_l_where_mode_is_robust(run: Kept) -> None:
    task = make_task(optimizer="momentum")
    result = search(task, method="lipschitz", tracker="fake")
    unit = 0.1 / constant_of_first_batch(task)
    np.testing.assert_allclose(result.trials["lr"][:3], unit * np.array([1.0, 3.0, 10.0]), 1e-5)
    for child, multiplier in zip(run.children, (1.0, 3.0, 10.0), strict=False):
        # The mean of L starts at the first epoch's; the multiplier stays.
        step = ROWS // BATCH
        rate, constant = (child.metrics[f"lipschitz/{key}"][step] for key in ("lr", "constant"))
        assert rate == pytest.approx(0.1 / constant, rel=1e-9)
        assert child.metrics["train/lr"][step] == pytest.approx(multiplier * rate, rel=1e-9)


def test_where_there_is_no_time_for_tries_each_multiplier_is_trained_in_full() -> None:
    task = make_task(epochs=TRY_EPOCHS)
    result = search(task, method="lipschitz", multipliers=(0.01, 1.0), tracker="none")
    assert list(result.trials["state"]) == ["COMPLETE"] * 2
    assert result.lr in set(result.trials["lr"])


@pytest.mark.parametrize(("fail_at", "best"), [(20, 1.0), (60, 0.1), (90, 1.0)])
def test_a_search_that_broke_down_goes_on_where_it_stopped(
    make_line: MakeLine, tmp_path: Path, fail_at: int, best: float
) -> None:
    """In the first try, in that of the best (which loses so), in the full run; 25 steps a try."""
    keep = {"storage": f"sqlite:///{tmp_path / 'study.db'}", "study_name": "kept"}
    asked: dict[str, Any] = {"method": "lipschitz", "multipliers": (0.01, 0.1, 1.0)}
    small = {"epochs": 20, "batch_size": 32}
    whole = search(make_line(**small).task, tracker="none", **asked)
    with pytest.raises(RuntimeError, match="the user's own trouble"):
        search(
            make_line(fail_at=fail_at, **small).task,
            tracker="none",
            max_failures=1,
            **asked,
            **keep,
        )
    line = make_line(**small)
    resumed = search(line.task, tracker="none", resume=True, **asked, **keep)
    assert list(resumed.trials["state"]).count("COMPLETE") == 1
    assert list(resumed.trials["state"]).count("FAIL") == 1
    assert resumed.lr == pytest.approx(best * whole.lr)
    if best == 1.0:
        assert resumed.value == whole.value
    # What is decided is read, not run again.
    line = make_line(**small)
    again = search(line.task, tracker="none", resume=True, **asked, **keep)
    assert line.spy.forwards == 0
    assert (again.lr, again.value, again.steps) == (resumed.lr, resumed.value, resumed.steps)


# --- guarded ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["exptest", "lipschitz"])
def test_the_ladder_starts_at_1_over_l_and_the_rest_is_exptests(
    make_line: MakeLine, scale_bound: Callable[[float], None], method: str
) -> None:
    scale_bound(30.0)
    line = make_line()
    result = search(line.task, method=method, start="lipschitz", tracker="none")
    estimate = first_estimate(line.task, line.task.data(0), "robust", 0)
    rates = 30.0 * estimate.lr * 0.33 ** np.arange(len(result.trials))
    np.testing.assert_allclose(result.trials["lr"], rates, rtol=1e-9)
    assert len(result.trials) > 1
    assert list(result.trials["state"]) == ["PRUNED"] * (len(rates) - 1) + ["COMPLETE"]
    assert set(result.windows["trial"]) == set(range(len(rates)))
    assert result.start == "lipschitz"
    assert result.as_json()["start"] == "lipschitz"
    assert result.as_json()["start_note"] == ""
    assert result.steps == line.spy.forwards == result.trials["steps"].sum()


def test_one_multiplier_moves_the_ladders_top(make_line: MakeLine) -> None:
    line = make_line(epochs=4)
    estimate = first_estimate(line.task, line.task.data(0), "robust", 0)
    result = search(line.task, start="lipschitz", multipliers=(0.1,), tracker="none")
    assert result.trials["lr"].iloc[0] == pytest.approx(0.1 * estimate.lr)


def test_a_guarded_search_is_resumed_as_what_it_was(make_line: MakeLine, tmp_path: Path) -> None:
    keep = {"storage": f"sqlite:///{tmp_path / 'study.db'}", "study_name": "kept"}
    asked: dict[str, Any] = {"epochs": 2, "tracker": "none", **keep}
    task = make_line().task
    search(task, start="lipschitz", **asked)
    for other in ("race", "bound"):
        with pytest.raises(
            InvalidArgumentError, match=f"'kept' is a study with start='lipschitz', not '{other}'"
        ):
            search(task, resume=True, start=other, **asked)
    with pytest.raises(InvalidArgumentError, match=r"multipliers=None, not \[2.0\]"):
        search(task, resume=True, start="lipschitz", multipliers=(2.0,), **asked)
    assert len(search(task, resume=True, start="lipschitz", **asked).trials) == 1


def test_a_study_from_before_there_was_a_choice_is_resumed(
    make_line: MakeLine, tmp_path: Path
) -> None:
    keep = {"storage": f"sqlite:///{tmp_path / 'study.db'}", "study_name": "kept"}
    asked: dict[str, Any] = {"epochs": 2, "tracker": "none", **keep}
    search(make_line().task, start="bound", **asked)
    study = optuna.load_study(study_name="kept", storage=keep["storage"])
    old = study.user_attrs["lrsearch:asked"]
    study.set_user_attr(
        "lrsearch:asked", {k: v for k, v in old.items() if k not in ("start", "multipliers")}
    )
    assert len(search(make_line().task, resume=True, start="bound", **asked).trials) == 1
    for other in ("race", "lipschitz"):
        line = make_line()
        with pytest.raises(InvalidArgumentError, match=f"start='bound', not '{other}'"):
            search(line.task, resume=True, start=other, **asked)
        assert line.spy.forwards == 0


# --- no estimate -----------------------------------------------------------------------------


class Dead(nn.Sequential):
    """Whose last layer sees only zeros until it has been trained a little."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES))
        with torch.no_grad():
            self[0].bias.fill_(-1e3)


@pytest.mark.parametrize("start", [None, "lipschitz"])
def test_a_dead_layer_starts_at_the_bound_and_says_so(run: Kept, start: str | None) -> None:
    task = make_task(model=lambda data: Dead())
    notes: list[str] = []

    class Watcher:
        def trial_started(self, *_: Any) -> None: ...
        def trial_moved(self, *_: Any) -> None: ...
        def trial_ended(self, *_: Any) -> None: ...
        def noted(self, text: str) -> None:
            notes.append(text)

    result = search(task, method="lipschitz", start=start, watcher=Watcher(), tracker="fake")
    bound = search(task, start="bound", trials=1, tracker="none").trials["lr"].iloc[0]
    assert result.trials["lr"].iloc[0] == pytest.approx(bound)
    assert notes == [result.start_note]
    assert "the last layer's inputs are all zero" in result.start_note
    assert result.start == "bound"
    assert run.tags["lrsearch.start_note"] == result.start_note
    assert run.params["start"] == "bound"
    assert {"bound/lr_max", "bound/lambda_max"} <= run.metrics.keys()
    assert "lipschitz/lr" not in run.metrics
    if start is None:  # the rate is kept, epoch after epoch, and the trial says why
        assert result.trials["reason"].iloc[0].startswith("after epoch 7: kept the rate")
        assert result.trials["lr_final"].iloc[0] == pytest.approx(bound)


@pytest.mark.parametrize("options", [{"method": "lipschitz"}, {"start": "lipschitz"}])
def test_a_model_without_a_linear_layer_is_refused_in_one_line(options: dict[str, Any]) -> None:
    task = make_task(
        model=lambda data: nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 3, 4), nn.Flatten())
    )
    with pytest.raises(InvalidArgumentError, match=r"model must have an nn\.Linear") as info:
        search(task, tracker="none", **options)
    assert "\n" not in str(info.value)


# --- compare ---------------------------------------------------------------------------------


def test_compare_hands_start_and_multipliers_to_the_methods_that_know_them(
    make_line: MakeLine,
) -> None:
    task = make_line(epochs=3).task
    table = compare(
        task, methods=("exptest", "lipschitz", "grid"), seeds=1, start="lipschitz", tracker="none"
    )
    rates = table.set_index("method")["lr"]
    assert rates["exptest"] == rates["lipschitz"]
    table = compare(
        task, methods=("lipschitz", "exptest"), seeds=1, multipliers=(0.5,), tracker="none"
    )
    single = search(task, method="lipschitz", multipliers=(0.5,), tracker="none")
    assert table["lr"].iloc[0] == single.lr
    for options in ({"start": "lipschitz"}, {"multipliers": (1.0,)}):
        with pytest.raises(InvalidArgumentError, match=next(iter(options))):
            compare(task, methods=("grid", "tpe"), seeds=1, tracker="none", **options)
