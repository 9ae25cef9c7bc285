"""How to install an extra of this project, which is on no package index yet."""

from __future__ import annotations

import shlex
from pathlib import Path

CLONE = Path(__file__).resolve().parents[1]


def install_hint(extra: str, *, upgrade: bool = False) -> str:
    """Returns the command of pip that installs an extra, such as `cpu`.

    It names the clone that this package runs from, so that it works in every folder. A package
    that was copied elsewhere does not know its clone; the text then says to run it in one.
    """
    options = " --upgrade" if upgrade else ""
    if (CLONE / "pyproject.toml").is_file():
        return f"`pip install{options} {shlex.quote(f'{CLONE}[{extra}]')}`"
    return f"`pip install{options} '.[{extra}]'` in a clone of eri"
