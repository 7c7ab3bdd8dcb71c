"""The command line: exit status, what goes to stdout and to stderr, and what loads."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pandas as pd
import pytest

from lrsearch import engine
from lrsearch.cli import main as cli
from lrsearch.cli.main import main
from lrsearch.cli.tables import ladder
from lrsearch.engine.start import STARTS
from lrsearch.stats.convergence import Mode
from lrsearch.tasks import builtin_names
from lrsearch.training import task as tasks

QUICK = ["wine-logistic", "--epochs", "2", "--no-tracking"]
OWN_TASK = """
import torch
from lrsearch import Split, TaskData, TrainingTask

print("imported")

def load(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 2, generator=generator)
    split = Split(x, x @ torch.ones(2, 1))
    return TaskData(split, split, split, outputs=1, name="sum")

def model(data):
    print("built")
    return torch.nn.Linear(2, 1)

task = TrainingTask("sum", data=load, model=model, loss="mse", metric="mse", epochs=3)

def trouble(data):
    raise RuntimeError("the user's own trouble")

broken = TrainingTask("broken", data=load, model=trouble, loss="mse", metric="mse", epochs=3)
def dead(data):
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    torch.nn.init.constant_(model[0].bias, -1e3)
    return model

dead = TrainingTask("dead", data=load, model=dead, loss="mse", metric="mse", epochs=3)
not_a_task = 3
"""


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")}
    return subprocess.run(
        [sys.executable, "-m", "lrsearch.cli.main", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=100,
        check=False,
    )


@pytest.fixture
def own_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory, gone from memory afterwards."""
    (tmp_path / "own_task_of_a_test.py").write_text(OWN_TASK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return "own_task_of_a_test"


# --- wrong usage -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["serach"], "serach"),
        (["search"], "TASK"),
        (["search", *QUICK, "--method", "gird"], "--method"),
        (["search", *QUICK, "--mode", "fast"], "--mode"),
        (["search", *QUICK, "--optimizer", "lion"], "--optimizer"),
        (["search", *QUICK, "--epochs", "many"], "--epochs"),
        (["search", *QUICK, "--unknown", "1"], "--unknown"),
        (["search", *QUICK, "--json", "/no/such/folder/x.json"], "--json"),
        (["search", "wine-logistc", "--no-tracking"], "wine-logistc"),
        (["search", "no.such.module:task", "--no-tracking"], "no.such.module"),
        (["search", "json:loads", "--no-tracking"], "json:loads"),
        (["search", *QUICK, "--alpha", "1"], "alpha"),
        (["search", *QUICK, "--beta", "nan"], "beta"),
        (["search", *QUICK, "--epochs", "0"], "epochs"),
        (["search", *QUICK, "--batch-size", "-4"], "batch_size"),
        (["search", *QUICK, "--seed", "-1"], "seed"),
        (["search", *QUICK, "--trials", "0"], "trials"),
        (["search", *QUICK, "--resume"], "resume"),
        (["search", *QUICK, "--storage", "nonsense"], "storage"),
        (["search", "wine-logistic", "--tracking-uri", "nonsense://x"], "nonsense://x"),
        (["search", *QUICK, "--data-dir", "/no/such/folder"], "/no/such/folder"),
        (["tasks", "--data-dir", "/no/such/folder"], "/no/such/folder"),
        (["search", *QUICK, "--method", "grid", "--start", "lipschitz"], "start"),
        (["search", *QUICK, "--method", "lipschitz", "--start", "bound"], "start"),
        (["search", *QUICK, "--start", "one"], "--start"),
        (["search", *QUICK, "--multipliers", "1,2"], "multipliers"),
        (["search", *QUICK, "--method", "lipschitz", "--multipliers", "1,many"], "--multipliers"),
        (["search", *QUICK, "--method", "lipschitz", "--multipliers", "1,-2"], "multipliers"),
        (["search", *QUICK, "--start", "lipschitz", "--multipliers", "1,2"], "multipliers"),
        (["compare", *QUICK, "--methods", "grid,tpe", "--start", "lipschitz"], "start"),
        (["compare", *QUICK, "--methods", "exptest,gird"], "gird"),
        (["compare", *QUICK, "--methods", ","], "methods"),
        (["compare", *QUICK, "--seeds", "0"], "seeds"),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], names: str
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert err.startswith("lrsearch")
    assert names in err


