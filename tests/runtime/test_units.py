"""Byte counts as text."""

from __future__ import annotations

import pytest

from eri_runtime.errors import UsageError
from eri_runtime.units import parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("7", 7),
        ("2k", 2048),
        ("3 MB", 3 * 10**6),
        ("512 MiB", 2**29),
        ("4G", 2**32),
        ("1.5gib", 3 * 2**29),
        ("4GB", 4 * 10**9),
        ("0.5t", 2**39),
    ],
)
def test_bytes_have_units(text, size):
    assert parse_bytes("memory", text) == size


@pytest.mark.parametrize(
    "text",
    ["", "G", "lots", "-4GB", "4TBs", "0GB", "4 4GB", "1e9", "nan", "inf", "1X", "iB", "9" * 400],
)
def test_what_is_no_number_of_bytes(text):
    with pytest.raises(UsageError, match="memory: got"):
        parse_bytes("memory", text)
