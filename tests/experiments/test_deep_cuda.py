"""Deep networks on a real CUDA device: nothing waits, nothing is lost in precision or graphs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from cifar_files import images as made

from experiments.deep import table3, table4
from experiments.deep.drivers import Lipschitz, UnderExpTest
from experiments.deep.models.catalogue import NETWORKS
from experiments.deep.preparation import centred
from experiments.deep.published import TABLE3
from experiments.deep.speed import Speed
from experiments.deep.training import DeepRun
from experiments.epochs import Limits, train
from experiments.images import Images
from lrsearch.training.checkpoints import Checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is at hand"),
    # torch's own, when its compiler is loaded
    pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated:DeprecationWarning"),
]
BATCH = 128
LINES = {
    algorithm: next(
        line
        for line in TABLE3
        if (line.algorithm, line.policy, line.dataset) == (algorithm, "Adaptive", "CIFAR-10")
    )
    for algorithm in ("SGD", "Momentum", "RMSprop", "Adam")
}
METHODS = {
    "ExpTest": partial(table4._driver, name="ExpTest (robust)", rate=0.01),
    **{name: partial(table3.driver, line=line, decay="rate") for name, line in LINES.items()},
}


def on_device(rows: int, device: str = "cuda") -> Images:
    parts = [made(count, 10, seed) for seed, count in enumerate((rows, 100))]
    tensors = [
        (torch.tensor(pixels).to(device), torch.tensor(labels).long().to(device))
        for pixels, labels in parts
    ]
    return Images(*tensors[0], *tensors[1])


def started(method: str, rows: int, *, network: str = "ResNet20", epochs: int = 4, **speed):
    images = on_device(rows)
    return DeepRun(
        images,
        NETWORKS[network],
        METHODS[method],
        seed=0,
        batch_size=BATCH,
        epochs=epochs,
        preparation=centred(images.train),
        speed=Speed(torch.device("cuda"), channels_last=True, **speed),
    )


@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits_for_the_device(method: str) -> None:
    """Data, forward, backward, optimizer and controller; but for ExpTest's looks at a window's
    end, and the first step, in which 1 / L of its batch becomes the rate."""
    run = started(method, 60 * BATCH)
    run._network.train()
    images, moves = run._images, run._moves(0)
    order = torch.randperm(len(images.train)).cuda()
    hits = torch.zeros((), dtype=torch.long, device="cuda")
    quiet = 0
    for step in range(60):
        part = slice(step * BATCH, (step + 1) * BATCH)
        driver = run._driver
        look = isinstance(driver, UnderExpTest) and (
            driver._exptest.steps + 1 >= driver._exptest._due
        )
        loud = look or step < 3  # kernels are chosen and memory is reserved in the first steps
        torch.cuda.set_sync_debug_mode("default" if loud else "error")
        try:
            rows = order[part]
            inputs = run._preparation(images.train[rows], moves[part])
            run._step(inputs, images.train_labels[rows], hits)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        quiet += not loud
    assert quiet > 40
    assert 0 <= int(hits) <= 60 * BATCH


@pytest.mark.parametrize("method", ["ExpTest", "SGD", "Adam"])
def test_a_run_goes_on_bit_for_bit(method: str, tmp_path) -> None:
    def fresh() -> DeepRun:
        return started(method, 4 * BATCH, deterministic=True)

    whole = train(fresh(), Limits(3))
    checkpoint = Checkpoint(tmp_path / "a.pt")
    train(fresh(), Limits(3, deadline=float("-inf")), checkpoint)
    again = train(fresh(), Limits(3), checkpoint)
    assert (again.curves[0] == whole.curves[0]).all()
    assert again.rows[0]["accuracy"] == whole.rows[0]["accuracy"]


@pytest.mark.parametrize("network", NETWORKS)
def test_deterministic_runs_give_the_same_bits(network: str) -> None:
    losses = []
    for _ in range(2):
        run = started("SGD", 2 * BATCH, network=network, deterministic=True)
        run.epoch()
        losses.append(run.losses[0])
    assert torch.equal(*losses)


@pytest.mark.parametrize(
    ("speed", "tolerance"),
    [
        ({"precision": "tf32"}, 5e-3),  # 10 bits of a factor
        ({"precision": "bf16"}, 5e-2),  # 8 bits
        ({"compile": "on"}, 1e-3),
        ({"compile": "graphs"}, 1e-3),
    ],
    ids=str,
)
def test_what_is_fast_loses_as_full_precision_does(speed, tolerance: float) -> None:
    """The first 8 steps at one rate; later ones part by chaos."""
    exact, fast = (started("SGD", 8 * BATCH, **options) for options in ({}, speed))
    for run in (exact, fast):
        run._driver = table3.driver(
            run._network, BATCH, 8, line=replace(LINES["SGD"], policy="Baseline"), decay="rate"
        )
        run.epoch()
    torch.testing.assert_close(fast.losses[0], exact.losses[0], rtol=tolerance, atol=tolerance)


def test_the_bound_is_seen_beside_a_graph() -> None:
    """A body that is replayed as a graph runs no hooks; the last layer is outside of it."""
    run = started("SGD", 4 * BATCH, compile="graphs")
    plain = started("SGD", 4 * BATCH)
    rows = [each.epoch() for each in (run, plain)]
    assert isinstance(run._driver, Lipschitz)
    assert rows[0]["k_z"] == pytest.approx(rows[1]["k_z"], rel=1e-2)


def test_images_are_prepared_as_on_the_cpu() -> None:
    host, device = on_device(64, "cpu"), on_device(64)
    prepared = []
    for images in (host, device):
        run_moves = started("SGD", 64)._moves(0)
        moves = run_moves.to(images.train.device)
        prepared.append(centred(images.train)(images.train, moves).cpu())
    torch.testing.assert_close(prepared[1], prepared[0], rtol=0.0, atol=5e-5)
