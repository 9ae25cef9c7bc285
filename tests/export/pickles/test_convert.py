"""Pickled weights become safetensors, and nothing that a pickle names is ever called."""

from __future__ import annotations

import os
import pickle
import re
import socket
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eri_export.pickles import convert as conversion
from eri_export.pickles import reader
from eri_export.pickles.convert import convert
from eri_runtime.bundle import read_header
from eri_runtime.commands.main import main
from eri_runtime.errors import (
    CheckpointError,
    DamagedWeightsError,
    NotACheckpointError,
    PickleError,
    UsageError,
)
from eri_runtime.partial_files import PARTIAL

SHARED = torch.arange(6, dtype=torch.float32)
WEIGHTS = {
    "half": torch.randn(3, 5).half(),
    "brain": torch.randn(2, 2).bfloat16(),
    "transposed": torch.arange(12.0).reshape(3, 4).T,
    "slice": SHARED[2:5],
    "shared": SHARED,
    "number": torch.tensor(7),
    "empty": torch.empty(0, 4),
    "eight": torch.randn(4).to(torch.float8_e4m3fn),
    "model.diffusion_model.ä": torch.ones(2, dtype=torch.uint8),
}


class Calls:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def here(monkeypatch):
    """Reads in this process, where torch is there already; the others start one, as users do."""

    def read(source, descriptor):
        return {"network": None, **reader.read(str(source), os.dup(descriptor))}

    monkeypatch.setattr(conversion, "_read", read)


def equal(file, expected):
    found = load_file(file)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name].reshape(-1).view(torch.uint8),
                           tensor.contiguous().reshape(-1).view(torch.uint8)), name  # fmt: skip


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("key", [None, "state_dict", "model", "params_ema"])
def test_every_tensor_comes_over_as_it_is(tmp_path, key, new, here):
    source = tmp_path / "model.ckpt"
    weights = {name: WEIGHTS[name] for name in WEIGHTS if new or name != "eight"}
    saved = weights if key is None else {"step": 3, key: OrderedDict(weights), "optim": {"lr": 0.1}}
    torch.save(saved, source, _use_new_zipfile_serialization=new)
    done = convert(source)
    assert done.file == tmp_path / "model.safetensors"
    assert done.left_out == (() if key is None else ("step", "optim"))
    assert done.nbytes == done.file.stat().st_size
    equal(done.file, weights)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.ckpt", "model.safetensors"]


def test_a_parameter_and_a_textual_inversion_of_a1111(tmp_path, here):
    vectors = torch.randn(2, 8)
    saved = {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.nn.Parameter(vectors)}}
    torch.save({**saved, "name": "cat"}, tmp_path / "cat.pt")
    done = convert(tmp_path / "cat.pt")
    equal(done.file, {"emb_params": vectors})
    assert done.left_out == ("string_to_token", "name")


