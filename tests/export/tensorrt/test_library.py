"""One path for both engines: TensorRT itself stood in for by TensorRT for RTX under its name."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import tensorrt_rtx

from eri_export.commands import build as build_cli
from eri_export.commands import export as export_cli
from eri_export.tensorrt import BuildOptions, add_plans, timing_cache
from eri_runtime.bundle import manifest
from eri_runtime.commands.main import main
from eri_runtime.errors import DiskError, UsageError
from eri_runtime.executors.tensorrt.library import load_library


class Stand(ModuleType):
    """TensorRT has the same names but one: it builds for the GPU that is there and no other."""

    def __getattr__(self, name):
        if name in ("ComputeCapability", "__path__", "__file__"):
            raise AttributeError(name)
        return getattr(tensorrt_rtx, name)


@pytest.fixture
def tensorrt(monkeypatch):
    """`import tensorrt` works, on a machine with an RTX 4090."""
    monkeypatch.setitem(sys.modules, "tensorrt", Stand("tensorrt"))
    monkeypatch.setattr("eri_export.tensorrt.build_options.compute_capability", lambda: "8.9")
    load_library.cache_clear()
    yield
    load_library.cache_clear()


# TensorRT for RTX keeps the timing cache's functions and says that they do nothing
@pytest.mark.filterwarnings("ignore:.*[Tt]iming [Cc]ache:DeprecationWarning")
def test_tensorrt_builds_for_the_gpu_that_is_here(tensorrt, flux_bundle, tmp_path):
    root = Path(shutil.copytree(flux_bundle, tmp_path / "flux"))
    options = BuildOptions(
        engine="tensorrt",
        profiles=("best",),
        flags=("hardware-compatible",),
        timing_cache=tmp_path / "caches" / "timing",
    )
    add_plans(root, options, components=("text_encoder",))
    ((file, plan),) = manifest.read(root).plans.items()
    version = ".".join(tensorrt_rtx.__version__.split(".")[:3])
    assert file == f"plans/text_encoder-sm89-trt{version}-hardware-compatible.plan"
    assert (plan.engine, plan.capabilities) == ("tensorrt", ("8.9",))
    assert [path.name for path in (tmp_path / "caches").iterdir()] == ["timing"]


def test_tensorrt_builds_for_no_other_gpu(tensorrt, flux_bundle, monkeypatch):
    other = BuildOptions(engine="tensorrt", capabilities=("8.6",))
    with pytest.raises(UsageError, match=r"got 8\.6, expected 8\.9"):
        add_plans(flux_bundle, other)
    monkeypatch.setattr("eri_export.tensorrt.build_options.compute_capability", lambda: None)
    with pytest.raises(UsageError, match="build on the machine that will run the plan"):
        add_plans(flux_bundle, other)


class Config:
    """A builder's config that keeps what it is given, as a cache grows in a build."""

    def create_timing_cache(self, data):
        return data

    def set_timing_cache(self, cache, ignore_mismatch):
        assert not ignore_mismatch
        self.cache = cache

    def get_timing_cache(self):
        return SimpleNamespace(serialize=lambda: self.cache + b"measured ")


def test_a_timing_cache_goes_on_from_build_to_build(tmp_path):
    file = tmp_path / "new" / "timing"
    for _ in range(2):
        with timing_cache.cache(Config(), file):
            pass
    assert file.read_bytes() == b"measured measured "
    assert [*file.parent.iterdir()] == [file]


@pytest.mark.filterwarnings("ignore:.*[Tt]iming [Cc]ache:DeprecationWarning")
def test_the_command_keeps_a_timing_cache_unasked(tensorrt, flux_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(timing_cache, "compute_capability", lambda: "8.9")
    root = Path(shutil.copytree(flux_bundle, tmp_path / "flux"))
    words = ["build", str(root), "--engine", "tensorrt", "--component", "text_encoder"]
    assert main([*words, "--profile", "best", "--level", "0"]) == 0
    version = ".".join(tensorrt_rtx.__version__.split(".")[:3])
    (kept,) = (tmp_path / "cache" / "eri").iterdir()
    assert kept.name == f"trt{version}-8.9.timing"


def test_a_failed_build_leaves_the_timing_cache(tmp_path):
    file = tmp_path / "timing"
    file.write_bytes(b"old")
    with pytest.raises(RuntimeError), timing_cache.cache(Config(), file):
        raise RuntimeError
    assert file.read_bytes() == b"old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has /dev/full")
def test_a_timing_cache_on_a_full_disk_is_a_disk_error(tmp_path, monkeypatch):
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda *_: opened(Path("/dev/full"), "wb"))
    with (
        pytest.raises(DiskError, match="a full disk"),
        timing_cache.cache(Config(), tmp_path / "timing"),
    ):
        pass


def test_export_builds_when_it_has_published(tmp_path, monkeypatch):
    done, target = [], tmp_path / "bundle"
    monkeypatch.setattr(export_cli, "run_export", lambda target, _, **__: done.append(target) or {})
    for name in ("check_paths", "read_bundle", "usable_line"):
        monkeypatch.setattr(export_cli, name, lambda *_: None)
    monkeypatch.setattr(build_cli, "run_build", lambda *given, **_: done.append(given))
    words = ["export", "anything", "-o", str(target)]
    assert main(words) == 0
    assert done == [target]
    words += ["--engine", "tensorrt-rtx", "--compute-capability", "8.6"]
    assert main([*words, "--compute-capability", "8.9"]) == 0
    options = BuildOptions(engine="tensorrt-rtx", capabilities=("8.6", "8.9"))
    assert done[1:] == [target, (target, options)]
