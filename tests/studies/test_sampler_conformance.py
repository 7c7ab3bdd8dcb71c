"""Optuna's own suites for samplers, on ours.

The suites call their parameter "x", so each sampler runs twice: as the owner of "x", where our own
path is taken, and as the owner of a name that they never ask for, where all goes to the base.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from optuna.samplers import BaseSampler, TPESampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)

from lrsearch.studies import ExpTestSampler, LipschitzSampler

SamplerFactory = Callable[[], BaseSampler]


def relative_base() -> BaseSampler:
    # Must answer before the first trial, as the suite asks it at once.
    return TPESampler(n_startup_trials=0, multivariate=True, seed=0)


class TestExpTestOwningX(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> SamplerFactory:
        # The suite counts ten trials where "x" is alone; the study must not stop before.
        return lambda: ExpTestSampler(lr_name="x", seed=0, stop_when_found=False)


class TestExpTestOwningAnother(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> SamplerFactory:
        return lambda: ExpTestSampler(lr_name="lr", seed=0)


class TestExpTestOwningXOverRelative(RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> SamplerFactory:
        return lambda: ExpTestSampler(lr_name="x", base_sampler=relative_base())


class TestExpTestOwningAnotherOverRelative(RelativeSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> SamplerFactory:
        return lambda: ExpTestSampler(lr_name="lr", base_sampler=relative_base())


class TestLipschitzOwningX(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> SamplerFactory:
        return lambda: LipschitzSampler(3.0, lr_name="x", multipliers=(1.0, 2.0), seed=0)


class TestLipschitzTriesOwningX(BasicSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> SamplerFactory:
        return lambda: LipschitzSampler(3.0, lr_name="x", multipliers=(1.0, 2.0), tries=True)


class TestLipschitzOwningXOverRelative(RelativeSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> SamplerFactory:
        return lambda: LipschitzSampler(3.0, lr_name="x", base_sampler=relative_base())
