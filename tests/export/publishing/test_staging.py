"""Exports to one name: what killed ones leave, what living ones hold, who comes first."""

from __future__ import annotations

import errno
import importlib

import pytest

from eri_export.publishing.atomic_publish import staging
from eri_runtime.errors import ExportError, UsageError
from tests.support.bundles import interrupted, make_bundle, published

publish = importlib.import_module("eri_export.publishing.atomic_publish")


# what killed exports leave


def leave(target, suffix="partial", number=1):
    """A folder such as a killed export leaves, with the manifest that a bundle has."""
    folder = target.with_name(f".{target.name}.{number:08x}.{suffix}")
    folder.mkdir(parents=True)
    make_bundle(folder, "left")
    return folder


def test_what_a_killed_export_left_is_removed_and_nothing_else(tmp_path):
    target = tmp_path / "demo"
    leave(target)
    others = {".demo.123.partial", ".demo.0000000G.partial", ".other.00000001.partial", "demo.old"}
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / ".demo.00000002.partial").touch()
    (tmp_path / ".demo.00000003.partial").symlink_to(tmp_path / "demo.old")
    published(target, "new")
    links = {".demo.00000002.partial", ".demo.00000003.partial"}
    assert {path.name for path in tmp_path.iterdir()} == {"demo", *others, *links}


def test_what_a_living_export_holds_is_left_alone(tmp_path):
    target = tmp_path / "demo"
    with staging(target) as folder:
        published(target, "of another")
        make_bundle(folder, "the last")
    assert (target / "note.txt").read_text() == "the last"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("present", [False, True])
def test_an_old_bundle_that_was_moved_away_comes_back_unless_replaced(tmp_path, present):
    target = tmp_path / "demo"
    if present:
        published(target, "new")
    leave(target, "old")
    with pytest.raises(KeyboardInterrupt):
        interrupted(target)
    assert (target / "note.txt").read_text() == ("new" if present else "left")
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_is_reclaimed_before_it_is_locked_is_given_up(tmp_path, monkeypatch):
    mine, given = publish._lock, []

    def reclaimed(descriptor, folder):
        given.append(folder)
        if len(given) == 1:
            folder.rmdir()
        return mine(descriptor, folder)

    monkeypatch.setattr(publish, "_lock", reclaimed)
    target = published(tmp_path / "demo", "one")
    assert len(set(given)) == 2
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF])
def test_without_locks_nothing_is_reclaimed_and_it_is_said(tmp_path, monkeypatch, caplog, code):
    def flock(_descriptor, _operation):
        raise OSError(code, "no locks here")

    monkeypatch.setattr(publish.fcntl, "flock", flock)
    target = tmp_path / "demo"
    left = leave(target)
    published(target, "new")
    assert {path.name for path in tmp_path.iterdir()} == {"demo", left.name}
    assert left.name in caplog.text


# putting in place


def test_a_bundle_that_appears_just_before_the_rename_is_replaced(tmp_path, monkeypatch):
    target = tmp_path / "demo"
    lexists, asked = publish.os.path.lexists, []

    def too_early(path):
        asked.append(path)
        if len(asked) == 2:
            published(target, "of another")
            return False
        return lexists(path)

    with staging(target) as folder:
        make_bundle(folder, "mine")
        asked.append("entry")
        monkeypatch.setattr(publish.os.path, "lexists", too_early)
    assert (target / "note.txt").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [target]


def test_a_bundle_that_vanishes_just_before_the_exchange_is_no_hindrance(tmp_path, monkeypatch):
    exchange = publish._exchange

    def too_late(folder, target):
        publish.shutil.rmtree(target)
        return exchange(folder, target)

    monkeypatch.setattr(publish, "_exchange", too_late)
    target = published(tmp_path / "demo", "old")
    published(target, "new")
    assert (target / "note.txt").read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_name_that_never_rests_is_given_up(tmp_path, monkeypatch):
    def restless(_folder, target):
        raise FileNotFoundError(errno.ENOENT, "gone", str(target))

    monkeypatch.setattr(publish, "_exchange", restless)
    target = published(tmp_path / "demo", "old")
    with pytest.raises(ExportError, match="other exports"):
        published(target, "new")
    assert (target / "note.txt").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def photos_appear(target):
    with staging(target) as folder:
        make_bundle(folder, "new")
        target.mkdir()
        (target / "photo.png").touch()


def test_what_appears_meanwhile_and_is_not_a_bundle_is_not_replaced(tmp_path):
    with pytest.raises(UsageError, match="not a bundle"):
        photos_appear(tmp_path / "demo")
    assert [path.name for path in tmp_path.rglob("*")] == ["demo", "photo.png"]


def test_a_link_stays_and_leads_to_the_new_bundle(tmp_path):
    published(tmp_path / "disk" / "v1", "old")
    (tmp_path / "demo").symlink_to(tmp_path / "disk" / "v1")
    published(tmp_path / "demo", "new")
    assert (tmp_path / "demo").is_symlink()
    assert (tmp_path / "disk" / "v1" / "note.txt").read_text() == "new"
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["v1"]


def test_everything_is_flushed_before_the_rename_and_the_parent_after(tmp_path, monkeypatch):
    target, flush, flushed = tmp_path / "demo", publish._flush, []

    def noting(path):
        flushed.append((path.name, target.exists()))
        flush(path)

    monkeypatch.setattr(publish, "_flush", noting)
    with staging(target) as folder:
        (folder / "denoiser").mkdir()
        make_bundle(folder, "one")
    before = [name for name, placed in flushed if not placed]
    assert set(before) == {"manifest.json", "note.txt", "denoiser", folder.name}
    assert flushed[-1] == (tmp_path.name, True)
    assert len(flushed) == len(before) + 1
