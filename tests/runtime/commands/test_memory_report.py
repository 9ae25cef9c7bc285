"""`eri inspect --memory`: a table of what requests take, and what is left."""

from __future__ import annotations

import dataclasses
import re

import pytest

from eri_runtime.bundle import manifest
from eri_runtime.bundle.spec import SegmentSpec
from eri_runtime.commands import memory_report
from eri_runtime.commands.main import main
from eri_runtime.executors.base import Settings
from eri_runtime.executors.openvino import backend
from eri_runtime.memory.available import AvailableMemory
from eri_runtime.memory.estimate import estimate_peak
from eri_runtime.memory.modes import TILE, Mode

PLENTY = AvailableMemory(bytes=10**15, limit="memory of the machine")


@pytest.fixture(autouse=True)
def one_engine(monkeypatch):
    """Only ONNX Runtime on the CPU, whatever else this machine has."""
    monkeypatch.setattr(memory_report, "BACKENDS", {"cpu": memory_report.BACKENDS["cpu"]})


def said(capsys, *arguments):
    assert main(["inspect", *map(str, arguments)]) == 0
    return capsys.readouterr().out.splitlines()


def test_it_says_what_requests_of_the_usual_size_take(sdxl_bundle, capsys):
    bundle = manifest.read(sdxl_bundle)
    size = bundle.defaults
    head, *rows, left = said(capsys, sdxl_bundle, "--memory")
    assert f"1 image of {size.width}x{size.height}" in head
    plain = estimate_peak(bundle, "cpu", Settings(), Mode(), size.height, size.width, 1)
    assert f"{plain.peak / 1e6:,.1f} MB, in {plain.at}" in rows[0]
    assert re.match(r"left now: [\d,.]+ MB \(.+\); ", left)
    for mode in ("plain", "low memory", "offloaded"):
        assert any(f" {mode} " in row for row in rows)


def test_it_says_what_a_larger_request_takes(sdxl_bundle, capsys):
    bundle = manifest.read(sdxl_bundle)
    lines = said(capsys, sdxl_bundle, "--memory", "--size", "64x32", "--batch", "3")
    assert "3 images of 64x32" in lines[0]
    expected = estimate_peak(bundle, "cpu", Settings(), Mode(), 32, 64, 3).peak
    assert f"{expected / 1e6:,.1f} MB" in lines[1]


@pytest.mark.parametrize(
    "words", [("--size", "66x33"), ("--size", "4096x32"), ("--batch", "0"), ("--batch", "99")]
)
def test_what_the_bundle_does_not_take_is_refused(sdxl_bundle, capsys, words):
    assert main(["inspect", str(sdxl_bundle), "--memory", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("eri: ")


def test_a_size_without_memory_is_refused(sdxl_bundle, capsys):
    assert main(["inspect", str(sdxl_bundle), "--size", "32x32"]) == 2
    assert "--memory" in capsys.readouterr().err


def test_without_it_nothing_is_said_of_peaks(sdxl_bundle, capsys):
    assert not any("at peak" in line for line in said(capsys, sdxl_bundle))


def test_too_little_memory_is_named_mode_by_mode(sdxl_bundle):
    bundle = manifest.read(sdxl_bundle)
    plain = estimate_peak(bundle, "cpu", Settings(), Mode(), 64, 64, 1).peak
    short = AvailableMemory(bytes=plain - 1, limit="memory.max of cgroup /job")
    *_, line = memory_report.describe_memory(bundle, 64, 64, 1, short)
    assert "(memory.max of cgroup /job); too little for cpu plain" in line
    assert "cpu offloaded" not in line
    *_, line = memory_report.describe_memory(bundle, 64, 64, 1, PLENTY)
    assert line.endswith("enough for all of them")


def test_where_it_cannot_be_read_nothing_is_said_to_fit(sdxl_bundle, monkeypatch):
    monkeypatch.setattr(memory_report, "available_memory", lambda: None)
    *_, line = memory_report.describe_memory(manifest.read(sdxl_bundle), 64, 64, 1)
    assert line == "how much memory is left cannot be read here"


def test_a_bundle_that_does_not_say_is_to_be_exported_again(sdxl_bundle):
    bundle = manifest.read(sdxl_bundle)
    silent = {
        name: dataclasses.replace(each, activations=()) for name, each in bundle.components.items()
    }
    old = dataclasses.replace(bundle, components=silent)
    lines = list(memory_report.describe_memory(old, 64, 64, 1, PLENTY))
    assert "export it again" in lines[1]
    assert len(lines) == 3


def test_modes_are_those_that_an_engine_has(sdxl_bundle):
    bundle = manifest.read(sdxl_bundle)
    part = SegmentSpec(graph="g", inputs=(), outputs=(), weights=())
    denoiser = dataclasses.replace(bundle.components["denoiser"], segments=(part,))
    parts = dataclasses.replace(bundle, components={**bundle.components, "denoiser": denoiser})
    whole = dataclasses.replace(denoiser, segments=())
    none = dataclasses.replace(bundle, components={**bundle.components, "denoiser": whole})
    assert "streamed" in memory_report.modes(parts, "cpu", 64, 64)
    assert "streamed" not in memory_report.modes(parts, "cuda", 64, 64)
    assert "streamed" not in memory_report.modes(none, "cpu", 64, 64)
    assert "low memory" not in memory_report.modes(parts, "openvino", 64, 64)
    tiled = memory_report.modes(parts, "cpu", 64, 2 * TILE)
    assert tiled["streamed"].vae.tile == TILE
    assert memory_report.modes(parts, "cpu", 64, 64)["streamed"].vae.tile is None


def test_what_was_not_measured_is_called_so(sdxl_bundle, monkeypatch):
    monkeypatch.setattr(memory_report, "BACKENDS", {"openvino:bf16": backend.OPENVINO_BF16})
    monkeypatch.setattr(memory_report, "refusals", lambda bundle, backend: [])
    _, *rows, _ = memory_report.describe_memory(manifest.read(sdxl_bundle), 64, 64, 1, PLENTY)
    assert rows
    assert all(row.endswith(", not measured") for row in rows)
