"""The three forms of ExpTest that the reproductions set side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from experiments.banks import Bank
from experiments.exptest.notebook import FTest, NotebookExpTest
from experiments.exptest.notebook_fit import notebook_f_test
from experiments.exptest.training import Controlled, Story, sgd, story
from lrsearch import ExpTest

NOTEBOOK: Final = "notebook"
MODES: Final = (NOTEBOOK, "paper", "robust")
# robust from the paper's bound: tells what the tests do from what the start does.
FROM_PAPER: Final = "robust, paper's bound"


def exptest_run(
    bank: Bank,
    run: int,
    mode: str,
    rate: float,
    *,
    total_steps: int,
    alpha: float = 0.05,
    beta: float = 0.33,
    full_batch: bool = False,
    reinitialise: Callable[[], None] | None = None,
    f_test: FTest = notebook_f_test,
) -> tuple[Controlled, Callable[[], Story]]:
    """Put one run of a bank under ExpTest.

    Args:
        bank, run: which.
        mode: one of ``MODES``.
        rate: where it starts.
        total_steps: restarts included.
        alpha, beta: as in [E].
        full_batch: whether each step sees all the data.
        reinitialise, f_test: the notebooks' alone.

    Returns:
        The driver, and what tells its story when training is over.
    """
    parameters = bank.parameters(run)
    optimizer = sgd(parameters, rate)
    if mode == NOTEBOOK:
        notebook = NotebookExpTest(
            optimizer,
            alpha=alpha,
            beta=beta,
            parameters=None if full_batch else parameters,
            reinitialise=reinitialise,
            f_test=f_test,
        )
        return Controlled(run, optimizer, notebook), notebook.story
    exptest = ExpTest(
        optimizer,
        alpha=alpha,
        beta=beta,
        mode="paper" if mode == "paper" else "robust",
        full_batch=full_batch,
        total_steps=total_steps,
        race=False,  # the tables ask what the tests are worth: no race, no annealing
        anneal=0.0,
    )
    return Controlled(run, optimizer, exptest), lambda: story(exptest)
