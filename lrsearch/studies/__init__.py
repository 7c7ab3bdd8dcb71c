"""The Optuna room: samplers and pruners."""

from lrsearch.studies.exptest_pruner import ExpTestPruner
from lrsearch.studies.ladder_sampler import ExpTestSampler
from lrsearch.studies.lipschitz_sampler import LipschitzSampler
from lrsearch.studies.owned_parameter import OwnedParameterSampler
from lrsearch.studies.try_pruner import TryPruner

__all__ = [
    "ExpTestPruner",
    "ExpTestSampler",
    "LipschitzSampler",
    "OwnedParameterSampler",
    "TryPruner",
]
