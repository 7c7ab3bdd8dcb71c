"""The CNN of [N] Table 1: its layers, its training, and going on bit for bit after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from math import inf, nan, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from experiments import images as images_module
from experiments.epochs import Limits, summary, train
from experiments.images import Images, read_images
from experiments.lipschitz.cnn_training import CnnRun, Method
from experiments.lipschitz.mnist_cnn import METHODS
from experiments.lipschitz.network import mnist_cnn
from lrsearch.errors import InvalidArgumentError
from lrsearch.training.checkpoints import Checkpoint

ROOT = Path(__file__).resolve().parents[2]


def images(train_rows=40, test_rows=20):
    """Noise with a bright bar whose row is the label, so that something can be learned."""
    generator = torch.Generator().manual_seed(0)

    def part(rows):
        labels = torch.randint(10, (rows,), generator=generator)
        pixels = torch.randint(60, (rows, 1, 28, 28), generator=generator, dtype=torch.uint8)
        for row, label in enumerate(labels.tolist()):
            pixels[row, 0, 2 * label + 4 : 2 * label + 6] = 255
        return pixels, labels

    return Images(*part(train_rows), *part(test_rows))


def started(method="Momentum", seed=0):
    return CnnRun(images(), METHODS[method], seed=seed, batch_size=16)


# --- the network -----------------------------------------------------------------------------


def test_the_network_is_that_of_the_table():
    model = mnist_cnn()
    assert sum(parameter.numel() for parameter in model.parameters()) == 730_346
    shapes, inputs = [], torch.zeros(2, 1, 28, 28)
    for layer in model:
        inputs = layer(inputs)
        shapes.append((type(layer).__name__, tuple(inputs.shape[1:])))
    without_relu = [shape for shape in shapes if shape[0] != "ReLU"]
    assert without_relu == [
        ("Conv2d", (32, 26, 26)),
        ("Conv2d", (32, 24, 24)),
        ("MaxPool2d", (32, 12, 12)),
        ("Dropout", (32, 12, 12)),
        ("Conv2d", (64, 12, 12)),
        ("Conv2d", (64, 12, 12)),
        ("MaxPool2d", (64, 6, 6)),
        ("Dropout", (64, 6, 6)),
        ("Conv2d", (128, 6, 6)),
        ("Dropout", (128, 6, 6)),
        ("Flatten", (4608,)),
        ("Linear", (128,)),
        ("BatchNorm1d", (128,)),
        ("Dropout", (128,)),
        ("Linear", (10,)),
    ]
    # "All activations except the last layer are ReLU": each behind the layer that it activates.
    activated = [number - 1 for number, shape in enumerate(shapes) if shape[0] == "ReLU"]
    weighted = [n for n, shape in enumerate(shapes) if shape[0] in ("Conv2d", "Linear")]
    assert activated == weighted[:-1]
    assert [layer.p for layer in model if isinstance(layer, nn.Dropout)] == [0.2, 0.25, 0.25, 0.25]


def test_weights_start_as_in_keras():
    torch.manual_seed(0)
    model = mnist_cnn()
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            fan_in = layer.weight[0].numel()
            deviation = sqrt(2 / fan_in)
            # 5 standard errors of a deviation; a normal cut at two has less than a full one's.
            error = 5 * deviation / sqrt(2 * layer.weight.numel())
            assert float(layer.weight.detach().std()) == pytest.approx(deviation, abs=error)
            assert float(layer.weight.detach().abs().max()) <= 2.0 * deviation / 0.8796
        if isinstance(layer, nn.Linear):
            limit = sqrt(6 / sum(layer.weight.shape))
            assert 0.98 * limit < float(layer.weight.detach().abs().max()) <= limit
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert not layer.bias.any()
        if isinstance(layer, nn.BatchNorm1d):
            assert (layer.momentum, layer.eps) == (pytest.approx(0.01), 1e-3)


# --- training --------------------------------------------------------------------------------


def test_an_epoch_tells_rate_bound_losses_and_accuracies():
    run = started("SGD")
    first, second = run.epoch(), run.epoch()
    assert [row["epoch"] for row in run.epochs] == [1, 2]
    assert [len(losses) for losses in run.losses] == [3, 3]  # 16 + 16 + 8 rows
    for row, losses in zip((first, second), run.losses, strict=True):
        assert row["train_loss"] == pytest.approx(float(losses.mean()), rel=1e-6)
        assert row["lr"] == pytest.approx(1 / row["lipschitz"])
        # [L] Eq. 23, with the batch's 16 rows also where the last has 8.
        assert row["lipschitz"] == pytest.approx(0.9 * row["k_z"] / 16)
        assert 0.0 <= row["accuracy"] <= 100.0
        assert row["accuracy"] % 5.0 == pytest.approx(0.0)  # of 20 rows
        assert row["train_accuracy"] % 2.5 == pytest.approx(0.0)  # of 40 rows
        assert row["seconds"] > 0.0


def test_the_papers_momentum_starts_at_x_and_adds_the_first_bound_to_it():
    run = started("Momentum")
    run.epoch()
    row = run.epoch()
    assert run.epochs[0]["lr"] == pytest.approx(0.1 * 0.1)  # x (1 - mu), torch's velocity
    assert run.epochs[0]["k_z"] is None
    assert row["lr"] == pytest.approx(0.1 / (0.9 * 0.1 + 0.1 * row["lipschitz"]))


def test_a_fixed_rate_stays():
    run = started("Adam 0.001")
    rows = [run.epoch(), run.epoch()]
    assert [row["lr"] for row in rows] == [0.001, 0.001]
    assert all(row["k_z"] is None for row in rows)


def test_what_can_be_learned_is_learned():
    run = CnnRun(images(200, 50), METHODS["Adam 0.001"], seed=0, batch_size=20)
    losses = [run.epoch()["train_loss"] for _ in range(6)]
    assert losses[-1] < 0.7 * losses[0]


def test_methods_of_a_seed_see_the_same_weights_and_images(monkeypatch):
    seen = []

    def forward(model, inputs):
        seen[-1].append(inputs.clone())
        return original(model, inputs)

    original = nn.Sequential.forward
    monkeypatch.setattr(nn.Sequential, "forward", forward)
    weights = []
    for method, seed in (("SGD", 0), ("Adam 0.001", 0), ("SGD", 1)):
        seen.append([])
        run = started(method, seed)
        weights.append(run._model[0].weight.detach().clone())
        run.epoch()
        run.epoch()
    first, same, other = seen
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not torch.equal(first[0], other[0])
    # Another order and other moves in the next epoch; test images as they are.
    steps = len(first) // 2
    assert not torch.equal(first[0], first[steps])
    assert torch.equal(first[steps - 1], first[-1])


def test_pixels_are_scaled_to_one_and_moved():
    run = started()
    given = []
    run._model.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].clone()))
    run.epoch()
    torch.testing.assert_close(given[-1], images().test.float() / 255)
    assert all(float(batch.min()) >= 0.0 and float(batch.max()) <= 1.0 for batch in given)


# --- going on --------------------------------------------------------------------------------


def timeless(rows):
    return [{**row, "seconds": 0.0} for row in rows]


def assert_same(found, expected):
    """The same to the last bit, save for the time it took."""
    assert timeless(found.rows) == timeless(expected.rows)
    assert timeless(found.history[0]) == timeless(expected.history[0])
    np.testing.assert_array_equal(found.curves[0], expected.curves[0])


@pytest.mark.parametrize("method", ["SGD", "Momentum", "Adam", "Adam 0.001"])
def test_a_run_that_was_cut_goes_on_bit_for_bit(tmp_path, method):
    whole_run = started(method)
    whole = train(whole_run, Limits(3))
    checkpoint = Checkpoint(tmp_path / "a.pt")
    cut = train(started(method), Limits(3, deadline=-inf), checkpoint)
    assert not cut.complete
    assert cut.rows[0]["epochs"] == 1
    torch.rand(7)  # whatever happens between
    resumed = started(method)
    again = train(resumed, Limits(3), Checkpoint(tmp_path / "a.pt"))
    assert again.complete
    assert_same(again, whole)
    for found, expected in zip(
        resumed._model.state_dict().values(), whole_run._model.state_dict().values(), strict=True
    ):
        assert torch.equal(found, expected)


def test_each_call_trains_an_epoch_even_without_time(tmp_path):
    for epochs in (1, 2, 3):
        done = train(started(), Limits(3, deadline=-inf), Checkpoint(tmp_path / "a.pt"))
        assert (done.rows[0]["epochs"], done.complete) == (epochs, epochs == 3)


def test_checkpoints_may_be_rarer_than_epochs_but_the_last_one_is_there(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(
        Checkpoint, "save", lambda _, state: kept.append(len(state["epochs"])), raising=True
    )
    for limits, saved in (
        (Limits(3), [1, 2, 3]),
        (Limits(3, save_every=3600.0), [3]),
        (Limits(3, deadline=-inf, save_every=3600.0), [1]),
    ):
        kept.clear()
        train(started(), limits, Checkpoint(tmp_path / "a.pt"))
        assert kept == saved


def test_a_finished_run_trains_no_more(tmp_path, monkeypatch):
    first = train(started(), Limits(1), Checkpoint(tmp_path / "a.pt"))
    monkeypatch.setattr(CnnRun, "epoch", lambda *_: pytest.fail("trained again"))
    assert_same(train(started(), Limits(1), Checkpoint(tmp_path / "a.pt")), first)


@pytest.mark.parametrize("both", [False, True])
def test_a_damaged_checkpoint_costs_an_epoch_or_all_and_changes_nothing(tmp_path, both):
    whole = train(started(), Limits(3))
    for _ in range(2):
        train(started(), Limits(3, deadline=-inf), Checkpoint(tmp_path / "a.pt"))
    paths = [tmp_path / "a.pt"] + ([tmp_path / "a.pt.previous"] if both else [])
    for path in paths:
        path.write_bytes(path.read_bytes()[:-1000])
    assert_same(train(started(), Limits(3), Checkpoint(tmp_path / "a.pt")), whole)


def test_a_folder_that_takes_no_checkpoint_is_told_in_the_commands_words(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgumentError, match=r"--out: cannot write .*a\.pt"):
        train(started(), Limits(1), Checkpoint(tmp_path / "file" / "a.pt"))


def test_a_loss_that_is_not_finite_ends_the_run(monkeypatch):
    exploding = Method(partial(torch.optim.SGD, lr=1e30))
    run = CnnRun(images(), exploding, seed=0, batch_size=16)
    done = train(run, Limits(5))
    assert done.complete
    (row,) = done.rows
    assert row["diverged"] == 1
    assert row["epochs"] < 5
    assert not np.isfinite(done.curves[0][-1])


def test_the_best_epoch_counts_beside_the_last():
    rows = [
        {
            "epoch": number + 1,
            "accuracy": accuracy,
            "lr": 0.1 * (number + 1),
            "train_accuracy": 50.0 + number,
            "train_loss": loss,
            "test_loss": 0.5,
            "seconds": 2.0,
        }
        for number, (accuracy, loss) in enumerate([(90.0, 1.0), (99.0, 0.5), (80.0, nan)])
    ]
    assert summary(rows) == {
        "epochs": 3,
        "accuracy": 99.0,
        "best_epoch": 2,
        "accuracy_last": 80.0,
        "train_accuracy": 52.0,
        "train_loss": pytest.approx(nan, nan_ok=True),
        "test_loss": 0.5,
        "first_lr": 0.1,
        "final_lr": pytest.approx(0.3),
        "seconds": 6.0,
        "diverged": 1,
    }


SCRIPT = """
import sys
from pathlib import Path

