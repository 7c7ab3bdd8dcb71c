"""What a trial leaves for the end of its study: windows, figure, model.

Written by the worker that trained it, before it tells the study that the trial is over; read by
whoever reports on the study. Pickles in a folder of the study's own, which only its user can write:
they are trusted as the program itself is.
"""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lrsearch.figures.description import Figure


@dataclass(frozen=True, slots=True)
class Keepsake:
    """What is kept of a trial.

    Attributes:
        windows: rows of its windows.
        figure: of its training, if it has one.
        weights: its model's state, on the CPU, if models are kept.
    """

    windows: list[dict[str, Any]]
    figure: Figure | None = None
    weights: dict[str, Tensor] | None = None


class Keepsakes:
    """The keepsakes of a study's trials.

    Args:
        folder: of the study.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, number: int, keepsake: Keepsake) -> None:
        """Keep what trial ``number`` leaves, in place of what an earlier attempt has left."""
        path = self._path(number)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        side = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        side.write_bytes(pickle.dumps(keepsake))
        side.replace(path)

    def of(self, number: int) -> Keepsake | None:
        """What trial ``number`` has left; None where that is on another machine, or damaged."""
        try:
            kept = pickle.loads(self._path(number).read_bytes())
        except (OSError, pickle.UnpicklingError, EOFError, AttributeError, ImportError):
            return None
        return kept if isinstance(kept, Keepsake) else None

    def _path(self, number: int) -> Path:
        return self._folder / f"kept-{number}.pickle"
