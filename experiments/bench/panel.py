"""The panel's description: which methods, on which tasks, under which shifts, how often.

It is a YAML file, so that a method or an ablation is added without code. Every word of it is
checked before anything runs; an error names the key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from experiments.bench.tasks import BASES, SHIFTS, shifts_of
from experiments.harness.cells import Cell
from lrsearch.errors import InvalidArgumentError
from lrsearch.training.task import OPTIMIZERS

BANK, REPLAY, PEER, SEARCH = KINDS = ("bank", "replay", "peer", "search")
OWN: Final = "own"  # the "optimizer" of methods with an update of their own

_TOP: Final = (
    *("seeds", "bases", "shifts", "optimizers"),
    *("methods", "ablations", "reference", "quick"),
)
_METHOD: Final = ("kind", "name", "options", "optimizers")
_ABLATION: Final = ("of", "options", "optimizers")
_BASE: Final = ("optimizers", "shifts")
_CUT: Final = ("seeds", "bases", "shifts", "optimizers", "methods")


@dataclass(frozen=True, slots=True)
class Method:
    """One method.

    Attributes:
        kind: "bank" (the dense bank of fixed rates), "replay" (read off a bank), "peer" (somebody
            else's), or "search" (``lrsearch.search``).
        name: in the registry of its kind.
        options: of a search, a bank or a replay.
        optimizers: that it is run with.
        of: the method of which this is an ablation; "" for none.
    """

    kind: str
    name: str
    options: Mapping[str, Any]
    optimizers: tuple[str, ...]
    of: str = ""


@dataclass(frozen=True, slots=True)
class Base:
    """What a base task is run under."""

    optimizers: tuple[str, ...]
    shifts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """A whole panel, or a cut of one.

    Attributes:
        seeds: 0, 1, ... up to this number.
        bases: by name, cheap first.
        methods: by name, ablations last; exactly one is a bank.
        reference: the method that all others are compared with.
    """

    seeds: int
    bases: Mapping[str, Base]
    methods: Mapping[str, Method]
    reference: str
    quick: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bank(self) -> str:
        """Name of the bank."""
        return next(name for name, method in self.methods.items() if method.kind == BANK)

    def cut(self) -> Panel:
        """The quick cut: fewer seeds, tasks and methods."""
        chosen, bases = self.quick, {}
        for name in chosen.get("bases", self.bases):
            base = self.bases[name]
            optimizers, shifts = (
                tuple(each for each in kept if each in chosen.get(key, kept))
                for key, kept in (("optimizers", base.optimizers), ("shifts", base.shifts))
            )
            bases[name] = Base(optimizers, shifts)
        wanted = chosen.get("methods", self.methods)
        methods = {name: each for name, each in self.methods.items() if name in wanted}
        return Panel(chosen.get("seeds", self.seeds), bases, methods, self.reference)

    def cells(self, own_update: Sequence[str] = ()) -> list[Cell]:
        """What is measured, each piece with all of its seeds, in the order in which it is begun.

        Round after round takes one shift of each base, another one in each, so that a panel that
        was stopped is balanced over both; in a round cheap bases come first, of a task the bank.

        Args:
            own_update: names of peers that have an update of their own: run once a task.
        """
        tasks = []
        for turn in range(max((len(base.shifts) for base in self.bases.values()), default=0)):
            for number, (name, base) in enumerate(self.bases.items()):
                if turn < len(base.shifts):
                    shift = base.shifts[(turn + number) % len(base.shifts)]
                    tasks.append((name, shift, base.optimizers))
        ordered = sorted(self.methods.items(), key=lambda each: KINDS.index(each[1].kind))
        cells: list[Cell] = []
        for base_name, shift, optimizers in tasks:
            for name, method in ordered:
                if method.kind == REPLAY:
                    continue
                own = method.kind == PEER and method.name in own_update
                for optimizer in (OWN,) if own else optimizers:
                    if own or optimizer in method.optimizers:
                        cells.append(self._cell(base_name, shift, optimizer, name))
        return cells

    def _cell(self, base: str, shift: str, optimizer: str, name: str) -> Cell:
        method = self.methods[name]
        return {
            "base": base,
            "shift": shift,
            "optimizer": optimizer,
            "method": name,
            "kind": method.kind,
            "name": method.name,
            "options": json.dumps(dict(method.options), sort_keys=True),
            "seeds": self.seeds,
        }


def cell_title(cell: Cell) -> str:
    """What ``--only`` is matched with: base/shift/optimizer/method."""
    return "/".join(str(cell[key]) for key in ("base", "shift", "optimizer", "method"))


def read_panel(path: Path) -> Panel:
    """The panel of a file.

    Raises:
        InvalidArgumentError: in one line that names the key, if the file is not to be had or holds
            what is not allowed.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidArgumentError(
            f"--panel: cannot read {str(path)!r}: {error.strerror}"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())
        raise InvalidArgumentError(f"--panel: {str(path)!r} is no YAML: {why}") from error
    try:
        return make_panel(content)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"--panel: {path}: {error}") from error


