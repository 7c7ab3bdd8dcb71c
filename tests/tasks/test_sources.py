"""The lookup of data files: folders in order, the cache, the download and its checksum."""

import gzip
import logging
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lrsearch.errors import LrsearchError, MissingDataError
from lrsearch.tasks import sources
from lrsearch.tasks.sources import at_hand, cache_dir, checksum, read_arrays

IDX_NAMES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


def digits(train=24, test=6, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "train_images": rng.integers(0, 256, (train, 28, 28), dtype=np.uint8),
        "train_labels": rng.integers(0, 10, train, dtype=np.uint8),
        "test_images": rng.integers(0, 256, (test, 28, 28), dtype=np.uint8),
        "test_labels": rng.integers(0, 10, test, dtype=np.uint8),
    }


def houses(rows=10, seed=0):
    rng = np.random.default_rng(seed)
    return {"X": rng.random((rows, 8)), "y": rng.random(rows)}


def write_idx(folder, arrays, prefix="", suffix=".gz", dot=False):
    folder.mkdir(parents=True, exist_ok=True)
    for key, name in IDX_NAMES.items():
        array = arrays[key]
        header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        content = header + array.tobytes()
        name = name.replace("-idx", ".idx") if dot else name
        path = folder / f"{prefix}{name}{suffix}"
        path.write_bytes(gzip.compress(content) if suffix else content)


def write_houses(folder, arrays):
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "california_housing.npz", **arrays)


