"""Build the wheel, install it in an empty environment, and use it there (part of `make test`).

The dependencies are those of the environment that runs this script, lent to the new one by links:
torch is not downloaded again. All are lent but lrsearch itself, so nothing of the editable install
there is in reach; the script makes sure of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"lrsearch", "lrsearch_integrations"}
QUICK_SEARCH = ("search", "wine-logistic", "--epochs", "2", "--json", "-")

USE = """
import json, sys
from importlib.metadata import distributions, entry_points
import lrsearch, lrsearch_integrations
assert "torch" not in sys.modules
from lrsearch import ExpTest, ExpTestPruner, ExpTestSampler, search  # the lazy names load
from lrsearch.tracking import find_tracker, find_ui
find_tracker("mlflow"), find_ui("mlflow")
print(json.dumps({
    "files": [lrsearch.__file__, lrsearch_integrations.__file__],
    "version": lrsearch.__version__,
    "installed": sorted({str(d.locate_file("")) for d in distributions(name="lrsearch")}),
    "trackers": [e.name for e in entry_points(group="lrsearch.trackers")],
    "uis": [e.name for e in entry_points(group="lrsearch.uis")],
    "curves": [e.name for e in entry_points(group="lrsearch.curves")],
}))
"""


class CheckError(Exception):
    """The wheel is not what it should be."""


def check(condition: bool, complaint: str) -> None:
    if not condition:
        raise CheckError(complaint)


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that knows nothing of this checkout."""
    hidden = ("PYTHON", "COV_", "MLFLOW", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    check(
        done.returncode == 0,
        f"{' '.join(map(str, command[:6]))} ended with {done.returncode}:\n{done.stderr[-3000:]}",
    )
    return done.stdout


def build(folder: Path) -> Path:
    """The wheel, built from this checkout."""
    tool = (sys.executable, "-m", "build", "--wheel", "--no-isolation")
    run(*tool, "--outdir", folder, ROOT, cwd=folder)
    wheels = list(folder.glob("*.whl"))
    check(len(wheels) == 1, f"one wheel was expected, got {wheels}")
    return wheels[0]


def check_contents(wheel: Path) -> int:
    """Only our packages, whole, with a licence; returns the number of files."""
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        facts = Parser().parsestr(archive.read(metadata).decode("utf-8"))
    info = metadata.partition("/")[0]
    check(
        {name.partition("/")[0] for name in names} == {*PACKAGES, info},
        f"the wheel holds {sorted({name.partition('/')[0] for name in names})}",
    )
    sources = {
        path.relative_to(home).as_posix()
        for home, package in ((ROOT, "lrsearch"), (ROOT / "integrations", "lrsearch_integrations"))
        for path in (home / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    ours = {name for name in names if not name.startswith(info)}
    check(ours == sources, f"wheel and sources differ: {sorted(ours ^ sources)}")
    check(any(name.startswith(f"{info}/licenses/") for name in names), "the licence is missing")
    check(facts["Requires-Python"] == ">=3.11", f"Requires-Python: {facts['Requires-Python']}")
    needed = [each for each in facts.get_all("Requires-Dist", []) if "extra ==" not in each]
    check(any(each.startswith("torch") for each in needed), f"torch is not required: {needed}")
    check(not any(each.startswith("mlflow") for each in needed), "mlflow is required, not an extra")
    return len(names)


def new_environment(folder: Path, wheel: Path) -> Path:
    """An empty environment with the wheel; returns its folder of programs."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    python = programs / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet")
    run(*pip, "--no-deps", "--no-index", wheel, cwd=folder)
    scheme = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", vars=scheme))
    lent = folder / "lent"
    lent.mkdir()
    for home in {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}:
        for entry in home.iterdir():
            if "lrsearch" not in entry.name and entry.suffix != ".pth":
                (lent / entry.name).symlink_to(entry)
    (packages / "lent_by_the_parent.pth").write_text(f"{lent}\n")
    return programs


def use(programs: Path, work: Path) -> str:
    """Import, entry points, help and a tiny search, from a folder elsewhere; the version."""
    environment = programs.parent
    facts = json.loads(run(programs / "python", "-W", "error", "-c", USE, cwd=work))
    for place in facts["files"]:
        check(Path(place).is_relative_to(environment), f"imported from {place}, not from the wheel")
    check(
        [Path(place).is_relative_to(environment) for place in facts["installed"]] == [True],
        f"lrsearch is installed in {facts['installed']}",
    )
    for group in ("trackers", "uis", "curves"):
        check("mlflow" in facts[group], f"entry points lrsearch.{group}: {facts[group]}")
    command = programs / "lrsearch"
    check("search" in run(command, "--help", cwd=work), "lrsearch --help names no search")
    refused = subprocess.run(
        [command, "reproduce"], cwd=work, capture_output=True, text=True, check=False
    )
    check(
        refused.returncode == 2 and refused.stderr.count("\n") == 1 and "clone" in refused.stderr,
        f"reproduce outside a checkout ended with {refused.returncode}: {refused.stderr}",
    )
    result = json.loads(run(command, *QUICK_SEARCH, "--no-tracking", cwd=work))
    check(result["task"] == "wine-logistic", f"search gave {result['task']!r}")
    check(result["lr"] > 0 and result["steps"] > 0, f"search gave {result}")
    check(not list(work.iterdir()), "a search without tracking left files behind")
    return str(facts["version"])


def main() -> int:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="lrsearch-wheel-") as temporary:
        # Resolved, because a temporary folder may be a link.
        folder = Path(temporary).resolve()
        for name in ("dist", "work"):
            (folder / name).mkdir()
        try:
            wheel = build(folder / "dist")
            files = check_contents(wheel)
            version = use(new_environment(folder / "venv", wheel), folder / "work")
            check(version in wheel.name, f"{wheel.name} holds version {version}")
        except CheckError as failure:
            print(f"wheel: failed: {failure}", file=sys.stderr)
            return 1
        size = wheel.stat().st_size / 1024
        seconds = time.perf_counter() - began
    print(f"wheel: ok, {wheel.name}, {files} files, {size:.0f} KiB, used in {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
