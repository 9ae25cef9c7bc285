"""The error for a path that is no bundle: says what it is instead, and what to do."""

from __future__ import annotations

import difflib
import errno
import shlex
from pathlib import Path

from eri_runtime.bundle.hub import WEIGHTS_SUFFIXES
from eri_runtime.bundle.spec import MANIFEST
from eri_runtime.errors import NotABundleError

PIPELINE = "model_index.json"  # of a checkpoint that diffusers saved
SHOWN = 4  # bundles that a message lists
LONGEST = 200  # characters of a path in a command


def not_a_bundle(root: Path, error: OSError) -> NotABundleError:
    """Returns the error for a path whose manifest cannot be read."""
    got, fix = f"{MANIFEST}: {error.strerror or error}", None
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        got, fix = _what(root)
        target = _usual(root) if root.exists() else root
    else:
        target = root
    fix = fix or f"make a bundle with `{_export('CHECKPOINT', target)}`"
    return NotABundleError(root, got=got, expected="the folder of a bundle", fix=fix)


def _what(root: Path) -> tuple[str, str | None]:
    """Returns what is at a path without a manifest, and what to do, if it is not to export."""
    if _is_checkpoint(root):
        target = _usual(root)
        return "a checkpoint", f"export it with `{_export(root, target)}`, then name {target}"
    if not root.is_dir():
        return ("a file" if root.is_file() else "no such folder"), _mean(_alike(root))
    return f"no {MANIFEST}", _mean(_bundles(root))


def _is_checkpoint(root: Path) -> bool:
    """Returns whether a path looks like a checkpoint, by its name or the names in it."""
    if root.is_file():
        return root.suffix.lower() in WEIGHTS_SUFFIXES
    return (root / PIPELINE).is_file() or any(root.glob("*.safetensors"))


def _usual(root: Path) -> Path:
    """Returns where an export puts the bundle of a checkpoint of this path."""
    return Path("engines") / (root.stem if root.is_file() else root.resolve().name)


def _export(checkpoint: str | Path, target: Path) -> str:
    """Returns the command that exports a checkpoint; a target that no line holds is left out."""
    named = ["-o", str(target)] if len(str(target)) <= LONGEST else []
    return shlex.join(["eri", "export", str(checkpoint), *named])


def _bundles(folder: Path) -> list[Path]:
    """Returns the bundles in a folder."""
    try:
        return sorted(each.parent for each in folder.glob(f"*/{MANIFEST}"))
    except OSError:
        return []


def _alike(root: Path) -> list[Path]:
    """Returns the bundles beside a missing path whose names are like its own."""
    beside = {each.name: each for each in _bundles(root.parent)}
    return [beside[name] for name in difflib.get_close_matches(root.name, beside, SHOWN)]


def _mean(bundles: list[Path]) -> str | None:
    """Returns the question whether one of these was meant; None without any."""
    if not bundles:
        return None
    return f"did you mean {' or '.join(map(str, bundles[:SHOWN]))}?"
