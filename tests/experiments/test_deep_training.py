"""Deep networks under every method: finite losses, rates that are told, going on bit for bit."""

from __future__ import annotations

import io
from functools import partial
from math import inf, isfinite

import numpy as np
import pytest
import torch
from cifar_files import images as made
from waits import Waits

from experiments.deep import table3, table4
from experiments.deep.drivers import Fixed, Lipschitz, RateDecay, UnderExpTest, penalised
from experiments.deep.models.catalogue import NETWORKS
from experiments.deep.models.network import Network, SpatialMean, kernels
from experiments.deep.preparation import centred, standardised
from experiments.deep.published import TABLE3
from experiments.deep.speed import Speed
from experiments.deep.training import DeepRun
from experiments.epochs import Limits, train
from experiments.images import Images, read_images
from lrsearch.bounds import lipschitz_constant
from lrsearch.tasks.sources import at_hand
from lrsearch.training import exptest
from lrsearch.training.checkpoints import Checkpoint
from lrsearch.training.recorder import DeviceLosses

CPU = Speed(torch.device("cpu"))


def cut(rows=4, test=2, classes=10):
    """The first images of CIFAR where it is at hand, else made ones."""
    if classes == 10 and at_hand("cifar10"):
        return read_images("cifar10", None, CPU.device, train=rows, test=test)
    train_images, train_labels = made(rows, classes, 0)
    test_images, test_labels = made(test, classes, 1)
    pixels = torch.tensor(train_images), torch.tensor(test_images)
    labels = torch.tensor(train_labels).long(), torch.tensor(test_labels).long()
    return Images(pixels[0], labels[0], pixels[1], labels[1])


def small(classes=10, dropout=0.2):
    """A network of the deep kind that takes no time."""
    body = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.AvgPool2d(4),
        torch.nn.Conv2d(8, 8, 3),
        SpatialMean(),
        torch.nn.Dropout(dropout),
    )
    return Network(body, torch.nn.Linear(8, classes))


def line(algorithm, policy="Adaptive", network="ResNet20", decay="1e-3"):
    found = [
        each
        for each in TABLE3
        if (each.algorithm, each.policy, each.network) == (algorithm, policy, network)
        and each.decay == decay
    ]
    return found[0]


def lipschitz(algorithm):
    known = {
        "SGD": line("SGD"),
        "Momentum": line("Momentum"),
        "RMSprop": line("RMSprop"),
        "Adam": line("Adam", network="DenseNet", decay="1e-4"),
    }
    return partial(table3.driver, line=known[algorithm], decay="rate")


