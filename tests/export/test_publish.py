"""A bundle appears complete or not at all, and its hashes are right."""

from __future__ import annotations

import hashlib
import importlib
import threading

import pytest

from eri_export import export
from eri_export.publish import records, staging, write_manifest
from eri_runtime import manifest
from eri_runtime.errors import UsageError
from eri_runtime.spec import Bundle, Defaults, LatentSpec, ScheduleSpec
from tests.checkpoints import all_files

publish = importlib.import_module("eri_export.publish")


def make_bundle(folder, text):
    """The least that has a manifest: one file."""
    (folder / "note.txt").write_text(text)
    write_manifest(
        Bundle(
            root=folder,
            family="sdxl",
            components={},
            tokenizers={},
            schedule=ScheduleSpec(kind="vp", prediction="eps"),
            latents=LatentSpec(channels=4, factor=8, scale=1.0, shift=0.0, patch=4),
            defaults=Defaults(
                sampler="euler",
                num_inference_steps=1,
                guidance_scale=1.0,
                height=8,
                width=8,
                max_sequence_length=1,
            ),
            files=records(folder, {}),
        )
    )


def published(target, text):
    with staging(target) as folder:
        make_bundle(folder, text)
    return target


@pytest.mark.parametrize("family", ["sdxl", "sd35", "flux"])
def test_every_file_is_in_the_manifest_with_its_size_and_sha256(request, family):
    bundle = manifest.read(request.getfixturevalue(f"{family}_bundle"))
    files = {path.relative_to(bundle.root).as_posix(): path for path in all_files(bundle.root)}
    del files["manifest.json"]
    assert set(bundle.files) == set(files)
    for name, path in files.items():
        raw = path.read_bytes()
        assert bundle.files[name].size == len(raw)
        assert bundle.files[name].sha256 == hashlib.sha256(raw).hexdigest()


def test_nothing_but_the_bundle_is_left(tmp_path):
    published(tmp_path / "new" / "demo", "one")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["demo"]
    assert (tmp_path / "new" / "demo" / "note.txt").read_text() == "one"


def interrupted(target):
    with staging(target) as folder:
        make_bundle(folder, "new")
        raise KeyboardInterrupt


def test_an_exception_leaves_no_trace(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "demo")
    assert not list(tmp_path.iterdir())


def test_an_exception_leaves_the_old_bundle(tmp_path):
    target = published(tmp_path / "demo", "old")
    with pytest.raises(KeyboardInterrupt):
        interrupted(target)
    assert (target / "note.txt").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("exchange", [publish._exchange, lambda _one, _other: False])
def test_a_new_bundle_replaces_the_old(tmp_path, monkeypatch, exchange):
    monkeypatch.setattr(publish, "_exchange", exchange)
    target = published(tmp_path / "demo", "old")
    published(target, "new")
    assert (target / "note.txt").read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failing_rename_leaves_the_old_bundle(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "_exchange", lambda _one, _other: False)
    target = published(tmp_path / "demo", "old")
    rename = type(target).rename

    def failing(self, to):
        if self.suffix == ".partial":
            raise OSError("disk full")
        return rename(self, to)

    monkeypatch.setattr(type(target), "rename", failing)
    with pytest.raises(OSError, match="disk full"):
        published(target, "new")
    assert (target / "note.txt").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_reader_always_sees_a_whole_bundle(tmp_path):
    target, seen, done = published(tmp_path / "demo", "0"), set(), threading.Event()

    def read():
        while not done.is_set():
            seen.add((target / "manifest.json").exists())

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(50):
        published(target, str(number))
    done.set()
    reader.join()
    assert seen == {True}


@pytest.mark.parametrize("make", ["touch", "mkdir"])
def test_what_is_not_a_bundle_is_not_replaced(sd35_checkpoint, tmp_path, make):
    getattr(tmp_path / "photos", make)()
    with pytest.raises(UsageError, match="photos"):
        export(sd35_checkpoint, tmp_path / "photos")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_progress_ends_at_the_total_of_every_part(sd35_checkpoint, tmp_path):
    told = []
    bundle = export(sd35_checkpoint, tmp_path / "demo", progress=lambda *call: told.append(call))
    assert manifest.read(bundle.root) == bundle
    parts = list(dict.fromkeys(part for part, _, _ in told))
    assert parts == [*bundle.components, "publish"]
    for part in parts:
        counts = [done for each, done, _ in told if each == part]
        assert counts == sorted(counts)
        assert counts[-1] == next(total for each, _, total in told if each == part)
