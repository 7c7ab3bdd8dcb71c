"""[E] Table 3 and Figure 3: California Housing, 8-32-32-1, full batch, 10 000 epochs."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.exptest import housing
from experiments.exptest.methods import MODES, NOTEBOOK
from experiments.exptest.published import EXPTEST_HOUSING, OWN, TABLE3, TABLE3_FACTORS
from experiments.exptest.report import curves_figure, exptest_summary, sorted_rows
from experiments.exptest.training import OPTIMIZERS
from experiments.harness.cells import SEED, Cell, Measured
from experiments.harness.comparing import Figures, comparison_table
from experiments.harness.reproduction import Plan, Report, Reproduction, Results
from experiments.harness.text import titled

BY = ("method", "rate")
CEILING = 0.5  # the paper's: the axis ends there


def cells(plan: Plan) -> Sequence[Cell]:
    """One run a cell: its steps are long enough to fill a core."""
    methods = [(f"ExpTest ({mode})", OWN) for mode in MODES]
    methods += [
        (method, f"{factor:g}")
        for method in OPTIMIZERS
        if method != "Adadelta"
        for factor in TABLE3_FACTORS
    ]
    methods.append(("Adadelta", OWN))
    return [
        {"method": method, "rate": rate, SEED: seed}
        for seed in plan.seed_range()
        for method, rate in methods
    ]


def measure(cell: Cell, plan: Plan) -> Measured:
    """One run."""
    method, seed = str(cell["method"]), int(cell[SEED])
    if method.startswith("ExpTest"):
        mode = method.removeprefix("ExpTest (").removesuffix(")")
        return housing.measure(mode, housing.bound(mode, plan), {}, plan, seed=seed)
    if method == "Adadelta":
        return housing.measure(method, None, {}, plan, seed=seed)
    rate = float(cell["rate"]) * housing.bound(NOTEBOOK, plan)
    return housing.measure(method, rate, {}, plan, seed=seed)


def report(results: Results, plan: Plan) -> Report:
    """Published against measured: last weights (the code), and best on validation (the text)."""
    published: Figures = {
        **TABLE3,
        **{(f"ExpTest ({mode})", OWN): EXPTEST_HOUSING for mode in MODES},
    }
    order = sorted_rows(list(published))
    tables = {
        name: comparison_table(results.rows, published, by=BY, value=value, order=order)
        for name, value in (("comparison", "test_mse"), ("comparison_best", "test_mse_best"))
    }
    text = "\n\n".join(
        titled(title, tables[name], by=BY, digits=4, cut=plan.quick)
        for name, title in (
            ("comparison", "[E] Table 3: test MSE of the last weights (what its code reports)"),
            (
                "comparison_best",
                "[E] Table 3: test MSE of the weights best on validation (its text)",
            ),
        )
    )
    figure = curves_figure(
        results,
        TABLE3_FACTORS,
        window=1,
        ceiling=CEILING,
        title="California Housing, training loss",
    )
    summary = exptest_summary(tables["comparison"], "test/mse")
    return Report(text, tables, {"curves": figure}, summary)


REPRODUCTION = Reproduction(
    name="exptest-table3",
    title="[E] Table 3, Fig. 3: California Housing against five optimizers x five rates",
    settings=housing.settings,
    cells=cells,
    measure=measure,
    report=report,
    by=BY,
)