def adam_of_the_mean(network, batch_size, steps):
    """The reading that a network without normalisation bears, see docs/lipschitz.md."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    return Lipschitz(optimizer, network, batch_size=batch_size, squared="mean", first_epoch="batch")


METHODS = {
    **{f"ExpTest, {form}": partial(table4._driver, name=form, rate=0.02) for form in table4.FORMS},
    **{
        name: partial(table4._driver, name=name, rate=None if name == "Adadelta" else 1e-3)
        for name in ("Adam", "SGD", "SGD w/ Mom.", "RMSprop", "Adadelta")
    },
    **{f"1/L, {name}": lipschitz(name) for name in ("SGD", "Momentum", "RMSprop", "Adam")},
    "1/L, Adam of the mean": adam_of_the_mean,
    "Keras' SGD": partial(table3.driver, line=line("SGD", "Baseline"), decay="rate"),
}
FEW = ("ExpTest, ExpTest (robust)", "1/L, SGD", "1/L, Momentum", "1/L, RMSprop")
FEW += ("1/L, Adam of the mean", "Adam")


def started(method, network=small, images=None, *, epochs=2, batch=2, seed=0, speed=CPU, **more):
    images = cut() if images is None else images
    return DeepRun(
        images,
        network,
        METHODS[method] if isinstance(method, str) else method,
        seed=seed,
        batch_size=batch,
        epochs=epochs,
        preparation=more.get("preparation") or centred(images.train),
        speed=speed,
    )


def carried(run):
    """A state as a checkpoint carries it."""
    buffer = io.BytesIO()
    torch.save(run.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def timeless(rows):
    """As texts, so that NaN is NaN: a test loss may overflow before the averages of the
    normalisation have found their place."""
    return [str({**row, "seconds": 0.0}) for row in rows]


def trains_and_goes_on(method, network):
    whole = started(method, network)
    first = whole.epoch()
    state = carried(whole)
    second = whole.epoch()
    for row in (first, second):
        assert isfinite(row["train_loss"])
        assert row["lr"] > 0.0
        assert 0.0 <= row["accuracy"] <= 100.0
    torch.rand(5)  # whatever happens between
    resumed = started(method, network)
    resumed.load_state_dict(state)
    resumed.epoch()
    assert timeless(resumed.epochs) == timeless(whole.epochs)
    assert all(torch.equal(a, b) for a, b in zip(resumed.losses, whole.losses, strict=True))
    for found, expected in zip(
        resumed._network.state_dict().values(), whole._network.state_dict().values(), strict=True
    ):
        assert torch.equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("method", FEW)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_trains_under_every_method_and_goes_on_bit_for_bit(name, method):
    trains_and_goes_on(method, NETWORKS[name])


@pytest.mark.parametrize("method", METHODS)
def test_every_driver_goes_on_bit_for_bit(method):
    trains_and_goes_on(method, small)


# --- what an epoch does ----------------------------------------------------------------------


def test_a_run_that_was_cut_goes_on_from_its_checkpoint(tmp_path):
    whole = train(started("1/L, SGD", epochs=3), Limits(3))
    for done in (1, 2):
        part = train(
            started("1/L, SGD", epochs=3), Limits(3, deadline=-inf), Checkpoint(tmp_path / "a.pt")
        )
        assert (part.rows[0]["epochs"], part.complete) == (done, False)
    again = train(started("1/L, SGD", epochs=3), Limits(3), Checkpoint(tmp_path / "a.pt"))
    assert again.complete
    np.testing.assert_array_equal(again.curves[0], whole.curves[0])
    assert timeless(again.history[0]) == timeless(whole.history[0])


def test_an_epoch_sees_each_image_once_and_tests_them_as_they_are():
    images = cut(rows=7, test=3)
    given = {}
    for name, prepare in (("still", standardised), ("moved", centred)):
        preparation = prepare(images.train)
        run = started("Keras' SGD", images=images, batch=3, preparation=preparation)
        seen = []
        run._network.register_forward_pre_hook(lambda _, args, to=seen: to.append(args[0].clone()))
        run.epoch()
        assert [len(batch) for batch in seen] == [3, 3, 1, 3]
        torch.testing.assert_close(seen[3], preparation(images.test))
        given[name] = torch.cat(seen[:3]), preparation(images.train)
    trained, still = given["still"]
    same = [[torch.equal(a, b) for b in still].index(True) for a in trained]
    assert sorted(same) == list(range(7))
    assert same != list(range(7))
    trained, still = given["moved"]
    # The same order; each image is moved, and none leaves its range.
    assert not any(torch.equal(a, still[row]) for a, row in zip(trained, same, strict=True))
    assert float(trained.min()) >= float(still.min()) - 1e-6
    assert float(trained.max()) <= float(still.max()) + 1e-6


def test_methods_of_a_seed_see_the_same_weights_and_images():
    def first_inputs(method, seed):
        run = started(method, seed=seed)
        weights = run._network.head.weight.detach().clone()
        seen = []
        run._network.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
        run.epoch()
        run.epoch()
        return weights, seen

    weights, one = first_inputs("1/L, SGD", 0)
    same_weights, same = first_inputs("Adam", 0)
    other_weights, other = first_inputs("Adam", 1)
    assert torch.equal(weights, same_weights)
    assert not torch.equal(weights, other_weights)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0], other[0])
    assert not torch.equal(one[0], one[3])  # another order and other moves in the next epoch


def test_what_can_be_learned_is_learned():
    run = started("Adam", images=cut(rows=60, test=20), batch=10, epochs=8)
    losses = [run.epoch()["train_loss"] for _ in range(8)]
    assert losses[-1] < losses[0]


def test_a_lost_run_at_a_fixed_rate_ends_and_one_under_exptest_begins_anew():
    images = cut(rows=64, test=4)
    lost = started(partial(table4._driver, name="SGD", rate=1e30), images=images, batch=4, epochs=3)
    done = train(lost, Limits(3))
    assert done.complete
    assert (done.rows[0]["epochs"], done.rows[0]["diverged"]) == (1, 1)
    saved = started(
        partial(table4._driver, name="ExpTest (robust)", rate=1e4),
        images=images,
        batch=4,
        epochs=6,
    )
    done = train(saved, Limits(6))
    assert done.rows[0]["epochs"] == 6
    last = done.history[0][-1]
    assert last["restarts"] > 0
    assert last["lr"] < 1e4


def test_exptests_rates_and_decisions_are_told():
    run = started("ExpTest, ExpTest (paper)", images=cut(rows=80), batch=2, epochs=2)
    row = run.epoch()
    told = {"lr", "phase", "restarts", "decays", "accepted_step"}
    assert told <= set(row)
    assert row["phase"] in ("searching", "training")


@pytest.mark.parametrize("method", ["ExpTest, ExpTest (robust)", "1/L, SGD", "1/L, Momentum"])
def test_a_step_with_its_data_waits_for_no_device(monkeypatch, method):
    """As on an accelerator: ExpTest looks at a window's end, 1 / L at an epoch's."""
    monkeypatch.setattr(exptest, "make_recorder", lambda loss: DeviceLosses())
    run = started(method, images=cut(rows=80), batch=2)
    run._network.train()
    images, moves = run._images, run._moves(0)
    order, hits = torch.randperm(80), torch.zeros((), dtype=torch.long)
    quiet = 0
    for step in range(40):
        part = slice(2 * step, 2 * step + 2)
        driver = run._driver
        due = isinstance(driver, UnderExpTest) and (
            driver._exptest.steps + 1 >= driver._exptest._due
        )
        first = step == 0  # 1 / L of the first batch is set then
        with Waits() as waits:
            rows = order[part]
            inputs = run._preparation(images.train[rows], moves[part])
            run._step(inputs, images.train_labels[rows], hits)
        if not (due or first):
            quiet += 1
            # Bytes become numbers, and losses float32, where they are.
            assert set(waits.seen) <= {"_to_copy"}, (step, waits.seen)
    assert quiet > 30


# --- rates -----------------------------------------------------------------------------------


def test_kerass_decay_divides_the_rate_by_one_plus_decay_times_steps():
    run = started("Keras' SGD", images=cut(rows=6), batch=2)
    rates = []
    run._driver.optimizer.register_step_pre_hook(
        lambda optimizer, *_: rates.append([group["lr"] for group in optimizer.param_groups])
    )
    rows = [run.epoch(), run.epoch()]
    expected = [0.01 / (1 + 1e-3 * step) for step in range(6)]
    assert rates == [pytest.approx([rate, rate], rel=1e-12) for rate in expected]
    assert [row["lr"] for row in rows] == [0.01, 0.01]
    assert rows[1]["lr_decayed"] == pytest.approx(expected[5])


def test_kerass_decay_lies_on_the_renewed_rate_too():
    run = started("1/L, SGD", images=cut(rows=6), batch=2)
    rates = []
    run._driver.optimizer.register_step_pre_hook(
        lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
    )
    first, second = run.epoch(), run.epoch()
    for row in (first, second):
        assert row["lr"] == pytest.approx(1 / row["lipschitz"])
    # Of the first step the hook sets the rate behind this one.
    assert rates[1:3] == pytest.approx([first["lr"] / (1 + 1e-3 * n) for n in (1, 2)])
    assert rates[3:] == pytest.approx([second["lr"] / (1 + 1e-3 * n) for n in (3, 4, 5)])


def test_the_published_rate_of_resnet20_follows_from_its_printed_bound():
    """[L] 7.4: K_z = 206.695, max ‖w‖ = 43.257, and the rate 0.668 with lambda = 1e-3."""
    constant = lipschitz_constant(
        "cross_entropy",
        batch_size=128,
        k_z=206.695,
        classes=10,
        weight_decay=float(line("SGD").decay),
        weight_norm=43.257,
    )
    assert 1 / constant == pytest.approx(line("SGD", "Fixed").rate, abs=5e-4)


def test_the_rate_of_rmsprop_is_that_of_the_scripts():
    """lr = (sqrt(K2) + eps) / K_z, K2 = 0.1 S of the first epoch; 1e-3 before it."""
    run = started("1/L, RMSprop", images=cut(rows=6), batch=2)
    features = []
    run._network.head.register_forward_pre_hook(
        lambda layer, given: features.append(given[0].detach()) if layer.training else None
    )
    first = run.epoch()
    weights = max(float(p.detach().norm()) for p in run._network.parameters())
    k_z = max(float(part.norm()) for part in features)
    squares = max(float(part.square().norm()) for part in features)
    share = 9 / (10 * 2)
    penalty = 1e-3 * weights
    square = share**2 * squares + 2 * penalty * share * k_z + penalty**2
    assert first["lr"] == 1e-3
    assert run._driver._rate.base == pytest.approx((np.sqrt(0.1 * square) + 1e-7) / k_z, rel=1e-5)


def test_the_reading_as_an_l2_penalty_moves_it_from_the_rate_to_the_kernels():
    for decay, penalty, of_rate in (("rate", 2e-4, 1e-3), ("l2", 1e-3, 0.0)):
        network = small()
        driver = table3.driver(network, 2, 10, line=line("SGD", "Baseline"), decay=decay)
        chosen, rest = driver.optimizer.param_groups
        assert (chosen["weight_decay"], rest["weight_decay"]) == (penalty, 0.0)
        assert [id(p) for p in chosen["params"]] == [id(p) for p in kernels(network)]
        assert driver._rate._decay == of_rate
    groups = penalised(small(), 0.1)
    assert sum(len(group["params"]) for group in groups) == len(list(small().parameters()))


def test_baseline_momentum_moves_as_the_authors_class():
    """V <- 0.9 V + 0.1 g; w <- w - 0.01 V, so a constant gradient ends at plain descent's pace."""
    network = small()
    driver = table3.driver(network, 2, 10, line=line("Momentum", "Baseline"), decay="l2")
    for group in driver.optimizer.param_groups:
        group["weight_decay"] = 0.0
    weight = network.head.bias
    before, velocity, moved_by = weight.detach().clone(), 0.0, 0.0
    for _ in range(5):
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        driver.step(torch.zeros(()))
        velocity = 0.9 * velocity + 0.1
        moved_by += 0.01 * velocity
    torch.testing.assert_close(before - weight.detach(), torch.full_like(weight, moved_by))


