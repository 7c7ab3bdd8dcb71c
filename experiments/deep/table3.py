"""[L] Table 3: residual and dense networks on CIFAR at rates of 1 / L, beside Keras' defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch

from experiments.deep.cells import images_of, notes_on, sizes
from experiments.deep.cells import measure as measure_cell
from experiments.deep.drivers import Driver, Fixed, Lipschitz, penalised
from experiments.deep.figures import epochs_figure
from experiments.deep.models.catalogue import NETWORKS
from experiments.deep.models.network import Network
from experiments.deep.preparation import centred
from experiments.deep.published import TABLE3, TABLE3_FIGURES, Line
from experiments.deep.speed import OPTIONS
from experiments.epochs import Limits, train
from experiments.harness.cells import SEED, Cell, Measured
from experiments.harness.choosing import Option
from experiments.harness.comparing import comparison_table
from experiments.harness.reproduction import RUN, Plan, Report, Reproduction, Results
from experiments.harness.text import titled
from experiments.keras import EPSILON
from experiments.lipschitz import mnist_cnn
from experiments.lipschitz.cnn_training import CnnRun

BY: Final = ("dataset", "network", "algorithm", "policy", "decay")
EPOCHS: Final = 300
MNIST: Final = "MNIST"
DATASETS: Final = {"CIFAR-10": ("cifar10", 10), "CIFAR-100": ("cifar100", 100)}
# What the table calls weight decay is the argument ``decay`` of Keras' optimizers.
DECAY: Final = Option("decay", ("rate", "l2"), "rate: Keras' decay of it; l2: as the text says")
PENALTY: Final = 2e-4  # gradient of Keras' l2(1e-4) per weight, which all scripts have beside it
MOMENTUM: Final = 0.9
# Keras' defaults, as [L] 7.4.2 has them; momentum's in the form of torch's velocity, since the
# authors' class has the papers' factor 1 - mu at 0.01 too.
_BASELINES: Final = {
    "SGD": 0.01,
    "Momentum": 0.01 * (1.0 - MOMENTUM),
    "RMSprop": 0.001,
    "Adam": 0.001,
}
_OPTIMIZERS: Final[Mapping[str, Callable[..., torch.optim.Optimizer]]] = {
    "SGD": torch.optim.SGD,
    "Momentum": partial(torch.optim.SGD, momentum=MOMENTUM),
    "RMSprop": partial(torch.optim.RMSprop, alpha=0.9, eps=EPSILON),
    "Adam": partial(torch.optim.Adam, eps=EPSILON),
}
# As the scripts: RMSprop's text would give rates near 1, which no deep network bears.
_ADAPTIVE: Final[Mapping[str, Mapping[str, Any]]] = {
    "SGD": {"first_epoch": "papers"},
    "Momentum": {"first_epoch": "papers"},
    "RMSprop": {"first_epoch": "papers", "squared": "elementwise", "divide_by_k_z": True},
    "Adam": {"first_epoch": "batch", "squared": "elementwise", "bias_correction": False},
}
_LINES: Final = {line.key: line for line in TABLE3}
_FIRST: Final = (
    ("CIFAR-10", "ResNet20", "SGD", "Adaptive", "1e-3"),
    ("CIFAR-10", "DenseNet", "Momentum", "Adaptive", "1e-4"),
)


def settings(plan: Plan) -> dict[str, Any]:
    """What the cells rest on; MNIST's have their own beside it."""
    mnist = mnist_cnn.settings(plan)
    return {
        **sizes(plan, epochs=EPOCHS),
        DECAY.name: plan.option(DECAY.name),
        **{f"mnist_{name}": value for name, value in mnist.items()},
    }


def cells(plan: Plan) -> Sequence[Cell]:
    """Those that the paper leads with first; a quick plan has the last policy of each algorithm.

    MNIST comes last: where its data are missing, all else is measured.
    """
    lines = sorted(TABLE3, key=lambda line: (line.dataset == MNIST, line.key not in _FIRST))
    if plan.quick:
        last = {(line.dataset, line.network, line.algorithm): line for line in TABLE3}
        lines = list(last.values())
    return [
        {**dict(zip(BY, line.key, strict=True)), SEED: seed}
        for seed in plan.seed_range(full=1, quick=1)
        for line in lines
    ]


