"""The reproductions by name; each loads when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Final

from experiments.harness.reproduction import Reproduction
from lrsearch.errors import require_choice

MODULES: Final = {
    "exptest-table1": "experiments.exptest.table1",
    "exptest-table2": "experiments.exptest.table2",
    "exptest-fig2": "experiments.exptest.fig2",
    "exptest-table3": "experiments.exptest.table3",
    "exptest-table4": "experiments.deep.table4",
    "exptest-appendix-e": "experiments.exptest.appendix_e",
    "exptest-recorded": "experiments.exptest.recorded",
    "exptest-shifts": "experiments.exptest.shifts",
    "lipschitz-shifts": "experiments.lipschitz.shifts",
    "lipschitz-mnist-cnn": "experiments.lipschitz.mnist_cnn",
    "lipschitz-table1": "experiments.lipschitz.table1",
    "lipschitz-table2": "experiments.lipschitz.table2",
    "lipschitz-table3": "experiments.deep.table3",
    "joint-search": "experiments.joint.reproduction",
    "calibration": "experiments.calibration.reproduction",
}


def find(name: str) -> Reproduction:
    """The reproduction of that name.

    Raises:
        InvalidArgumentError: if there is none.
    """
    require_choice("reproduction", name, tuple(MODULES))
    found: Reproduction = import_module(MODULES[name]).REPRODUCTION
    return found


def titles() -> dict[str, str]:
    """What each one is, in a line."""
    return {name: find(name).title for name in MODULES}
