"""``lrsearch sync``: what it says, in words and in JSON, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("mlflow", exc_type=ImportError)

from lrsearch.cli.main import main
from lrsearch_integrations.mlflow_api import MlflowClient
from lrsearch_integrations.spool import Header, Spool


def leave(folder: Path, uri: str, uid: str = "u") -> None:
    """A run of a process that is gone."""
    run = Spool(folder).begin(Header(uid, uri, "left", "trial", {"who": "me"}, 1000))
    run.write("m", 2000, 7, {"train/loss": 0.25})
    run.release()


def test_nothing_waits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "spool").mkdir()
    assert main(["sync", "--spool", str(tmp_path / "spool")]) == 0
    assert capsys.readouterr().out == "Nothing waits.\n"


def test_what_was_left_is_sent_and_told(
    tmp_path: Path, store_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    leave(tmp_path / "spool", store_uri)
    assert main(["sync", "--spool", str(tmp_path / "spool"), "--json", "-"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report == {
        "tracking_uri": store_uri,
        "sent": 1,
        "left": 0,
        "alive": 0,
        "trouble": "",
    }
    client = MlflowClient(tracking_uri=store_uri)
    experiment = client.get_experiment_by_name("left")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.start_time) == ("FAILED", 1000)
    assert run.data.tags["who"] == "me"
    (point,) = client.get_metric_history(run.info.run_id, "train/loss")
    assert (point.timestamp, point.step, point.value) == (2000, 7, 0.25)


def test_a_run_whose_last_line_a_kill_has_torn_is_closed(tmp_path: Path, store_uri: str) -> None:
    folder = tmp_path / "spool"
    leave(folder, store_uri)
    (run,) = Spool(folder).runs()
    with (run.folder / "records.jsonl").open("ab") as file:
        file.write(b'["m",2000,8,{"train')
    assert main(["sync", "--spool", str(folder)]) == 0
    client = MlflowClient(tracking_uri=store_uri)
    experiment = client.get_experiment_by_name("left")
    assert experiment is not None
    (stored,) = client.search_runs([experiment.experiment_id])
    assert stored.info.status == "FAILED"
    assert stored.data.metrics == {"train/loss": 0.25}
    assert list(Spool(folder).runs()) == []


def test_a_store_that_is_away_leaves_it_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave(tmp_path / "spool", "http://127.0.0.1:9")
    assert main(["sync", "--spool", str(tmp_path / "spool")]) == 1
    out, err = capsys.readouterr()
    assert out == "http://127.0.0.1:9: 0 runs sent, 1 left\n"
    assert err.startswith("lrsearch: http://127.0.0.1:9: ")
    assert len(list((tmp_path / "spool").iterdir())) == 1


def test_only_what_is_meant_for_a_store_is_sent(
    tmp_path: Path, store_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    leave(tmp_path / "spool", store_uri, "a")
    leave(tmp_path / "spool", "http://127.0.0.1:9", "b")
    options = ["--spool", str(tmp_path / "spool"), "--tracking-uri", store_uri]
    assert main(["sync", *options]) == 0
    assert capsys.readouterr().out == f"{store_uri}: 1 runs sent, 0 left\n"


def test_a_folder_that_is_not_there_is_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sync", "--spool", str(tmp_path / "none")]) == 2
    assert "--spool: no folder" in capsys.readouterr().err
