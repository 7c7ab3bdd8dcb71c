"""What a user chooses of a reproduction: its rows, its epochs, its options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from experiments.harness.cells import SEED, Cell
from lrsearch.errors import InvalidArgumentError, require_choice

if TYPE_CHECKING:
    from experiments.harness.reproduction import Plan, Reproduction

_SHOWN: Final = 8  # names of rows that an error lists


@dataclass(frozen=True, slots=True)
class Option:
    """A choice that a reproduction offers beside its scale.

    Attributes:
        name: as the command line has it.
        choices: what it may be; the first is the default.
        what: in a line.
    """

    name: str
    choices: tuple[str, ...]
    what: str


def decided(reproduction: Reproduction, plan: Plan) -> Plan:
    """The plan with every option of the reproduction in it.

    Raises:
        InvalidArgumentError: on an option, a choice or a number of epochs that it has not.
    """
    chosen = {option.name: option.choices[0] for option in reproduction.options}
    known = {option.name: option for option in reproduction.options}
    for name, value in plan.options:
        if name not in known:
            offered = "; ".join(f"{o.name}={'|'.join(o.choices)}" for o in reproduction.options)
            raise InvalidArgumentError(
                f"--option: {reproduction.name} has no option {name!r}; "
                + (f"it has {offered}" if offered else "it has none")
            )
        chosen[name] = require_choice(f"--option {name}", value, known[name].choices)
    if plan.epochs is not None and not reproduction.epochs:
        raise InvalidArgumentError(
            f"--epochs: {reproduction.name} is not counted in epochs, got {plan.epochs}; "
            f"leave it out"
        )
    return replace(plan, options=tuple(chosen.items()))


def row_name(cell: Cell) -> str:
    """What tells a cell from others of its seed: its settings, as words."""
    return " ".join(str(value) for key, value in cell.items() if key != SEED)


def chosen_cells(reproduction: Reproduction, plan: Plan) -> Sequence[Cell]:
    """The cells of a plan; with ``rows``, those whose name fits one of the patterns.

    Patterns are the shell's (``*``, ``?``, ``[...]``), for the whole name, in either case.

    Raises:
        InvalidArgumentError: if a pattern fits no row, or cells hold several rows each.
    """
    cells = reproduction.cells(plan)
    if not plan.rows:
        return cells
    names = list(dict.fromkeys(row_name(cell) for cell in cells))
    if names == [""]:
        raise InvalidArgumentError(
            f"--rows: {reproduction.name} measures all its rows side by side; leave it out"
        )
    for pattern in plan.rows:
        if not any(_fits(name, pattern) for name in names):
            more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise InvalidArgumentError(
                f"--rows: no row of {reproduction.name} fits {pattern!r}; rows are "
                f"{', '.join(repr(name) for name in names[:_SHOWN])}{more} (* fits anything)"
            )
    return [cell for cell in cells if any(_fits(row_name(cell), each) for each in plan.rows)]


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name.lower(), pattern.lower())
