"""The built-in tasks by name, and tasks of the user's own by ``package.module:attribute``.

Light: listing names loads neither torch nor scikit-learn; ``load_task`` does.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from lrsearch.errors import InvalidArgumentError, InvalidTypeError, LrsearchError
from lrsearch.tasks.catalogue import CATALOGUE, TaskEntry
from lrsearch.tasks.sources import DOWNLOADED, PathLike, at_hand

if TYPE_CHECKING:
    from lrsearch.training.task import TrainingTask


def entries() -> tuple[TaskEntry, ...]:
    """All built-in tasks."""
    return tuple(CATALOGUE.values())


def builtin_names() -> tuple[str, ...]:
    """Names of all built-in tasks."""
    return tuple(CATALOGUE)


def data_at_hand(name: str, data_dir: PathLike | None = None) -> bool:
    """Can the built-in task ``name`` run without a download?

    Raises:
        ValueError: if no built-in task has that name, or ``data_dir`` is no folder.
    """
    dataset = _entry(name).dataset
    return dataset not in DOWNLOADED or at_hand(dataset, data_dir)


def load_task(name: str, *, data_dir: PathLike | None = None) -> TrainingTask:
    """The built-in task of that name. Its data are read when it runs.

    Args:
        name: one of ``builtin_names()``.
        data_dir: folder with data files; None for $LRSEARCH_DATA, the cache, or a download.

    Raises:
        ValueError: if no built-in task has that name, or ``data_dir`` is no folder.
    """
    entry = _entry(name)
    from lrsearch.tasks.builtin import build_task

    return build_task(entry, data_dir=data_dir)


def resolve_task(spec: str, *, data_dir: PathLike | None = None) -> TrainingTask:
    """The task that a user means.

    Args:
        spec: a built-in name, or ``package.module:attribute``, where the attribute is a
            ``TrainingTask`` or a callable without arguments that returns one. Modules in the
            current directory can be imported.
        data_dir: as for :func:`load_task`; not used for a task of one's own.

    Raises:
        ValueError: in one line, if the name is unknown, or the module or attribute fails to load.
        TypeError: if what was found is no task.
        MissingDataError: as raised by the callable.
    """
    if not isinstance(spec, str):
        raise InvalidTypeError(f"task must be a name or 'package.module:attribute', got {spec!r}")
    if ":" not in spec:
        return load_task(spec, data_dir=data_dir)
    found = _imported(spec)
    from lrsearch.training.task import TrainingTask

    if callable(found) and not isinstance(found, TrainingTask):
        try:
            found = found()
        except LrsearchError:
            raise
        except Exception as error:
            raise InvalidArgumentError(
                f"task {spec!r} failed when called without arguments: {_one_line(error)}"
            ) from error
    if not isinstance(found, TrainingTask):
        raise InvalidTypeError(
            f"task {spec!r} must be a TrainingTask or a callable that returns one, "
            f"got {type(found).__name__}"
        )
    return found


def _entry(name: str) -> TaskEntry:
    entry = CATALOGUE.get(name)
    if entry is not None:
        return entry
    close = difflib.get_close_matches(str(name), CATALOGUE, n=3)
    if close:
        hint = f"did you mean {' or '.join(repr(match) for match in close)}?"
    else:
        hint = f"built in are {', '.join(CATALOGUE)}"
    raise InvalidArgumentError(
        f"task {name!r} is unknown; {hint} (for a task of your own: package.module:attribute)"
    )


def _imported(spec: str) -> Any:
    module_name, _, attribute = spec.partition(":")
    parts = attribute.split(".")
    if not all(part.isidentifier() for part in (*module_name.split("."), *parts)):
        raise InvalidArgumentError(
            f"task {spec!r} must have the form package.module:attribute, with Python names"
        )
    # Left on the path: the task may import its neighbours later, in this process or a worker.
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module_name)
    except Exception as error:
        raise InvalidArgumentError(
            f"task {spec!r} cannot be imported: {_one_line(error)}"
        ) from error
    for part in parts:
        if not hasattr(found, part):
            raise InvalidArgumentError(
                f"task {spec!r} cannot be found: {module_name} has no attribute {attribute!r}"
            )
        found = getattr(found, part)
    return found


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
