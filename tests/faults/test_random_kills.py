"""A hundred kills at random moments: nothing is lost, nothing is doubled, no bit differs."""

from __future__ import annotations

import os
import pickle
import re
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from optuna.trial import FrozenTrial

pytest.importorskip("mlflow", exc_type=ImportError)

from lrsearch_integrations.spool import Spool

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
SEED = 6
KILLS = 100

# What a trial may have otherwise than in a study that nobody disturbed: times and places.
OWN = {
    "lrsearch:seconds",
    "lrsearch:lease",
    "lrsearch:attempts",
    "lrsearch:turn",
    "lrsearch:device",
}
STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED"}

# A rate, and whether the trial is a short try or a probe: what a trial is in a study, whatever its
# number. A worker that dies as it begins a trial leaves its number to whoever comes next.
Key = tuple[float, bool, bool]
Study = Mapping[str, Any]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("story")
    done = subprocess.run(
        [sys.executable, HERE / "zygote.py", folder, mlflow_template, str(SEED)],
        env={
            **{name: value for name, value in os.environ.items() if name != "LRSEARCH_SPOOL"},
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "OMP_NUM_THREADS": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = pickle.loads((folder / "story.pickle").read_bytes())
    return told


def key_of(trial: FrozenTrial) -> Key:
    choice = trial.user_attrs.get("lrsearch:multiplier")
    tried = isinstance(choice, dict) and choice["try"] is not None
    return trial.params["lr"], tried, "lrsearch:probe" in trial.user_attrs


def trained(study: Study) -> list[FrozenTrial]:
    """The trials that were run; one whose worker died before it had a rate may not be needed."""
    return [
        trial
        for trial in study["result"]["trials"]
        if not trial.user_attrs.get("lrsearch:reason", "").startswith("not run: no rung")
    ]


def plain(value: Any) -> Any:
    """A value without the numbers of trials, which depend on who died when."""
    if isinstance(value, dict):
        return {
            name: plain(each) for name, each in value.items() if name not in ("trial", "ladder")
        }
    return re.sub(r"trial \d+", "trial", value) if isinstance(value, str) else value


def content(trial: FrozenTrial) -> dict[str, Any]:
    """All that a study keeps of a trial, as text: NaN is equal to NaN, and no bit is lost."""
    attributes = {name: plain(v) for name, v in trial.user_attrs.items() if name not in OWN}
    return {
        "state": trial.state.name,
        "value": repr(trial.value),
        "reports": repr(sorted(trial.intermediate_values.items())),
        **{name: repr(attributes[name]) for name in sorted(attributes)},
    }


def windows(study: Study, trial: FrozenTrial) -> pd.DataFrame:
    rows = study["result"]["windows"]
    if not len(rows):
        return rows
    own = rows[rows["trial"] == trial.number]
    return own.drop(columns="trial").reset_index(drop=True)


class Record:
    """What MLflow has of a study."""

    def __init__(self, study: Study) -> None:
        self._database = study["folder"] / "mlruns" / "mlflow.db"
        self._uid = study["result"]["uid"]
        self.runs = self._ask("SELECT run_uuid, status, lifecycle_stage FROM runs")
        self.tags: dict[str, dict[str, str]] = {run: {} for run, *_ in self.runs}
        for run, name, value in self._ask("SELECT run_uuid, key, value FROM tags"):
            self.tags[run][name] = value

    def of(self, trial: FrozenTrial) -> list[tuple[str, str]]:
        """The runs of a trial, each with its status."""
        uid = f"{self._uid}-{trial.number}"
        return [
            (run, status)
            for run, status, stage in self.runs
            if stage == "active" and self.tags[run].get("lrsearch.trial_uid") == uid
        ]

    def kinds(self) -> Counter[tuple[str, str]]:
        """How many runs there are of each kind and status."""
        return Counter(
            (self.tags[run]["lrsearch.kind"], status)
            for run, status, stage in self.runs
            if stage == "active"
        )

    def metrics(self, run: str) -> dict[str, list[tuple[int, str]]]:
        """Every value ever sent, by key: steps and values."""
        rows = self._ask(
            "SELECT key, step, value, is_nan FROM metrics WHERE run_uuid = ? ORDER BY step", run
        )
        found: dict[str, list[tuple[int, str]]] = {}
        for name, step, value, is_nan in rows:
            if name != "seconds":
                found.setdefault(name, []).append((step, "nan" if is_nan else repr(value)))
        return found

    def curve(self, run: str) -> pd.DataFrame:
        """The loss of every step."""
        ((root,),) = self._ask("SELECT artifact_uri FROM runs WHERE run_uuid = ?", run)
        return pd.read_parquet(Path(root.removeprefix("file://"), "curves", "steps.parquet"))

    def _ask(self, question: str, *values: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self._database)) as connection:
            return connection.execute(question, values).fetchall()


def check_trials(study: Study, alone: Study) -> None:
    """Every trial once, each as if nobody had died; beyond them, lower rungs that were tried early.

    While a rung waits for another worker, a second worker tries the next one.
    """
    assert {trial.state.name for trial in study["result"]["trials"]} <= {"COMPLETE", "PRUNED"}
    trials = trained(study)
    there = {key_of(trial): trial for trial in trials}
    assert len(there) == len(trials), "a rate was tried twice"
    wanted = {key_of(trial): trial for trial in alone["result"]["trials"]}
    assert wanted.keys() <= there.keys(), "a trial was lost"
    for key, trial in there.items():
        if key not in wanted:
            assert "lrsearch:rung" in trial.user_attrs, key
            assert key[0] < min(rate for rate, *_ in wanted), key
            continue
        assert content(trial) == content(wanted[key]), key
        pd.testing.assert_frame_equal(
            windows(study, trial), windows(alone, wanted[key]), check_exact=True
        )


def check_answer(study: Study, alone: Study) -> None:
    for name in ("answer", "stop_reason"):
        assert plain(study["result"][name]) == plain(alone["result"][name])


def check_record(study: Study, alone: Study) -> None:
    """One run a trial, one curve a run, each point once, each end true."""
    record, undisturbed = Record(study), Record(alone)
    wanted = {key_of(trial): trial for trial in alone["result"]["trials"]}
    for trial in trained(study):
        ((run, status),) = record.of(trial)
        tags = record.tags[run]
        assert status == STATUS[trial.state.name]
        assert tags["lrsearch.trial_state"] == trial.state.name
        assert tags.get("lrsearch.reason", "") == trial.user_attrs.get("lrsearch:reason", "")
        metrics = record.metrics(run)
        for name, points in metrics.items():
            assert len({step for step, _ in points}) == len(points), (trial.number, name)
        if key_of(trial) in wanted:
            ((other, _),) = undisturbed.of(wanted[key_of(trial)])
            assert metrics == undisturbed.metrics(other), trial.number
            pd.testing.assert_frame_equal(record.curve(run), undisturbed.curve(other))
    kinds = record.kinds()
    trials = sum(count for (kind, _), count in kinds.items() if kind != "study")
    assert trials == len(trained(study))
    # A search that is killed before its study is there leaves a run of its own, closed as failed.
    assert kinds["study", "FINISHED"] == 1
    assert kinds["study", "RUNNING"] == 0
    ((status,),) = [(status,) for run, status, _ in record.runs if run == study["result"]["run_id"]]
    assert status == "FINISHED"
    assert not list(Spool(study["folder"] / "mlruns" / "spool").runs())


def test_no_kill_at_any_moment_costs_a_trial_a_bit_or_a_point(story: dict[str, Any]) -> None:
    died: Counter[str] = Counter()
    repeated = taken = 0
    for study in [*story["undisturbed"].values(), *story["studies"]]:
        alone = story["undisturbed"][study["plan"]]
        died.update(study["died"])
        log = study["folder"] / "lives.log"
        words = f"{study['plan']}, killed {study['died']}:\n{study['folder']}\n"
        if study["trouble"]:
            pytest.fail(f"{study['trouble']}\n{words}{log.read_text()[-5000:]}")
        try:
            check_trials(study, alone)
            check_answer(study, alone)
            check_record(study, alone)
        except (AssertionError, ValueError) as error:
            error.add_note(words)
            raise
        if study is not alone:
            repeated, taken = repeated + study["steps"][0], taken + study["steps"][1]
    print(f"{died.total()} kills; {repeated - taken} of {taken} steps were repeated")
    assert died.total() >= KILLS
    assert died.keys() >= set(story["phases"])