def test_a_rate_that_nothing_decays_stays():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    rate = RateDecay(optimizer, 0.0)
    for _ in range(3):
        rate.before()
        rate.after()
    assert optimizer.param_groups[0]["lr"] == 0.3


def test_every_line_of_the_table_has_a_driver_of_its_policy():
    for each in TABLE3:
        if each.dataset == "MNIST":
            continue
        driver = table3.driver(small(), 2, 10, line=each, decay="rate")
        assert type(driver) is (Lipschitz if each.policy == "Adaptive" else Fixed)
        assert each.policy != "Fixed" or driver._rate.base == each.rate
        assert each.start is None or driver._controller._start == (each.start,)


# --- speed -----------------------------------------------------------------------------------


def test_half_precision_trains_as_full_precision_does():
    images = cut(rows=40, test=10)
    losses = {}
    for precision in ("fp32", "bf16"):
        run = started("SGD", images=images, batch=10, speed=Speed(CPU.device, precision=precision))
        run.epoch()
        losses[precision] = run.losses[0]
    # bfloat16 has 8 bits: 0.4 % of a number, less of a mean.
    torch.testing.assert_close(losses["bf16"], losses["fp32"], rtol=0.02, atol=0.0)
    assert not torch.equal(losses["bf16"], losses["fp32"])