def measure(cell: Cell, plan: Plan) -> Measured:
    """Train one network, from where it was left."""
    line, given = _LINES[tuple(cell[name] for name in BY)], settings(plan)
    if line.dataset == MNIST:
        return _measure_mnist(line, cell, plan, given)
    dataset, classes = DATASETS[line.dataset]
    return measure_cell(
        cell,
        plan,
        given,
        dataset=dataset,
        network=partial(NETWORKS[line.network], classes=classes),
        method=partial(driver, line=line, decay=given[DECAY.name]),
        prepare=centred,
    )


def driver(network: Network, batch_size: int, steps: int, *, line: Line, decay: str) -> Driver:
    """Optimizer and rule of a line.

    Args:
        network: whose weights.
        batch_size: m of the bound.
        steps: of the whole run; no rule here counts them.
        line: which.
        decay: "rate" or "l2", the reading of the table's "WD".
    """
    number = float(line.decay)
    rate = _BASELINES[line.algorithm] if line.rate is None else line.rate
    groups = penalised(network, PENALTY if decay == "rate" else number)
    optimizer = _OPTIMIZERS[line.algorithm](groups, lr=rate)
    of_rate = number if decay == "rate" else 0.0
    if line.policy != "Adaptive":
        return Fixed(optimizer, decay=of_rate)
    options = dict(_ADAPTIVE[line.algorithm])
    if line.start is not None:
        options["start"] = line.start
    # The papers put the table's number into L, as lambda, in either reading.
    return Lipschitz(
        optimizer, network, decay=of_rate, batch_size=batch_size, weight_decay=number, **options
    )


def _measure_mnist(line: Line, cell: Cell, plan: Plan, given: Mapping[str, Any]) -> Measured:
    """As ``lipschitz-mnist-cnn`` trains it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    own = {name: given[f"mnist_{name}"] for name in mnist_cnn.settings(plan)}
    run = CnnRun(
        images_of("mnist", plan.data_dir, device, own["rows"], own["test_rows"]),
        mnist_cnn.METHODS[line.algorithm],
        seed=cell[SEED],
        batch_size=own["batch_size"],
    )
    return train(run, Limits(own["epochs"], plan.deadline), plan.checkpoint(given, cell))


def report(results: Results, plan: Plan) -> Report:
    """The best epoch against what was published; rates and accuracies by epoch."""
    given, rows = settings(plan), results.rows
    order = [line.key for line in TABLE3]
    best = comparison_table(rows, TABLE3_FIGURES, by=BY, value="accuracy", order=order)
    last = comparison_table(rows, {}, by=BY, value="accuracy_last", order=order)
    meaning = "a decay of the rate" if given[DECAY.name] == "rate" else "an L2 penalty"
    title = (
        f"[L] Table 3: best test accuracy of any epoch in percent; its weight decay is {meaning}"
    )
    parts = [titled(title, best, by=BY, digits=2, cut=plan.quick)]
    deep = rows[rows["dataset"] != MNIST]
    if len(deep):
        parts += notes_on(deep, epochs=given["epochs"], quick=plan.quick)
    epochs = results.epochs
    return Report(
        "\n\n".join(parts),
        {"comparison": best, "comparison_last": last, "epochs": epochs.drop(columns=[RUN])},
        {
            "rates": epochs_figure(epochs, "lr", "learning rate", log=True),
            "accuracy": epochs_figure(epochs, "accuracy", "test accuracy, %", log=False),
        },
        {
            f"test/accuracy/{' '.join(map(str, key))}": float(mean)
            for *key, mean in best[[*BY, "measured"]].itertuples(index=False)
        },
    )


REPRODUCTION = Reproduction(
    name="lipschitz-table3",
    title="[L] Table 3: ResNets and DenseNets on CIFAR at rates of 1 / L, beside default rates",
    settings=settings,
    cells=cells,
    measure=measure,
    report=report,
    by=BY,
    method="lipschitz",
    options=(DECAY, *OPTIONS),
    epochs=True,
    workers=1,
)
