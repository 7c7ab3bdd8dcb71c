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
    HOPELESS_FACTOR,
    HOPELESS_RUN,
    Fate,
    Order,
    Probe,
    RaceSettings,
    Winner,
    compare,
    has_fallen,
    hopeless,
    leader,
    next_move,
    slack,
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
    """

    curve: Callable[[int], Curve]
    highest: int = -FURTHEST - 1
    dead: frozenset[int] = frozenset()
    noise: tuple[float, float] = (0.0, 0.0)
    unit: float = 1.0
    seed: int = 0
    probes: dict[int, Probe] = field(default_factory=dict)
    orders: list[Order] = field(default_factory=list)

    def run(self, asked: RaceSettings) -> Winner:
        """Race to the end; an order that gives a rung nothing new to do is a failure."""
        # Each rung can be begun once, and doubled until it is as long as any may be.
        doublings = int(np.ceil(np.log2(asked.longest / asked.probe))) + 1
        most = (2 * FURTHEST + 3) * (1 + doublings)
        for _ in range(most):
            move = next_move(asked, self.probes)
            if isinstance(move, Winner):
                return move
            before = self.probes.get(move.rung)
            assert before is None or before.fate == "alive", move
            assert move.steps > (0 if before is None else before.losses.size), move
            assert move.steps <= asked.longest
            self.orders.append(move)
            self.probes[move.rung] = self._probe(move)
        raise AssertionError(f"no end after {most} orders: {self.orders[-20:]}")

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
    assert best <= winner.rung + winner.lower <= best + 1


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
            return Probe(losses, any_fate(order.rung))

    world = Chaos(flat)
    winner = world.run(RaceSettings(total_steps=data.draw(st.integers(1, 3000))))
    assert winner.rung in world.probes
    alive = [rung for rung, probe in world.probes.items() if probe.fate == "alive"]
    assert winner.rung in alive or not alive


def test_where_nothing_falls_the_highest_rungs_that_hold_are_given_more_steps() -> None:
    world = World(flat, highest=-1)
    winner = world.run(SETTINGS)
    assert winner.reason.startswith("no rung has fallen")
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


def test_a_rung_that_comes_up_from_behind_is_waited_for() -> None:
    """The lower rate is ahead at first, by a head start that does not last."""

    def curve(rung: int) -> Curve:
        if rung == 1:
            return lambda steps: (1.0 + steps) ** -0.32
        level = 0.3 if rung == 2 else 0.5  # soon down, and then no further
        return lambda steps: level + (1.0 - level) * np.exp(-steps)

    world = World(curve, highest=1)
    probe = SETTINGS.probe
    ahead, behind = (curve(rung)(np.arange(float(probe))) for rung in (2, 1))
    assert ahead[probe // 2 :].mean() < behind[probe // 2 :].mean()  # the probe alone would say so
    assert world.run(SETTINGS).rung == 1
    assert min(world.probes[rung].losses.size for rung in (1, 2)) > probe
    hasty = World(curve, highest=1)
    assert hasty.run(replace(SETTINGS, rivals=False)).rung == 2


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


def test_the_rate_is_lowered_by_how_little_the_rung_below_loses() -> None:
    """None where the rate alone limits progress, a whole rung where the lower one is as good."""
    steps = np.arange(40.0)
    best = Probe(np.exp(-0.02 * steps))
    shares = [1.0, 0.8, 0.5, SETTINGS.beta, 0.1]
    parts = [slack(SETTINGS, best, Probe(np.exp(-0.02 * share * steps))) for share in shares]
    assert parts[0] == pytest.approx(1.0)
    assert parts[3:] == pytest.approx([0.0, 0.0], abs=0.02)
    assert parts == sorted(parts, reverse=True)
    assert 0.0 < parts[2] < parts[1] < 1.0
    diverged = Probe(np.exp(-0.02 * steps), "diverged")
    assert slack(SETTINGS, best, diverged) == 0.0
    assert slack(SETTINGS, Probe(-best.losses), best) == 0.0  # no logarithm, no share


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
    assert has_fallen(SETTINGS, np.exp(-0.05 * steps))
    assert has_fallen(SETTINGS, 1.0 - 0.001 * steps + 0.01 * rng.standard_normal(100))
    assert not has_fallen(SETTINGS, 1.0 - 1e-5 * steps)  # sure, but next to nothing
    assert not has_fallen(SETTINGS, 1.0 + 0.1 * rng.standard_normal(100))
    assert not has_fallen(SETTINGS, np.full(100, np.nan))
    assert not has_fallen(SETTINGS, np.array([9.0, 1.0, 1.0]))


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
    ("bad", "name"), [({"total_steps": 0}, "total_steps"), ({"beta": 1.0}, "beta")]
)
def test_bad_settings_name_their_argument(bad: dict[str, float], name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=name):
        RaceSettings(**({"total_steps": 100} | bad))  # type: ignore[arg-type]