def test_another_layout_changes_rounding_alone():
    images = cut(rows=8, test=4)
    runs = [
        started("SGD", images=images, speed=Speed(CPU.device, channels_last=last))
        for last in (False, True)
    ]
    for run in runs:
        run.epoch()
    torch.testing.assert_close(runs[0].losses[0], runs[1].losses[0], rtol=1e-4, atol=0.0)
    weight = runs[1]._network.body[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_a_deterministic_gradient(name):
    with Speed(CPU.device, deterministic=True).applied():
        assert torch.are_deterministic_algorithms_enabled()
        model = NETWORKS[name]()
        model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert not torch.are_deterministic_algorithms_enabled()


def test_torchs_switches_are_put_back():
    def switches():
        cudnn = torch.backends.cudnn
        return cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, cudnn.benchmark

    before = switches()
    with Speed(CPU.device).applied():
        assert switches()[:2] == (False, False)
    assert switches() == before
    seen = []
    with pytest.raises(ZeroDivisionError), Speed(CPU.device, precision="tf32").applied():
        seen.append(1 / (switches()[:2] != (True, True)))
    assert switches() == before


# torch's own, when its compiler is loaded
@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated:DeprecationWarning")
def test_a_compiled_body_is_one_piece_and_keeps_the_names_of_its_weights(monkeypatch):
    """So that a checkpoint fits whether it is compiled or not; the last layer's hooks run."""
    asked, called = [], []

    def compiled(function, **options):
        asked.append(options)
        return lambda images: (called.append(len(images)), function(images))[1]

    monkeypatch.setattr(torch, "compile", compiled)
    run = started("1/L, SGD", speed=Speed(CPU.device, compile="graphs"))
    assert asked == [{"dynamic": False, "mode": "reduce-overhead"}]
    row = run.epoch()
    assert called == [2, 2, 2]  # two steps and the test
    assert row["k_z"] > 0
    assert set(run._network.state_dict()) == set(small().state_dict())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated:DeprecationWarning")
def test_a_compiled_run_trains_as_a_plain_one():
    """Without dropout, whose masks a compiled body draws in its own way."""
    images, network = cut(rows=6, test=2), partial(small, dropout=0.0)
    runs = [
        started("SGD", network, images, speed=Speed(CPU.device, compile=compile_))
        for compile_ in ("off", "on")
    ]
    for run in runs:
        run.epoch()
    torch.testing.assert_close(runs[1].losses[0], runs[0].losses[0], rtol=1e-4, atol=0.0)
