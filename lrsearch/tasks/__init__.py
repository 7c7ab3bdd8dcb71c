"""Built-in training tasks and their data. Importing this loads neither torch nor scikit-learn."""

from lrsearch.tasks.catalogue import TaskEntry
from lrsearch.tasks.registry import (
    builtin_names,
    data_at_hand,
    entries,
    load_task,
    resolve_task,
)

__all__ = [
    "TaskEntry",
    "builtin_names",
    "data_at_hand",
    "entries",
    "load_task",
    "resolve_task",
]
