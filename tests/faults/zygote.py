"""Studies whose workers are killed again and again, each in a process of its own.

A process that imports torch and MLflow anew takes seconds; one that is forked takes none. So this
script imports everything once, computes nothing and starts no thread, and forks a process for each
life of a worker. Not pytest's own process: what that has run before is nobody's business here.

    python zygote.py FOLDER STORE SEED

``FOLDER`` takes the studies, ``STORE`` is an empty MLflow store to copy. What came out lies in
``FOLDER/story.pickle``: a dictionary of "undisturbed" (studies by the names of their plans),
"studies" and "phases" (all that were to be tried). Each study is the dictionary of a `Study`'s
attributes.
"""

from __future__ import annotations

import logging
import os
import pickle
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy.orm
from kills import PHASES, TIMER, Kill, may_strike

import lrsearch.engine.record
import lrsearch.engine.start
import lrsearch_integrations.mlflow_sync
from lrsearch import search
from lrsearch.engine import running
from lrsearch.engine.attempt import Attempt
from lrsearch.engine.progress import SilentWatcher
from lrsearch.engine.result import STEPS
from lrsearch.engine.workers.running import open_worker
from lrsearch.engine.workers.spec import Durability, WorkerSpec
from lrsearch.studies import reaper
from lrsearch.studies.attributes import PROBE
from lrsearch.studies.quiet import quiet_optuna
from lrsearch_integrations.mlflow_tracker import open_study_run

# A life that takes longer hangs: on a busy machine the longest takes a few seconds.
PATIENCE_SECONDS = 120.0
LIVES = 64
# What is imported with the first client, table, artifact or optimizer: once, not once a life.
LATE = (
    "git",
    "mlflow.store.tracking.sqlalchemy_store",
    "pyarrow.parquet",
    "sqlalchemy.dialects.sqlite",
    "torch._dynamo",
)
STOPPED = 3
NAME = "study"


@dataclass(frozen=True)
class Plan:
    """A study: the options of ``search``, and how far its first rate lies above the bound.

    ``kind`` is "race", "ladder", "tries" or "grid".
    """

    name: str
    kind: str
    options: dict[str, Any]
    factor: float = 1.0


PLANS = (
    Plan("ladder", "ladder", {"start": "bound", "epochs": 20}, 300.0),
    Plan("grid", "grid", {"method": "grid", "trials": 4, "epochs": 7}),
    Plan("another ladder", "ladder", {"start": "bound", "epochs": 20, "seed": 5}, 3000.0),
    Plan("tries", "tries", {"method": "lipschitz", "multipliers": (0.1, 1.0, 3.0), "epochs": 7}),
    Plan("race", "race", {"epochs": 20}),
)


@dataclass
class Study:
    """What became of a study.

    Attributes:
        plan: name of its plan.
        folder: where it is kept.
        died: the moments at which its workers were killed, in order.
        result: of the search that went on with it in the end, as plain values.
        steps: gradient steps that its workers took, and those that its trials account for.
        trouble: what went wrong with a life; "" if nothing.
    """

    plan: str
    folder: Path
    died: list[str] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    steps: tuple[int, int] = (0, 0)
    trouble: str = ""


class LifeError(Exception):
    """A life ended as none should."""