import torch

from lrsearch.training.checkpoints import Checkpoint
from experiments.epochs import Limits, train

sys.path.insert(0, sys.argv[2])
from test_cnn_training import started

torch.set_num_threads(1)
train(started(), Limits(1000), Checkpoint(Path(sys.argv[1])))
"""


@pytest.mark.slow
def test_a_killed_process_goes_on_bit_for_bit(tmp_path):
    """At any moment: between epochs, within one, or while it saves."""
    path = tmp_path / "a.pt"
    (tmp_path / "killed.py").write_text(SCRIPT)
    arguments = [sys.executable, str(tmp_path / "killed.py"), str(path), str(Path(__file__).parent)]
    process = subprocess.Popen(arguments, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        deadline = time.monotonic() + 120
        while not path.with_name("a.pt.previous").exists():  # two epochs are saved
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.1)
    finally:
        process.kill()
        assert process.wait() == -signal.SIGKILL
    state = Checkpoint(path).load()
    assert state is not None
    epochs = len(state["epochs"]) + 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        again = train(started(), Limits(epochs), Checkpoint(path))
        assert_same(again, train(started(), Limits(epochs)))
    finally:
        torch.set_num_threads(threads)


def test_images_come_as_they_are(monkeypatch):
    arrays = {
        "train_images": np.arange(5 * 784, dtype=np.uint8).reshape(5, 28, 28),
        "train_labels": np.arange(5, dtype=np.uint8),
        "test_images": np.zeros((3, 28, 28), np.uint8),
        "test_labels": np.zeros(3, np.uint8),
    }
    monkeypatch.setattr(images_module, "read_arrays", lambda name, data_dir: arrays)
    found = read_images("mnist", "somewhere", torch.device("cpu"), train=4)
    assert found.train.shape == (4, 1, 28, 28)
    assert found.train.dtype == torch.uint8
    assert found.train_labels.tolist() == [0, 1, 2, 3]
    assert found.train_labels.dtype == torch.long
    assert len(found.test) == len(found.test_labels) == 3
    assert torch.equal(found.train[:, 0], torch.tensor(arrays["train_images"][:4]))
