"""What the peers' workers do by themselves, with stand-ins for the peers' packages."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from eri_export.bench import optimum_worker
from eri_export.bench.older_tokenizers import older_config, with_older_tokenizers
from eri_runtime.bench.peers import BF16, PEERS
from eri_runtime.bench.worker_server import Job, Setup, Stopwatch
from eri_runtime.errors import UnknownNameError


def setup(variant, folder=""):
    return Setup(
        variant=variant, bundle="", checkpoint="c", threads=3, device="cpu", folder=str(folder)
    )


def test_the_worker_runs_every_peer_that_the_command_knows():
    assert set(optimum_worker.PEERS) == set(PEERS)
    for name, ends in PEERS.items():
        for end in ends:
            peer, precision = optimum_worker.peer_of(setup(name + end))
            assert name in peer.packages
            assert precision == ("bf16" if end == BF16 else "fp32")
    with pytest.raises(UnknownNameError):
        optimum_worker.peer_of(setup("onnx"))


def test_tokenizers_of_transformers_5_are_rewritten_and_the_rest_is_linked(tmp_path):
    new = tmp_path / "new"
    (new / "tokenizer").mkdir(parents=True)
    config = {"extra_special_tokens": ["<a>"], "model_max_length": 16}
    (new / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    (new / "model_index.json").write_text("{}")
    old = with_older_tokenizers(new, tmp_path / "old")
    assert (old / "model_index.json").is_symlink()
    found = json.loads((old / "tokenizer" / "tokenizer_config.json").read_text())
    assert found == {"additional_special_tokens": ["<a>"], "model_max_length": 16}
    assert json.loads((new / "tokenizer" / "tokenizer_config.json").read_text()) == config
    named = '{"extra_special_tokens": {"image": "<i>"}}'
    assert json.loads(older_config(named)) == json.loads(named)  # transformers 4 knows a mapping


class Command:
    """Stands for Optimum's command: fails, or makes the folder that it is told to."""

    def __init__(self, fails=False):
        self.fails, self.calls = fails, []

    def __call__(self, command, **_):
        self.calls.append(command)
        if self.fails:
            return SimpleNamespace(returncode=1, stdout="a lot\nthe reason\n")
        optimum_worker.Path(command[-1]).mkdir()
        return SimpleNamespace(returncode=0, stdout="")


@pytest.fixture
def installed(monkeypatch):
    """Every package of the peers, as far as their versions are asked for."""
    monkeypatch.setattr(optimum_worker, "version", lambda name: "1.0")


def test_peers_of_one_format_share_a_conversion(tmp_path, monkeypatch, installed):
    command = Command()
    monkeypatch.setattr(optimum_worker.subprocess, "run", command)
    monkeypatch.setattr(optimum_worker, "with_older_tokenizers", lambda source, target: target)
    variants = ("optimum-intel", "openvino-genai", "openvino-genai+bf16", "optimum-onnx")
    new = [optimum_worker.convert(setup(variant, tmp_path)) for variant in variants]
    assert new == [True, False, False, True]
    assert [call[4] for call in command.calls] == ["openvino", "onnx"]
    assert command.calls[0][5:7] == ["--weight-format", "fp32"]
    assert {each.name for each in tmp_path.iterdir()} == {"converted-openvino", "converted-onnx"}


def test_a_failed_conversion_is_told_and_leaves_nothing_to_open(tmp_path, monkeypatch, installed):
    monkeypatch.setattr(optimum_worker.subprocess, "run", Command(fails=True))
    monkeypatch.setattr(optimum_worker, "with_older_tokenizers", lambda source, target: target)
    with pytest.raises(RuntimeError, match="to onnx failed: the reason"):
        optimum_worker.convert(setup("optimum-onnx", tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_peer_that_is_not_installed_is_missing_not_broken(tmp_path):
    """The parent reads the error's name: an ImportError makes the subject `missing`."""
    with pytest.raises(ImportError, match="optimum-onnx"):
        optimum_worker.convert(setup("optimum-onnx", tmp_path))


class Genai:
    """Stands for `Text2ImagePipeline`: two steps, then a picture made of its noise."""

    def __init__(self, folder, device, **properties):
        self.opened = folder, device, properties

    def generate(self, prompt, *, callback, generator, **words):
        self.called = {"prompt": prompt, **words}
        noise = generator.randn_tensor((1, 4, 2, 2))
        for step in range(words["num_inference_steps"]):
            assert callback(step, words["num_inference_steps"], noise) is False
        pixels = np.full((1, words["height"], words["width"], 3), 7, np.uint8)
        return SimpleNamespace(data=pixels)

    def get_performance_metrics(self):
        return SimpleNamespace(get_text_encoder_infer_duration=lambda: {"a": 0.0, "b": 1e6})


@pytest.fixture
def drawer(monkeypatch, tmp_path):
    """OpenVINO GenAI's drawer around the stand-in."""
    genai, openvino = ModuleType("openvino_genai"), ModuleType("openvino")
    genai.Generator, genai.Text2ImagePipeline = object, Genai
    openvino.Tensor = np.asarray
    monkeypatch.setitem(sys.modules, "openvino_genai", genai)
    monkeypatch.setitem(sys.modules, "openvino", openvino)
    monkeypatch.delitem(sys.modules, "eri_export.bench.genai_drawer", raising=False)
    yield optimum_worker._genai(setup("openvino-genai+bf16"), tmp_path, "bf16")[0]
    sys.modules.pop("eri_export.bench.genai_drawer", None)


def job(tmp_path, shape=(1, 4, 2, 2), output="x.png"):
    np.save(tmp_path / "noise.npy", np.zeros(shape, np.float32))
    return Job(
        prompt="a cat", seed=0, images=1, width=16, height=8, steps=3, guidance=4.0, tokens=5,
        latents=str(tmp_path / "noise.npy"), output=output and str(tmp_path / output),
    )  # fmt: skip


def test_genai_gets_the_same_work_and_its_stages_are_marked(drawer, tmp_path):
    watch = Stopwatch()
    drawer.draw(job(tmp_path), watch)
    pipe = drawer._pipe
    assert pipe.opened[2] == {"INFERENCE_NUM_THREADS": 3, "INFERENCE_PRECISION_HINT": "bf16"}
    words = {"width": 16, "height": 8, "num_inference_steps": 3, "num_images_per_prompt": 1}
    words |= {"guidance_scale": 4.0, "max_sequence_length": 5, "prompt": "a cat"}
    assert pipe.called == words
    told = watch.read()
    assert len(told["steps"]) == 3
    assert all(each >= 0 for each in (told["encode"], *told["steps"], told["decode"]))
    parts = told["encode"] + told["denoise"] + told["decode"] + told["png"]
    assert told["total"] == pytest.approx(parts, abs=0.01)
    with Image.open(tmp_path / "x.png") as image:
        assert (image.size, image.getpixel((0, 0))) == ((16, 8), (7, 7, 7))


def test_a_warm_up_of_genai_writes_nothing(drawer, tmp_path):
    watch = Stopwatch()
    drawer.draw(job(tmp_path, output=None), watch)
    assert watch.read()["decode"] == 0
    assert not list(tmp_path.glob("*.png"))


def test_genai_that_wants_other_noise_is_told_so(drawer, tmp_path):
    with pytest.raises(RuntimeError, match=r"got shape \(1, 4, 2, 2\), expected \(1, 16, 2, 2\)"):
        drawer.draw(job(tmp_path, shape=(1, 16, 2, 2)), Stopwatch())
