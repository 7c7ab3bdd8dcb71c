"""CIFAR in the public binary layout: what is read, where it is looked for, what is refused."""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cifar_files import SETS, write_cifar

from lrsearch.errors import MissingDataError
from lrsearch.tasks import sources
from lrsearch.tasks.sources import at_hand, cache_dir, read_arrays

NAMES = list(SETS)
KEYS = {"train_images", "train_labels", "test_images", "test_labels"}


def unreachable():
    raise ConnectionError("no route to host")


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    monkeypatch.delenv("LRSEARCH_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    for name in NAMES:
        changed = replace(sources.SOURCES[name], fetch=unreachable)
        monkeypatch.setitem(sources.SOURCES, name, changed)


def same(found, expected):
    assert set(found) == KEYS
    for key in KEYS:
        np.testing.assert_array_equal(found[key], expected[key])


@pytest.mark.parametrize("name", NAMES)
def test_images_and_fine_labels_are_read_in_the_order_of_the_files(tmp_path, name):
    expected = write_cifar(tmp_path, name)
    found = read_arrays(name, tmp_path)
    same(found, expected)
    assert {array.dtype for array in found.values()} == {np.dtype(np.uint8)}
    assert found["train_images"].shape == (40, 3, 32, 32)
    assert at_hand(name, tmp_path)


def test_the_first_byte_of_the_planes_is_the_red_of_the_upper_left_pixel(tmp_path):
    """Written byte by byte, as the public page describes the layout."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    planes = bytes([200] * 1024 + [100] * 1024 + [50] * 1024)
    record = bytes([7]) + bytes([255]) + planes[1:]
    for file in SETS["cifar10"].train + SETS["cifar10"].test:
        (folder / file).write_bytes(record)
    found = read_arrays("cifar10", tmp_path)
    image = found["test_images"][0]
    assert found["test_labels"].tolist() == [7]
    assert found["train_labels"].tolist() == [7] * 5
    assert image[:, 0, 0].tolist() == [255, 100, 50]
    assert image[:, 0, 1].tolist() == image[:, 31, 31].tolist() == [200, 100, 50]


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_of_the_files_itself_is_a_place_too(tmp_path, name):
    expected = write_cifar(tmp_path, name)
    same(read_arrays(name, tmp_path / SETS[name].folder), expected)


@pytest.mark.parametrize("name", NAMES)
def test_an_incomplete_folder_is_passed_over_and_told(tmp_path, name):
    write_cifar(tmp_path, name)
    (tmp_path / SETS[name].folder / SETS[name].test[0]).unlink()
    assert not at_hand(name, tmp_path)
    with pytest.raises(MissingDataError, match=SETS[name].test[0]) as caught:
        read_arrays(name, tmp_path)
    assert "\n" not in str(caught.value)
    assert SETS[name].folder in str(caught.value)
    assert "ConnectionError" in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "empty", "another set"])
def test_a_damaged_file_is_named(tmp_path, damage):
    write_cifar(tmp_path, "cifar10")
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
    content = bytearray(path.read_bytes())
    if damage == "another set":
        content[0] = 10  # classes end at 9
    path.write_bytes({"cut": content[:-1], "empty": b"", "another set": content}[damage])
    with pytest.raises(MissingDataError, match=r"data_batch_3\.bin cannot be read"):
        read_arrays("cifar10", tmp_path)


def published(tmp_path, monkeypatch, name):
    """The public archive, as a file on this machine."""
    expected = write_cifar(tmp_path / "public", name)
    archive = tmp_path / "archive.tar.gz"
    with tarfile.open(archive, "w:gz") as opened:
        opened.add(tmp_path / "public" / SETS[name].folder, arcname=SETS[name].folder)
    digest = hashlib.md5(archive.read_bytes()).hexdigest()
    known = replace(SETS[name], url=Path(archive).as_uri(), md5=digest)
    changed = replace(sources.SOURCES[name], fetch=known.fetch)
    monkeypatch.setitem(sources.SOURCES, name, changed)
    return archive, expected


@pytest.mark.parametrize("name", NAMES)
def test_the_public_archive_is_fetched_checked_and_kept(tmp_path, monkeypatch, name):
    archive, expected = published(tmp_path, monkeypatch, name)
    same(read_arrays(name), expected)
    archive.unlink()
    same(read_arrays(name), expected)  # from the cache
    assert [path.name for path in cache_dir().iterdir()] == [f"{name}.npz"]


def test_an_archive_that_is_not_the_known_one_is_refused_and_not_kept(tmp_path, monkeypatch):
    archive, _ = published(tmp_path, monkeypatch, "cifar10")
    archive.write_bytes(archive.read_bytes() + b"\0")
    with pytest.raises(MissingDataError, match="is not the known archive") as caught:
        read_arrays("cifar10")
    assert "\n" not in str(caught.value)
    assert not at_hand("cifar10")
