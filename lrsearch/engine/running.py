"""``search``: one study of one method on one task, from the data to the answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import optuna
import pandas as pd
from torch import nn

from lrsearch.engine.drawing import log_study
from lrsearch.engine.memory import out_of_memory
from lrsearch.engine.progress import SearchWatcher, SilentWatcher
from lrsearch.engine.provenance import data_record
from lrsearch.engine.race import race_steps, record_race
from lrsearch.engine.record import describe, log_failure, open_run, report
from lrsearch.engine.request import Prepared, SearchRequest, prepare
from lrsearch.engine.result import SearchResult, choose, total_steps, trials_table, window_rows
from lrsearch.engine.storage import Keeping, begin_study, keeping
from lrsearch.engine.workers.crew import Crew, checked_crew, checked_device, race_device
from lrsearch.engine.workers.joining import kept_start, write_recipe
from lrsearch.engine.workers.keepsakes import Keepsake, Keepsakes
from lrsearch.engine.workers.loop import Worker
from lrsearch.engine.workers.placement import ANYWHERE
from lrsearch.engine.workers.running import make_worker, title_of
from lrsearch.engine.workers.sharing import save_data
from lrsearch.engine.workers.signals import interruptible
from lrsearch.engine.workers.spec import Durability, WorkerSpec, require_portable
from lrsearch.errors import InvalidArgumentError, LrsearchError, require_positive, require_whole
from lrsearch.figures.description import Figure
from lrsearch.stats.convergence import Mode
from lrsearch.studies.attributes import STOP_REASON
from lrsearch.studies.quiet import quiet_optuna
from lrsearch.studies.storages import masked
from lrsearch.tracking import NullRun, RunTracker
from lrsearch.training.loop import build_model
from lrsearch.training.task import TaskData, TrainingTask

EXPERIMENT = "lrsearch"


def search(
    task: TrainingTask | str,
    *,
    method: str = "exptest",
    mode: Mode = "robust",
    alpha: float = 0.05,
    beta: float = 0.33,
    epochs: int | None = None,
    batch_size: int | None = None,
    optimizer: str | None = None,
    seed: int = 0,
    trials: int | None = None,
    workers: int | str | Sequence[str] = 1,
    per_device: int = 1,
    device: str = "cpu",
    storage: str | None = None,
    study_name: str | None = None,
    resume: bool = False,
    checkpoint_dir: str | PathLike[str] | None = None,
    checkpoint_seconds: float = 30.0,
    max_failures: int = 3,
    tracking_uri: str | None = None,
    tracker: str = "auto",
    experiment: str = EXPERIMENT,
    data_dir: str | PathLike[str] | None = None,
    watcher: SearchWatcher | None = None,
    start: str | None = None,
    multipliers: Sequence[float] | None = None,
    anneal: float | None = None,
    guard: bool | None = None,
    race: Mapping[str, Any] | None = None,
    log_model: bool = False,
) -> SearchResult:
    """Search the learning rate of a task with one method.

    Args:
        task: a ``TrainingTask``, a built-in name (``lrsearch tasks``), or
            "package.module:attribute".
        method: "exptest", "lipschitz" (1 / L, renewed each epoch), "grid" (nine log points around
            the bound), "random" or "tpe" (with median pruning). Each is charged for every gradient
            step, and chooses by the validation loss.
        mode, alpha, beta: of ExpTest.
        epochs, batch_size, optimizer: override the task's own.
        seed: of the split, the weights, the batches and the sampler.
        trials: most trials; default: the method's own.
        workers: trials at the same time: a number of processes on the CPU; "cuda" for one on each
            CUDA device, or such devices ("cuda:0,2"); "ray" for tasks of a Ray cluster. 1 trains in
            this process. Others join by ``lrsearch worker``. The answer is that of one worker.
        per_device: workers on each CUDA device.
        device: of a single worker: "cpu" or a CUDA device.
        storage: where the study is kept: "journal:FILE", or an Optuna storage URL. By default in
            memory; with several workers a journal in ./mlruns/studies.
        study_name: of the Optuna study.
        resume: go on with the study of that name, inside the trials that were under way.
        checkpoint_dir: folder of the trials' checkpoints; default: beside the storage's file, else
            ./mlruns/checkpoints. Workers on several machines go on with each other's trials where
            they share it.
        checkpoint_seconds: at most so much training is lost when a worker dies.
        max_failures: a trial that raises is failed, and the study goes on; so many in a row end it.
        tracking_uri: the tracker's store; default: its own.
        tracker: "auto" (MLflow if installed), "none", or the name of a registered tracker.
        experiment: the tracker's experiment.
        data_dir: folder with data files of built-in tasks.
        watcher: is told how it goes.
        start: where ExpTest's ladder starts: "race" (of short probes from the same weights on the
            same batches; default), "bound" (of the data; default in mode "paper") or "lipschitz":
            1 / L of the first batch. With method "lipschitz": None for the papers' method, without
            a test; "lipschitz" hands 1 / L to ExpTest, which rejects it where it is too high.
        multipliers: factors of 1 / L (mode "paper" with momentum: AdaMo's x). Several are tried for
            five epochs each, and the best by validation loss is trained in full. Default: 1; for
            momentum 1, 3 and 10, in mode "paper" 0.1, 0.5 and 1. With ``start`` there may be one.
        anneal: in mode "robust", share of the steps at the end over which ExpTest's rate falls to 0
            by a line; default 0.4, 0 for none.
        guard: in mode "robust", keep the weights of the best validation metric, and lower
            ExpTest's rate where the validation loss is shown to rise; default True.
        race: options of the race, as ``lrsearch.controllers.race.RaceSettings`` has them.
        log_model: store the chosen trial's model in the tracker, with its signature.

    Returns:
        What was found; ``lr`` is NaN if no trial was completed. "lipschitz" renews the rate, so
        ``lr`` is that of the first epoch, ``trials["lr_final"]`` the last.

    Raises:
        ValueError, TypeError: on bad input, in one line.
        MissingDataError: if the task's data are not to be had.
        KeyboardInterrupt: after Ctrl-C; a study in a storage can be gone on with.
    """
    # All of the user's words are read before any data are loaded: bad ones cost nothing.
    request = SearchRequest(
        task=task,
        method=method,
        mode=mode,
        alpha=alpha,
        beta=beta,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        seed=seed,
        trials=trials,
        data_dir=data_dir,
        start=start,
        multipliers=multipliers,
        anneal=anneal,
        guard=guard,
        race=race,
    )
    require_positive("checkpoint_seconds", checkpoint_seconds)
    if require_whole("max_failures", max_failures) < 1:
        raise InvalidArgumentError(f"max_failures must be at least 1, got {max_failures!r}")
    crew = checked_crew(workers, per_device)
    device = checked_device(device, crew)
    if crew is not None:
        require_portable(request)
    chosen = request.resolved()
    kept = keeping(
        storage,
        study_name,
        resume=resume,
        several=crew is not None,
        default_name=f"{chosen.name}-{method}-{seed}",
        folder=checkpoint_dir,
    )
    told = watcher or SilentWatcher()
    began = time.perf_counter()
    # Others are found again for little.
    known = kept_start(kept) if kept.resumed and request.start == "race" else None
    address = (tracker, experiment, title_of(request, chosen), tracking_uri, method)
    try:
        prepared = prepare(request, chosen, start=known, device=race_device(device, crew))
    except LrsearchError:
        raise  # nothing of the user's own was run
    except Exception as error:  # of the user's data or model: on record, as a trial's is
        cause = out_of_memory(error, chosen, None)
        failed = open_run(*address, uid=kept.uid)
        log_failure(failed, cause)
        failed.finish("failed")
        raise cause from (None if cause is error else error)
    if prepared.start.note:
        told.noted(prepared.start.note)
    spent = time.perf_counter() - began
    # The tracker before the study: if its store cannot be opened, no study's name is taken.
    run = open_run(*address, uid=kept.uid)
    recorded = type(run) is not NullRun  # one built on it may record
    # The bound is part of the price; the tracker's one-off start is not, and no figure is.
    began = time.perf_counter() - spent
    finished = False
    try:
        study = begin_study(prepared, kept, resume=resume)
        seen = data_record(prepared.data) if recorded else None
        describe(run, prepared, seen, resumed=kept.resumed)
        if prepared.start.race is not None:
            record_race(study, prepared, run, uid=kept.uid, seen=seen, device=device)
        work = _Work(
            prepared,
            kept,
            run,
            told,
            log_model,
            max_failures,
            float(checkpoint_seconds),
            (tracker, tracking_uri, experiment),
        )
        if kept.url is not None:
            write_recipe(study, work.spec(study))
        if crew is not None:
            told.noted(f"study {study.study_name} is kept in {masked(kept.url)}")
        if crew is None:
            work.here(study, device)
        else:
            work.with_crew(study, crew)
        seconds = time.perf_counter() - began - work.drawing_seconds
        result = _result(prepared, study, run, seconds, work.windows(study))
        report(run, result, study)
        if recorded:
            log_study(run, result, prepared.start, work.figure(study))
        if log_model:
            work.log_model(study)
        finished = True
    except KeyboardInterrupt:
        run.set_tags({"lrsearch.stop_reason": "interrupted"})
        if kept.url is None:
            raise
        raise KeyboardInterrupt(
            f"go on with --resume --study-name {study.study_name} --storage {masked(kept.url)}"
        ) from None
    except Exception as error:
        log_failure(run, error)
        raise
    finally:
        run.finish("complete" if finished else "failed")
    kept.discard()  # all that it held is on record
    return result


@dataclass(slots=True)
class _Work:
    """The trials of a study, run here or by a crew, and what they left.

    ``record`` is the tracker, its store, and the experiment, as the user has named them.
    """

    prepared: Prepared
    kept: Keeping
    run: RunTracker
    watcher: SearchWatcher
    keep_model: bool
    max_failures: int
    checkpoint_seconds: float
    record: tuple[str, str | None, str]
    drawing_seconds: float = 0.0
    worker: Worker | None = None

    def here(self, study: optuna.Study, device: str) -> None:
        """Run the trials in this process."""
        stop = threading.Event()
        self.worker = make_worker(
            self.prepared,
            study,
            self.run,
            watcher=self.watcher,
            uid=self.kept.uid,
            keep_model=self.keep_model,
            device=device,
            max_failures=self.max_failures,
            durable=self._durability(),
            stop=stop,
        )
        durable = self.kept.folder is not None
        with quiet_optuna(), interruptible(stop) if durable else nullcontext():
            done = self.worker.run()
        self.drawing_seconds = self.worker.objective.drawing_seconds
        if not done:
            raise KeyboardInterrupt

    def with_crew(self, study: optuna.Study, crew: Crew) -> None:
        """Have several workers run them."""
        spec = self.spec(study)
        spec.durability.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if type(self.prepared.data) is TaskData:  # of a user's own kind each loads its own
            data_file = spec.durability.folder / "data.pt"
            save_data(self.prepared.data, data_file)
            spec = replace(spec, data_file=data_file)
        crew.run(spec, self.watcher)

    def spec(self, study: optuna.Study) -> WorkerSpec:
        """What another worker has to know."""
        durability, kept = self._durability(), self.kept
        assert durability is not None
        assert kept.url is not None
        tracker, tracking_uri, experiment = self.record
        recorded = type(self.run) is not NullRun
        return WorkerSpec(
            request=self.prepared.request,
            start=self.prepared.start,
            storage=kept.url,
            study_name=study.study_name,
            uid=kept.uid,
            tracker=tracker if recorded else "none",
            tracking_uri=self.run.tracking_uri if recorded else tracking_uri,
            experiment=experiment,
            data_file=None,
            placement=ANYWHERE,
            keep_model=self.keep_model,
            max_failures=self.max_failures,
            durability=durability,
        )

    def windows(self, study: optuna.Study) -> pd.DataFrame:
        """The windows of all trials: whole where they can be had, else as the study has them."""
        rows: list[dict[str, Any]] = []
        own = [] if self.worker is None else self.worker.objective.windows
        for trial in study.get_trials(deepcopy=False):
            kept = self._keepsake(trial.number)
            mine = [row for row in own if row["trial"] == trial.number]
            rows += mine or (window_rows(trial) if kept is None else kept.windows)
        return pd.DataFrame(rows)

    def figure(self, study: optuna.Study) -> Figure | None:
        """Of the chosen trial; None if it has none, or another machine has it."""
        number = choose(self.prepared.task, study).number
        kept = None if number is None else self._keepsake(number)
        if kept is not None and kept.figure is not None:
            return kept.figure
        return None if self.worker is None else self.worker.objective.chosen_figure

    def log_model(self, study: optuna.Study) -> None:
        """Store the chosen trial's model; say why not, where another machine has trained it."""
        model = self._model(study)
        if model is None:
            self.run.set_tags({"lrsearch.model": "none: another machine trained the chosen trial"})
            return
        self.run.log_model("model", model.cpu().eval(), self.prepared.data.train.inputs[:2])
        self.run.set_tags({"lrsearch.model": "model"})

    def _model(self, study: optuna.Study) -> nn.Module | None:
        choice = choose(self.prepared.task, study)
        kept = None if choice.number is None else self._keepsake(choice.number)
        if kept is not None and kept.weights is not None:
            model = build_model(self.prepared.task, self.prepared.data, self.prepared.request.seed)
            model.load_state_dict(kept.weights)
            return model
        objective = None if self.worker is None else self.worker.objective
        if objective is None or objective.model_loss != choice.val_loss:
            return None
        return objective.chosen_model

    def _keepsake(self, number: int) -> Keepsake | None:
        return None if self.kept.folder is None else Keepsakes(self.kept.folder).of(number)

    def _durability(self) -> Durability | None:
        if self.kept.folder is None:
            return None
        return Durability(self.kept.folder, self.checkpoint_seconds, beat_seconds=self.kept.beat)


def _result(
    prepared: Prepared, study: optuna.Study, run: RunTracker, seconds: float, windows: pd.DataFrame
) -> SearchResult:
    task, request, start = prepared.task, prepared.request, prepared.start
    choice = choose(task, study)
    reason = study.user_attrs.get(STOP_REASON)
    return SearchResult(
        task=task.name,
        method=request.method,
        mode=request.mode,
        seed=request.seed,
        metric=task.metric,
        direction=task.direction,
        lr=choice.lr,
        value=choice.value,
        oracle_value=choice.oracle_value,
        val_loss=choice.val_loss,
        train_loss=choice.train_loss,
        steps=total_steps(study) + race_steps(study),
        seconds=seconds,
        stop_reason=str(reason) if reason else "all trials done",
        study=study,
        trials=trials_table(study),
        windows=windows,
        run_id=run.run_id,
        tracking_uri=run.tracking_uri,
        start=start.kind,
        start_note=start.note,
    )
