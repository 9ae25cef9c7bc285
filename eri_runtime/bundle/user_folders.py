"""Folders of the user in which eri keeps its own files."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Returns the folder for files that may be deleted at any time.

    This is `$XDG_CACHE_HOME/eri`, by default `~/.cache/eri`. A relative path there is ignored,
    as the specification says.
    https://specifications.freedesktop.org/basedir-spec/latest
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (folder if folder.is_absolute() else Path.home() / ".cache") / "eri"
