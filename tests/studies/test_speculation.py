"""Several workers on one ladder find what one would have found."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ladder_worlds import (
    BETA,
    Fate,
    Simulation,
    World,
    answer_of_one,
    attempts_on,
    judged_windows,
    make_world,
    new_study,
    rung_of,
    suggest,
    window,
)
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, Trial, TrialState

from lrsearch.studies import ExpTestSampler
from lrsearch.studies.attributes import ACCEPTED, DOMINATED, REASON, RUNG, STOP_REASON
from lrsearch.studies.domination import dominated_by
from lrsearch.studies.record import TrialRecorder
from lrsearch.studies.rungs import (
    RungState,
    find_answer,
    gave_way,
    is_accepted,
    read_ladders,
)

COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL


# --- Worlds whose fates are written beforehand ---------------------------------------------------


def assert_one_workers_answer(study: optuna.Study, world: World) -> FrozenTrial | None:
    """What is found, if it is what one worker finds and every trial has its due."""
    expected, trials = answer_of_one(world), study.trials
    answer, ladder = find_answer(trials), read_ladders(trials)[0]
    assert answer == ladder.found()
    assert (None if answer is None else rung_of(answer)) == expected
    states = ladder.states()
    assert list(states) == list(range(len(states)))
    if answer is None:
        assert set(states.values()) == {RungState.REJECTED}
        assert len(states) == len(world)
        assert "no lr from the suggested range is left" in study.user_attrs[STOP_REASON]
    else:
        assert answer.params["lr"] == pytest.approx(BETA**expected)
        assert set(list(states.values())[:expected]) <= {RungState.REJECTED}
        assert f"trial {answer.number} completed" in study.user_attrs[STOP_REASON]
    decisions = Counter(
        rung
        for rung, each in ladder.held()
        if each.state in (COMPLETE, PRUNED) and not gave_way(each)
    )
    assert set(decisions.values()) <= {1}
    for rung, each in ladder.held():
        if gave_way(each):
            leader = trials[each.user_attrs[DOMINATED]["by"]]
            assert rung_of(leader) < rung
            assert each.user_attrs[REASON].startswith(f"dominated: trial {leader.number} at lr=")
    return answer


def simulate(world: World, workers: int, seed: int) -> Simulation:
    simulation = Simulation(world, workers, random.Random(seed))
    simulation.run()
    assert_one_workers_answer(simulation.study, world)
    # Off the ladder are only those that were born before anybody had told the range.
    strays = [each.number for each in simulation.study.trials if rung_of(each) is None]
    assert all(number < workers for number in strays)
    return simulation


def test_many_worlds_and_interleavings_find_what_one_worker_finds() -> None:
    seen: Counter[str] = Counter()
    for seed in range(300):
        rng = random.Random(seed)
        world = make_world(rng)
        for workers in (1, rng.randint(2, 4)):
            simulation = simulate(world, workers, seed)
            ladder = read_ladders(simulation.study.trials)[0]
            yielded = {rung for rung, each in ladder.held() if gave_way(each)}
            if workers == 1:
                assert not yielded
                assert simulation.naps == 0 or any(fate.mishaps for fate in world)
                continue
            seen["gave way"] += len(yielded)
            for rung in yielded:
                if ladder.states()[rung] in (RungState.REJECTED, RungState.COMPLETE):
                    seen["tried again after giving way"] += 1
            states = list(ladder.states().values())
            seen["lower one completed"] += states.count(RungState.COMPLETE) > 1
            seen["waited"] += simulation.naps > 0
            seen["no answer"] += RungState.COMPLETE not in states
    # Each of these is a place where the answers could have parted.
    assert min(seen.values()) > 10
    assert len(seen) == 5


fates = st.builds(
    Fate,
    ending=st.sampled_from(["rejected", "complete", "diverges"]),
    searching=st.integers(1, 4),
    training=st.integers(1, 12),
    mishaps=st.lists(
        st.tuples(st.sampled_from(["fails", "dies", "dies and is retried"]), st.integers(0, 6)),
        max_size=2,
    ).map(tuple),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(fates, min_size=1, max_size=6).map(tuple), st.integers(1, 4), st.integers(0, 2**16))
def test_any_world_is_answered_as_by_one_worker(world: World, workers: int, seed: int) -> None:
    simulate(world, workers, seed)


@pytest.mark.parametrize("seed", range(6))
def test_threads_find_what_one_worker_finds(seed: int) -> None:
    world = make_world(random.Random(seed + 1000))
    study = new_study(world)
    lock = threading.Lock()

    def objective(trial: Trial) -> float:
        suggest(trial, world)
        place = trial.user_attrs[RUNG]
        if place["rung"] is None:
            time.sleep(0.005)
            return -1.0
        fate = world[place["rung"]]
        with lock:
            met = attempts_on(study, place["rung"])
        recorder = TrialRecorder(trial)
        for each in judged_windows(fate):
            time.sleep(random.uniform(0.0, 0.002))
            if met < len(fate.mishaps):
                raise RuntimeError("fails")
            recorder.window(each)
        return 1.0 - 0.1 * place["rung"]

    study.optimize(objective, n_trials=1000, n_jobs=4, catch=RuntimeError)
    assert_one_workers_answer(study, world)


# --- One ladder, step by step --------------------------------------------------------------------


def rungs(study: optuna.Study) -> list[int | None]:
    return [rung_of(trial) for trial in study.trials]


def three_rungs() -> tuple[optuna.Study, list[Trial]]:
    """A study with rungs 0, 1 and 2 running, of six."""
    study = optuna.create_study(sampler=ExpTestSampler(beta=0.1, seed=0))
    return study, [ask(study) for _ in range(3)]


def ask(study: optuna.Study) -> Trial:
    trial = study.ask()
    trial.suggest_float("lr", 1e-5, 1.0, log=True)
    return trial


def accept(trial: Trial) -> None:
    TrialRecorder(trial).window(window("accept", 0))


def end_dominated(study: optuna.Study, trial: Trial) -> str:
    with pytest.raises(optuna.TrialPruned) as pruned:
        TrialRecorder(trial).window(window("continue", 1))
    study.tell(trial, state=PRUNED)
    return str(pruned.value)


def waits(study: optuna.Study) -> bool:
    assert isinstance(study.sampler, ExpTestSampler)
    return study.sampler.waits(study)


def test_an_accepted_rung_ends_those_below_it_and_says_so() -> None:
    study, (top, middle, low) = three_rungs()
    accept(middle)
    reason = "dominated: trial 1 at lr=0.1, a higher rung of the same ladder, was accepted"
    assert end_dominated(study, low) == reason
    ended = study.trials[2]
    assert ended.user_attrs[REASON] == reason
    assert ended.user_attrs[DOMINATED] == {"trial": 2, "by": 1}
    assert is_accepted(study.trials[1])
    TrialRecorder(top).window(window("continue", 1))  # A higher rung goes on.
    study.tell(middle, 1.0)
    assert STOP_REASON not in study.user_attrs
    study.tell(top, state=PRUNED)
    assert study.user_attrs[STOP_REASON].startswith("trial 1 completed with lr=0.1")


def test_a_rejected_window_is_a_rejection_even_below_an_accepted_rung() -> None:
    study, (_, middle, low) = three_rungs()
    accept(middle)
    with pytest.raises(optuna.TrialPruned, match="flat"):
        TrialRecorder(low).window(window("restart", 0))
    assert DOMINATED not in study.trials[2].user_attrs


def test_a_completed_rung_ends_those_below_it() -> None:
    study, (_, middle, low) = three_rungs()
    study.tell(middle, 1.0)
    assert end_dominated(study, low).endswith("a higher rung of the same ladder, was completed")


@pytest.mark.parametrize("end", [PRUNED, FAIL])
def test_a_rung_that_gave_way_is_tried_again_when_the_higher_one_comes_to_grief(
    end: TrialState,
) -> None:
    study, (top, middle, low) = three_rungs()
    study.tell(top, state=PRUNED)
    accept(middle)
    end_dominated(study, low)
    assert waits(study)
    study.tell(middle, state=end)
    assert not waits(study)
    assert STOP_REASON not in study.user_attrs
    again = [2, 3] if end == PRUNED else [1, 2]
    for rung in again:
        ask(study)
        assert rungs(study)[-1] == rung
    assert rungs(study)[:3] == [0, 1, 2]


def test_giving_way_counts_as_no_failure() -> None:
    study, (top, middle, low) = three_rungs()
    study.tell(top, state=PRUNED)
    for _ in range(2):  # Rung 1 may fail twice; rung 2 gives way as often, and fails twice itself.
        accept(middle)
        end_dominated(study, low)
        study.tell(middle, state=FAIL)
        middle, low = ask(study), ask(study)
        study.tell(low, state=FAIL)
        low = ask(study)
    assert rungs(study)[-1] == 2
    assert sum(map(gave_way, study.trials)) == 2
    study.tell(middle, state=PRUNED)
    study.tell(low, 1.0)
    assert study.user_attrs[STOP_REASON].startswith(f"trial {low.number} completed with lr=0.01")


def test_a_lower_rung_that_completes_waits_for_the_higher_ones() -> None:
    study, (top, middle, low) = three_rungs()
    study.tell(low, 0.1)
    study.tell(middle, 0.5)
    assert STOP_REASON not in study.user_attrs
    study.tell(top, 1.0)
    assert study.user_attrs[STOP_REASON].startswith("trial 0 completed with lr=1.0")
    answer = find_answer(study.trials)
    assert answer is not None
    assert answer.number == 0


def test_a_failed_rung_above_a_completed_one_is_tried_again_first() -> None:
    study, (top, middle, _) = three_rungs()
    study.tell(middle, 0.5)
    assert waits(study)
    study.tell(top, state=FAIL)
    assert not waits(study)
    again = ask(study)
    assert rungs(study) == [0, 1, 2, 0]
    assert waits(study)
    study.tell(again, state=PRUNED)
    assert not waits(study)
    assert study.user_attrs[STOP_REASON].startswith("trial 1 completed")


def test_until_a_rung_is_accepted_nobody_waits_while_the_range_has_room() -> None:
    study = optuna.create_study(sampler=ExpTestSampler(beta=0.1, seed=0))
    for k in range(6):
        assert not waits(study)
        ask(study)
        assert rungs(study)[-1] == k
    assert waits(study)  # All six run, and one of them may fail.
    study.enqueue_trial({"lr": 0.5})
    assert not waits(study)


def test_whoever_asks_in_place_of_waiting_stands_on_no_rung() -> None:
    study, (top, _, _) = three_rungs()
    accept(top)
    ask(study)
    assert rungs(study) == [0, 1, 2, None]


def test_a_second_trial_on_a_rejected_rung_holds_nobody_up() -> None:
    study, (top, middle, low) = three_rungs()
    study.tell(top, state=FAIL)
    RetryHeartbeatStaleTrialCallback()(study, study.trials[0])
    twins = [ask(study)]
    twins.append(ask(study))  # As when it was asked for before the retry stood in the queue.
    twins[1].set_user_attr(RUNG, {"ladder": 0, "rung": 0})
    accept(twins[1])
    study.tell(twins[0], state=PRUNED)
    TrialRecorder(low).window(window("continue", 0))
    assert dominated_by(study.trials, study.trials[middle.number]) is None


def test_with_other_parameters_the_next_ladder_begins_and_nobody_waits() -> None:
    study = optuna.create_study(sampler=ExpTestSampler(beta=0.1, seed=0))
    for _ in range(2):
        ask(study).suggest_float("momentum", 0.0, 0.99)
    first = study.ask()
    first.suggest_float("momentum", 0.0, 0.99)
    first.suggest_float("lr", 1e-5, 1.0, log=True)
    frozen = study.trials
    assert [each.user_attrs[RUNG]["ladder"] for each in frozen] == [0, 0, 0]
    TrialRecorder(first).window(window("accept", 0))
    accept(optuna.trial.Trial(study, frozen[0]._trial_id))
    assert not waits(study)
    assert study.ask().user_attrs[RUNG] == {"ladder": 3, "rung": 0}


def test_a_trial_does_not_give_way_to_another_ladder() -> None:
    study = optuna.create_study(sampler=ExpTestSampler(beta=0.1, seed=0))
    trials = [ask(study), ask(study)]
    study.enqueue_trial({"momentum": 0.5})
    other = ask(study)
    assert rungs(study) == [0, 1, 0]
    accept(other)
    TrialRecorder(trials[1]).window(window("continue", 0))
    assert dominated_by(study.trials, study.trials[1]) is None
    accept(trials[0])
    assert dominated_by(study.trials, study.trials[1]) is not None


def test_what_a_retry_got_from_the_dead_attempt_does_not_count() -> None:
    study, (top, middle, low) = three_rungs()
    study.tell(top, state=PRUNED)
    accept(middle)
    with pytest.raises(optuna.TrialPruned):
        TrialRecorder(low).window(window("continue", 1))
    for dead in (middle, low):  # The second died between its last attribute and its end.
        study.tell(dead, state=FAIL)
        RetryHeartbeatStaleTrialCallback()(study, study.trials[dead.number])
    assert [trial.state for trial in study.trials[3:]] == [TrialState.WAITING] * 2
    middle, low = ask(study), ask(study)
    copied = study.trials[3:]
    assert [each.user_attrs[RUNG]["rung"] for each in copied] == [1, 2]
    assert copied[0].user_attrs[ACCEPTED]["trial"] == 1
    assert copied[1].user_attrs[DOMINATED]["trial"] == 2
    assert copied[1].user_attrs[REASON] == ""
    assert not is_accepted(copied[0])
    TrialRecorder(low).window(window("continue", 2))
    study.tell(low, state=PRUNED)
    assert not gave_way(study.trials[4])
    assert not study.trials[4].user_attrs[REASON].startswith("dominated")
    # Accepted by the dead attempt, and trained on from its checkpoint.
    TrialRecorder(middle).window(window("decay", 9, training=True))
    assert is_accepted(study.trials[3])


def test_a_trial_pruned_after_its_acceptance_says_why_it_ended() -> None:
    study, (top, *_) = three_rungs()
    accept(top)
    study.tell(top, state=PRUNED)
    assert study.trials[0].user_attrs[REASON].startswith("pruned by ")


def test_the_verdict_is_there_though_two_last_trials_ended_in_one_moment() -> None:
    study, (top, middle, low) = three_rungs()
    study.tell(low, state=PRUNED)
    sampler = study.sampler
    assert isinstance(sampler, ExpTestSampler)
    # Each hook runs before its trial's end is stored: neither sees the other's.
    sampler.after_trial(study, study.trials[0], PRUNED, None)
    sampler.after_trial(study, study.trials[1], COMPLETE, [1.0])
    assert STOP_REASON not in study.user_attrs
    study._storage.set_trial_state_values(top._trial_id, PRUNED)
    assert sampler.verdict(study) is None
    study._storage.set_trial_state_values(middle._trial_id, COMPLETE, [1.0])
    assert str(sampler.verdict(study)).startswith("trial 1 completed")


def test_the_first_rung_reads_no_other_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    study, (top, middle, _) = three_rungs()
    study.pruner = optuna.pruners.NopPruner()  # Others read all trials themselves.
    reads = []
    original = optuna.Study.get_trials

    def spy(self, *args, **options):  # type: ignore[no-untyped-def]
        reads.append(self)
        return original(self, *args, **options)

    monkeypatch.setattr(optuna.Study, "get_trials", spy)
    TrialRecorder(top).window(window("continue", 0))
    assert not reads
    TrialRecorder(middle).window(window("continue", 0))
    assert len(reads) == 1
