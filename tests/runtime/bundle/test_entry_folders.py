"""Entries of a cache: whole or absent, of their key alone, and few enough."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from eri_runtime.bundle import entry_folders
from eri_runtime.bundle.entry_folders import EntryFolders


@pytest.fixture
def entries(tmp_path):
    """Two folders, neither of which exists yet."""
    (tmp_path / "bundle").mkdir()
    return EntryFolders(".entry", tmp_path / "bundle" / "compiled", tmp_path / "cache" / "compiled")


def files(folder):
    """The files in a folder, the one that was used last at the end."""
    return sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)


def test_an_entry_is_read_by_its_key_alone(entries):
    assert entries.read("a") is None
    entries.write("a", b"one")
    assert (entries.read("a"), entries.read("b")) == (b"one", None)
    entries.write("a", b"two")
    assert entries.read("a") == b"two"
    entries.remove("a")
    assert entries.read("a") is None
    assert files(entries.beside) == []


def test_a_file_under_another_name_is_no_entry(entries, caplog):
    entries.write("a", b"one")
    (name_a,) = files(entries.beside)
    entries.write("b", b"two")
    (name_b,) = set(files(entries.beside)) - {name_a}
    name_a.replace(name_b)
    assert entries.read("b") is None
    assert "is damaged, and made again" in caplog.text
    assert files(entries.beside) == []


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "longer"])
def test_a_damaged_entry_is_removed(entries, damage):
    entries.write("a", bytes(1000))
    (path,) = files(entries.beside)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[500] ^= 1
    path.write_bytes({"flip": data, "cut": data[:-1], "empty": b"", "longer": data + b"0"}[damage])
    assert entries.read("a") is None
    assert not path.exists()


def test_what_cannot_be_beside_is_in_the_other_folder(entries):
    entries.beside.write_bytes(b"a file in its way")
    entries.write("a", b"one")
    assert entries.read("a") == b"one"
    assert len(files(entries.fallback)) == 1


def test_entries_beside_are_read_where_none_can_be_written(entries, monkeypatch):
    entries.write("a", b"one")
    monkeypatch.setattr(entry_folders.os, "utime", _refuses)
    monkeypatch.setattr(entry_folders, "write_whole", _refuses)
    entries.write("b", b"two")
    assert (entries.read("a"), entries.read("b")) == (b"one", None)


def _refuses(*_):
    raise PermissionError("a read-only file system")


def test_a_bundle_that_is_gone_is_not_made_again(entries):
    entries.beside.parent.rmdir()
    entries.write("a", b"one")
    assert not entries.beside.parent.exists()
    assert entries.read("a") == b"one"


def test_without_a_home_there_may_be_no_entry(tmp_path):
    entries = EntryFolders(".entry", tmp_path / "gone" / "compiled", None)
    entries.write("a", b"one")
    assert entries.read("a") is None


@pytest.mark.parametrize("limit", [("MOST_ENTRIES", 3), ("MOST_BYTES", 3 * 132)])
def test_the_least_recently_used_goes(entries, monkeypatch, limit):
    monkeypatch.setattr(entry_folders, *limit)
    for number, key in enumerate("abc"):
        entries.write(key, key.encode() * 100)
        os.utime(files(entries.beside)[-1], (number, number))
    other = entries.beside / "notes.txt"
    other.write_bytes(bytes(1000))
    assert entries.read("a") == b"a" * 100
    entries.write("d", b"d" * 100)
    found = {key: entries.read(key) is not None for key in "abcd"}
    assert found == {"a": True, "b": False, "c": True, "d": True}
    assert other.exists()


def test_an_entry_that_is_too_large_is_not_written(entries, monkeypatch):
    monkeypatch.setattr(entry_folders, "MOST_BYTES", 100)
    entries.write("a", bytes(100))
    assert not entries.beside.exists()


def test_readers_and_writers_at_once_see_whole_entries(entries):
    written = [bytes([number]) * 100_000 for number in range(8)]

    def use(number):
        entries.write("a", written[number % 8])
        return entries.read("a")

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(use, range(64))) <= set(written)
    assert len(files(entries.beside)) == 1