class Fetcher:
    """Stands in for scikit-learn's."""

    def __init__(self, arrays=None):
        self.arrays, self.calls = arrays, 0

    def __call__(self):
        self.calls += 1
        if self.arrays is None:
            raise ConnectionError("no route\nto host")
        return self.arrays


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """No data anywhere, and no network."""
    monkeypatch.delenv("LRSEARCH_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    install(monkeypatch, "mnist", Fetcher())
    install(monkeypatch, "housing", Fetcher())
    install(monkeypatch, "cifar10", Fetcher())


def install(monkeypatch, dataset, fetcher, known=None):
    source = sources.SOURCES[dataset]
    changed = replace(source, fetch=fetcher)
    if known is not None:
        changed = replace(changed, sha256=checksum(known, source.keys))
    monkeypatch.setitem(sources.SOURCES, dataset, changed)


def same(left, right):
    return all(np.array_equal(left[key], right[key]) for key in right)


@pytest.mark.parametrize("prefix", ["", "mnist-"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("dot", [False, True])
def test_idx_files_are_read_under_all_their_usual_names(tmp_path, prefix, suffix, dot):
    arrays = digits()
    write_idx(tmp_path, arrays, prefix, suffix, dot)
    assert same(read_arrays("mnist", tmp_path), arrays)
    assert at_hand("mnist", tmp_path)


def test_the_named_folder_wins_then_the_environment_then_the_cache(monkeypatch, tmp_path):
    named, environment, cached = houses(seed=1), houses(seed=2), houses(seed=3)
    write_houses(cache_dir(), cached)
    assert same(read_arrays("housing"), cached)
    write_houses(tmp_path / "environment", environment)
    monkeypatch.setenv("LRSEARCH_DATA", str(tmp_path / "environment"))
    assert same(read_arrays("housing"), environment)
    write_houses(tmp_path / "named", named)
    assert same(read_arrays("housing", tmp_path / "named"), named)
    assert same(read_arrays("housing", str(tmp_path / "named")), named)


def test_a_folder_without_the_file_falls_through(monkeypatch, tmp_path):
    arrays = houses()
    (tmp_path / "empty").mkdir()
    write_houses(tmp_path / "full", arrays)
    monkeypatch.setenv("LRSEARCH_DATA", str(tmp_path / "full"))
    assert same(read_arrays("housing", tmp_path / "empty"), arrays)


@pytest.mark.parametrize(("dataset", "make"), [("mnist", digits), ("housing", houses)])
def test_a_download_is_checked_stored_and_not_repeated(monkeypatch, dataset, make):
    arrays = make()
    fetcher = Fetcher(arrays)
    install(monkeypatch, dataset, fetcher, known=arrays)
    assert not at_hand(dataset)
    assert same(read_arrays(dataset), arrays)
    assert at_hand(dataset)
    assert same(read_arrays(dataset), arrays)
    assert fetcher.calls == 1
    assert [path.suffix for path in cache_dir().iterdir()] == [".npz"]


def test_a_download_that_differs_is_refused_and_not_stored(monkeypatch):
    install(monkeypatch, "housing", Fetcher(houses(seed=5)), known=houses(seed=6))
    with pytest.raises(MissingDataError, match="not the known ones") as caught:
        read_arrays("housing")
    assert "\n" not in str(caught.value)
    assert not at_hand("housing")


def test_a_cache_that_cannot_be_written_costs_a_line_in_the_log(monkeypatch, tmp_path, caplog):
    arrays = houses()
    install(monkeypatch, "housing", Fetcher(arrays), known=arrays)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert same(read_arrays("housing"), arrays)
    assert "cannot be stored" in caplog.text


def test_what_is_missing_is_told_in_one_line_with_all_places_and_the_remedy(monkeypatch, tmp_path):
    (tmp_path / "named").mkdir()
    monkeypatch.setenv("LRSEARCH_DATA", str(tmp_path / "environment"))
    with pytest.raises(FileNotFoundError) as caught:
        read_arrays("mnist", tmp_path / "named")
    message = str(caught.value)
    assert isinstance(caught.value, MissingDataError)
    assert "\n" not in message
    for part in (
        "train-images-idx3-ubyte.gz",
        str(tmp_path / "named"),
        str(tmp_path / "environment"),
        str(cache_dir()),
        "ConnectionError",
        "LRSEARCH_DATA",
    ):
        assert part in message


def test_an_incomplete_folder_is_told_with_what_it_lacks(tmp_path):
    write_idx(tmp_path / "part", digits())
    (tmp_path / "part" / "t10k-labels-idx1-ubyte.gz").unlink()
    assert not at_hand("mnist", tmp_path / "part")
    with pytest.raises(MissingDataError, match="part lacks t10k-labels-idx1-ubyte"):
        read_arrays("mnist", tmp_path / "part")


@pytest.mark.parametrize("dataset", ["mnist", "housing"])
def test_a_named_folder_must_exist(tmp_path, dataset):
    for call in (read_arrays, at_hand):
        with pytest.raises(ValueError, match="data_dir must be an existing folder") as caught:
            call(dataset, tmp_path / "none")
        assert isinstance(caught.value, LrsearchError)


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip", gzip.compress(b""), gzip.compress(b"\0\0\x08\x03abc"),
     gzip.compress(struct.pack(">HBB1I", 0, 13, 1, 4) + bytes(16)),
     gzip.compress(struct.pack(">HBB1I", 0, 8, 1, 4) + bytes(3)),
     gzip.compress(bytes(500))[:-12]],
    ids=["empty", "no gzip", "nothing inside", "short header", "floats", "cut short", "torn"],
)  # fmt: skip
def test_a_damaged_idx_file_is_named(tmp_path, content):
    write_idx(tmp_path, digits())
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(MissingDataError, match=r"train-images-idx3-ubyte\.gz cannot be read"):
        read_arrays("mnist", tmp_path)


def test_idx_files_that_do_not_fit_together_are_told(tmp_path):
    write_idx(tmp_path, digits() | {"train_labels": np.zeros(3, np.uint8)})
    with pytest.raises(MissingDataError, match="do not fit together"):
        read_arrays("mnist", tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK broken"])
def test_a_damaged_archive_is_named(tmp_path, content):
    (tmp_path / "california_housing.npz").write_bytes(content)
    with pytest.raises(MissingDataError, match=r"california_housing\.npz cannot be read"):
        read_arrays("housing", tmp_path)


def test_an_archive_with_other_arrays_is_named(tmp_path):
    np.savez(tmp_path / "california_housing.npz", Z=np.ones(3))
    with pytest.raises(MissingDataError, match="cannot be read"):
        read_arrays("housing", tmp_path)
    write_houses(tmp_path, {"X": np.ones((4, 8)), "y": np.ones(3)})
    with pytest.raises(MissingDataError, match="must hold X of shape"):
        read_arrays("housing", tmp_path)


def test_the_cache_follows_xdg_and_ignores_relative_paths(monkeypatch, tmp_path):
    assert cache_dir() == tmp_path / "xdg" / "lrsearch"
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_dir() == tmp_path / ".cache" / "lrsearch"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path(tmp_path, ".cache", "lrsearch")


def test_checksums_see_values_and_not_layout():
    arrays = houses()
    keys = ("X", "y")
    expected = checksum(arrays, keys)
    assert checksum(arrays | {"X": np.asfortranarray(arrays["X"])}, keys) == expected
    assert checksum(arrays | {"X": arrays["X"].astype(">f8")}, keys) == expected
    changed = arrays["X"].copy()
    changed[3, 3] = np.nextafter(changed[3, 3], 2.0)
    assert checksum(arrays | {"X": changed}, keys) != expected


def test_the_fetchers_turn_what_scikit_learn_gives_into_canonical_arrays(monkeypatch):
    import sklearn.datasets

    pixels = np.arange(70000, dtype=np.int64)[:, None] % 256 * np.ones((1, 784), np.int64)
    labels = np.array([str(i % 10) for i in range(70000)], dtype=object)
    housing = houses()
    seen = {}

    def openml(name, **options):
        seen.update(options, name=name)
        return pixels, labels

    def california(**options):
        return housing["X"], housing["y"]

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", openml)
    monkeypatch.setattr(sklearn.datasets, "fetch_california_housing", california)
    arrays = sources._fetch_mnist()
    assert (seen["name"], seen["version"]) == ("mnist_784", 1)
    assert arrays["train_images"].shape == (60000, 28, 28)
    assert arrays["test_images"].shape == (10000, 28, 28)
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.uint8)}
    assert arrays["train_images"][300, 5, 5] == 300 % 256
    assert arrays["test_labels"][3] == 60003 % 10
    assert same(sources._fetch_housing(), housing)
