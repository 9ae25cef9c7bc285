"""Tiny checkpoints and their float32 bundles, made once for the whole run."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import one_core  # noqa: F401  before torch counts the cores
from tests.support.checkpoints import tiny_flux, tiny_sd35, tiny_sdxl
from tests.support.clone import make_clone, run
from tests.support.once import once

# a busy machine is not a bug: no example has to finish within a time
settings.register_profile("eri", deadline=None)
settings.load_profile("eri")


LONGEST = (
    "test_faults.py",
    "test_demo_families.py",
    "test_precision.py",
    "test_repeated_blocks.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_configure() -> None:
    """Ctrl-C reaches the commands that tests start, also where a shell runs the tests behind it.

    A shell starts what it does not wait for with SIGINT ignored, and children inherit that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Spares the garbage collector the million objects of the libraries that are imported now.

    Tracing makes so many objects that it scanned them all the time: a quarter of its work.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def workshop(tmp_path_factory) -> Path:
    """Where the session's checkpoints and bundles lie, one folder for all of its workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "workshop"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory):
    """The user's cache folder, which is not that of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user-cache")))
        yield


def _checkpoint(name: str, make: Callable[[Path], Path]):
    def checkpoint(workshop: Path) -> Path:
        path = workshop / "checkpoints" / name
        return once(path, make)

    return pytest.fixture(scope="session", name=f"{name}_checkpoint")(checkpoint)


def _bundle(name: str, *, every_case: bool = True):
    def bundle(request: pytest.FixtureRequest, workshop: Path) -> Path:
        from eri_export import export

        checkpoint = request.getfixturevalue(f"{name}_checkpoint")
        path = workshop / "engines" / name
        all_cases = request.getfixturevalue("all_cases")
        with all_cases() if every_case else nullcontext():
            return once(path, lambda path: export(checkpoint, path))

    return pytest.fixture(scope="session", name=f"{name}_bundle")(bundle)


sdxl_checkpoint = _checkpoint("sdxl", tiny_sdxl)
sdxl_v_checkpoint = _checkpoint("sdxl_v", lambda root: tiny_sdxl(root, "v_prediction"))
sd35_checkpoint = _checkpoint("sd35", tiny_sd35)
flux_checkpoint = _checkpoint("flux", tiny_flux)
flux_schnell_checkpoint = _checkpoint("flux_schnell", lambda root: tiny_flux(root, False))

sdxl_bundle = _bundle("sdxl")
sdxl_v_bundle = _bundle("sdxl_v", every_case=False)
sd35_bundle = _bundle("sd35")
flux_bundle = _bundle("flux")
flux_schnell_bundle = _bundle("flux_schnell", every_case=False)


@pytest.fixture(scope="session")
def demo(workshop) -> Path:
    """A clone in which `make demo` was run: the embedded SD3.5 checkpoint and its sheet."""

    def make(folder: Path) -> None:
        run(make_clone(folder), "make demo")

    return once(workshop / "demo", make)


@pytest.fixture(scope="session")
def demo_bundle(demo) -> Path:
    """The bundle of the embedded SD3.5 checkpoint."""
    return demo / "engines" / "demo"


@pytest.fixture(scope="session", autouse=True)
def shared_trace(workshop):
    """Every export traces a network only if nothing in this run has traced it before.

    Gives the function, for tests that trace a component by themselves. And torch reads the sources
    of its thousand operators once a process, where it does so for each graph.
    """
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    from eri_export.gate import parity
    from eri_export.graphs.trace import trace
    from eri_export.publishing import export_bundle
    from tests.support.trace_cache import cached

    shared = cached(trace, workshop / "traces")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib))
        )
        for module in (export_bundle, parity):
            patch.setattr(module, "trace", shared)
        yield shared


@pytest.fixture(scope="session", autouse=True)
def all_cases():
    """Exports compare at the smallest sizes and the usual ones, as the largest take half the time.

    Gives a context in which an export compares every case; the bundles above are made in it.
    """
    from eri_export.gate import cases

    every = cases._ends

    def smallest(recipe):
        ends = {name: each.min for name, each in recipe.ranges.items()}
        return ([] if recipe.loose is not None else [("smallest", ends)]), ()

    @contextmanager
    def whole():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cases, "_ends", every)
            yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cases, "_ends", smallest)
        yield whole


@pytest.fixture(scope="session", autouse=True)
def onnx_runtime_only():
    """Bundles are the same, and `auto` takes the same engine, whatever else is installed."""
    from eri_export.gate import other_engines

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(other_engines, "OTHERS", {})
        yield
