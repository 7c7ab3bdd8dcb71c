"""What each command does. Engines load inside the commands, so that --help stays light."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrsearch.errors import InvalidArgumentError

if TYPE_CHECKING:
    import pandas as pd

    from lrsearch.engine.result import SearchResult

DEMO_TASK, DEMO_SEEDS = "digits-mlp", 3


def demo(options: Namespace) -> int:
    """ExpTest studies and their grid-search baselines on scikit-learn's digits."""
    from lrsearch.cli.progress import TerminalWatcher
    from lrsearch.cli.tables import comparison, ladder
    from lrsearch.engine import search as run_search
    from lrsearch.engine.comparing import comparison_table, record_comparison

    _say(f"lrsearch demo: ExpTest studies on {DEMO_TASK}, each next to its nine-point grid")
    results: list[SearchResult] = []
    for seed in range(DEMO_SEEDS):
        for method in ("exptest", "grid"):
            with TerminalWatcher() as watcher:
                results.append(
                    run_search(
                        DEMO_TASK, method=method, seed=seed, watcher=watcher, **_tracking(options)
                    )
                )
    record_comparison(results, **_tracking(options))
    table = comparison_table(results)
    if options.json:
        _write_json(options.json, _comparison_json(table))
    if options.json != "-":
        print(ladder(results[0]))
        print()
        print(comparison(table))
        print()
        print(_where(results[0]))
    return 0


def tasks(options: Namespace) -> int:
    """The built-in tasks."""
    from lrsearch.cli.tables import plain
    from lrsearch.tasks import data_at_hand, entries

    rows = [
        {
            "task": entry.name,
            "data": entry.dataset,
            "model": entry.model,
            "loss": entry.loss,
            "rows": entry.samples,
            "features": entry.features,
            "data at hand": "yes" if data_at_hand(entry.name, options.data_dir) else "no",
        }
        for entry in entries()
    ]
    if options.json:
        _write_json(options.json, rows)
    if options.json != "-":
        print(plain(rows))
    return 0


def search(options: Namespace) -> int:
    """One study."""
    from lrsearch.cli.progress import TerminalWatcher
    from lrsearch.cli.tables import answer, ladder
    from lrsearch.engine import search as run_search

    with TerminalWatcher() as watcher, _stdout_for_json(options):
        result = run_search(
            options.task,
            method=options.method,
            seed=options.seed,
            trials=options.trials,
            workers=options.workers,
            per_device=options.per_device,
            device=options.device,
            storage=options.storage,
            study_name=options.study_name,
            resume=options.resume,
            checkpoint_dir=options.checkpoint_dir,
            checkpoint_seconds=options.checkpoint_seconds,
            max_failures=options.max_failures,
            log_model=options.log_model,
            watcher=watcher,
            **_training(options),
            **_tracking(options),
        )
    if options.json:
        _write_json(options.json, result.as_json())
    if options.json != "-":
        print(ladder(result))
        print()
        print(answer(result))
        print(_where(result))
    return 0


def worker(options: Namespace) -> int:
    """Joins a study that is under way."""
    from lrsearch.cli.progress import TerminalWatcher
    from lrsearch.engine import join

    with TerminalWatcher() as watcher:
        count = join(
            options.study_name,
            options.storage,
            workers=options.workers,
            per_device=options.per_device,
            task=options.task,
            data_dir=options.data_dir,
            tracking_uri=options.tracking_uri,
            checkpoint_dir=options.checkpoint_dir,
            watcher=watcher,
        )
    print(f"The study {options.study_name} is over; {count} of its trials ended here.")
    return 0


def compare(options: Namespace) -> int:
    """Methods side by side."""
    from lrsearch.cli.progress import TerminalWatcher
    from lrsearch.cli.tables import comparison
    from lrsearch.engine import compare as run_compare

    methods = [name.strip() for name in options.methods.split(",") if name.strip()]
    with TerminalWatcher() as watcher, _stdout_for_json(options):
        table = run_compare(
            options.task,
            methods=methods,
            seeds=options.seeds,
            watcher=watcher,
            **_training(options),
            **_tracking(options),
        )
    if options.json:
        _write_json(options.json, _comparison_json(table))
    if options.json != "-":
        print(comparison(table))
    return 0


def replay(options: Namespace) -> int:
    """What ExpTest decides along a recorded loss curve, and why."""
    from lrsearch.cli.tables import looks, replayed
    from lrsearch.controllers.settings import ExpTestSettings
    from lrsearch.engine.figures import save_replay
    from lrsearch.engine.recorded import read_curve, replay_curve

    settings = ExpTestSettings(
        alpha=options.alpha,
        beta=options.beta,
        mode=options.mode,
        full_batch=options.full_batch,
        total_steps=options.total_steps,
    )
    curve = read_curve(options.source, column=options.column, tracking_uri=options.tracking_uri)
    result = replay_curve(curve, settings, lr=options.lr)
    sentence = replayed(result)
    if options.figure:
        save_replay(result, options.figure, title=f"{Path(options.source).name}\n{sentence}")
    if options.json:
        content = {"source": options.source, **result.as_json(), "sentence": sentence}
        _write_json(options.json, content)
    if options.json != "-":
        print(looks(result))
        print()
        print(sentence)
    return 0


