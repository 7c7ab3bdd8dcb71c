"""Reports to a study's pruner: each step once."""

from __future__ import annotations

import optuna

from lrsearch.studies.reporting import Reporter


class Strict(optuna.pruners.BasePruner):
    """Prunes what it is asked about for the second time."""

    def __init__(self) -> None:
        self.asked = 0

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        self.asked += 1
        return self.asked > 1


def test_a_window_that_ends_where_another_has_just_ended_is_no_second_report() -> None:
    """A guard may end one at the step at which the controller has: Optuna would warn."""
    pruner = Strict()
    trial = optuna.create_study(pruner=pruner).ask()
    reporter = Reporter(trial)
    assert not reporter.rejects(1.0, 7)
    assert not reporter.rejects(0.5, 7)
    assert pruner.asked == 1
    assert reporter.rejects(0.4, 8)
    assert trial.study.trials[0].intermediate_values == {7: 1.0, 8: 0.4}
