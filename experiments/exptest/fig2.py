"""[E] Figure 2: MNIST logistic regression under ExpTest at batch sizes 32, 512 and 2048."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.exptest import mnist
from experiments.exptest.methods import FROM_PAPER, MODES, NOTEBOOK
from experiments.exptest.notebook_fit import notebook_line_f_test
from experiments.exptest.published import BATCH_SIZES, FIGURE2
from experiments.exptest.table2 import COMMITTED
from experiments.harness.cells import SEED, Cell, Measured
from experiments.harness.comparing import Figures, comparison_table
from experiments.harness.figures import draw_curves
from experiments.harness.reproduction import Plan, Report, Reproduction, Results
from experiments.harness.text import titled

BY = ("mode", "batch_size")
PANELS = (1000, 100)  # first iterations shown, as in the paper


def cells(plan: Plan) -> Sequence[Cell]:
    """One bank a batch size and seed."""
    return [{"batch_size": size, SEED: seed} for size in BATCH_SIZES for seed in plan.seed_range()]


def measure(cell: Cell, plan: Plan) -> Measured:
    """All modes at one batch size."""
    runs = [mnist.Tested(mode, {"mode": mode}) for mode in MODES]
    runs.append(mnist.Tested("robust", {"mode": FROM_PAPER}, start="paper"))
    runs.append(mnist.Tested(NOTEBOOK, {"mode": COMMITTED}, f_test=notebook_line_f_test))
    return mnist.measure(runs, plan, seed=cell[SEED], batch_size=cell["batch_size"])


def report(results: Results, plan: Plan) -> Report:
    """The paper's two panels for each mode; accuracies beside those in the authors' data."""
    from matplotlib.figure import Figure

    modes = (*MODES, FROM_PAPER, COMMITTED)
    published: Figures = {(mode, size): FIGURE2[size] for mode in modes for size in BATCH_SIZES}
    table = comparison_table(results.rows, published, by=BY, value="accuracy", order=published)
    figure = Figure(figsize=(4.6 * len(MODES), 7.5), layout="constrained")
    grid = figure.subplots(len(PANELS), len(MODES), squeeze=False)
    rows = results.rows
    for column, mode in enumerate(MODES):
        groups = {
            f"batch {size}": results.curves_of(part)
            for size, part in rows[rows["mode"] == mode].groupby("batch_size")
        }
        for axes, reach in zip(grid[:, column], PANELS, strict=True):
            draw_curves(axes, {name: [c[:reach] for c in each] for name, each in groups.items()})
            axes.set_title(f"{mode}, first {reach} iterations", fontsize=10)
            axes.set_xlabel("gradient step")
            axes.legend(fontsize=8)
        grid[0, 0].set_ylabel("training loss")
    figure.suptitle(
        "ExpTest at three batch sizes: mean of the runs and standard error", fontsize=11
    )
    title = (
        "[E] Figure 2: test accuracy in percent (published: from the authors' data, no deviation)"
    )
    text = titled(title, table, by=BY, digits=2, cut=plan.quick)
    return Report(text, {"comparison": table}, {"curves": figure})


REPRODUCTION = Reproduction(
    name="exptest-fig2",
    title="[E] Fig. 2: MNIST logistic regression, ExpTest at batch sizes 32, 512, 2048",
    settings=mnist.settings,
    cells=cells,
    measure=measure,
    report=report,
    by=BY,
)