def reproduce(options: Namespace) -> int:
    """A table or figure of the papers, next to what was published."""
    from lrsearch.cli.progress import CellBar
    from lrsearch.cli.reproducing import catalogue, session
    from lrsearch.cli.tables import plain

    if options.name is None:
        rows = [{"name": name, "what": title} for name, title in catalogue().items()]
        if options.json:
            _write_json(options.json, rows)
        if options.json != "-":
            print(plain(rows))
        return 0
    with CellBar() as bar:
        done = session(options, watcher=bar)
    if options.json:
        asked = {"name": options.name, "scale": options.scale}
        recorded = {"run_id": done.run_id, "tracking_uri": done.tracking_uri}
        _write_json(options.json, {**asked, **_cells_json(done.reproduced), **recorded})
    if options.json != "-":
        _tell_cells(done.reproduced)
        if done.run_id:
            print(f"Recorded in {done.tracking_uri}\nLook at it: lrsearch ui")
    return 0


def bench(options: Namespace) -> int:
    """Methods side by side on a panel of shifted tasks."""
    from lrsearch.cli.progress import CellBar
    from lrsearch.cli.reproducing import bench as run_bench

    with CellBar() as bar, _stdout_for_json(options):
        done = run_bench(options, watcher=bar)
    if options.json:
        _write_json(options.json, {"quick": options.quick, **_cells_json(done)})
    if options.json != "-":
        _tell_cells(done)
    return 0


def sync(options: Namespace) -> int:
    """Send what a tracker's store missed while it was away."""
    from lrsearch.tracking import find_sync

    if options.spool is not None and not options.spool.is_dir():
        raise InvalidArgumentError(f"--spool: no folder {str(options.spool)!r}")
    reports = find_sync("mlflow")(options.spool, options.tracking_uri)
    if options.json:
        _write_json(options.json, [asdict(report) for report in reports])
    if options.json != "-":
        for report in reports:
            alive = f", {report.alive} still being written" if report.alive else ""
            print(f"{report.tracking_uri}: {report.sent} runs sent, {report.left} left{alive}")
        if not reports:
            print("Nothing waits.")
    for report in reports:
        if report.left:
            _say(f"lrsearch: {report.tracking_uri}: {report.trouble or 'a run cannot be sent'}")
    return int(any(report.left for report in reports))


def ui(options: Namespace) -> int:
    """The MLflow UI on the studies' store."""
    from lrsearch.tracking import find_ui

    return find_ui("mlflow")(options.tracking_uri, options.port)


def _stdout_for_json(options: Namespace) -> AbstractContextManager[object]:
    """With ``--json -``, what a task prints goes to stderr: stdout is for JSON alone."""
    return redirect_stdout(sys.stderr) if options.json == "-" else nullcontext()


def _training(options: Namespace) -> dict[str, Any]:
    names = (
        *("mode", "alpha", "beta", "epochs", "batch_size", "optimizer", "data_dir"),
        *("start", "multipliers", "anneal", "guard"),
    )
    return {name: getattr(options, name) for name in names}


def _tracking(options: Namespace) -> dict[str, Any]:
    return {
        "tracker": "none" if options.no_tracking else "auto",
        "tracking_uri": options.tracking_uri,
    }


def _comparison_json(table: pd.DataFrame) -> dict[str, Any]:
    from lrsearch.engine.result import records

    attributes = {str(key): value for key, value in table.attrs.items()}
    return {**attributes, "rows": records(table)}


def _cells_json(reproduced: Any) -> dict[str, Any]:
    from lrsearch.engine.result import records

    return {
        "folder": str(reproduced.folder),
        "missing_cells": reproduced.missing,
        "versions": list(reproduced.versions),
        "tables": {name: records(table) for name, table in reproduced.report.tables.items()},
    }


def _tell_cells(reproduced: Any) -> None:
    """The report, where it lies, and what is to be known about it."""
    print(reproduced.report.text)
    print(f"\nTables, figures and every run: {reproduced.folder}")
    if reproduced.missing:
        print(f"{reproduced.missing} cells are not measured yet: run it again to go on.")
    if others := [name for name in reproduced.versions if name != reproduced.version]:
        print(
            f"Cells come from another version of the code ({', '.join(others)}; this is "
            f"{reproduced.version}); --fresh measures them anew."
        )


def _where(result: SearchResult) -> str:
    if not result.run_id:
        return "Nothing was recorded."
    return f"Recorded in {result.tracking_uri}\nLook at it: lrsearch ui"


def _write_json(target: str, content: dict[str, Any] | Sequence[dict[str, Any]]) -> None:
    text = json.dumps(content, indent=2, allow_nan=False)
    if target == "-":
        print(text)
        return
    try:
        Path(target).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidArgumentError(f"--json: cannot write {target!r}: {error.strerror}") from error


def _say(text: str) -> None:
    print(text, file=sys.stderr)
