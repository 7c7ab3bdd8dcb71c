"""[E] Table 1 and Figure 1: MNIST logistic regression, ExpTest beside optimizers x five rates."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.exptest import mnist
from experiments.exptest.methods import FROM_PAPER, MODES, NOTEBOOK
from experiments.exptest.published import EXPTEST_MNIST, OWN, TABLE1, TABLE1_FACTORS
from experiments.exptest.report import curves_figure, exptest_summary, sorted_rows
from experiments.exptest.training import OPTIMIZERS
from experiments.harness.cells import SEED, Cell, Measured
from experiments.harness.comparing import Figures, comparison_table
from experiments.harness.reproduction import Plan, Report, Reproduction, Results
from experiments.harness.text import titled

BY = ("method", "rate")
CEILING = 0.4  # the paper's: losses above it are not drawn


def cells(plan: Plan) -> Sequence[Cell]:
    """One bank a seed."""
    return [{SEED: seed} for seed in plan.seed_range()]


def measure(cell: Cell, plan: Plan) -> Measured:
    """All methods of one seed, side by side."""
    limit = mnist.bound(NOTEBOOK, plan)
    runs: list[mnist.Fixed | mnist.Tested] = [
        mnist.Tested(mode, {"method": f"ExpTest ({mode})", "rate": OWN}) for mode in MODES
    ]
    runs.append(
        mnist.Tested("robust", {"method": f"ExpTest ({FROM_PAPER})", "rate": OWN}, start="paper")
    )
    runs += [
        mnist.Fixed(method, factor * limit, {"method": method, "rate": f"{factor:g}"})
        for method in OPTIMIZERS
        if method != "Adadelta"
        for factor in TABLE1_FACTORS
    ]
    runs.append(mnist.Fixed("Adadelta", None, {"method": "Adadelta", "rate": OWN}))
    return mnist.measure(runs, plan, seed=cell[SEED])


def report(results: Results, plan: Plan) -> Report:
    """Published against measured; the paper's five panels as one figure."""
    published: Figures = {
        **TABLE1,
        **{(f"ExpTest ({mode})", OWN): EXPTEST_MNIST for mode in (*MODES, FROM_PAPER)},
    }
    order = list(published)
    table = comparison_table(
        results.rows, published, by=BY, value="accuracy", order=sorted_rows(order)
    )
    epoch = mnist.settings(plan)["rows"] // mnist.BATCH_SIZE
    figure = curves_figure(
        results,
        TABLE1_FACTORS,
        window=epoch,
        ceiling=CEILING,
        title="MNIST logistic regression, training loss (moving average of an epoch)",
    )
    title = "[E] Table 1: test accuracy in percent, rates in multiples of the bound"
    text = titled(title, table, by=BY, digits=2, cut=plan.quick)
    summary = exptest_summary(table, "test/accuracy")
    return Report(text, {"comparison": table}, {"curves": figure}, summary)


REPRODUCTION = Reproduction(
    name="exptest-table1",
    title="[E] Table 1, Fig. 1: MNIST logistic regression against five optimizers x five rates",
    settings=mnist.settings,
    cells=cells,
    measure=measure,
    report=report,
    by=BY,
)