def test_no_command_prints_the_help_to_stderr_and_is_wrong_usage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "search" in err


def test_missing_data_are_named_with_the_remedy(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LRSEARCH_DATA", raising=False)
    assert main(["search", "mnist-logistic", "--no-tracking", "--data-dir", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "mnist" in err.lower()
    assert str(tmp_path) in err


def test_a_taken_study_name_is_one_line_and_resume_goes_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    keep = ["--storage", f"sqlite:///{tmp_path / 's.db'}", "--study-name", "mine"]
    first = ["search", *QUICK, *keep, "--method", "grid", "--trials"]
    assert main([*first, "2"]) == 0
    capsys.readouterr()
    assert main([*first, "4"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "resume" in err
    assert main([*first, "4", "--resume", "--json", "-"]) == 0
    assert len(json.loads(capsys.readouterr().out)["trials"]) == 4


# --- what the commands do --------------------------------------------------------------------


def test_tasks_lists_every_built_in_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(builtin_names())
    assert {"data", "model", "loss", "rows"} <= set(lines[0].split())
    assert main(["tasks", "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["task"] for row in rows] == list(builtin_names())
    assert {row["data at hand"] for row in rows} <= {"yes", "no"}
    assert next(row for row in rows if row["task"] == "wine-mlp")["data at hand"] == "yes"


def test_search_prints_the_ladder_and_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", *QUICK]) == 0
    out, err = capsys.readouterr()
    assert err == ""  # no terminal, no progress
    assert out.startswith("wine-logistic, exptest\n")
    assert re.search(r"\nlearning rate \d", out)
    assert "probe: won" in out
    assert "gradient steps in all" in out
    assert out.endswith("Nothing was recorded.\n")


def test_json_goes_to_a_file_beside_the_text_or_alone_to_stdout(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    target = tmp_path / "result.json"
    assert main(["search", *QUICK, "--seed", "3", "--json", str(target)]) == 0
    assert capsys.readouterr().out.startswith("wine-logistic, exptest\n")
    assert main(["search", *QUICK, "--seed", "3", "--json", "-"]) == 0
    alone = json.loads(capsys.readouterr().out)
    kept = json.loads(target.read_text())
    for result in (alone, kept):  # wall time differs
        del result["seconds"]
        for trial in result["trials"]:
            del trial["seconds"]
    assert alone == kept
    assert alone["task"] == "wine-logistic"


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("steady fall", "steady fall (p = 0.03)"),
        ("dominated: trial 0 at lr=0.5 was accepted", "dominated: trial 0 at lr=0.5 was accepted"),
    ],
)
def test_a_p_value_stands_beside_the_verdict_of_its_own_test_alone(reason: str, shown: str) -> None:
    trial = {"number": 1, "lr": 0.1, "state": "PRUNED", "steps": 5, "val_loss": None}
    table = pd.DataFrame([{**trial, "reason": reason, "pvalue": 0.03}])
    result = SimpleNamespace(task="t", method="exptest", trials=table)
    assert ladder(result).splitlines()[-1].endswith(f"  {shown}")  # type: ignore[arg-type]


def test_lipschitz_tries_and_a_guarded_ladder_are_to_be_had(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["search", "wine-logistic", "--epochs", "8", "--no-tracking"]
    tries = [*command, "--method", "lipschitz", "--multipliers", "0.01,1.0"]
    assert main([*tries, "--json", "-"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["start"] == "lipschitz"
    assert [trial["state"] for trial in content["trials"]] == ["PRUNED", "PRUNED", "COMPLETE"]
    assert content["lr"] == content["trials"][2]["lr"]
    assert main([*command, "--start", "lipschitz", "--json", "-"]) == 0
    guarded = json.loads(capsys.readouterr().out)
    assert guarded["start"] == "lipschitz"
    assert guarded["windows"]
    assert guarded["trials"][0]["lr"] == content["trials"][1]["lr"]
    assert main(tries) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "tried for 5 epochs" in out


def test_a_start_that_is_not_to_be_had_is_a_line_on_stderr(
    capsys: pytest.CaptureFixture[str], own_task: str
) -> None:
    command = ["search", f"{own_task}:dead", "--no-tracking", "--start", "lipschitz"]
    assert main([*command, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    (note,) = (line for line in err.splitlines() if line.startswith("lrsearch"))
    assert note.startswith("lrsearch: note: started at the bound from the data: ")
    content = json.loads(out)
    assert content["start"] == "bound"
    assert content["start_note"] in note


def test_compare_has_the_json_of_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", *QUICK, "--methods", "exptest, grid", "--seeds", "2"]
    assert main([*command, "--json", "-"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content.keys() == {"task", "metric", "direction", "rows"}
    assert content["metric"] == "accuracy"
    assert [(row["method"], row["seed"]) for row in content["rows"]] == [
        ("exptest", 0),
        ("grid", 0),
        ("exptest", 1),
        ("grid", 1),
    ]
    assert set(content["rows"][0]) == {
        *("method", "seed", "lr", "value", "oracle_value"),
        *("val_loss", "train_loss", "steps", "seconds"),
    }
    assert main(command) == 0
    out = capsys.readouterr().out
    assert out.startswith("wine-logistic, 2 seeds\n")
    assert "test accuracy" in out


def test_a_task_from_the_working_directory_is_found_and_may_print(
    capsys: pytest.CaptureFixture[str], own_task: str
) -> None:
    assert main(["search", f"{own_task}:task", "--no-tracking", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["task"] == "sum"
    assert err.startswith("imported\nbuilt\n")  # what the task prints spoils no JSON
    assert main(["search", f"{own_task}:not_a_task", "--no-tracking"]) == 2
    assert "got int" in capsys.readouterr().err


def test_the_demo_compares_exptest_and_grid(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrsearch.cli.commands.DEMO_TASK", "wine-logistic")
    assert main(["demo", "--no-tracking"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("lrsearch demo: ")
    assert err.count("\n") == 1
    ladder, table, where = out.split("\n\n")
    assert ladder.startswith("wine-logistic, exptest\n")
    assert [line.split()[0] for line in table.splitlines()[3:]] == ["exptest", "grid"]
    assert where == "Nothing was recorded.\n"
    assert main(["demo", "--no-tracking", "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["method"] for row in rows} == {"exptest", "grid"}


def test_ui_hands_store_and_port_to_the_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []

    def find_ui(name: str) -> Any:
        return lambda uri, port: called.append((name, uri, port)) or 1

    monkeypatch.setattr("lrsearch.tracking.find_ui", find_ui)
    assert main(["ui", "--port", "5055", "--tracking-uri", "sqlite:///x.db"]) == 1
    assert called == [("mlflow", "sqlite:///x.db", 5055)]


def test_an_interrupt_is_one_line_and_status_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(options: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("lrsearch.cli.commands.tasks", interrupted)
    assert main(["tasks"]) == 1
    assert capsys.readouterr().err == "lrsearch: interrupted\n"


# --- the parser ------------------------------------------------------------------------------


def test_choices_of_the_parser_are_those_of_their_sources() -> None:
    assert cli.METHODS == engine.METHODS
    assert cli.STARTS == STARTS
    assert get_args(Mode) == cli.MODES
    assert cli.OPTIMIZERS == tasks.OPTIMIZERS


SEARCH_OPTIONS = {
    "--method": "grid",
    "--mode": "paper",
    "--alpha": "0.1",
    "--beta": "0.5",
    "--epochs": "3",
    "--batch-size": "8",
    "--optimizer": "adam",
    "--seed": "7",
    "--trials": "4",
    "--storage": "sqlite:///x.db",
    "--study-name": "mine",
    "--tracking-uri": "sqlite:///m.db",
    "--data-dir": ".",
    "--json": "-",
    "--start": "lipschitz",
    "--anneal": "0.3",
    "--multipliers": "0.1,1",
    "--workers": "cuda:0,2",
    "--per-device": "3",
    "--device": "cuda:1",
    "--checkpoint-dir": "kept",
    "--checkpoint-seconds": "5",
    "--max-failures": "4",
}


def test_every_option_of_search_reaches_the_engine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {}

    class Result:
        def as_json(self) -> dict[str, Any]:
            return {}

    def fake(task: str, **options: Any) -> Result:
        given.update(options, task=task)
        return Result()

    monkeypatch.setattr("lrsearch.engine.search", fake)
    pairs = [part for pair in SEARCH_OPTIONS.items() for part in pair]
    assert (
        main(["search", "any", *pairs, "--no-guard", "--resume", "--no-tracking", "--log-model"])
        == 0
    )
    del given["watcher"]
    assert given == {
        "task": "any",
        "method": "grid",
        "mode": "paper",
        "alpha": 0.1,
        "beta": 0.5,
        "epochs": 3,
        "batch_size": 8,
        "optimizer": "adam",
        "seed": 7,
        "trials": 4,
        "workers": "cuda:0,2",
        "per_device": 3,
        "device": "cuda:1",
        "checkpoint_dir": "kept",
        "checkpoint_seconds": 5.0,
        "max_failures": 4,
        "storage": "sqlite:///x.db",
        "study_name": "mine",
        "resume": True,
        "tracking_uri": "sqlite:///m.db",
        "tracker": "none",
        "data_dir": ".",
        "start": "lipschitz",
        "multipliers": (0.1, 1.0),
        "anneal": 0.3,
        "guard": False,
        "log_model": True,
    }


def test_defaults_of_the_command_line_are_those_of_the_engine() -> None:
    import inspect

    options = vars(cli._parser().parse_args(["search", "any"]))
    defaults = {
        name: each.default
        for name, each in inspect.signature(engine.search).parameters.items()
        if name in options and name != "task"
    }
    assert len(defaults) >= 12
    assert {name: options[name] for name in defaults} == defaults


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--workers", "0"], "workers must be at least 1, got 0"),
        (["--workers", "cuda"], "no CUDA device is at hand here"),
        (["--workers", "some"], "workers must be a number, 'cuda'"),
        (["--workers", "2", "--storage", "sqlite:///x.db"], "SQLite lets two workers run the same"),
        (["--device", "cuda"], "device must be one of 'cpu', got 'cuda'"),
    ],
)
def test_workers_that_cannot_be_are_refused_in_a_line(
    capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert main(["search", "wine-mlp", "--no-tracking", *options]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


# --- as a process ----------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["import lrsearch; dir(lrsearch)", "HELP"])
def test_import_and_help_load_no_framework(code: str) -> None:
    if code == "HELP":
        code = "from lrsearch.cli.main import main; assert main(['--help']) == 0"
    heavy = ("torch", "mlflow", "optuna", "sklearn", "pandas", "scipy", "numpy")
    check = f"import sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{check}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr == ""


def test_a_search_with_tracking_writes_json_alone_and_nothing_to_a_pipe(
    store_uri: str, tmp_path: Path
) -> None:
    arguments = ("search", *QUICK[:-1], "--tracking-uri", store_uri, "--json", "-")
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""
    content = json.loads(done.stdout)
    assert content["tracking_uri"] == store_uri
    assert len(content["run_id"]) == 32


def test_a_process_ends_with_the_status_of_what_happened(own_task: str, tmp_path: Path) -> None:
    wrong = run("search", "nothing-known", "--no-tracking", cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1)
    failed = run("search", f"{own_task}:broken", "--no-tracking", cwd=tmp_path)
    assert failed.returncode == 1
    assert "the user's own trouble" in failed.stderr


def test_the_installed_command_is_there() -> None:
    script = Path(sys.executable).with_name("lrsearch")
    if not script.is_file():
        pytest.skip("lrsearch is not installed here")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"lrsearch {cli.__version__}\n"
