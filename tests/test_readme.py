"""What the documents show works: Python blocks run, commands parse."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from lrsearch.cli.main import _parser

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+?) -->\n+)?"
    r"^```(?P<language>\w+)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block, and why it is not run ("" if it is)."""

    place: str
    language: str
    code: str
    reason: str


def blocks(*languages: str) -> list[Block]:
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            line = text.count("\n", 0, match.start("code")) + 1
            if match["language"] in languages:
                place = f"{document.relative_to(ROOT).as_posix()}:{line}"
                found.append(Block(place, match["language"], match["code"], match["reason"] or ""))
    return found


PYTHON = blocks("python")
COMMANDS = [
    (block.place, command)
    for block in blocks("console", "bash", "sh")
    for line in block.code.replace("\\\n", " ").splitlines()
    if (command := line.strip().removeprefix("$ ").split(" #")[0])
    .split("/")[-1]
    .startswith("lrsearch ")
]


@pytest.mark.parametrize("block", PYTHON, ids=[block.place for block in PYTHON])
def test_a_python_block_runs_by_itself(block: Block, tmp_path: Path) -> None:
    if block.reason:
        compile(block.code, block.place, "exec")
        pytest.skip(block.reason)
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", block.code],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{block.place}\n{done.stderr}"


def test_at_least_two_blocks_run() -> None:
    assert sum(not block.reason for block in PYTHON) >= 2


@pytest.mark.parametrize(("place", "command"), COMMANDS)
def test_a_command_parses(place: str, command: str) -> None:
    _, *arguments = shlex.split(command)
    status, options = 0, None
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as stop:  # --help and --version end with 0
        status = int(stop.code or 0)
    assert status == 0
    assert options is None or options.command


def test_links_to_files_of_this_repository_lead_somewhere() -> None:
    dead = []
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8")):
            if "://" not in target and not (document.parent / target).exists():
                dead.append(f"{document.relative_to(ROOT)}: {target}")
    assert dead == []


def test_no_placeholder_is_left() -> None:
    left = {
        document.name: found
        for document in DOCUMENTS
        if (found := re.findall(r"^[A-Z]+_[A-Z_]+$", document.read_text("utf-8"), re.MULTILINE))
    }
    assert left == {}