class Lives:
    """The lives of one study's workers.

    Args:
        plan: of the study.
        folder: of its own, made here.
        store: an empty MLflow store.
        rng: decides.
    """

    def __init__(self, plan: Plan, folder: Path, store: Path, rng: random.Random) -> None:
        self.plan, self._rng = plan, rng
        self.study = Study(plan.name, folder)
        (folder / "mlruns").mkdir(parents=True)
        shutil.copy(store, folder / "mlruns" / "mlflow.db")
        # Shared with all lives: what a process has counted in it outlives the process.
        self._steps = np.memmap(folder / "steps", dtype=np.int64, mode="w+", shape=(LIVES,))
        self._count = 0
        self._checkpoint_steps = rng.choice((3, 7, 20, 45))

    @property
    def begun(self) -> bool:
        """Whether the study is there, so that workers can join it."""
        return self._spec_file.exists()

    def fork(self, phase: str | None, nth: int = 1, *, seat: int = 0) -> int:
        """Begin a life that is to end at a moment; returns its process."""
        slot, self._count = self._count, self._count + 1
        begun = self.begun
        return fork(lambda: self._live(slot, phase, nth, begun, seat), self.study.folder)

    def finish(self) -> None:
        """Go on with the search itself, which reports; then have all sent that is left."""
        file = self.study.folder / "result.pickle"
        if not file.exists():
            wait_for(fork(self._report, self.study.folder))
        # Not in the search's own process: what its thread is sending would be left to it, and
        # the process ends. Locks of the dead are free.
        wait_for(fork(send_what_is_left, self.study.folder))
        kept = pickle.loads(file.read_bytes())
        self.study.result = kept
        self.study.steps = (int(self._steps.sum()), int(kept["steps"]))

    @property
    def _spec_file(self) -> Path:
        return self.study.folder / "spec.pickle"

    def _live(self, slot: int, phase: str | None, nth: int, begun: bool, seat: int) -> int:
        self._count_steps(slot)
        if phase is not None and phase != TIMER:
            PHASES[phase][0](Kill(nth))
        if not begun:
            self._keep_spec()
            return self._report()
        spec: WorkerSpec = pickle.loads(self._spec_file.read_bytes())
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        # A worker that died before it had a lease is missed soon.
        durability = Durability(
            spec.durability.folder,
            checkpoint_seconds=1000.0,
            beat_seconds=0.05,
            lease_seconds=0.4,
        )
        spec = replace(spec, durability=durability, placement=replace(spec.placement, number=seat))
        with open_worker(spec, watcher=SilentWatcher(), stop=stop) as worker:
            worker.objective.checkpoint_steps = self._checkpoint_steps
            return 0 if worker.run() else STOPPED

    def _report(self) -> int:
        result = self._search()
        with quiet_optuna():
            trials = result.study.get_trials(deepcopy=False)
        kept = {
            "answer": (result.lr, result.value, result.val_loss, result.train_loss),
            "stop_reason": result.stop_reason,
            "steps": sum(
                trial.user_attrs.get(STEPS, 0) for trial in trials if PROBE not in trial.user_attrs
            ),
            "run_id": result.run_id,
            "uid": result.study.user_attrs["lrsearch:run_uid"],
            "windows": result.windows,
            "trials": trials,
        }
        (self.study.folder / "result.pickle").write_bytes(pickle.dumps(kept))
        return 0

    def _search(self) -> Any:
        scale_bound(self.plan.factor)
        return search(
            "worker_tasks:line",
            storage=f"journal:{self.study.folder / 'study.journal'}",
            study_name=NAME,
            resume=True,
            checkpoint_seconds=0.02,
            tracking_uri=f"sqlite:///{self.study.folder / 'mlruns' / 'mlflow.db'}",
            **self.plan.options,
        )

    def _keep_spec(self) -> None:
        true = running.write_recipe

        def written(study: Any, spec: WorkerSpec) -> None:
            true(study, spec)
            side = self._spec_file.with_suffix(".tmp")
            side.write_bytes(pickle.dumps(spec))
            side.rename(self._spec_file)

        running.write_recipe = written

    def _count_steps(self, slot: int) -> None:
        true = Attempt.stepped

        def stepped(attempt: Attempt) -> None:
            self._steps[slot] += 1
            true(attempt)

        Attempt.stepped = stepped  # type: ignore[method-assign]


def send_what_is_left() -> int:
    """As ``lrsearch sync`` does."""
    lrsearch_integrations.mlflow_sync.sync_spool()
    return 0


def scale_bound(factor: float) -> None:
    """Have a search begin far above what trains, so that rungs are rejected."""
    true = lrsearch.engine.start.rate_bound

    def scaled(*arguments: Any) -> Any:
        bound = true(*arguments)
        return replace(bound, lr_max=bound.lr_max * factor)

    lrsearch.engine.start.rate_bound = scaled


