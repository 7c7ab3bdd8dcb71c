"""One worker: takes trials from a study, trains them, tells what came out, until none is left."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from lrsearch.engine.methods import Plan, is_made_up_for
from lrsearch.engine.objective import Objective
from lrsearch.engine.workers.keepsakes import Keepsake, Keepsakes
from lrsearch.errors import LrsearchError
from lrsearch.studies import ExpTestSampler
from lrsearch.studies.attributes import PROBE
from lrsearch.studies.claims import (
    begin_new,
    claim_waiting,
    drop_waiting,
    end_unused,
    give_back,
)
from lrsearch.studies.domination import dominated, dominator
from lrsearch.studies.leases import Lease
from lrsearch.studies.reaper import Reaper
from lrsearch.studies.rungs import Rung, gave_way, is_spare, read_rung
from lrsearch.studies.tries import is_try
from lrsearch.training.keeping import TrainingLeft

MAX_FAILURES: Final = 3
NO_RUNG: Final = "not run: no rung of the ladder was left for it"
_SHORTEST_NAP: Final = 0.05
_LONGEST_NAP: Final = 2.0
_UNFINISHED: Final = (TrialState.RUNNING, TrialState.WAITING)

logger = logging.getLogger("lrsearch")


@dataclass(slots=True)
class Worker:
    """Runs a study's trials one after another, beside any number of others.

    A trial ends for a worker in one of four ways: it is told (complete, pruned, failed), given back
    (the worker is asked to end), lost to another worker, or left where it is by a kill; then the
    ``Reaper`` of any other worker puts it back in the queue.

    Attributes:
        study: with the plan's sampler and pruner.
        plan: of the study.
        objective: trains a trial; its ``interrupted`` is set here.
        lease: tells the others that this worker lives; None in a study that nobody shares.
        reaper: finds the trials of the dead; None likewise.
        keepsakes: where what a trial leaves is kept for the study's end; None to keep it here.
        stop: asks the worker to end.
        max_failures: so many failures of trials in a row end it.
    """

    study: optuna.Study
    plan: Plan
    objective: Objective
    lease: Lease | None = None
    reaper: Reaper | None = None
    keepsakes: Keepsakes | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    max_failures: int = MAX_FAILURES
    _failures: int = 0
    _outrun: bool = False
    _at_hand: Trial | None = None
    _dominated: threading.Event = field(default_factory=threading.Event)

    def run(self) -> bool:
        """Work until the study is over; False if asked to end before.

        Raises:
            LrsearchError: at once, if a trial says that what was asked cannot be.
            Exception: that of the last trial, after ``max_failures`` failures in a row.
        """
        self.objective.interrupted = self._interrupted
        self.objective.owned = self._still_mine
        nap = _SHORTEST_NAP
        while not self.stop.is_set():
            if self.reaper is not None:
                self.reaper.reap()
            trials = self._trials()
            self._outrun = False
            trial = self._taken(trials)
            if trial is not None:
                self._run(trial)
                nap = _SHORTEST_NAP
            elif not self._outrun and not any(each.state in _UNFINISHED for each in trials):
                return True
            else:
                self.stop.wait(nap)
                nap = min(2.0 * nap, _LONGEST_NAP)
        return False

    def look(self) -> None:
        """See whether the trial at hand is still worth its time; from any thread."""
        trial = self._at_hand
        if trial is None or not self.plan.controlled:
            return
        trials = self._trials()
        own = next((each for each in trials if each.number == trial.number), None)
        if own is not None and dominator(trials, own) is not None:
            self._dominated.set()

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _taken(self, trials: Sequence[FrozenTrial]) -> Trial | None:
        """The next trial, held; without one, nothing is held."""
        trial = None
        try:
            trial = self._next(trials)
        except UpdateFinishedTrialError:
            self._outrun = True  # another worker got it, and ended it while the sampler waited
        finally:
            if trial is None and self.lease is not None:
                self.lease.release()
        return trial

    def _next(self, trials: Sequence[FrozenTrial]) -> Trial | None:
        """The next trial to run; None while there is none to be had."""
        waiting = any(each.state == TrialState.WAITING for each in trials)
        if self.plan.queue is not None:
            if not waiting:  # one question less
                return None
            return self._claim(lambda queued: self._may_begin(queued, trials))
        trial = self._claim(lambda queued: not is_spare(queued)) if waiting else None
        if trial is not None:
            return trial
        sampler = self.study.sampler
        assert isinstance(sampler, ExpTestSampler)
        # One whose worker died before it took a rung is as good as a new one, and no better.
        others = [each for each in trials if not is_spare(each)]
        spent = sum(not gave_way(each) and PROBE not in each.user_attrs for each in others)
        over = spent >= self.plan.trials or sampler.verdict(self.study) is not None
        if not over and not sampler.waits(self.study):
            spare = self._claim(is_spare) if waiting else None
            return spare or begin_new(self.study, self._hold)
        if not any(each.state in _UNFINISHED for each in others):
            drop_waiting(self.study, is_spare, NO_RUNG)
        return None

    def _claim(self, wanted: Callable[[FrozenTrial], bool]) -> Trial | None:
        return claim_waiting(self.study, wanted, self._hold)

    def _hold(self, trial_id: int) -> bool:
        """Take the lease before the sampler chooses: it may wait, and is not to be taken for dead.

        Another worker, to whom the trial then goes, would else choose beside it.
        """
        if self.lease is None or self.lease.hold_id(trial_id):
            return True
        self._outrun = True  # somebody else has it: the study is not over
        return False

    def _may_begin(self, trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
        """Whether a queued trial's turn has come: the best try is known once all have ended."""
        last = len(self.plan.queue or ()) - 1
        if not self.plan.tries or trial.number < last or is_try(trial):
            return True
        return not any(each.state in _UNFINISHED for each in trials if each.number < trial.number)

    def _run(self, trial: Trial) -> None:
        """Train a trial, and tell what came out if it is still this worker's to tell."""
        self._dominated.clear()
        self._at_hand = trial
        try:
            place = read_rung(trial)
            if place is not None and (place.rung is None or self._repeats(place, trial)):
                self._end_unused(trial)  # others were faster
                return
            self.look()
            self._end(trial, *self._trained(trial))
        except TrainingLeft as left:
            if left.keep:
                self._give_back(trial)
            else:
                logger.warning("trial %d was taken over by another worker", trial.number)
        except KeyboardInterrupt:  # of this process's own main thread
            self._give_back(trial)
            raise
        finally:
            self._at_hand = None
            if self.lease is not None:
                self.lease.release()

    def _repeats(self, place: Rung, trial: Trial) -> bool:
        """Whether a trial begins a ladder anew, since the rate was found as it asked for a rung."""
        if (place.ladder, place.rung) != (trial.number, 0) or trial.number == 0:
            return False  # and the storage is not asked
        sampler = self.study.sampler
        return isinstance(sampler, ExpTestSampler) and sampler.verdict(self.study) is not None

    def _end_unused(self, trial: Trial) -> None:
        """End a trial that the ladder has left no rate to be trained at."""
        if self._still_mine():
            with suppress(UpdateFinishedTrialError):
                end_unused(self.study, trial, NO_RUNG)

    def _give_back(self, trial: Trial) -> None:
        if self.lease is None or not self.lease.still_mine():
            return
        self.lease.release()  # before it waits: its next worker leaves it alone while it is held
        give_back(self.study, trial)

    def _trained(self, trial: Trial) -> tuple[TrialState, float | None, Exception | None]:
        try:
            return TrialState.COMPLETE, self.objective(trial), None
        except optuna.TrialPruned:
            return TrialState.PRUNED, None, None
        except TrainingLeft:
            raise
        except Exception as error:
            return TrialState.FAIL, None, error

    def _end(
        self, trial: Trial, state: TrialState, value: float | None, error: Exception | None
    ) -> None:
        """Tell the study, unless another worker has the trial now."""
        kept = None if state == TrialState.FAIL else self._keepsake()
        if self.keepsakes is not None and kept is not None:
            self.keepsakes.keep(trial.number, kept)
        if not self._still_mine():
            return
        try:
            self.study.tell(trial, value, state)
        except UpdateFinishedTrialError:
            return  # another worker has told it meanwhile
        self.objective.discard(trial.number)
        self._count(trial, error)

    def _keepsake(self) -> Keepsake | None:
        last = self.objective.last
        if last is None:
            return None
        weights = None
        if self.objective.keep_model:
            weights = {name: tensor.cpu() for name, tensor in last.model.state_dict().items()}
        return Keepsake(last.rows, last.figure, weights)

    def _still_mine(self) -> bool:
        return self.lease is None or self.lease.still_mine()

    def _count(self, trial: Trial, error: Exception | None) -> None:
        if error is None:
            self._failures = 0
            return
        self._failures += 1
        if isinstance(error, LrsearchError) or self._failures >= self.max_failures:
            raise error
        logger.warning("trial %d failed, the study goes on: %s", trial.number, error)
        failed = self.study._storage.get_trial(trial._trial_id)
        if is_made_up_for(self.plan, failed):
            self.study.enqueue_trial({})

    def _interrupted(self) -> BaseException | None:
        """Asked after each step: why the training is to end here, if it is."""
        if self.stop.is_set():
            return TrainingLeft("the worker was asked to end")
        if self.lease is not None and self.lease.lost.is_set():
            return TrainingLeft("another worker has this trial", keep=False)
        if self._dominated.is_set() and self._at_hand is not None:
            self._dominated.clear()
            return dominated(self.study, self._at_hand)
        return None
