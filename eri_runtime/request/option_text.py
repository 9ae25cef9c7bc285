"""Parsers of command-line option values, for argparse's `type=`.

Each raises `ArgumentTypeError` for a bad value, which argparse turns into a usage error.
"""

from __future__ import annotations

import argparse
from math import inf

from eri_runtime.sampling import PERCENTILE


def parse_size(text: str) -> tuple[int, int]:
    """Parses `1024x768` into (width, height)."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected WIDTHxHEIGHT, such as 1024x768")
    return int(width), int(height)


def parse_sigmas(text: str) -> str | list[float]:
    """Parses noise levels: a name such as `karras`, or a comma-separated list of numbers."""
    if not any(character.isdigit() for character in text):
        return text
    return [_number(part, "numbers with commas between") for part in text.split(",")]


def parse_option(text: str) -> tuple[str, float]:
    """Parses a sampler option such as `s_churn=10` into its name and value."""
    name, _, value = text.partition("=")
    return name, _number(value, "NAME=VALUE, such as s_churn=10")


def parse_also(text: str) -> tuple[str, float]:
    """Parses a weighted prompt such as `a text:0.5`; without a colon the weight is 1."""
    prompt, colon, weight = text.rpartition(":")
    return (prompt, _number(weight, "TEXT:WEIGHT")) if colon else (text, 1.0)


def parse_interval(text: str) -> tuple[float, float]:
    """Parses an interval such as `0.2:5`; default: from 0 and to infinity."""
    low, colon, high = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected LOW:HIGH, such as 0.2:5")
    return (
        _number(low, "LOW:HIGH") if low else 0.0,
        _number(high, "LOW:HIGH") if high else inf,
    )


def parse_limits(text: str) -> tuple[float, float]:
    """Parses `1.5` or `1.5:0.99` into a threshold and a percentile."""
    threshold, colon, percentile = text.partition(":")
    expected = "a threshold, or THRESHOLD:PERCENTILE"
    return _number(threshold, expected), _number(percentile, expected) if colon else PERCENTILE


def _number(text: str, expected: str) -> float:
    """Parses a float; the error message says `expected`."""
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected {expected}") from error
