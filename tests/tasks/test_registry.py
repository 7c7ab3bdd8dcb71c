"""Built-in tasks by name, and tasks of the user's own."""

import pickle
import subprocess
import sys

import pytest
import torch

from lrsearch.errors import LrsearchError, MissingDataError
from lrsearch.tasks import (
    TaskEntry,
    builtin_names,
    data_at_hand,
    entries,
    load_task,
    resolve_task,
)
from lrsearch.tasks.builtin import RECIPES, build_mlp
from lrsearch.training.task import LOSSES, METRICS, TrainingTask

EMBEDDED = [entry.name for entry in entries() if entry.dataset not in ("mnist", "housing")]


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    monkeypatch.delenv("LRSEARCH_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.chdir(tmp_path)


def test_the_built_in_tasks():
    assert builtin_names() == (
        "digits-logistic",
        "digits-mlp",
        "breast-cancer-logistic",
        "breast-cancer-mlp",
        "wine-logistic",
        "wine-mlp",
        "diabetes-linear",
        "diabetes-mlp",
        "mnist-logistic",
        "housing-mlp",
    )
    assert set(RECIPES) == set(builtin_names())
    for entry in entries():
        assert isinstance(entry, TaskEntry)
        assert entry.loss in LOSSES
        assert entry.metric in METRICS
        assert entry.description.endswith(".")


@pytest.mark.parametrize("name", EMBEDDED)
def test_an_embedded_task_agrees_with_its_entry_and_learns(name):
    entry = next(entry for entry in entries() if entry.name == name)
    task = load_task(name)
    assert isinstance(task, TrainingTask)
    assert (task.name, task.loss, task.metric) == (name, entry.loss, entry.metric)
    data = task.data(0)
    sizes = [len(part) for part in (data.train, data.validation, data.test)]
    assert sum(sizes) == entry.samples
    assert data.train.inputs.shape[1] == entry.features
    torch.manual_seed(0)
    model = task.model(data)
    criterion = {"cross_entropy": torch.nn.CrossEntropyLoss(), "mse": torch.nn.MSELoss()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = criterion[task.loss](model(data.train.inputs), data.train.targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_the_models_are_those_of_the_entries():
    for entry in entries():
        hidden = RECIPES[entry.name].hidden
        if entry.model.startswith("MLP"):
            widths = [int(width) for width in entry.model.removeprefix("MLP ").split("-")]
            assert tuple(widths[1:-1]) == hidden
            assert widths[0] == entry.features
        else:
            assert hidden == ()


def test_a_network_has_relu_between_its_layers_only():
    data = load_task("wine-mlp").data(0)
    kinds = [type(layer).__name__ for layer in build_mlp(data, hidden=(5, 4))]
    assert kinds == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert [type(layer).__name__ for layer in build_mlp(data, hidden=())] == ["Linear"]


def test_the_papers_tasks_have_the_papers_recipes():
    mnist, housing = load_task("mnist-logistic"), load_task("housing-mlp")
    assert (mnist.epochs, mnist.batch_size, mnist.loss) == (5, 32, "cross_entropy")
    assert (housing.epochs, housing.batch_size, housing.loss) == (10000, None, "mse")


@pytest.mark.parametrize("name", builtin_names())
def test_tasks_can_be_pickled_for_workers(name, tmp_path):
    task = pickle.loads(pickle.dumps(load_task(name, data_dir=tmp_path)))
    assert task.name == name


def test_a_relative_data_folder_stays_valid_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    task = load_task("housing-mlp", data_dir="data")
    assert task.data.keywords["data_dir"] == str(tmp_path / "data")


def test_data_at_hand(tmp_path):
    assert all(data_at_hand(name) for name in EMBEDDED)
    assert not data_at_hand("housing-mlp")
    (tmp_path / "california_housing.npz").write_bytes(b"")
    assert data_at_hand("housing-mlp", tmp_path)
    assert not data_at_hand("mnist-logistic", tmp_path)


def test_a_missing_data_folder_is_told_when_the_task_is_loaded(tmp_path):
    with pytest.raises(ValueError, match="data_dir must be an existing folder"):
        load_task("mnist-logistic", data_dir=tmp_path / "none")


@pytest.mark.parametrize("call", [load_task, resolve_task, data_at_hand])
def test_an_unknown_name_gives_one_line_with_close_matches(call):
    with pytest.raises(ValueError, match="'digit-mlp' is unknown; did you mean 'digits-mlp'") as e:
        call("digit-mlp")
    assert isinstance(e.value, LrsearchError)
    assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match="built in are digits-logistic"):
        call("zzzzzz")


OWN = """
from lrsearch.errors import MissingDataError
from lrsearch.tasks import load_task

task = load_task("wine-mlp")

def make():
    return load_task("digits-mlp")

class Holder:
    inner = task

def needs_an_argument(x): ...
def returns_a_number(): return 3
def breaks(): raise RuntimeError("two\\nlines")
def lacks_data(): raise MissingDataError("where is it")

number = 3
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own_tasks.py").write_text(OWN)
    (tmp_path / "broken_tasks.py").write_text("def f(:\n")
    (tmp_path / "needy_tasks.py").write_text("import no_such_package_at_all\n")
    yield
    for name in ("own_tasks", "broken_tasks", "needy_tasks"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("digits-logistic", "digits-logistic"),
        ("own_tasks:task", "wine-mlp"),
        ("own_tasks:make", "digits-mlp"),
        ("own_tasks:Holder.inner", "wine-mlp"),
    ],
)
def test_a_task_is_found_by_name_or_in_the_current_directory(own, spec, name):
    assert resolve_task(spec).name == name


@pytest.mark.parametrize(
    ("spec", "error", "text"),
    [
        ("no_such_module:task", ValueError, "cannot be imported: ModuleNotFoundError"),
        ("broken_tasks:task", ValueError, "cannot be imported: SyntaxError"),
        ("needy_tasks:task", ValueError, "no_such_package_at_all"),
        ("own_tasks:nothing", ValueError, "no attribute 'nothing'"),
        ("own_tasks:number", TypeError, "must be a TrainingTask .* got int"),
        ("own_tasks:returns_a_number", TypeError, "must be a TrainingTask"),
        ("own_tasks:needs_an_argument", ValueError, "failed when called without arguments"),
        ("own_tasks:breaks", ValueError, "RuntimeError: two lines"),
        ("own_tasks:", ValueError, "must have the form package.module:attribute"),
        (":task", ValueError, "must have the form package.module:attribute"),
        ("a/b.py:task", ValueError, "must have the form package.module:attribute"),
        (3, TypeError, "task must be a name"),
    ],
)
def test_what_is_no_task_gives_one_line(own, spec, error, text):
    with pytest.raises(error, match=text) as caught:
        resolve_task(spec)
    assert isinstance(caught.value, LrsearchError)
    assert "\n" not in str(caught.value)


def test_an_error_of_ours_passes_through(own):
    with pytest.raises(MissingDataError, match="where is it"):
        resolve_task("own_tasks:lacks_data")


def test_listing_loads_neither_torch_nor_scikit_learn():
    code = (
        "import sys; sys.path[:] = eval(sys.argv[1]); import lrsearch.tasks as t; t.entries(); "
        "t.data_at_hand('housing-mlp'); sys.exit(bool({'torch', 'sklearn'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code, repr(sys.path)], check=True)
