"""The version of eri."""

from __future__ import annotations

from functools import cache


@cache
def eri_version() -> str:
    """Returns the installed version of eri, or "unknown" if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version  # takes 30 ms to import

    try:
        return version("eri-diffusion")
    except PackageNotFoundError:
        return "unknown"
