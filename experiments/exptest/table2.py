"""[E] Table 2: MNIST logistic regression under ExpTest, alpha x beta."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from experiments.exptest import mnist
from experiments.exptest.methods import MODES, NOTEBOOK
from experiments.exptest.notebook_fit import notebook_line_f_test
from experiments.exptest.published import ALPHAS, BETAS, TABLE2
from experiments.harness.cells import SEED, Cell, Measured
from experiments.harness.comparing import Figures, comparison_table
from experiments.harness.reproduction import Plan, Report, Reproduction, Results
from experiments.harness.text import titled

BY = ("mode", "alpha", "beta")
# The notebook "Alpha_&_Beta_Range" as it was committed: its "exponential" is a straight line.
COMMITTED = "notebook, as committed"


def cells(plan: Plan) -> Sequence[Cell]:
    """One bank a seed."""
    return [{SEED: seed} for seed in plan.seed_range()]


def measure(cell: Cell, plan: Plan) -> Measured:
    """All modes, alphas and betas of one seed."""
    runs = [
        mnist.Tested(mode, {"mode": mode, "alpha": alpha, "beta": beta}, alpha, beta)
        for mode in MODES
        for alpha, beta in product(ALPHAS, BETAS)
    ]
    runs += [
        mnist.Tested(
            NOTEBOOK,
            {"mode": COMMITTED, "alpha": alpha, "beta": beta},
            alpha,
            beta,
            f_test=notebook_line_f_test,
        )
        for alpha, beta in product(ALPHAS, BETAS)
    ]
    return mnist.measure(runs, plan, seed=cell[SEED])


def report(results: Results, plan: Plan) -> Report:
    """Published against measured, and what alpha and beta matter to each mode."""
    published: Figures = {
        (mode, *key): figure for mode in (*MODES, COMMITTED) for key, figure in TABLE2.items()
    }
    table = comparison_table(results.rows, published, by=BY, value="accuracy", order=published)
    title = "[E] Table 2: test accuracy in percent over alpha and beta"
    spreads = table.groupby("mode", sort=False)["measured"].agg(["min", "max"])
    lines = [
        f"{mode}: from {low:.2f} to {high:.2f} over all nine"
        for mode, low, high in spreads.itertuples()
    ]
    text = "\n".join([titled(title, table, by=BY, digits=2, cut=plan.quick), "", *lines])
    summary = {
        f"test/accuracy/{mode}/lowest": float(low)
        for mode, low in zip(spreads.index, spreads["min"], strict=True)
    }
    return Report(text, {"comparison": table}, summary=summary)


REPRODUCTION = Reproduction(
    name="exptest-table2",
    title="[E] Table 2: MNIST logistic regression, ExpTest over alpha x beta",
    settings=mnist.settings,
    cells=cells,
    measure=measure,
    report=report,
    by=BY,
)
