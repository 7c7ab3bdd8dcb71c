"""Workers on a Ray cluster of two nodes for real: the answer of one, whoever dies."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pandas as pd
import pytest

pytest.importorskip("ray", exc_type=ImportError)
pytest.importorskip("mlflow", exc_type=ImportError)

import ray
from ray.cluster_utils import Cluster

from lrsearch import search
from lrsearch.engine.progress import SilentWatcher
from lrsearch.engine.result import DEVICE, SearchResult
from lrsearch.engine.workers.placement import Placement
from lrsearch.engine.workers.spec import Durability
from lrsearch.errors import InvalidArgumentError
from lrsearch.studies.leases import read_lease
from lrsearch.studies.reaper import died_over
from lrsearch.studies.storages import open_storage
from lrsearch.training.loop import Progress
from lrsearch_integrations import ray_crew
from lrsearch_integrations.mlflow_api import MlflowClient

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
OTHER = "127.0.0.3"  # the second node's address: another machine, as far as Ray can see
# Far above what trains: rungs are rejected before one is accepted.
FACTOR = 30.0
ACCEPTED = 4
# Long enough to be met in the middle: the mailbox takes seconds until the first word is heard.
LONG = 100
SMALL = {
    "num_cpus": 1,
    "object_store_memory": 80_000_000,
    "include_dashboard": False,
    "include_log_monitor": False,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of one core each; every pytest worker that needs it has its own."""
    paths = [ROOT, ROOT / "integrations", ROOT / "tests" / "helpers"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
        patch.setenv("OMP_NUM_THREADS", "1")
        made = Cluster(initialize_head=True, head_node_args=SMALL)
        made.add_node(**SMALL, node_ip_address=OTHER)
        patch.setenv("RAY_ADDRESS", made.address)
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def run(
    cluster: Cluster,
    tmp_path: Path,
    scale_bound: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., SearchResult]:
    scale_bound(FACTOR)
    entry = EntryPoint("ray", "lrsearch_integrations.ray_crew:RayCrew", "lrsearch.crews")
    monkeypatch.setattr("lrsearch.engine.workers.crew.entry_points", lambda **_: [entry])

    def started(task: str, **options: Any) -> SearchResult:
        if options.get("workers") == "ray":
            options.setdefault("storage", f"journal:{tmp_path / 'study.journal'}")
        options.setdefault("tracker", "none")
        # A ladder from the bound: a race before it would leave the crew little to do.
        return search(f"worker_tasks:{task}", **{"start": "bound"} | options)

    return started


@pytest.fixture
def connected(cluster: Cluster) -> None:
    """The program has called ``ray.init`` itself; left so, since Ray keeps its processes warm."""
    ray.init(address=cluster.address, log_to_driver=False, ignore_reinit_error=True)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Where studies were served to other machines."""
    places: list[tuple[str, int]] = []
    real = ray_crew.serve

    @contextmanager
    def noted(storage: Any, host: str) -> Iterator[int]:
        with real(storage, host) as port:
            places.append((host, port))
            yield port

    monkeypatch.setattr(ray_crew, "serve", noted)
    return places


def answer(result: SearchResult) -> tuple[Any, ...]:
    return result.lr, result.value, result.val_loss, result.train_loss


def assert_same(many: SearchResult, one: SearchResult) -> None:
    """Rung for rung the same trials and windows, as far as one worker gets; none half done."""
    assert answer(many) == answer(one)
    assert len(one.trials) > 3
    assert set(many.trials["state"]) <= {"COMPLETE", "PRUNED"}
    for number, row in one.trials.iterrows():
        other = many.trials.iloc[number]
        assert (other["lr"], other["state"]) == (row["lr"], row["state"])
        pd.testing.assert_frame_equal(of(many, number), of(one, number))
    lower = many.trials.iloc[len(one.trials) :]
    assert all(lower["reason"].str.startswith("dominated"))


def of(result: SearchResult, number: int) -> pd.DataFrame:
    rows = result.windows[result.windows["trial"] == number]
    return rows.reset_index(drop=True)


def states(tmp_path: Path, name: str) -> list[str]:
    study = optuna.load_study(
        study_name=name, storage=open_storage(f"journal:{tmp_path / 'study.journal'}")
    )
    return [trial.state.name for trial in study.trials]


@pytest.mark.usefixtures("connected")
def test_two_nodes_find_what_one_worker_finds_and_record_it(
    run: Callable[..., SearchResult],
    served: list[tuple[str, int]],
    store_uri: str,
    tmp_path: Path,
) -> None:
    notes: list[str] = []
    ended: list[str] = []

    class Watcher(SilentWatcher):
        def noted(self, text: str) -> None:
            notes.append(text)

        def trial_ended(self, name: str, state: str, reason: str) -> None:
            ended.append(state)

    one = run("line")
    many = run(
        "slow_line", workers="ray", tracker="mlflow", tracking_uri=store_uri, watcher=Watcher()
    )
    assert_same(many, one)
    nodes = {str(trial.user_attrs[DEVICE]) for trial in many.study.trials}
    (host, port), *more = served
    assert nodes == {f"cpu of {host}", f"cpu of {OTHER}"}
    # Our pruner was asked: Ray Tune's own use of Optuna never does.
    rejected = many.trials.loc[many.trials["state"] == "PRUNED", "reason"]
    assert list(rejected).count("diverged") >= 3

    client = MlflowClient(store_uri)
    parent = client.get_run(many.run_id)
    runs = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{many.run_id}'"
    )
    assert sorted(int(each.data.params["number"]) for each in runs) == list(many.trials.index)
    assert {each.info.status for each in runs} == {"FINISHED", "KILLED"}
    assert any("other machines" in note for note in notes)
    assert len(ended) >= len(many.trials)

    # Nothing that was begun for the search is left.
    assert not more
    with pytest.raises(ConnectionError), socket.create_connection((host, port), timeout=5):
        pass
    assert not list(tmp_path.glob("*.checkpoints/*"))


@pytest.mark.usefixtures("connected")
def test_the_trial_of_a_killed_process_goes_on(
    run: Callable[..., SearchResult], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    killed: list[int] = []

    class Killer(SilentWatcher):
        def trial_moved(self, progress: Progress) -> None:
            study = optuna.load_study(
                study_name="k", storage=open_storage(f"journal:{tmp_path / 'study.journal'}")
            )
            # The one that will be accepted: it trains for seconds.
            for trial in study.trials[ACCEPTED : ACCEPTED + 1]:
                lease = read_lease(trial)
                kept = list(tmp_path.glob(f"*.checkpoints/*/trial-{ACCEPTED}.pt"))
                if lease is not None and kept and not killed:
                    killed.append(lease.process.pid)
                    os.kill(lease.process.pid, signal.SIGKILL)

    one = run("line", epochs=LONG)
    many = run(
        "slow_line",
        epochs=LONG,
        workers="ray",
        study_name="k",
        checkpoint_seconds=0.05,
        watcher=Killer(),
    )
    assert killed
    assert killed != [os.getpid()]
    assert_same(many, one)
    assert died_over(many.study.trials[ACCEPTED]) == 1
    assert "its trial goes on from its last checkpoint" in caplog.text


@pytest.mark.usefixtures("connected")
def test_what_always_fails_ends_the_study_with_the_users_own_error(
    run: Callable[..., SearchResult], tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="the user's own trouble") as told:
        run("broken_line", workers="ray", study_name="b", max_failures=2)
    assert "in forward" in "".join(told.value.__notes__)
    found = states(tmp_path, "b")
    assert found.count("FAIL") >= 2
    assert "RUNNING" not in found
    assert ray.is_initialized()  # the program's own stays


@pytest.mark.usefixtures("connected")
def test_ctrl_c_keeps_the_trials_and_resume_goes_on(
    run: Callable[..., SearchResult], tmp_path: Path
) -> None:
    class Interrupter(SilentWatcher):
        def trial_moved(self, progress: Progress) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("slow_line", epochs=LONG, workers="ray", study_name="c", watcher=Interrupter())
    found = states(tmp_path, "c")
    assert "WAITING" in found
    assert "RUNNING" not in found
    assert list(tmp_path.glob("*.checkpoints/*/*"))
    storage = f"journal:{tmp_path / 'study.journal'}"
    rest = run("slow_line", epochs=LONG, study_name="c", resume=True, storage=storage)
    assert_same(rest, run("line", epochs=LONG))


@pytest.mark.usefixtures("connected")
def test_a_task_has_the_gpu_that_ray_gives_it(cluster: Cluster) -> None:
    node = cluster.add_node(**SMALL, node_ip_address="127.0.0.4", num_gpus=1)
    try:
        count, options = ray_crew._shares(ray.cluster_resources(), 2)
        assert (count, options) == (2, {"num_cpus": 1, "num_gpus": 0.5})

        @ray.remote(**options)
        def look() -> tuple[Placement, str | None]:
            return ray_crew._here(7), os.environ.get("CUDA_VISIBLE_DEVICES")

        seat, visible = ray.get(look.remote())
        assert seat == Placement(7, "cuda:0", "cuda:0 of 127.0.0.4", threads=1)
        assert visible == "0"
    finally:
        cluster.remove_node(node)


def test_a_cluster_that_is_joined_for_a_search_is_left_after_it(cluster: Cluster) -> None:
    ray.shutdown()
    with ray_crew._cluster():  # that of RAY_ADDRESS
        assert ray.cluster_resources()["CPU"] == 2
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("resources", "per_device", "count", "gpu"),
    [
        ({"CPU": 6.0}, 3, 6, 0),
        ({"CPU": 6.0, "GPU": 4.0}, 1, 4, 1.0),
        ({"CPU": 6.0, "GPU": 4.0}, 3, 12, 1 / 3),
        ({"memory": 1e9}, 1, 1, 0),
    ],
)
def test_a_cluster_is_shared_out(
    resources: dict[str, float], per_device: int, count: int, gpu: float
) -> None:
    assert ray_crew._shares(resources, per_device) == (count, {"num_cpus": 1, "num_gpus": gpu})


@pytest.mark.parametrize(
    ("machines", "storage"),
    [({"10.0.0.1"}, "journal:study.journal"), ({"10.0.0.1", "10.0.0.2"}, "postgresql://h/db")],
)
def test_what_all_workers_reach_is_not_served(
    monkeypatch: pytest.MonkeyPatch, machines: set[str], storage: str
) -> None:
    class Deaf(SilentWatcher):
        def noted(self, text: str) -> None:
            pytest.fail(text)

    monkeypatch.setattr(ray_crew, "_machines", lambda: machines)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.1")
    kept = SimpleNamespace(storage=storage, tracking_uri="http://server:5000")
    with ray_crew._reachable(kept, Deaf()) as shared:
        assert shared is kept


def test_an_address_that_is_not_ours_cannot_be_served_at(tmp_path: Path) -> None:
    storage = open_storage(f"journal:{tmp_path / 'study.journal'}")
    with pytest.raises(InvalidArgumentError, match="no address of this machine"):
        ray_crew.serve(storage, "192.0.2.77").__enter__()


@pytest.mark.parametrize("blocked", [False, True])
def test_a_machine_that_cannot_have_the_studys_folder_has_its_own(
    tmp_path: Path, blocked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "other"))
    folder = tmp_path / "home" / "checkpoints"
    if blocked:
        (tmp_path / "home").write_text("no folder")
    spec = SimpleNamespace(durability=Durability(folder), uid="f00d")
    expected = tmp_path / "other" / "lrsearch-f00d" if blocked else folder
    assert ray_crew._durability(spec) == replace(spec.durability, folder=expected)
