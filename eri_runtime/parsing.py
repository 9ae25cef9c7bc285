"""What the texts of options mean; argparse turns a bad one into a line of usage."""

from __future__ import annotations

import argparse
from math import inf

from eri_runtime.thresholding import PERCENTILE


def parse_size(text: str) -> tuple[int, int]:
    """`1024x768` as (width, height)."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected WIDTHxHEIGHT, such as 1024x768")
    return int(width), int(height)


def parse_sigmas(text: str) -> str | list[float]:
    """A name, or numbers with commas between."""
    if not any(character.isdigit() for character in text):
        return text
    return [_number(part, "numbers with commas between") for part in text.split(",")]


def parse_option(text: str) -> tuple[str, float]:
    """`s_churn=10`."""
    name, _, value = text.partition("=")
    return name, _number(value, "NAME=VALUE, such as s_churn=10")


def parse_also(text: str) -> tuple[str, float]:
    """`a text:0.5`; a text with no weight has 1."""
    prompt, colon, weight = text.rpartition(":")
    return (prompt, _number(weight, "TEXT:WEIGHT")) if colon else (text, 1.0)


def parse_interval(text: str) -> tuple[float, float]:
    """`0.2:5`, where either may be left out."""
    low, colon, high = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected LOW:HIGH, such as 0.2:5")
    return (
        _number(low, "LOW:HIGH") if low else 0.0,
        _number(high, "LOW:HIGH") if high else inf,
    )


def parse_limits(text: str) -> tuple[float, float]:
    """`1.5` or `1.5:0.99`, a threshold and a percentile."""
    threshold, colon, percentile = text.partition(":")
    expected = "a threshold, or THRESHOLD:PERCENTILE"
    return _number(threshold, expected), _number(percentile, expected) if colon else PERCENTILE


def _number(text: str, expected: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected {expected}") from error
