"""Crews that a package brings: found by name, or missed in one line."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from lrsearch.cli.main import main
from lrsearch.engine.workers import crew
from lrsearch.errors import InvalidArgumentError, MissingPackageError

SEARCH = ("search", "wine-logistic", "--workers", "ray", "--no-tracking")


class Recorded:
    """A crew that notes how it was made."""

    def __init__(self, per_device: int) -> None:
        self.per_device = per_device


def register(monkeypatch: pytest.MonkeyPatch, *values: str) -> None:
    entries = [EntryPoint("ray", value, "lrsearch.crews") for value in values]
    monkeypatch.setattr(crew, "entry_points", lambda **_: entries)


def test_a_crew_is_told_how_many_workers_share_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "recorded_crew", sys.modules[__name__])
    register(monkeypatch, "recorded_crew:Recorded")
    made = crew.checked_crew("ray", 3)
    assert isinstance(made, Recorded)
    assert made.per_device == 3
    with pytest.raises(InvalidArgumentError, match="per_device must be at least 1, got 0"):
        crew.checked_crew("ray", 0)


def test_ray_that_is_not_installed_is_missed_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [each for each in sys.modules if each.partition(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "lrsearch_integrations.ray_crew", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    register(monkeypatch, "lrsearch_integrations.ray_crew:RayCrew")
    with pytest.raises(MissingPackageError, match=r"\(ray\): pip install 'lrsearch\[ray\]'"):
        crew.checked_crew("ray", 1)
    assert main(SEARCH) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'lrsearch[ray]'" in line


def test_a_crew_that_nobody_registers_is_missed_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    register(monkeypatch)
    assert main(SEARCH) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'lrsearch[ray]'" in line