def make_panel(content: Any) -> Panel:
    """The panel that a file's content describes.

    Raises:
        InvalidArgumentError: if it holds what is not allowed.
    """
    top = _mapping("the file", content, _TOP)
    for key in ("seeds", "bases", "shifts", "optimizers", "methods", "reference"):
        if key not in top:
            raise InvalidArgumentError(f"{key} is missing")
    optimizers = _names("optimizers", top["optimizers"], OPTIMIZERS)
    shifts = _names("shifts", top["shifts"], tuple(SHIFTS))
    bases = {
        name: _base(f"bases.{name}", name, given, optimizers, shifts)
        for name, given in _mapping("bases", top["bases"], tuple(BASES)).items()
    }
    methods = {
        name: _method(f"methods.{name}", name, given, optimizers)
        for name, given in _mapping("methods", top["methods"]).items()
    }
    if (banks := sum(method.kind == BANK for method in methods.values())) != 1:
        raise InvalidArgumentError(f"methods must hold exactly one of kind 'bank', got {banks}")
    for name, given in _mapping("ablations", top.get("ablations", {})).items():
        if name in methods:
            raise InvalidArgumentError(f"ablations.{name}: a method has that name already")
        methods[name] = _ablation(f"ablations.{name}", given, methods)
    compared = tuple(name for name, method in methods.items() if method.kind != BANK)
    reference = _one("reference", top["reference"], compared)
    quick = _quick(top.get("quick", {}), tuple(bases), shifts, optimizers, methods, reference)
    return Panel(_seeds("seeds", top["seeds"]), bases, methods, reference, quick)


def _base(
    key: str, name: str, given: Any, optimizers: tuple[str, ...], shifts: tuple[str, ...]
) -> Base:
    chosen = _mapping(key, given or {}, _BASE)
    return Base(
        _names(f"{key}.optimizers", chosen.get("optimizers", optimizers), optimizers),
        tuple(
            shift
            for shift in _names(f"{key}.shifts", chosen.get("shifts", shifts), shifts)
            if shift in shifts_of(name)
        ),
    )


def _method(key: str, name: str, given: Any, optimizers: tuple[str, ...]) -> Method:
    chosen = _mapping(key, given, _METHOD)
    return Method(
        _one(f"{key}.kind", chosen.get("kind"), KINDS),
        str(chosen.get("name", name)),
        _mapping(f"{key}.options", chosen.get("options", {})),
        _names(f"{key}.optimizers", chosen.get("optimizers", optimizers), optimizers),
    )


def _ablation(key: str, given: Any, methods: Mapping[str, Method]) -> Method:
    """A method with one option changed: two at once would not say which one pays."""
    chosen = _mapping(key, given, _ABLATION)
    searches = tuple(name for name, method in methods.items() if method.kind == SEARCH)
    of = _one(f"{key}.of", chosen.get("of"), searches)
    changed = _mapping(f"{key}.options", chosen.get("options", {}))
    if len(changed) != 1:
        raise InvalidArgumentError(
            f"{key}.options must change exactly one option, got {sorted(changed) or 'none'}"
        )
    whole = methods[of]
    optimizers = _names(
        f"{key}.optimizers", chosen.get("optimizers", whole.optimizers), whole.optimizers
    )
    return Method(SEARCH, whole.name, {**whole.options, **changed}, optimizers, of)


def _quick(
    given: Any,
    bases: tuple[str, ...],
    shifts: tuple[str, ...],
    optimizers: tuple[str, ...],
    methods: Mapping[str, Method],
    reference: str,
) -> dict[str, Any]:
    chosen = _mapping("quick", given or {}, _CUT)
    allowed = {
        "bases": bases,
        "shifts": shifts,
        "optimizers": optimizers,
        "methods": tuple(methods),
    }
    quick: dict[str, Any] = {
        key: _names(f"quick.{key}", chosen[key], names)
        for key, names in allowed.items()
        if key in chosen
    }
    if "seeds" in chosen:
        quick["seeds"] = _seeds("quick.seeds", chosen["seeds"])
    needed = [reference, *(name for name, method in methods.items() if method.kind == BANK)]
    if missing := [name for name in needed if name not in quick.get("methods", methods)]:
        raise InvalidArgumentError(f"quick.methods must hold the bank and the reference: {missing}")
    return quick


def _mapping(key: str, given: Any, allowed: tuple[str, ...] | None = None) -> dict[str, Any]:
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        raise InvalidArgumentError(f"{key} must be a mapping of names, got {given!r}")
    for name in given:
        if allowed is not None and name not in allowed:
            raise InvalidArgumentError(
                f"{key} holds the unknown key {name!r}: allowed are {', '.join(allowed)}"
            )
    return given


def _names(key: str, given: Any, allowed: tuple[str, ...]) -> tuple[str, ...]:
    if not isinstance(given, (list, tuple)) or not given:
        raise InvalidArgumentError(f"{key} must be a list of names, got {given!r}")
    names = tuple(_one(key, name, allowed) for name in given)
    if len(set(names)) < len(names):
        raise InvalidArgumentError(f"{key} holds a name twice: {list(names)}")
    return names


def _one(key: str, given: Any, allowed: tuple[str, ...]) -> str:
    if given not in allowed:
        raise InvalidArgumentError(f"{key} must be one of {', '.join(allowed)}; got {given!r}")
    return str(given)


def _seeds(key: str, given: Any) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise InvalidArgumentError(f"{key} must be a whole number of at least 1, got {given!r}")
    return given
