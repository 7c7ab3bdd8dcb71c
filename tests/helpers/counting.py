"""A storage that counts what it is asked."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

READING = ("get_all_trials", "get_trial", "get_study_user_attrs", "get_study_system_attrs")


@dataclass(frozen=True, slots=True)
class Call:
    """One question to a storage.

    Attributes:
        method: of ``BaseStorage``.
        key: of the attribute that was set, "" of other calls.
        thread: name of the thread that asked.
        sent: characters of the arguments as JSON.
        trials: how many came back, if trials did.
        got: characters of the trials that came back as JSON, those that were finished left out:
            gRPC's client and Optuna's own cache of a database fetch a finished trial once.
    """

    method: str
    key: str
    thread: str
    sent: int
    trials: int
    got: int


class Calls:
    """All calls so far."""

    def __init__(self) -> None:
        self.made: list[Call] = []

    def __len__(self) -> int:
        return len(self.made)

    def methods(self) -> Counter[str]:
        """How often each method was called."""
        return Counter(call.method for call in self.made)

    @contextmanager
    def within(self) -> Iterator[Calls]:
        """The calls that are made in here, once it is left."""
        before, inner = len(self.made), Calls()
        yield inner
        inner.made = self.made[before:]


def counted(storage: BaseStorage) -> tuple[BaseStorage, Calls]:
    """The same storage, and the calls of it."""
    calls = Calls()

    def counting(name: str) -> Callable[..., Any]:
        def forwarded(self: Any, *args: Any, **kwargs: Any) -> Any:
            answer = getattr(storage, name)(*args, **kwargs)
            trials = [each for each in _listed(answer) if isinstance(each, FrozenTrial)]
            open_ = [each for each in trials if not each.state.is_finished()]
            calls.made.append(
                Call(
                    method=name,
                    key=str(args[1]) if name.endswith("_attr") else "",
                    thread=threading.current_thread().name,
                    sent=len(json.dumps([args, kwargs], default=_plain)),
                    trials=len(trials),
                    got=sum(len(json.dumps(_record(each), default=_plain)) for each in open_),
                )
            )
            return answer

        return forwarded

    names = [name for name in vars(BaseStorage) if not name.startswith("_")]
    kind = type("CountedStorage", (BaseStorage,), {name: counting(name) for name in names})
    return cast(BaseStorage, kind()), calls


def _listed(answer: Any) -> list[Any]:
    return answer if isinstance(answer, list) else [answer]


def _record(trial: FrozenTrial) -> dict[str, Any]:
    return {name.lstrip("_"): value for name, value in trial.__dict__.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, TrialState):
        return value.name
    if isinstance(value, BaseDistribution):
        return distribution_to_json(value)
    return _record(value) if isinstance(value, FrozenTrial) else str(value)
