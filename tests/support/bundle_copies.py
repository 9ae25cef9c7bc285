"""Copies of bundles that a test may write to."""

from __future__ import annotations

import shutil


def uncompiled_copy(bundle, folder, monkeypatch):
    """A copy of a bundle beside which nothing is kept, and an empty cache folder, in `folder`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    ignored = shutil.ignore_patterns("compiled")
    return shutil.copytree(bundle, folder / "bundle", ignore=ignored)
