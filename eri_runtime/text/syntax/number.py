"""How weights and moments are written in a prompt."""

from __future__ import annotations

NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
