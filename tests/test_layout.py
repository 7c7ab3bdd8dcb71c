"""The shape of the house: small files, the promised names, no paths of one machine."""

from __future__ import annotations

import inspect
import re
import subprocess
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import lrsearch

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 500
NEEDED = inspect.Parameter.empty


def tracked_files() -> list[Path]:
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_module_is_longer_than_500_lines() -> None:
    modules = [
        path for part in ("lrsearch", "integrations") for path in (ROOT / part).rglob("*.py")
    ]
    assert len(modules) > 40
    long = {
        str(path.relative_to(ROOT)): lines
        for path in modules
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST
    }
    assert long == {}


def test_no_file_holds_an_absolute_path_of_a_machine() -> None:
    # Assembled, so that this file holds none either.
    places = "|".join(("work", "home", "Users", "root", "mnt"))
    pattern = re.compile(rf"(?<![\w.:/}})-])/(?:{places})/\w+")
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match}" for match in pattern.findall(text)]
    assert found == []


# Name -> the documented parameters. More may follow, as keywords with defaults.
CONTRACT: dict[str, dict[str, Any]] = {
    "lrsearch:ExpTestSampler": {
        "lr_max": None,
        "beta": 0.33,
        "lr_name": "lr",
        "base_sampler": None,
        "seed": None,
        "stop_when_found": True,
    },
    "lrsearch:ExpTestPruner": {"alpha": 0.05, "mode": "robust", "lr_name": "lr"},
    "lrsearch:LipschitzSampler": {
        "lipschitz": NEEDED,
        "lr_name": "lr",
        "multipliers": (1.0,),
        "base_sampler": None,
        "seed": None,
    },
    "lrsearch:ExpTest": {
        "optimizer": NEEDED,
        "model": None,
        "alpha": 0.05,
        "beta": 0.33,
        "mode": "robust",
        "trial": None,
        "full_batch": False,
        "total_steps": None,
        "tracker": None,
    },
    "lrsearch:LipschitzLR": {
        "optimizer": NEEDED,
        "model": NEEDED,
        "loss": "cross_entropy",
        "classes": None,
        "batch_size": None,
        "weight_decay": None,
        "exact": False,
    },
    "lrsearch:sharpness": {
        "model": NEEDED,
        "loss_function": NEEDED,
        "batches": NEEDED,
        "preconditioner": None,
        "tolerance": 1e-3,
        "max_products": 200,
        "seed": 0,
    },
    "lrsearch:sharpness_bound": {
        "optimizer": NEEDED,
        "model": NEEDED,
        "loss_function": NEEDED,
        "batches": NEEDED,
        "tolerance": 1e-3,
        "max_products": 200,
        "seed": 0,
    },
    "lrsearch:search": {
        "task": NEEDED,
        "method": "exptest",
        "workers": 1,
        "storage": None,
        "tracking_uri": None,
        "seed": 0,
    },
    "lrsearch:compare": {"task": NEEDED, "methods": ("exptest", "grid"), "seeds": 3},
    "lrsearch.stats:fit_line": {"losses": NEEDED},
    "lrsearch.stats:fit_exponential": {"losses": NEEDED},
    "lrsearch.stats:exponential_test": {"losses": NEEDED, "alpha": 0.05, "mode": "robust"},
    "lrsearch.stats:plateau_test": {"losses": NEEDED, "alpha": 0.05, "mode": "robust"},
    "lrsearch.stats:window_length": {"initial_loss": NEEDED, "lr": NEEDED},
    "lrsearch.stats:window_correction": {"sum_of_norms": NEEDED, "norm_of_sum": NEEDED},
    "lrsearch.bounds:largest_covariance_eigenvalue": {"inputs": NEEDED},
    "lrsearch.bounds:max_learning_rate": {
        "inputs": NEEDED,
        "loss": "cross_entropy",
        "outputs": 1,
        "full_batch": False,
        "eigenvalue": True,
    },
    "lrsearch.bounds:lipschitz_constant": {
        "loss": NEEDED,
        "batch_size": NEEDED,
        "k_z": NEEDED,
        "classes": None,
        "k_a": None,
        "target_norm": None,
        "weight_decay": 0.0,
        "weight_norm": 0.0,
    },
}
# The contract's `*`: what may be given by position.
POSITIONAL = {
    "lrsearch:ExpTestSampler": ["lr_max"],
    "lrsearch:ExpTestPruner": [],
    "lrsearch:LipschitzLR": ["optimizer", "model"],
    "lrsearch:sharpness": ["model", "loss_function", "batches"],
    "lrsearch:sharpness_bound": ["optimizer", "model", "loss_function", "batches"],
    "lrsearch.stats:window_length": ["initial_loss", "lr"],
    "lrsearch.stats:window_correction": ["sum_of_norms", "norm_of_sum"],
}


@pytest.mark.parametrize("place", CONTRACT)
def test_public_names_keep_the_documented_signature(place: str) -> None:
    module, _, name = place.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    parameters = dict(inspect.signature(function).parameters)
    documented = CONTRACT[place]
    assert {name: parameters[name].default for name in documented} == documented
    first = next(iter(documented))
    for name, each in parameters.items():
        if name not in documented:  # an option that came later needs a default
            assert each.default is not NEEDED or each.kind is each.VAR_KEYWORD
        by_position = name in POSITIONAL.get(place, [first] if documented[first] is NEEDED else [])
        if each.kind is not each.VAR_KEYWORD:
            assert (each.kind is each.POSITIONAL_OR_KEYWORD) == by_position, name


def test_fields_of_public_results_are_there() -> None:
    import numpy as np

    from lrsearch import Decision, SearchResult, stats

    losses = np.exp(-0.1 * np.arange(60.0)) + 0.01 * np.cos(np.arange(60.0))
    wanted = {
        stats.fit_line(losses): ("slope", "intercept", "sse", "slope_stderr", "n"),
        stats.fit_exponential(losses): ("amplitude", "rate", "offset", "sse", "n"),
        stats.exponential_test(losses): ("statistic", "pvalue", "passed", "n", "n_effective"),
        stats.plateau_test(losses): ("statistic", "pvalue", "verdict"),
        Decision("continue", 0.1): ("kind", "lr", "window"),
    }
    for result, names in wanted.items():
        assert all(hasattr(result, name) for name in names)
    fields = set(SearchResult.__dataclass_fields__)
    assert {"lr", "value", "study", "trials", "windows", "steps", "run_id"} <= fields


def test_every_exported_name_loads_and_no_other_exists() -> None:
    for name in lrsearch.__all__:
        assert getattr(lrsearch, name) is not None
    assert dir(lrsearch) == sorted(lrsearch.__all__)
    with pytest.raises(AttributeError, match="no attribute 'ExpTset'"):
        lrsearch.ExpTset  # noqa: B018  # looking is the test
