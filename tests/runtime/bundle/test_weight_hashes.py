"""No picture is made of damaged weights, and a file that was found whole is not hashed again."""

from __future__ import annotations

import os
import shutil
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

import eri_runtime as eri
from eri_runtime.bundle import WeightHashes, read_bundle, weight_hashes
from eri_runtime.commands.main import main
from eri_runtime.errors import IntegrityError, UnknownNameError

WORDS = {"height": 32, "width": 48, "num_inference_steps": 2, "seed": 0, "output_type": "np"}
HOUR = 3600


@pytest.fixture
def bundle(sd35_bundle, tmp_path, monkeypatch):
    """A copy of a tiny bundle whose files are an hour old, and an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "bundle"
    shutil.copytree(sd35_bundle, root)
    bundle = read_bundle(root)
    for name in bundle.files:
        aged(root / name)
    return bundle


def aged(file):
    """Sets its time an hour back."""
    os.utime(file, (time.time() - HOUR,) * 2)


@pytest.fixture
def settled(monkeypatch):
    """Files are old enough to be remembered at once; the time of a change cannot be set."""
    monkeypatch.setattr(weight_hashes, "SETTLED", 0)


@pytest.fixture
def hashed(monkeypatch):
    """The names of the files that are hashed."""
    names = []
    sha256 = weight_hashes.sha256
    monkeypatch.setattr(
        weight_hashes, "sha256", lambda path: names.append(path.parent.name) or sha256(path)
    )
    return names


def flip(file):
    """Turns the highest bit of a byte in the middle of a file's last eighth."""
    with file.open("r+b") as stream:
        stream.seek(-file.stat().st_size // 16, os.SEEK_END)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 0x80]))


USED = ["text_encoder", "text_encoder_2", "text_encoder_3", "denoiser", "vae_decoder"]
WAYS = [("cpu", "numpy"), ("cpu", "step"), ("openvino", "numpy")]


@pytest.mark.parametrize("component", USED)
def test_damaged_weights_draw_nothing(bundle, component):
    spec = bundle.components[component]
    flip(bundle.path(spec.weights))
    with eri.load(bundle.root, "cpu") as pipe, pytest.raises(IntegrityError) as caught:
        pipe("a red heart", **WORDS)
    assert caught.value.offender == str(bundle.path(spec.weights))
    assert caught.value.got.startswith("sha256 ")


@pytest.mark.parametrize(("backend", "loop"), WAYS)
def test_no_step_is_given_out(bundle, backend, loop):
    flip(bundle.path(bundle.components["denoiser"].weights))
    with eri.load(bundle.root, backend, loop=loop) as pipe:
        for _ in range(2):  # and not later either
            with pytest.raises(IntegrityError, match="denoiser"):
                next(pipe.denoise(pipe.request("a red heart", **WORDS)))


def test_who_asks_for_it_gets_the_picture_of_damaged_weights(bundle, hashed):
    with eri.load(bundle.root, "cpu") as pipe:
        whole = pipe("a red heart", **WORDS).images
    flip(bundle.path(bundle.components["denoiser"].weights))
    hashed.clear()
    with eri.load(bundle.root, "cpu", verify="never") as pipe:
        assert np.abs(pipe("a red heart", **WORDS).images - whole).max() > 0
    assert hashed == []


def test_a_whole_file_is_hashed_once(bundle, hashed, settled):
    for expected in (sorted(USED), []):
        with eri.load(bundle.root, "cpu") as pipe:
            for _ in range(2):
                pipe("a red heart", **WORDS)
        assert sorted(hashed) == expected
        hashed.clear()


def test_always_hashes_once_per_pipeline(bundle, hashed, settled):
    for _ in range(2):
        with eri.load(bundle.root, "cpu", verify="always") as pipe:
            for _ in range(2):
                pipe("a red heart", **WORDS)
                pipe.close()
        assert sorted(hashed) == sorted(USED)
        hashed.clear()


def test_a_file_that_changes_is_hashed_again(bundle, hashed, settled):
    name = bundle.components["denoiser"].weights
    for change, raises in ((aged, False), (flip, True), (flip, False), (aged, False)):
        change(bundle.path(name))
        hashes = WeightHashes(bundle)
        with pytest.raises(IntegrityError) if raises else nullcontext():
            hashes.check_all([name])
    assert len(hashed) == 4


def test_a_file_that_was_just_written_is_not_remembered(bundle, hashed, monkeypatch):
    """It could be written again within the clock's tick, with the same times."""
    monkeypatch.setattr(weight_hashes, "SETTLED", HOUR * 10**9)
    name = bundle.components["denoiser"].weights
    for _ in range(2):
        WeightHashes(bundle).check_all([name])
    assert len(hashed) == 2


@pytest.mark.parametrize("why", ["no folder", "no home", "no threads"])
def test_what_the_machine_lacks_only_costs_time(bundle, hashed, settled, monkeypatch, why):
    def lacks(*_):
        raise RuntimeError(why)

    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    if why == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", lacks)
    elif why == "no threads":
        monkeypatch.setattr(threading.Thread, "start", lacks)
    name = bundle.components["denoiser"].weights
    for _ in range(2):
        WeightHashes(bundle).check_all([name])
    assert len(hashed) == 2


def test_a_file_that_is_mended_while_it_is_hashed_is_not_believed(bundle, monkeypatch):
    """The engine may have opened the damaged one."""
    file = bundle.path(bundle.components["denoiser"].weights)
    flip(file)
    sha256 = weight_hashes.sha256

    def slow(path):
        if path == file:
            flip(file)  # back
        return sha256(path)

    monkeypatch.setattr(weight_hashes, "sha256", slow)
    with eri.load(bundle.root, "cpu") as pipe:
        request = pipe.request("a red heart", **WORDS)
        with pytest.raises(IntegrityError, match="a file that changed while it was opened"):
            next(pipe.denoise(request))


def test_one_file_remembers_each_file(bundle, settled, tmp_path):
    """Whatever its times were."""
    name = bundle.components["denoiser"].weights
    for _ in range(3):
        aged(bundle.path(name))
        WeightHashes(bundle).check_all([name])
    assert len(list((tmp_path / "cache" / "eri" / "verified").iterdir())) == 1


def test_a_file_that_cannot_be_read_is_named(bundle):
    name = bundle.components["denoiser"].weights
    bundle.path(name).unlink()
    hashes = WeightHashes(bundle)
    for _ in range(2):
        with pytest.raises(IntegrityError, match="expected a readable file"):
            hashes.check_all([name])


def test_threads_hash_a_file_once_and_all_wait_for_it(bundle, hashed):
    name, hashes = bundle.components["denoiser"].weights, WeightHashes(bundle)
    flip(bundle.path(name))
    caught = []

    def use():
        try:
            hashes.check_all([name])
        except IntegrityError as error:
            caught.append(error)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(caught) == 8
    assert len(hashed) == 1


def test_an_unknown_word_is_refused(sd35_bundle):
    with pytest.raises(UnknownNameError, match="verify: got 'now', expected one of first, always"):
        eri.load(sd35_bundle, verify="now")


def test_the_command_takes_it(bundle, tmp_path, capsys):
    flip(bundle.path(bundle.components["denoiser"].weights))
    words = ["generate", str(bundle.root), "a red heart", "--steps", "1", "--size", "48x32"]
    words += ["-o", str(tmp_path / "out.png"), "--backend", "cpu"]
    assert main(words) == 2
    assert "denoiser" in capsys.readouterr().err
    assert main([*words, "--verify", "never"]) == 0
