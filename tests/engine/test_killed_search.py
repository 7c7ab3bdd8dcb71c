"""A search that is killed in the middle of a window, and gone on with: one record of it all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlflow", exc_type=ImportError)

from lrsearch_integrations.mlflow_api import MlflowClient
from lrsearch_integrations.spool import Spool

pytestmark = pytest.mark.slow

# Through the engine, not the command line: its tracker is found where the package is not installed.
CODE = """if True:
    import sys
    import lrsearch.engine.record as record
    from lrsearch import search
    from lrsearch_integrations.mlflow_tracker import open_study_run
    record.find_tracker = lambda name: open_study_run
    result = search(
        "digits-mlp", epochs=int(sys.argv[1]), storage=sys.argv[2], study_name="killed",
        resume=sys.argv[3] == "resume", tracking_uri=sys.argv[4], checkpoint_seconds=0.1,
    )
    print(result.run_id, result.lr)
    """


def start(folder: Path, store_uri: str, resume: str) -> subprocess.Popen[str]:
    storage = f"sqlite:///{folder / 'study.db'}"
    path = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, "-c", CODE, "60", storage, resume, store_uri],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "LRSEARCH_SPOOL": str(folder / "spool")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def spooled_losses(folder: Path) -> dict[str, dict[int, float]]:
    """What each trial's run in the spool has of the loss, by step."""
    return {
        run.header.uid: {
            record[2]: record[3]["train/loss"]
            for record in run.records()
            if record[0] == "m" and "train/loss" in record[3]
        }
        for run in Spool(folder / "spool").runs()
        if run.header.tags["lrsearch.kind"] == "trial"
    }


def test_a_killed_search_is_gone_on_with_in_one_run_and_loses_no_recorded_loss(
    tmp_path: Path, store_uri: str
) -> None:
    first = start(tmp_path, store_uri, "anew")
    end = time.monotonic() + 120
    while not any(len(losses) > 100 for losses in spooled_losses(tmp_path).values()):
        assert first.poll() is None, first.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    kept = {uid: losses for uid, losses in spooled_losses(tmp_path).items() if losses}
    assert len(kept) == 1

    second = start(tmp_path, store_uri, "resume")
    out, err = second.communicate(timeout=300)
    assert second.returncode == 0, err
    run_id = out.split()[0]

    client = MlflowClient(tracking_uri=store_uri)
    experiment = client.get_run(run_id).info.experiment_id
    runs: list[Any] = list(client.search_runs([experiment]))
    (study,) = [run for run in runs if run.data.tags["lrsearch.kind"] == "study"]
    assert study.info.run_id == run_id
    assert study.info.status == "FINISHED"
    (trial,) = [run for run in runs if run.data.tags["lrsearch.kind"] == "trial"]
    probes = [run for run in runs if run not in (study, trial)]
    assert {run.data.tags["lrsearch.kind"] for run in probes} == {"probe"}
    assert len({run.data.params["lr"] for run in probes}) == len(probes) > 1  # raced once
    ((uid, losses),) = kept.items()
    assert trial.data.tags["lrsearch.trial_uid"] == uid
    assert trial.data.tags["mlflow.parentRunId"] == run_id
    assert trial.info.status == "FINISHED"
    assert trial.data.tags["lrsearch.reason"].startswith("accepted")
    history = client.get_metric_history(trial.info.run_id, "train/loss")
    curve = {point.step: point.value for point in history}
    assert len(curve) == len(history)  # no step twice
    stride = sorted(curve)[1]
    assert sorted(curve) == list(range(0, int(trial.data.metrics["steps"]), stride))
    assert losses.items() <= curve.items()
    assert list((tmp_path / "spool").iterdir()) == []
