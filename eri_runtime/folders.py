"""Where the user's own files of this program lie."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """What may be deleted at any time: `eri` in `$XDG_CACHE_HOME`, or in `~/.cache`.

    https://specifications.freedesktop.org/basedir-spec/latest
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eri"
