"""``lrsearch``: parses the command line and hands over. Nothing heavy loads before it must."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import NoReturn

from lrsearch.cli import commands
from lrsearch.errors import LrsearchError
from lrsearch.version import __version__

USAGE_ERROR, FAILURE = 2, 1
# Spelled out here so that --help loads no framework; a test holds them against their sources.
METHODS = ("exptest", "lipschitz", "grid", "random", "tpe")
STARTS = ("race", "bound", "lipschitz")
MODES = ("robust", "paper")
SCALES = ("full", "quick")
OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "rmsprop")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 failed, 2 wrong usage or bad input."""
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stop:  # argparse has printed its line
        return int(stop.code or 0)
    if options.command is None:
        parser.print_help(sys.stderr)
        return USAGE_ERROR
    try:
        status: int = getattr(commands, options.command)(options)
    except LrsearchError as error:
        print(f"lrsearch: error: {' '.join(str(error).split())}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt as stop:
        how = f": {stop}" if str(stop) else ""
        print(f"lrsearch: interrupted{how}", file=sys.stderr)
        return FAILURE
    except BrokenPipeError:  # the reader of our output has gone
        return FAILURE
    return status


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is a --help away."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lrsearch",
        description="Find and tune the learning rate without a number to choose.",
    )
    parser.add_argument("--version", action="version", version=f"lrsearch {__version__}")
    parser.set_defaults(command=None)
    commands_ = parser.add_subparsers(title="commands", metavar="COMMAND")

    demo = commands_.add_parser("demo", help="an ExpTest study next to its grid-search baseline")
    demo.set_defaults(command="demo")
    _add_tracking(demo)

    tasks = commands_.add_parser("tasks", help="list the built-in tasks")
    tasks.set_defaults(command="tasks")
    tasks.add_argument("--data-dir", metavar="DIR", help="folder with data files")
    _add_json(tasks, "the list")

    search = commands_.add_parser("search", help="one study on a task")
    search.set_defaults(command="search")
    search.add_argument("task", metavar="TASK", help="built-in name or package.module:attribute")
    search.add_argument("--method", choices=METHODS, default="exptest")
    _add_training(search)
    search.add_argument("--seed", type=int, default=0)
    search.add_argument("--trials", type=int, help="most trials (default: the method's own)")
    _add_workers(search)
    search.add_argument("--device", default="cpu", help="of a single worker (default: cpu)")
    search.add_argument(
        "--storage",
        metavar="URL",
        help="journal:FILE or an Optuna URL (default: in memory; with workers a journal in "
        "mlruns/studies)",
    )
    search.add_argument("--study-name", metavar="NAME")
    search.add_argument("--resume", action="store_true", help="go on with the study of that name")
    search.add_argument(
        "--checkpoint-seconds",
        type=float,
        default=30.0,
        metavar="S",
        help="at most so much training is lost with a worker (default: 30)",
    )
    search.add_argument(
        "--max-failures", type=int, default=3, metavar="N", help="in a row end it (default: 3)"
    )
    search.add_argument(
        "--log-model", action="store_true", help="store the chosen trial's model in MLflow"
    )
    _add_tracking(search)

    worker = commands_.add_parser("worker", help="join a study that is under way")
    worker.set_defaults(command="worker")
    worker.add_argument("--study-name", metavar="NAME", required=True)
    worker.add_argument(
        "--storage", metavar="URL", required=True, help="journal:FILE or an Optuna URL"
    )
    _add_workers(worker)
    worker.add_argument("--task", metavar="TASK", help="where the study has none by name")
    worker.add_argument("--data-dir", metavar="DIR", help="folder with data files")
    worker.add_argument("--tracking-uri", metavar="URI", help="if it is another one here")

    compare = commands_.add_parser("compare", help="methods side by side on one task")
    compare.set_defaults(command="compare")
    compare.add_argument("task", metavar="TASK", help="built-in name or package.module:attribute")
    compare.add_argument("--methods", default="exptest,grid", help="comma-separated; default both")
    compare.add_argument("--seeds", type=int, default=3, metavar="K")
    _add_training(compare)
    _add_tracking(compare)

    replay = commands_.add_parser("replay", help="why a rate was rejected: ExpTest on a loss curve")
    replay.set_defaults(command="replay")
    replay.add_argument(
        "source", metavar="CURVE", help="FILE.csv, FILE.parquet, FILE.npz:KEY[ROW] or an MLflow run"
    )
    replay.add_argument("--lr", type=float, metavar="RATE", help="default: the run's own")
    _add_tests(replay)
    replay.add_argument("--full-batch", action="store_true", help="each loss is of all the data")
    replay.add_argument("--total-steps", type=int, metavar="N", help="budget of the training")
    replay.add_argument("--column", metavar="NAME", help="of the losses (default: loss)")
    replay.add_argument("--tracking-uri", metavar="URI", help="MLflow store of the run")
    replay.add_argument(
        "--figure", metavar="FILE.png", type=_writable_file, help="draw it (or FILE.html)"
    )
    _add_json(replay, "the decisions")

    reproduce = commands_.add_parser(
        "reproduce", help="a table or figure of the papers, next to what was published"
    )
    reproduce.set_defaults(command="reproduce")
    reproduce.add_argument("name", metavar="NAME", nargs="?", help="which; none lists them")
    reproduce.add_argument("--scale", choices=SCALES, default="full", help="quick is a small cut")
    reproduce.add_argument("--seeds", type=int, metavar="K", help="default: the paper's number")
    reproduce.add_argument(
        "--rows",
        action="append",
        metavar="PATTERN",
        help="only the rows that fit, as 'ResNet20*' does; more than one may be given",
    )
    reproduce.add_argument("--epochs", type=int, metavar="N", help="default: the paper's number")
    reproduce.add_argument(
        "--option",
        action="append",
        metavar="NAME=VALUE",
        help="a choice that this reproduction offers; a wrong one lists them",
    )
    reproduce.add_argument(
        "--out", metavar="DIR", type=Path, help="default: reproductions/NAME/SCALE"
    )
    _add_cells(reproduce)
    reproduce.add_argument(
        "--merge",
        action="append",
        type=Path,
        metavar="DIR",
        help="take finished cells of another call's --out folder, of another machine say",
    )
    _add_tracking(reproduce)

    bench = commands_.add_parser(
        "bench", help="methods side by side on many shifted tasks, against banks of fixed rates"
    )
    bench.set_defaults(command="bench")
    bench.add_argument(
        "--panel", metavar="FILE", type=Path, help="default: the checkout's benchmarks/panel.yaml"
    )
    bench.add_argument("--quick", action="store_true", help="the panel's quick cut")
    bench.add_argument(
        "--only", metavar="REGEX", help="measure cells base/shift/optimizer/method that match"
    )
    bench.add_argument("--report", action="store_true", help="measure nothing: show what is there")
    bench.add_argument(
        "--out", metavar="DIR", type=Path, help="default: reproductions/bench/full or quick"
    )
    _add_cells(bench)
    _add_json(bench, "the tables")

    sync = commands_.add_parser("sync", help="send what a store missed while it was away")
    sync.set_defaults(command="sync")
    sync.add_argument(
        "--spool", type=Path, metavar="DIR", help="default: LRSEARCH_SPOOL, or mlruns/spool"
    )
    sync.add_argument("--tracking-uri", metavar="URI", help="only what is meant for this store")
    _add_json(sync, "what was sent")

    ui = commands_.add_parser("ui", help="open the MLflow UI on the store of the studies")
    ui.set_defaults(command="ui")
    ui.add_argument("--port", type=int, default=5000)
    ui.add_argument("--tracking-uri", metavar="URI")
    return parser


