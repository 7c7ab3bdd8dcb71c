"""The suite for pruners: what deserves to pass passes, and every kind of defect is caught."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import optuna
import pytest
from optuna.pruners import BasePruner, MedianPruner, NopPruner, ThresholdPruner

from lrsearch.testing import CurvePrunerTestCase, PrunerTestCase


class RisePruner(BasePruner):
    """Prune what ends above its start by a twentieth, or not finite: the simplest curve pruner."""

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        losses = [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)]
        if not losses:
            return False
        if not abs(losses[-1]) < float("inf"):
            return True
        return len(losses) > 3 and losses[-1] > losses[0] + 0.05 * abs(losses[0])


class TestNop(PrunerTestCase):
    @pytest.fixture
    def pruner(self) -> Callable[[], BasePruner]:
        return NopPruner


class PlainMedianPruner(MedianPruner):
    """Optuna's, without the two defects that the suite finds in it.

    Once there are peers, it answers with ``np.bool_``, and it warns when all reports are NaN.
    """

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        reports = trial.intermediate_values.values()
        if reports and all(map(math.isnan, reports)):
            return True
        return bool(super().prune(study, trial))


class TestPlainMedian(PrunerTestCase):
    @pytest.fixture
    def pruner(self) -> Callable[[], BasePruner]:
        return PlainMedianPruner


class TestThreshold(PrunerTestCase):
    @pytest.fixture
    def pruner(self) -> Callable[[], BasePruner]:
        return lambda: ThresholdPruner(upper=10.0)


class TestRise(PrunerTestCase, CurvePrunerTestCase):
    @pytest.fixture
    def pruner(self) -> Callable[[], BasePruner]:
        return RisePruner


DEFECTS = {
    # Name of the pruner: the body of its `prune`, and the test that must catch it.
    "NumpyBool": ("return np.bool_(False)", "test_answers_with_a_plain_bool_and_no_warning"),
    "Warns": ("warnings.warn('x'); return False", "test_answers_with_a_plain_bool_and_no_warning"),
    "NotTotal": (
        "return any(int(x) < -5 for x in losses)",
        "test_answers_with_a_plain_bool_and_no_warning",
    ),
    "PrunesNothing": ("return not losses", "test_never_prunes_without_reports"),
    "MutatesAttributes": (
        "trial.user_attrs['seen'] = True; return False",
        "test_leaves_the_trial_as_it_is",
    ),
    "MutatesReports": (
        "trial.intermediate_values.pop(0, None); return False",
        "test_leaves_the_trial_as_it_is",
    ),
    "Writes": (
        "study._storage.set_trial_user_attr(trial._trial_id, 'seen', 1); return False",
        "test_writes_nothing",
    ),
    "WritesToStudy": (
        "study._storage.set_study_user_attr(study._study_id, 'n', 1); return False",
        "test_writes_nothing",
    ),
    "Remembers": (
        "self.calls = getattr(self, 'calls', 0) + 1; return self.calls > 5",
        "test_verdict_does_not_depend_on_what_the_instance_saw_before",
    ),
    "Locks": ("self.lock = threading.Lock(); return False", "test_survives_pickling"),
    "ReadsStudy": ("study.user_attrs; return False", "test_works_on_a_bracket_of_hyperband"),
    "ReadsStorageKind": (
        "return 'Memory' in type(study._storage).__name__ and len(losses) > 1",
        "test_verdict_is_the_same_on_every_storage",
    ),
    "Hasty": (
        "return bool(losses) and not losses[-1] < losses[0] and len(losses) > 1",
        "test_never_prunes_with_too_few_points",
    ),
    "Lenient": (
        "return len(losses) > 1 and losses[-1] != losses[-1]",
        "test_prunes_at_once_when_the_last_value_is_not_finite",
    ),
    "OrderOfReports": (
        "v = list(trial.intermediate_values.values()); return len(v) > 9 and v[-1] > v[0]",
        "test_verdict_does_not_depend_on_the_order_of_reports",
    ),
    "Eager": ("return len(losses) > 150", "test_never_prunes_an_exponential_decay"),
    "Blind": ("return False", "test_prunes_a_rising_curve"),
    "AsksDirection": (
        "s = 1 if study.direction.name == 'MINIMIZE' else -1\n"
        "        return len(losses) > 9 and s * (losses[-1] - losses[0]) > 0",
        "test_does_not_ask_for_the_direction_of_the_study",
    ),
}
SOUND = """if not losses: return False
        if not abs(losses[-1]) < float('inf'): return True
        return len(losses) > 3 and losses[-1] > losses[0] + 0.05 * abs(losses[0])"""

HEADER = """
import threading, warnings
import numpy as np
import pytest
from optuna.pruners import BasePruner
from lrsearch.testing import CurvePrunerTestCase, PrunerTestCase
"""

PRUNER = """
class {name}(BasePruner):
    def prune(self, study, trial):
        losses = [trial.intermediate_values[s] for s in sorted(trial.intermediate_values)]
        {body}

class Test{name}(PrunerTestCase, CurvePrunerTestCase):
    @pytest.fixture
    def pruner(self):
        return {name}
"""


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, str]]:
    """Run each broken pruner through its test, in a pytest of its own: (pruner, failed test)."""
    folder = tmp_path_factory.mktemp("broken")
    bodies = {"Sound": SOUND, **{name: body for name, (body, _) in DEFECTS.items()}}
    classes = [PRUNER.format(name=name, body=body) for name, body in bodies.items()]
    (folder / "test_broken.py").write_text(HEADER + "".join(classes))
    root = str(Path(__file__).parents[2])
    pairs = [(name, test) for name, (_, test) in DEFECTS.items()]
    pairs += [("Sound", test) for test in sorted({test for _, test in pairs})]
    targets = [f"test_broken.py::Test{name}::{test}" for name, test in pairs]
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=no",
         "--junitxml=report.xml", "-c", os.devnull, "--rootdir=.", *targets],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        check=False,
        timeout=120,
    )  # fmt: skip
    report = ElementTree.parse(folder / "report.xml")
    return {
        (case.get("classname", "").rpartition(".Test")[2], case.get("name", "").partition("[")[0])
        for case in report.iter("testcase")
        if case.find("failure") is not None
    }


@pytest.mark.parametrize("name", DEFECTS)
def test_the_suite_catches_a_defect(name: str, failed: set[tuple[str, str]]) -> None:
    assert (name, DEFECTS[name][1]) in failed


def test_the_suite_finds_nothing_in_a_sound_pruner(failed: set[tuple[str, str]]) -> None:
    assert not [test for name, test in failed if name == "Sound"]
