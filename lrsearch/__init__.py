"""lrsearch finds and tunes the learning rate without a number to choose.

Nothing heavy loads on ``import lrsearch``: each name brings its own room when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from lrsearch.version import __version__

if TYPE_CHECKING:
    from lrsearch.engine import SearchResult, compare, search
    from lrsearch.studies import ExpTestPruner, ExpTestSampler, LipschitzSampler
    from lrsearch.training import (
        Decision,
        ExpTest,
        LipschitzEstimate,
        LipschitzLR,
        Sharpness,
        SharpnessBound,
        Split,
        TaskData,
        TrainingTask,
        sharpness,
        sharpness_bound,
    )

_HOMES = {
    "ExpTest": "lrsearch.training",
    "Decision": "lrsearch.training",
    "LipschitzEstimate": "lrsearch.training",
    "LipschitzLR": "lrsearch.training",
    "Sharpness": "lrsearch.training",
    "SharpnessBound": "lrsearch.training",
    "Split": "lrsearch.training",
    "TaskData": "lrsearch.training",
    "TrainingTask": "lrsearch.training",
    "sharpness": "lrsearch.training",
    "sharpness_bound": "lrsearch.training",
    "ExpTestPruner": "lrsearch.studies",
    "ExpTestSampler": "lrsearch.studies",
    "LipschitzSampler": "lrsearch.studies",
    "SearchResult": "lrsearch.engine",
    "compare": "lrsearch.engine",
    "search": "lrsearch.engine",
}

__all__ = [
    "Decision",
    "ExpTest",
    "ExpTestPruner",
    "ExpTestSampler",
    "LipschitzEstimate",
    "LipschitzLR",
    "LipschitzSampler",
    "SearchResult",
    "Sharpness",
    "SharpnessBound",
    "Split",
    "TaskData",
    "TrainingTask",
    "__version__",
    "compare",
    "search",
    "sharpness",
    "sharpness_bound",
]


def __getattr__(name: str) -> object:
    """Load a name from its room (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'lrsearch' has no attribute {name!r}")
    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