def _add_tests(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mode", choices=MODES, default="robust")
    parser.add_argument("--alpha", type=float, default=0.05, help="level of the tests")
    parser.add_argument("--beta", type=float, default=0.33, help="factor of a restart or decay")


def _workers(text: str) -> int | str:
    """A number of workers, or the name of a kind; the engine says what it takes."""
    return int(text) if text.isdigit() else text


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=_workers,
        default=1,
        metavar="N|cuda|ray",
        help="processes on the CPU, or one on each CUDA device ('cuda', 'cuda:0,2'), or Ray tasks",
    )
    parser.add_argument(
        "--per-device", type=int, default=1, metavar="K", help="workers on each CUDA device"
    )
    parser.add_argument(
        "--checkpoint-dir",
        metavar="DIR",
        help="of the trials' checkpoints (default: beside the storage's file, else "
        "mlruns/checkpoints)",
    )


def _add_cells(parser: argparse.ArgumentParser) -> None:
    """How cells are measured that are kept and gone on with."""
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: cores)")
    parser.add_argument(
        "--minutes",
        type=float,
        default=inf,
        metavar="M",
        help="begin nothing after M minutes; report on what is there, go on with the next call",
    )
    parser.add_argument("--fresh", action="store_true", help="measure finished cells anew")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with data files")


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be numbers with commas between them, such as 0.1,0.5,1.0; got {text!r}"
        ) from None


def _add_training(parser: argparse.ArgumentParser) -> None:
    _add_tests(parser)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--optimizer", choices=OPTIMIZERS)
    parser.add_argument(
        "--start",
        choices=STARTS,
        help="of ExpTest's ladder: a race of short probes (default), the bound of the data "
        "(default of --mode paper), or 1 / L of the first batch; with --method lipschitz the last "
        "puts ExpTest's test over it",
    )
    parser.add_argument(
        "--anneal",
        type=float,
        metavar="SHARE",
        help="of the steps, over which exptest's rate falls to 0 at the end (default 0.4)",
    )
    parser.add_argument(
        "--guard",
        action=argparse.BooleanOptionalAction,
        help="keep exptest's weights of the best validation metric, and lower the rate where the "
        "validation loss rises (default: yes)",
    )
    parser.add_argument(
        "--multipliers",
        type=_numbers,
        metavar="A,B,...",
        help="of 1 / L, for lipschitz, such as 0.1,0.5,1.0: each is tried, the best trained "
        "(default: 1; momentum: 1,3,10)",
    )
    parser.add_argument("--data-dir", metavar="DIR", help="folder with data files")


def _add_tracking(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow store (default: $MLFLOW_TRACKING_URI, else mlruns/mlflow.db here)",
    )
    parser.add_argument("--no-tracking", action="store_true", help="record nothing")
    _add_json(parser, "the result")


def _add_json(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--json", metavar="FILE", type=_writable, help=f"write {what} as JSON ('-': stdout)"
    )


def _writable(target: str) -> str:
    return target if target == "-" else _writable_file(target)


def _writable_file(target: str) -> str:
    """A file that can be written when the work is done: better to know before."""
    path = Path(target)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"cannot write {target!r}: not a file in a folder")
    return target


if __name__ == "__main__":
    sys.exit(main())
