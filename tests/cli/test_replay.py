"""``lrsearch replay``: what it prints, writes and refuses."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lrsearch.cli import main as cli
from lrsearch.cli.main import main
from lrsearch.controllers.exptest import ExpTestSettings

STEPS = np.arange(400)
NOISE = 0.02 * np.random.default_rng(1).standard_normal(400)
CURVES = {
    "flat": 2.3 + NOISE,
    "decay": 0.3 + 2.0 * np.exp(-STEPS / 15.0) + NOISE,
    "short": (2.3 + NOISE)[:20],
    "waiting": (2.3 + NOISE)[:100],
    "broken": np.array([*(0.3 + 2.0 * np.exp(-STEPS[:100] / 15.0)), np.nan]),
}

Curve = Callable[[str], str]


@pytest.fixture
def curve(tmp_path: Path) -> Curve:
    def written(name: str) -> str:
        rows = "\n".join(f"{step},{loss}" for step, loss in enumerate(CURVES[name]))
        path = tmp_path / f"{name}.csv"
        path.write_text(f"step,loss\n{rows}\n")
        return str(path)

    return written


@pytest.mark.parametrize(
    ("name", "begins", "holds"),
    [
        ("flat", "rejected at step 239: flat, p = ", "the next rung is 0.0132"),
        ("decay", "accepted at step 59: decay, p = ", ""),
        ("short", "no verdict, the first look needs ", "the curve has 20"),
        ("waiting", "no verdict, the curve ends before the look after step 59", "no decay shown"),
        ("broken", "accepted at step 59, then rejected at step 100: diverged", "not finite"),
    ],
)
def test_the_last_line_says_what_and_why(
    capsys: pytest.CaptureFixture[str], curve: Curve, name: str, begins: str, holds: str
) -> None:
    assert main(["replay", curve(name), "--lr", "0.04"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    last = out.splitlines()[-1]
    assert last.startswith(f"learning rate 0.04: {begins}")
    assert holds in last


def test_the_table_has_a_line_per_look(capsys: pytest.CaptureFixture[str], curve: Curve) -> None:
    assert main(["replay", curve("flat"), "--lr", "0.04"]) == 0
    head, _, *rows, empty, _ = capsys.readouterr().out.splitlines()
    for name in ("window", "steps", "n_eff", "F", "p", "level", "slope t", "decision", "reason"):
        assert name in head
    assert [row.split()[2] for row in rows] == ["0-59", "0-119", "0-239"]
    assert rows[-1].endswith("restart   flat")
    assert empty == ""


def test_decays_are_told_as_what_would_have_been(
    capsys: pytest.CaptureFixture[str], curve: Curve
) -> None:
    assert main(["replay", curve("decay"), "--lr", "0.04", "--mode", "paper"]) == 0
    out = capsys.readouterr().out
    assert "would decay" in out
    assert "; it would decay at step " in out.splitlines()[-1]


def test_json_goes_alone_to_stdout_or_to_a_file(
    capsys: pytest.CaptureFixture[str], curve: Curve, tmp_path: Path
) -> None:
    command = ["replay", curve("flat"), "--lr", "0.04", "--json"]
    assert main([*command, "-"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert (alone["verdict"], alone["reason"], alone["step"]) == ("rejected", "flat", 239)
    assert alone["sentence"].startswith("learning rate 0.04: rejected")
    assert len(alone["windows"]) == 3
    assert main([*command, str(tmp_path / "x.json")]) == 0
    assert "rejected" in capsys.readouterr().out
    assert json.loads((tmp_path / "x.json").read_text()) == alone


def test_every_option_reaches_the_machine(
    capsys: pytest.CaptureFixture[str], curve: Curve, tmp_path: Path
) -> None:
    options = ["--alpha", "0.1", "--beta", "0.5", "--mode", "paper", "--total-steps", "300"]
    command = ["replay", curve("flat"), "--lr", "0.04", *options, "--full-batch"]
    assert main([*command, "--column", "loss", "--json", "-"]) == 0
    content = json.loads(capsys.readouterr().out)
    told = [content[name] for name in ("alpha", "beta", "mode", "total_steps", "full_batch")]
    assert told == [0.1, 0.5, "paper", 300, True]


def test_a_figure_is_written(curve: Curve, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / "x.png"
    assert main(["replay", curve("flat"), "--lr", "0.04", "--figure", str(target)]) == 0
    assert target.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["{}"], "--lr"),
        (["{}", "--lr", "-1"], "lr"),
        (["{}", "--lr", "nan"], "lr"),
        (["{}", "--lr", "0.1", "--alpha", "2"], "alpha"),
        (["{}", "--lr", "0.1", "--total-steps", "0"], "total_steps"),
        (["{}", "--lr", "0.1", "--mode", "fast"], "--mode"),
        (["{}", "--lr", "0.1", "--column", "mse"], "'mse'"),
        (["{}", "--lr", "0.1", "--figure", "no-such-folder/x.png"], "no-such-folder"),
        (["no-such-file.csv", "--lr", "0.1"], "no-such-file.csv"),
        (["some/folder", "--lr", "0.1"], "some/folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], curve: Curve, arguments: list[str], names: str
) -> None:
    assert main(["replay", *(each.format(curve("flat")) for each in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("lrsearch")
    assert names in err


def test_defaults_of_the_command_are_those_of_the_machine() -> None:
    options = vars(cli._parser().parse_args(["replay", "any"]))
    parameters = dict(inspect.signature(ExpTestSettings).parameters)
    # What a search alone knows of a run; a recorded curve is judged without.
    del parameters["anneal"], parameters["raced"]
    assert {name: options[name] for name in parameters} == {
        name: each.default for name, each in parameters.items()
    }
