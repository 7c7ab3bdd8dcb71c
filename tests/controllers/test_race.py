"""The race of rungs, on worlds whose losses are made up: who wins, and that it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrsearch.controllers.race import (
    FURTHEST,
    SURE,
    Finish,
    Order,
    RaceSettings,
    Winner,
    next_move,
)
from lrsearch.controllers.rungs import (
    HOPELESS_FACTOR,
    HOPELESS_RUN,
    Fate,
    Probe,
    Tail,
    compare,
    compare_ends,
    has_fallen,
    hopeless,
    leader,
)
from lrsearch.errors import InvalidArgumentError
from lrsearch.stats.pairing import paired_test
from lrsearch.stats.series import FloatArray

Curve = Callable[[FloatArray], FloatArray]


@dataclass
class World:
    """Rungs and what they would show; keeps what was asked of them.

    Attributes:
        curve: gives the loss at steps 0, 1, ... without noise, by rung.
        highest: rungs above it (smaller numbers) diverge.
        dead: rungs whose weights get no gradient.
        noise: relative, shared by all rungs (the batches') and each rung's own.
        unit: of the loss.
        end: gives the loss that is left after so many steps and a tail, without noise, by rung;
            None: what the curve comes to.
        guess: loss of the best constant output.
    """

    curve: Callable[[int], Curve]
    highest: int = -FURTHEST - 1
    dead: frozenset[int] = frozenset()
    noise: tuple[float, float] = (0.0, 0.0)
    unit: float = 1.0
    seed: int = 0
    end: Callable[[int, int], float] | None = None
    guess: float = np.inf
    probes: dict[int, Probe] = field(default_factory=dict)
    orders: list[Order | Finish] = field(default_factory=list)

    def run(self, asked: RaceSettings) -> Winner:
        """Race to the end; an order that gives a rung nothing new to do is a failure."""
        # Each rung can be begun once, and doubled until it is as long as any may be; and finished.
        doublings = int(np.ceil(np.log2(asked.longest / asked.probe))) + 1
        most = 2 * (2 * FURTHEST + 3) * (1 + doublings)
        for _ in range(most):
            move = next_move(asked, self.probes, guess=self.unit * self.guess)
            if isinstance(move, Winner):
                return move
            before = self.probes.get(move.rung)
            assert before is None or before.fate == "alive", move
            self.orders.append(move)
            if isinstance(move, Finish):
                assert before is not None
                steps = before.losses.size
                assert steps not in before.tails, move
                assert move.steps == asked.tail_after(steps)
                tail = self._tail(move, steps)
                self.probes[move.rung] = replace(before, tails={**before.tails, steps: tail})
                continue
            assert move.steps > (0 if before is None else before.losses.size), move
            assert move.steps <= asked.longest
            tails = {} if before is None else before.tails
            self.probes[move.rung] = replace(self._probe(move), tails=tails)
        raise AssertionError(f"no end after {most} orders: {self.orders[-20:]}")

    def _tail(self, order: Finish, steps: int) -> Tail:
        last = np.array([steps + 0.5 * order.steps])
        end = self.curve(order.rung)(last)[0] if self.end is None else self.end(order.rung, steps)
        rows = 1.0 + 0.2 * np.random.default_rng(self.seed).standard_normal(100)
        falling = np.linspace(1.0, 0.0, order.steps, endpoint=False)
        return Tail(np.full(order.steps, end), falling, self.unit * end * rows)

    def _probe(self, order: Order) -> Probe:
        steps = np.arange(order.steps, dtype=np.float64)
        if order.rung < self.highest:
            return Probe(self.unit * 3.0 ** np.minimum(steps[:6], 300.0), "diverged")
        fate: Fate = "dead" if order.rung in self.dead else "alive"
        losses = self.curve(order.rung)(steps)
        shared, own = (
            np.random.default_rng([self.seed, number]).standard_normal(10_000)[: order.steps]
            for number in (0, 100 + order.rung + FURTHEST)
        )
        noise = np.exp(self.noise[0] * shared + self.noise[1] * own)
        return Probe(self.unit * losses * noise, fate)


def bowl(best: int) -> Callable[[int], Curve]:
    """Decay is fastest at the best rung; each further one is 1 / 0.33 slower, on both sides."""

    def curve(rung: int) -> Curve:
        speed = 0.1 * 0.33 ** abs(rung - best)
        return lambda steps: np.exp(-speed * steps)

    return curve


def flat(rung: int) -> Curve:
    return lambda steps: np.ones_like(steps)


SETTINGS = RaceSettings(total_steps=1000)
noises = st.tuples(st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from([0.0, 0.002]))


@settings(max_examples=60, deadline=None)
@given(
    best=st.integers(-3, 12),
    room=st.integers(1, 2),
    noise=noises,
    seed=st.integers(0, 99),
    total=st.sampled_from([40, 400, 4000]),
)
def test_in_a_bowl_the_best_rung_wins_or_the_next_lower_rate(
    best: int, room: int, noise: tuple[float, float], seed: int, total: int
) -> None:
    """Wherever the race begins: starts that are far too low or too high are climbed out of."""
    world = World(bowl(best), highest=best - room, noise=noise, seed=seed)
    # A race of a tiny run has to have the steps for its way.
    winner = world.run(RaceSettings(total_steps=total, most=20.0))
    assert best <= winner.rung <= best + 1


@settings(max_examples=60, deadline=None)
@given(
    best=st.integers(-6, 10),
    edge=st.integers(0, 4),
    dead=st.frozensets(st.integers(-8, 12), max_size=4),
    noise=noises,
    seed=st.integers(0, 99),
)
def test_a_rung_that_diverged_or_died_never_wins_over_one_that_lives(
    best: int, edge: int, dead: frozenset[int], noise: tuple[float, float], seed: int
) -> None:
    world = World(bowl(best), highest=best - 3 + edge, dead=dead, noise=noise, seed=seed)
    winner = world.run(SETTINGS)
    assert any(probe.fate == "alive" for probe in world.probes.values())
    assert world.probes[winner.rung].fate == "alive"


@pytest.mark.parametrize(
    ("highest", "dead"), [(FURTHEST + 5, frozenset()), (-99, frozenset(range(-99, 99)))]
)
def test_where_no_rate_holds_the_race_ends_all_the_same_and_says_so(
    highest: int, dead: frozenset[int]
) -> None:
    world = World(flat, highest=highest, dead=dead)
    winner = world.run(SETTINGS)
    assert winner.reason == "no rate holds"
    assert all(probe.fate != "alive" for probe in world.probes.values())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_it_ends_whatever_the_rungs_show(data: st.DataObject) -> None:
    """Losses without any order, and fates that come at any time."""
    fates: dict[int, Fate] = {}

    def any_fate(rung: int) -> Fate:
        if rung not in fates:
            fates[rung] = data.draw(st.sampled_from(["alive", "alive", "diverged", "dead"]))
        return fates[rung]

    class Chaos(World):
        def _probe(self, order: Order) -> Probe:
            rng = np.random.default_rng([data.draw(st.integers(0, 9)), order.rung + 99])
            shape = rng.choice(["walk", "noise", "fall", "late"])
            steps = np.arange(order.steps)
            losses = {
                "walk": np.exp(0.3 * rng.standard_normal(order.steps).cumsum()),
                "noise": rng.exponential(size=order.steps),
                "fall": np.exp(-rng.uniform(0.0, 0.2) * steps),
                "late": 1.0 / (1.0 + np.exp(0.1 * (steps - 200))),
            }[str(shape)]
            if order.rung in self.probes and data.draw(st.booleans()):
                fates[order.rung] = "diverged"  # what had held breaks down with more steps
            return Probe(losses, any_fate(order.rung))

        def _tail(self, order: Finish, steps: int) -> Tail:
            end = data.draw(st.sampled_from([0.2, 0.5, 0.97, 1.0, 1.01, 3.0, np.inf]))
            rows = np.full(data.draw(st.sampled_from([1, 5])), end) if end < np.inf else np.empty(0)
            return Tail(np.ones(order.steps), np.ones(order.steps), rows)

    world = Chaos(flat, guess=data.draw(st.sampled_from([0.9, np.inf])))
    winner = world.run(RaceSettings(total_steps=data.draw(st.integers(1, 3000))))
    assert winner.rung in world.probes
    alive = [rung for rung, probe in world.probes.items() if probe.fate == "alive"]
    assert winner.rung in alive or not alive


def test_where_nothing_falls_the_highest_rungs_that_hold_are_given_more_steps() -> None:
    world = World(flat, highest=-1)
    winner = world.run(SETTINGS)
    assert winner == Winner(-1, "nothing has fallen: the highest rung that holds")
    lengths = {rung: probe.losses.size for rung, probe in world.probes.items()}
    assert lengths[-1] == SETTINGS.longest
    assert min(world.probes) == -2  # the one above was tried, and diverged
    long = [rung for rung, steps in lengths.items() if steps > SETTINGS.probe]
    assert sorted(long) == list(range(-1, -1 + len(long)))
    assert len(long) < len(lengths)


def test_a_rung_that_falls_late_wins_once_it_has_had_the_time() -> None:
    """A shoulder: the higher the rate, the sooner it ends; no probe's first length shows it."""

    def curve(rung: int) -> Curve:
        late = 2.0 * SETTINGS.probe * 3.0**rung
        return lambda steps: np.where(steps < late, 1.0, np.exp(-0.02 * (steps - late)))

    world = World(curve, highest=0)
    assert world.run(SETTINGS).rung == 0
    assert world.probes[0].losses.size > SETTINGS.probe


# --- ends ------------------------------------------------------------------------------------


def noisy(best: int, floor: float) -> Callable[[int], Curve]:
    """As ``bowl``, but each rung stops at a floor of noise that is higher for a higher rate."""

    def curve(rung: int) -> Curve:
        level = floor * 0.33**rung
        return lambda steps: level + (1.0 - level) * bowl(best)(rung)(steps)

    return curve


def still(best: int) -> Callable[[int, int], float]:
    """The ends of ``bowl``: a tail takes the noise away."""
    return lambda rung, steps: float(bowl(best)(rung)(np.array([1.2 * steps]))[0])


def test_noise_that_a_tail_takes_away_hides_no_better_rate() -> None:
    world = World(noisy(-1, 0.3), highest=-3, end=still(-1))
    assert world.run(replace(SETTINGS, tail=0.0)).rung == 0
    world = World(noisy(-1, 0.3), highest=-3, end=still(-1))
    winner = world.run(SETTINGS)
    assert winner == Winner(-1, "better at its end than the rungs beside it")
    ended = {rung for rung, probe in world.probes.items() if probe.tails}
    assert {-2, -1, 0} <= ended


@pytest.mark.parametrize("more", [-0.05, 0.05])
def test_of_two_ends_that_are_next_to_equal_the_lower_rate_is_trained(more: float) -> None:
    falls = {0: 2.0, 1: 2.0 * (SETTINGS.kept + more)}

    def end(rung: int, steps: int) -> float:
        return float(np.exp(-falls.get(rung, 0.5)))

    winner = World(bowl(0), highest=-1, end=end).run(SETTINGS)
    assert winner.rung == (1 if more > 0.0 else 0)
    assert winner.reason.startswith("as good" if more > 0.0 else "better")
    assert World(bowl(0), highest=-1, end=end).run(replace(SETTINGS, kept=1.0)).rung == 0


def test_an_end_that_has_hardly_fallen_is_looked_at_again_after_twice_the_steps() -> None:
    """The higher rate is ahead at first, and then no further."""

    def end(rung: int, steps: int) -> float:
        if rung == 1:
            return float(np.exp(-0.8 * SURE * steps / SETTINGS.probe))
        return {0: float(np.exp(-0.9 * SURE))}.get(rung, 1.0)

    world = World(bowl(0), highest=-1, end=end)
    assert world.run(SETTINGS).rung == 1
    assert set(world.probes[1].tails) == {SETTINGS.probe, 2 * SETTINGS.probe}


def test_ends_that_never_fall_are_looked_at_as_far_as_a_fifth_of_the_run() -> None:
    world = World(bowl(0), highest=-1, end=lambda rung, steps: 0.93 - 1e-5 * rung)
    world.run(SETTINGS)
    longest = max(max(probe.tails, default=0) for probe in world.probes.values())
    assert longest <= SETTINGS.longest_end
    assert longest + SETTINGS.tail_after(longest) <= 0.2 * SETTINGS.total_steps + 1


def test_a_net_that_has_come_to_a_constant_output_has_not_fallen() -> None:
    """It began far above: the curve falls plainly, and what falls later wins."""

    def end(rung: int, steps: int) -> float:
        if rung == 1 and steps > SETTINGS.probe:
            return 0.02
        return 0.04 if rung <= 0 else 0.3  # of a first loss of 1

    known = World(bowl(0), highest=-1, end=end, guess=0.0401)
    assert known.run(SETTINGS).rung == 1
    assert World(bowl(0), highest=-1, end=end).run(SETTINGS).rung == 0


def test_where_no_end_has_fallen_the_highest_that_is_level_is_trained() -> None:
    ends = {-2: 1.2, -1: 1.003, 0: 1.0, 1: 1.1}
    world = World(bowl(0), highest=-3, end=lambda rung, steps: ends.get(rung, 1.3))
    assert world.run(SETTINGS) == Winner(-1, "nothing has fallen: the highest rung that holds")


def test_what_half_the_steps_have_shown_to_be_too_high_is_not_tried_again() -> None:
    def end(rung: int, steps: int) -> float:
        return {-1: 1.0, 0: float(np.exp(-0.5 * SURE)), 1: 0.99}.get(rung, 1.0)

    world = World(bowl(0), highest=-2, end=end)
    world.run(SETTINGS)
    assert len(world.probes[0].tails) > 1
    assert set(world.probes[-1].tails) == {SETTINGS.probe}


def test_where_the_steps_are_spent_among_the_ends_the_best_so_far_is_trained() -> None:
    spent = World(bowl(0), highest=-1, end=lambda rung, steps: 0.9 - 0.01 * (rung == 1))
    tight = replace(SETTINGS, most=0.22)
    assert spent.run(tight) == Winner(1, "the best end so far, and the race's steps are spent")
    assert sum(probe.steps for probe in spent.probes.values()) <= tight.budget


def test_ends_are_compared_row_by_row() -> None:
    rng = np.random.default_rng(4)
    rows = rng.exponential(size=60)
    nothing = np.empty(0)
    low, high, none = (
        Probe(np.ones(9), tails={9: Tail(nothing, nothing, each)})
        for each in (rows, rows + 0.02 + 0.01 * rng.standard_normal(60), nothing)
    )
    found = compare_ends(low, high)
    assert found is not None
    assert found.pvalue < 1e-6
    assert found.difference == pytest.approx(-0.02, abs=0.005)
    assert compare_ends(low, none) is None
    assert compare_ends(low, Probe(np.ones(9))) is None
    assert none.tails[9].end == np.inf


@settings(max_examples=40, deadline=None)
@given(
    best=st.integers(-3, 6),
    power=st.integers(-20, 20),
    noise=noises,
    highest=st.integers(-3, 3),
)
def test_the_unit_of_the_loss_changes_nothing(
    best: int, power: int, noise: tuple[float, float], highest: int
) -> None:
    """Exactly: a power of two scales without rounding."""
    one = World(bowl(best), highest=highest, noise=noise)
    other = World(bowl(best), highest=highest, noise=noise, unit=2.0**power)
    assert one.run(SETTINGS) == other.run(SETTINGS)
    assert one.orders == other.orders


def test_nothing_depends_on_the_order_in_which_probes_are_kept() -> None:
    world = World(bowl(1), noise=(0.3, 0.002))
    world.run(SETTINGS)
    kept = dict(reversed(world.probes.items()))
    assert next_move(SETTINGS, kept) == next_move(SETTINGS, world.probes)


# --- parts -----------------------------------------------------------------------------------


def test_the_rung_leads_whose_losses_lie_lowest_in_the_steps_that_both_have_had() -> None:
    steps = np.arange(80.0)
    probes = {
        0: Probe(np.exp(-0.02 * steps[:40])),
        1: Probe(np.exp(-0.01 * steps)),  # lower at its own end alone
        2: Probe(np.exp(-0.005 * steps[:40])),
    }
    assert leader(probes, [0, 1, 2]) == 0
    assert leader(probes, [2, 1]) == 1
    late = {**probes, 0: Probe(np.where(np.arange(80) < 40, 0.8, 0.1))}
    assert leader(late, [0, 1, 2]) == 0  # though the third has not come so far
    assert compare(probes[0], probes[1]).pvalue < 0.001


def test_a_few_loud_losses_do_not_hide_which_rung_is_the_better() -> None:
    rng = np.random.default_rng(1)
    low = np.exp(0.05 * rng.standard_normal(40))
    loud = 1.2 * low
    loud[::13] *= 30.0
    late = slice(20, 40)
    plain = paired_test(low[late], loud[late]).pvalue
    assert compare(Probe(low), Probe(loud)).pvalue < min(0.05, 0.5 * plain)


def test_a_fall_is_one_that_matters() -> None:
    rng = np.random.default_rng(2)
    steps = np.arange(100.0)
    assert has_fallen(np.exp(-0.05 * steps), 0.05)
    assert has_fallen(1.0 - 0.001 * steps + 0.01 * rng.standard_normal(100), 0.05)
    assert not has_fallen(1.0 - 1e-5 * steps, 0.05)  # sure, but next to nothing
    assert not has_fallen(1.0 + 0.1 * rng.standard_normal(100), 0.05)
    assert not has_fallen(np.full(100, np.nan), 0.05)
    assert not has_fallen(np.array([9.0, 1.0, 1.0]), 0.05)


def test_a_probe_is_beyond_hope_when_it_is_not_finite_or_stays_far_above_its_first_loss() -> None:
    high = 2.0 * HOPELESS_FACTOR
    assert hopeless([1.0, np.nan])
    assert hopeless([1.0, np.inf])
    assert hopeless([1.0, *([high] * HOPELESS_RUN)])
    assert not hopeless([])
    assert not hopeless([1.0, 0.5, high])  # a single one
    assert not hopeless([1.0, *([high] * (HOPELESS_RUN - 1)), 0.5])
    assert not hopeless([-1.0, *([-high] * HOPELESS_RUN)])


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        ({"total_steps": 0}, "total_steps"),
        ({"beta": 1.0}, "beta"),
        ({"tail": 1.0}, "tail"),
        ({"tail": -0.1}, "tail"),
        ({"kept": 0.0}, "kept"),
        ({"replays": False}, "tail must be 0 without replays"),
    ],
)
def test_bad_settings_name_their_argument(bad: dict[str, float], name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=name):
        RaceSettings(**({"total_steps": 100} | bad))  # type: ignore[arg-type]
