"""Tiny checkpoints and their float32 bundles, made once for the whole run."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from tests.checkpoints import tiny_flux, tiny_sd35, tiny_sdxl

# a busy machine is not a bug: no example has to finish within a time
settings.register_profile("eri", deadline=None)
settings.load_profile("eri")


LONGEST = ("test_faults.py", "test_demo_families.py", "test_precision.py", "test_blocks.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory) -> Path:
    """Where the session's checkpoints and bundles lie, one folder for all of its workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "workshop"
    folder.mkdir(exist_ok=True)
    return folder


def _once(path: Path, make: Callable[[], object]) -> Path:
    """`path`, made by whichever worker comes first; the others wait for it."""
    path.parent.mkdir(exist_ok=True)
    done = path.with_name(f"{path.name}.done")
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            make()
            done.touch()
    return path


def _checkpoint(name: str, make: Callable[[Path], Path]):
    def checkpoint(workshop: Path) -> Path:
        path = workshop / "checkpoints" / name
        return _once(path, lambda: make(path))

    return pytest.fixture(scope="session", name=f"{name}_checkpoint")(checkpoint)


def _bundle(name: str):
    def bundle(request: pytest.FixtureRequest, workshop: Path) -> Path:
        from eri_export import export

        checkpoint = request.getfixturevalue(f"{name}_checkpoint")
        path = workshop / "engines" / name
        return _once(path, lambda: export(checkpoint, path))

    return pytest.fixture(scope="session", name=f"{name}_bundle")(bundle)


sdxl_checkpoint = _checkpoint("sdxl", tiny_sdxl)
sdxl_v_checkpoint = _checkpoint("sdxl_v", lambda root: tiny_sdxl(root, "v_prediction"))
sd35_checkpoint = _checkpoint("sd35", tiny_sd35)
flux_checkpoint = _checkpoint("flux", tiny_flux)
flux_schnell_checkpoint = _checkpoint("flux_schnell", lambda root: tiny_flux(root, False))

sdxl_bundle = _bundle("sdxl")
sdxl_v_bundle = _bundle("sdxl_v")
sd35_bundle = _bundle("sd35")
flux_bundle = _bundle("flux")
flux_schnell_bundle = _bundle("flux_schnell")


@pytest.fixture(scope="session", autouse=True)
def shared_traces():
    """Trace each network once a session: its graph depends on nothing but what the key holds."""
    from eri_export import bundle as module

    trace, traced = module.trace, {}

    def shared(recipe):
        config = json.dumps(dict(recipe.source.config), sort_keys=True)
        specs = (*(each.spec for each in recipe.inputs), *recipe.outputs)
        names = tuple(sorted(recipe.source.tensors))
        constants = tuple(recipe.constants.items())
        network = (recipe.source.class_name, config, recipe.precision, names)
        key = (recipe.name, network, specs, constants)
        if key not in traced:
            traced[key] = trace(recipe)
        return traced[key].clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "trace", shared)
        yield


@pytest.fixture(scope="session", autouse=True)
def onnx_runtime_only():
    """Bundles are the same, and `auto` takes the same engine, whatever else is installed."""
    from eri_export.gate import engines

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "OTHERS", {})
        yield