def test_objects_of_trainers_beside_the_weights_are_left_out(tmp_path, monkeypatch, here):
    """As PyTorch Lightning wrote them; its module is not there when they are read."""
    module = type(sys)("pytorch_lightning.callbacks.early")
    module.State = type("State", (), {"__module__": module.__name__, "__qualname__": "State"})
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    state = module.State()
    state.best = 0.5
    torch.save({"callbacks": {"a": state}, "state_dict": {"w": SHARED}}, tmp_path / "a.ckpt")
    done = convert(tmp_path / "a.ckpt")
    equal(done.file, {"w": SHARED})
    assert done.left_out == ("callbacks",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("function", [os.system, eval, subprocess.getoutput, exec])
def test_a_pickle_that_calls_something_is_refused(tmp_path, function, zipped, here):
    bad = tmp_path / "bad.bin"
    mark = tmp_path / "called"
    text = (
        f"touch {mark}"
        if function in (os.system, subprocess.getoutput)
        else f"open({str(mark)!r}, 'w')"
    )
    saved = {"state_dict": {"w": SHARED}, "x": Calls(function, text)}
    if zipped:
        torch.save(saved, bad)
    else:
        bad.write_bytes(pickle.dumps(saved, protocol=2))
    with pytest.raises((PickleError, DamagedWeightsError)) as refused:
        convert(bad)
    if zipped:
        assert isinstance(refused.value, PickleError)
        assert function.__name__ in str(refused.value)
        assert "ask its author" in refused.value.fix
    assert list(tmp_path.iterdir()) == [bad]


def test_no_network_is_left_in_the_reader():
    script = """
import socket, sys
from eri_export.pickles.isolation import drop_network
reason = drop_network()
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=5)
    reached = True
except OSError:
    reached = False
print(reason is None, reached)
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [sys.executable, "-c", script, str(server.getsockname()[1])]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert said in (["True", "False"], ["False", "True"])  # gone, or its reason is told


def test_the_reader_gives_up_the_network_before_torch_is_there():
    script = (
        "import sys, eri_export.pickles.reader as r; assert not {'torch', 'numpy'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("content", "error", "told"),
    [
        (None, NotACheckpointError, "no such file"),
        (b"hello, this is text", NotACheckpointError, "no pickle"),
        (b"\x80\x02}q\x00.", DamagedWeightsError, "copy or download"),
        (b"\x80\x02garbage", DamagedWeightsError, "copy or download"),
        (b"PK\x03\x04 cut off", DamagedWeightsError, "copy or download"),
        ({"epoch": 3}, CheckpointError, "no weights, only epoch"),
        ([SHARED], CheckpointError, "no weights, only list"),
        ({"w": torch.ones(2).to_sparse()}, CheckpointError, "w"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, CheckpointError, "cannot hold: w"),
    ],
)
def test_what_is_no_pickle_of_weights(tmp_path, content, error, told, here):
    source = tmp_path / "a.pt"
    if isinstance(content, bytes):
        source.write_bytes(content)
    elif content is not None:
        torch.save(content, source)
    before = list(tmp_path.iterdir())
    with pytest.raises(error, match=re.escape(told)) as refused:
        convert(source)
    assert type(refused.value) is error
    assert list(tmp_path.iterdir()) == before


def test_safetensors_by_another_name_need_no_conversion(tmp_path):
    save_file({"w": SHARED}, tmp_path / "a.ckpt")
    with pytest.raises(UsageError, match="it needs no conversion"):
        convert(tmp_path / "a.ckpt")


def test_nothing_is_replaced_without_force(tmp_path, here):
    torch.save({"w": SHARED}, tmp_path / "a.ckpt")
    target = tmp_path / "b.safetensors"
    target.write_bytes(b"mine")
    with pytest.raises(UsageError, match="add --force"):
        convert(tmp_path / "a.ckpt", target)
    assert target.read_bytes() == b"mine"
    assert convert(tmp_path / "a.ckpt", target, force=True).tensors == 1
    equal(target, {"w": SHARED})
    (tmp_path / "c.safetensors").mkdir()
    with pytest.raises(UsageError, match="got a folder"):
        convert(tmp_path / "a.ckpt", tmp_path / "c.safetensors", force=True)


def test_a_reader_that_is_killed_leaves_nothing(tmp_path, monkeypatch):
    torch.save({"w": SHARED}, tmp_path / "a.ckpt")
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nkill -9 $$\n")
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(DamagedWeightsError, match="status -9"):
        convert(tmp_path / "a.ckpt")
    assert not [path for path in tmp_path.iterdir() if PARTIAL.fullmatch(path.name)]
    assert not (tmp_path / "a.safetensors").exists()


def test_the_command_that_a_refusal_names_works(tmp_path, monkeypatch, capsys):
    """`eri export model.ckpt` says what to run; that runs, and the file is what it was."""
    monkeypatch.chdir(tmp_path)
    torch.save({"epoch": 1, "state_dict": WEIGHTS}, "a model.ckpt")
    assert main(["export", "a model.ckpt"]) == 2
    said = capsys.readouterr().err
    assert "convert it with `eri convert 'a model.ckpt' -o 'a model.safetensors'`" in said
    assert main(["convert", "a model.ckpt", "-o", "a model.safetensors"]) == 0
    first, left, how = capsys.readouterr().out.splitlines()
    size = read_header(Path("a model.safetensors"))
    assert first.startswith(f"a model.safetensors  {len(size.entries)} tensors, ")
    assert left.endswith("no weights: epoch")
    assert "weights-only loader in a process with" in how
    assert main(["convert", "a model.ckpt"]) == 2
    assert "add --force" in capsys.readouterr().err
