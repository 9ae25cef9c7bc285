"""Writes a Triton model repository from a bundle.

    DIR/denoiser/config.pbtxt      a model for each component, ONNX or plan
        /denoiser/1/…
        /eri/config.pbtxt          the whole pipeline, by Triton's Python backend
        /eri/1/model.py
        /eri/1/bundle/…            all files of the bundle

Files are hard links to the bundle's where the file system allows it, else copies.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from eri_runtime.bundle import (
    MANIFEST,
    Bundle,
    Listener,
    no_progress,
    read_bundle,
    verify_all,
)
from eri_runtime.checks import one_of
from eri_runtime.checks import path as check_path
from eri_runtime.errors import DiskError, UsageError
from eri_runtime.executors import BACKENDS
from eri_runtime.partial_files import partial_folder
from eri_runtime.triton.component_models import Model, onnx_model, plan_model
from eri_runtime.triton.config import ModelConfig, config_text
from eri_runtime.triton.tensors import pipeline_inputs, pipeline_outputs

PIPELINE = "eri"  # name of the model that runs the whole pipeline
VERSION, CONFIG, BUNDLE = "1", "config.pbtxt", "bundle"
MODEL = Path(__file__).with_name("model.py")


def export_repository(
    bundle: str | Path,
    folder: str | Path,
    *,
    plans: bool = False,
    previews: bool = False,
    backend: str = "auto",
    on_bytes: Listener = no_progress,
) -> Path:
    """Writes a model repository for Triton, complete or not at all.

    Args:
        bundle: Folder of the bundle.
        folder: The repository's folder, which must be new or empty.
        plans: Whether components are TensorRT plans instead of ONNX graphs.
        previews: Whether a request of the pipeline may ask for previews. Then it has several
            responses, which only Triton's streaming calls can fetch.
        backend: The pipeline's engine, as in `eri_runtime.load`.
        on_bytes: Called with the number of bytes of each piece that was verified.

    Returns:
        The repository's folder.

    Raises:
        UsageError: If `folder` exists and is not empty, or `backend` is unknown.
        BundleError: If the folder is no bundle, or a file is missing or damaged.
        BackendError: If `plans` is given and a component has no plan that Triton can run.
        DiskError: If the disk is full or fails.
    """
    one_of("backend", backend, ("auto", *BACKENDS))
    target = _free(check_path("folder", folder))
    contents = read_bundle(bundle)
    make: Callable[[Bundle, str], Model] = plan_model if plans else onnx_model
    models = [make(contents, name) for name in contents.components]
    with _disk_faults(target), partial_folder(target) as partial:
        copy = _write_pipeline(contents, partial / PIPELINE, previews, backend)
        verify_all(copy, on_bytes)
        for model in models:
            _write_component(copy, partial / model.config.name, model)
    return target


def _free(folder: Path) -> Path:
    """Returns a folder's full path; raises `UsageError` unless it is new or empty."""
    target = Path(os.path.realpath(folder))
    try:
        taken = any(target.iterdir()) and "a folder that is not empty"
    except FileNotFoundError:
        return target
    except OSError as error:
        taken = str(error.strerror or error)
    if taken:
        fix = "choose another folder, or remove it"
        raise UsageError(folder, got=taken, expected="a new or empty folder", fix=fix)
    return target


def _write_pipeline(bundle: Bundle, folder: Path, previews: bool, backend: str) -> Bundle:
    """Writes the pipeline's model; returns the bundle inside it."""
    version = folder / VERSION
    for name in (MANIFEST, *bundle.files):
        _link(bundle.path(name), version / BUNDLE / name)
    shutil.copyfile(MODEL, version / MODEL.name)
    config = ModelConfig(
        name=PIPELINE,
        backend="python",
        file=MODEL.name,
        inputs=pipeline_inputs(previews),
        outputs=pipeline_outputs(previews),
        kind="KIND_CPU",  # tensors stay in main memory; the runtime chooses the device
        parameters={"backend": backend},
        decoupled=previews,
    )
    (folder / CONFIG).write_text(config_text(config), encoding="utf-8")
    return read_bundle(version / BUNDLE)


def _write_component(bundle: Bundle, folder: Path, model: Model) -> None:
    """Writes a component's model."""
    for name, file in model.files.items():
        _link(bundle.path(file), folder / VERSION / name)
    (folder / CONFIG).write_text(config_text(model.config), encoding="utf-8")


def _link(source: Path, target: Path) -> None:
    """Makes a hard link to a file, or a copy if the file system has none or forbids it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    real = source.resolve()  # what a symbolic link leads to
    try:
        target.hardlink_to(real)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(real, target)


@contextmanager
def _disk_faults(target: Path) -> Iterator[None]:
    """Turns the system's errors of a block that writes `target` into `DiskError`."""
    try:
        yield
    except OSError as error:
        fix = "make room there or choose another folder; nothing was published"
        expected = "a disk that can hold the repository"
        raise DiskError(target, got=error.strerror or error, expected=expected, fix=fix) from error
