"""Checks the files of a bundle against the sizes and hashes in its manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from eri_runtime.bundle.hashes import Listener, no_progress, sha256
from eri_runtime.bundle.spec import Bundle
from eri_runtime.errors import IntegrityError
from eri_runtime.files import is_regular

FIX = "copy the bundle or export the checkpoint again, and load it again"


def verify_sizes(bundle: Bundle) -> None:
    """Raises `IntegrityError` if a file is missing or its size differs from the manifest."""
    for name, expected in bundle.files.items():
        path = bundle.path(name)
        size = path.stat().st_size if is_regular(path) else None
        if size != expected.size:
            got = "no file" if size is None else f"{size} bytes"
            raise IntegrityError(path, got=got, expected=f"{expected.size} bytes", fix=FIX)


def verify_hashes(bundle: Bundle, names: Iterable[str], on_bytes: Listener = no_progress) -> None:
    """Raises `IntegrityError` if the sha256 of a named file differs from the manifest."""
    for name in names:
        check_hash(bundle, name, partial(sha256, bundle.path(name), on_bytes))


def check_hash(bundle: Bundle, name: str, hashed: Callable[[], str]) -> None:
    """Raises `IntegrityError` if the sha256 (hex) of a file differs from the manifest.

    `hashed` returns it, or raises `OSError`.
    """
    path, expected = bundle.path(name), bundle.files[name].sha256
    try:
        actual = hashed()
    except OSError as error:
        got = error.strerror or error
        raise IntegrityError(path, got=got, expected="a readable file", fix=FIX) from error
    if actual != expected:
        expected = f"sha256 {expected[:16]}…"
        raise IntegrityError(path, got=f"sha256 {actual[:16]}…", expected=expected, fix=FIX)


def verify_all(bundle: Bundle, on_bytes: Listener = no_progress) -> None:
    """Checks the size and sha256 of every file, weights included.

    Raises `IntegrityError` if one differs from the manifest.
    """
    verify_sizes(bundle)
    verify_hashes(bundle, bundle.files, on_bytes)


def verify_on_load(bundle: Bundle) -> None:
    """Checks the size of every file, and the sha256 of all files but weights and plans.

    Weights are hashed while an engine opens them, see `weight_hashes`; their size catches a
    truncated file already now. The TensorRT executor checks the hash of a plan, which is native
    code, when it reads the plan.
    Raises `IntegrityError` if a file differs from the manifest.
    """
    verify_sizes(bundle)
    large = {component.weights for component in bundle.components.values()} | bundle.plans.keys()
    verify_hashes(bundle, [name for name in bundle.files if name not in large])