def fork(body: Callable[[], int], folder: Path) -> int:
    """Run ``body`` in a process of its own, whose status it returns; its words go to a file."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.chdir(folder)
        log = os.open("lives.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        logging.basicConfig(format="%(process)d %(message)s", force=True)
        status = body()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait_for(
    process: int, seconds: float = PATIENCE_SECONDS, *, gently: bool = False
) -> int | None:
    """How a life ended: 0, ``STOPPED``, or -9; None if it still goes on, and may.

    Raises:
        LifeError: if it ended otherwise, or does not end.
    """
    end = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            if code not in (0, STOPPED, -signal.SIGKILL):
                raise LifeError(f"a life ended with status {code}")
            return code
        if time.monotonic() > end:
            if gently:
                return None
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            raise LifeError(f"a life did not end within {seconds:.0f} s")
        time.sleep(0.002)


class Fate:
    """Which moments are left to be tried.

    Args:
        phases: names, as often as each is to come.
        rng: decides.
    """

    def __init__(self, phases: list[str], rng: random.Random) -> None:
        self._left, self._rng = phases, rng
        self._vain: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self._left)

    def draw(self, kind: str) -> tuple[str, int] | None:
        """The next phase, and which of its moments; the first, if it came in vain before."""
        able = (place for place, phase in enumerate(self._left) if may_strike(phase, kind))
        place = next(able, None)
        if place is None:
            return None
        phase = self._left.pop(place)
        most = 1 if phase == TIMER or self._vain[phase] else PHASES[phase][1]
        return phase, self._rng.randint(1, most)

    def came_in_vain(self, phase: str) -> None:
        """It did not strike: another study gets it."""
        self._vain[phase] += 1
        self._left.insert(self._rng.randint(0, len(self._left)), phase)


def disturbed(lives: Lives, fate: Fate, rng: random.Random, most: int) -> None:
    """Kill the workers of a study ``most`` times, then let it end."""
    study = lives.study
    over = False
    while fate and not over and len(study.died) < most and lives._count < LIVES - 3:
        pair = lives.begun and len(study.died) > 1 and rng.random() < 0.25
        kind = lives.plan.kind
        drawn = [each for _ in range(1 + pair) if (each := fate.draw(kind)) is not None]
        if not drawn:
            break
        alive = [
            (lives.fork(phase, nth, seat=seat), phase) for seat, (phase, nth) in enumerate(drawn)
        ]
        for place, (process, phase) in enumerate(alive):
            if place:  # its fellow has died or is done: it is killed, or asked to end
                code = wait_for(process, rng.uniform(0.0, 0.5), gently=True)
                if code is None:
                    os.kill(process, rng.choice((signal.SIGKILL, signal.SIGTERM)))
                    code = wait_for(process)
                    if code == -signal.SIGKILL:
                        fate.came_in_vain(phase)
                        phase = TIMER
            elif phase == TIMER:
                code = wait_for(process, rng.uniform(0.05, 1.0), gently=True)
                if code is None:
                    os.kill(process, signal.SIGKILL)
                    code = wait_for(process)
            else:
                code = wait_for(process)
            if code == -signal.SIGKILL:
                study.died.append(phase)
            else:
                fate.came_in_vain(phase)
            over = over or (code == 0 and lives.begun)
    if not over:
        code = wait_for(lives.fork(None))
        if code != 0:
            raise LifeError(f"the last worker ended with status {code}")
    lives.finish()


def told(lives: Lives, run: Callable[[], None]) -> dict[str, Any]:
    """What became of a study, its trouble included."""
    try:
        run()
    except LifeError as trouble:
        lives.study.trouble = str(trouble)
    return vars(lives.study)


def coordinate(folder: Path, store: Path, seed: int, phases: list[str]) -> int:
    """Kill workers of one study after another at all of ``phases``."""
    rng = random.Random(seed)
    fate, studies = Fate(phases, rng), []
    for number in range(40):  # most end long before: a moment may come in vain again and again
        if not fate:
            break
        lives = Lives(PLANS[number % len(PLANS)], folder / f"study-{number}", store, rng)
        run = lambda lives=lives: disturbed(lives, fate, rng, rng.randint(8, 12))  # noqa: E731
        studies.append(told(lives, run))
    (folder / "studies.pickle").write_bytes(pickle.dumps(studies))
    return 0


def prepare() -> None:
    """All that every life needs."""
    for name in LATE:
        import_module(name)
    sqlalchemy.orm.configure_mappers()
    # What is drawn is the same after any kill if the curve is, and costs a second a study.
    sys.modules["matplotlib"] = sys.modules["plotly"] = None  # type: ignore[assignment]
    # Found by its entry point where the package is installed.
    lrsearch.engine.record.find_tracker = lambda name: open_study_run
    # A trial over which five workers died is given up: rightly, and not what is asked here.
    reaper.MAX_ATTEMPTS = 1000  # type: ignore[misc]


def main(folder: Path, store: Path, seed: int) -> None:
    """Tell a story."""
    prepare()
    rng = random.Random(seed)
    phases = [*PHASES, *PHASES, *([TIMER] * 8)]
    rng.shuffle(phases)
    # One for each of two cores.
    parts = [phases[::2], phases[1::2]]
    folders = [folder / f"part-{number}" for number in range(len(parts))]
    for each in folders:
        each.mkdir()
    processes = [
        fork(lambda n=n: coordinate(folders[n], store, seed + n, parts[n]), folders[n])
        for n in range(len(parts))
    ]
    undisturbed = {}
    for number, plan in enumerate(PLANS):
        lives = Lives(plan, folder / f"plan-{number}", store, rng)
        undisturbed[plan.name] = told(lives, lives.finish)
    for process in processes:
        wait_for(process, 5 * PATIENCE_SECONDS)
    studies = [
        study for each in folders for study in pickle.loads((each / "studies.pickle").read_bytes())
    ]
    assert threading.active_count() == 1
    story = {"undisturbed": undisturbed, "studies": studies, "phases": [*PHASES, TIMER]}
    (folder / "story.pickle").write_bytes(pickle.dumps(story))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
