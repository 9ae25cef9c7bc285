"""Tells whether an earlier export made the bundle that an export would make now."""

from __future__ import annotations

from pathlib import Path

from eri_export.choices import Ranges
from eri_runtime.bundle import MANIFEST, Bundle, read_bundle, verify_all
from eri_runtime.errors import EriError


def is_up_to_date(output: Path, checkpoint: Path, ranges: Ranges) -> bool:
    """Returns whether `output` holds the whole bundle of `checkpoint` with these ranges.

    It does if every file has the manifest's hash, the manifest names the same checkpoint,
    components, precisions and ranges, and no file of the checkpoint is newer than the manifest.

    Args:
        output: The bundle's folder, which need not exist.
        checkpoint: A diffusers folder.
        ranges: The sizes that the export would be asked for.

    Raises:
        CheckpointError: If the checkpoint cannot be exported.
    """
    from eri_export.plan.plan import make_plan

    try:
        bundle = read_bundle(output)
        if newest(checkpoint) > (output / MANIFEST).stat().st_mtime:
            return False
        verify_all(bundle)
    except (EriError, OSError):
        return False
    return identity(bundle) == identity(make_plan(checkpoint, ranges=ranges).bundle)


def newest(folder: Path) -> float:
    """Returns the time of the latest change of a file in `folder`, in seconds since 1970."""
    return max(each.stat().st_mtime for each in folder.rglob("*") if each.is_file())


def identity(bundle: Bundle) -> object:
    """Returns what two bundles of one checkpoint with the same choices share."""
    parts = {
        name: (each.precision, each.ranges, each.lora, each.attention_slice)
        for name, each in bundle.components.items()
    }
    return bundle.family, bundle.source_digest, bundle.defaults, bundle.baked, parts
