"""One Optuna study on its way to MLflow: its run, and a nested run for each trial."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Set
from typing import Final

import optuna
from optuna.trial import FrozenTrial

from lrsearch_integrations.mlflow_delivery import PARENT, UID
from lrsearch_integrations.mlflow_sender import Sender
from lrsearch_integrations.mlflow_store import context_tags
from lrsearch_integrations.mlflow_tracker import MlflowRun
from lrsearch_integrations.mlflow_values import TAG_LENGTH, texts
from lrsearch_integrations.optuna_words import (
    NUMBER,
    STATUS,
    best,
    counts,
    first_start,
    milliseconds_of,
    study_tags,
    table,
    trial_key,
    trial_tags,
    trial_values,
)
from lrsearch_integrations.spool import Header, milliseconds, new_uid

SHOW_SECONDS: Final = 2.0


class StudyLog:
    """Writes what one process knows of a study.

    Other processes may write to the same runs: the store is searched for a run of its key before
    one is created, and what is written twice (with the trial's own times) is stored once.

    Args:
        sender: to the store.
        study: any Optuna study of which a trial has begun.
        key: the study's name among all studies.
        experiment: created if the store has none of this name.
        name: how the study's run is shown.
        tags: short texts for it.
        intermediate: metric of the trials' intermediate values.
    """

    def __init__(
        self,
        sender: Sender,
        study: optuna.Study,
        key: str,
        *,
        experiment: str,
        name: str,
        tags: Mapping[str, object],
        intermediate: str,
    ) -> None:
        self._sender = sender
        self.study = study
        self._key = key
        self._experiment = experiment
        self._intermediate = intermediate
        self._lock = threading.RLock()
        self._open: dict[str, tuple[MlflowRun, int]] = {}
        self._done: set[str] = set()
        self._shown_at, self._shown = 0.0, 0
        about = study_tags(study)
        self._method = {"lrsearch.method": about["lrsearch.method"]}
        own = {"lrsearch.kind": "study", **tags}
        # Each process has a spooled run of its own; the key makes them one in the store.
        uid = f"{key}-{os.getpid()}-{new_uid()[:8]}"
        start = milliseconds_of(first_start(study))
        self.run = MlflowRun(sender, self._header(uid, key, name, own, start))
        self.run.set_tags({**about, **own})  # a run that was there before has older ones

    def open(self, trial: optuna.Trial) -> MlflowRun:
        """Open the run of a trial that is being run."""
        key = trial_key(self._key, trial.number, trial.datetime_start)
        with self._lock:
            if key not in self._open:
                run = self._child(key, trial.number, milliseconds_of(trial.datetime_start))
                self._open[key] = (run, trial.number)
            return self._open[key][0]

    def record(
        self, study: optuna.Study, trial: FrozenTrial, stored: Set[str] = frozenset()
    ) -> bool:
        """Write a finished trial and close its run; False if that was done before.

        Args:
            study: the trial's study.
            trial: complete, pruned or failed.
            stored: keys of trials that the store has.

        Raises:
            RunTakenError: if another process is at it.
            SpoolError: if it cannot be written.
        """
        key = trial_key(self._key, trial.number, trial.datetime_start)
        start = milliseconds_of(trial.datetime_start)
        with self._lock:
            opened = self._open.get(key)
            if key in self._done or (key in stored and opened is None):
                return False
            run = self._child(key, trial.number, start) if opened is None else opened[0]
            self._open.pop(key, None)
            self._done.add(key)
        end = milliseconds_of(trial.datetime_complete) or milliseconds()
        run.log_params(trial.params)
        run.set_tags(trial_tags(trial))
        # Optuna keeps no times of reports. Any that is the same for whoever writes them will do.
        for step, value in sorted(trial.intermediate_values.items()):
            run.log_metrics({self._intermediate: value}, step, timestamp=end)
        values = trial_values(study, trial)
        if values:
            run.log_metrics(values, 0, timestamp=end)
        run.finish(STATUS[trial.state], end_time=end, wait=False)
        return True

    def show(self, study: optuna.Study, *, now: bool = False) -> None:
        """Bring the study's run up to date, every other second at most unless ``now``."""
        with self._lock:
            due = time.monotonic() - self._shown_at >= SHOW_SECONDS
            if not (now or due):
                return
            self._shown_at = time.monotonic()
        trials = study.get_trials(deepcopy=False)
        self._shown = _finished(trials)
        tags: dict[str, object] = {**counts(trials)}
        if now or len(study.directions) == 1:  # a Pareto front takes long to find
            metrics, more = best(study)
            tags |= more
            if metrics:
                self.run.log_metrics(metrics, self._shown)
        self.run.set_tags(tags)

    def complete(self) -> None:
        """End the trials that nobody has ended, and write the last state of the study."""
        trials = self.study.get_trials(deepcopy=False)
        finished = {trial.number: trial for trial in trials if trial.state in STATUS}
        with self._lock:
            opened = dict(self._open)
        for key, (run, number) in opened.items():
            if number in finished:
                self.record(self.study, finished[number])
            else:
                self._open.pop(key, None)
                run.set_tags({"lrsearch.reason": "the study ended before the trial"})
                run.finish("failed", wait=False)
        if trials:
            self.refresh()

    def refresh(self) -> None:
        """Write the present state of the study, with the table of its trials."""
        self.show(self.study, now=True)
        self.run.log_table("study", table(self.study))

    @property
    def outdated(self) -> bool:
        """Whether other processes have ended trials since the state was written.

        Theirs may have reached the store before this process's older one, and be gone.
        """
        return self._shown != _finished(self.study.get_trials(deepcopy=False))

    def stored(self) -> set[str]:
        """Keys of the trials that the store has whole; none while it does not answer."""
        client, run_id = self._sender.connection.client, self.run.run_id
        found: set[str] = set()
        if not run_id:
            return found

        def look() -> None:
            experiment, token = client.get_run(run_id).info.experiment_id, None
            children = f"tags.`{PARENT}` = '{run_id}'"
            while True:
                page = client.search_runs(
                    [experiment], children, max_results=1000, page_token=token
                )
                found.update(
                    run.data.tags[UID]
                    for run in page
                    if run.info.status != "RUNNING" and {UID, NUMBER} <= run.data.tags.keys()
                )
                token = page.token
                if not token:
                    return

        self._sender.connection.write(look, "list the trials of a study")
        return found

    def _child(self, key: str, number: int, start: int | None) -> MlflowRun:
        tags = {"lrsearch.kind": "trial", **self._method}
        header = self._header(key, key, f"trial-{number}", tags, start, parent=self.run.uid)
        return MlflowRun(self._sender, header)

    def _header(
        self,
        uid: str,
        key: str,
        name: str,
        tags: Mapping[str, object],
        start: int | None,
        *,
        parent: str = "",
    ) -> Header:
        return Header(
            uid=uid,
            key=key,
            tracking_uri=self._sender.connection.uri,
            experiment=self._experiment,
            name=name,
            tags={**context_tags(), **texts(tags, TAG_LENGTH)},
            start_time=milliseconds() if start is None else start,
            parent=parent,
        )


def _finished(trials: list[FrozenTrial]) -> int:
    return sum(trial.state in STATUS for trial in trials)
