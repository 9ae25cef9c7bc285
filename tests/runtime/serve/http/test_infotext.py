"""The text that pictures carry, read again."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eri_runtime.images import parameters_text
from eri_runtime.serve.http.infotext import LONGEST, parse_parameters

SETTINGS = {"Steps": "20", "Sampler": "DPM++ 2M", "Seed": "7", "Loras": "ink: 0.5; wax: 1"}
LINES = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=60)


def test_a_text_of_ours_is_read():
    text = parameters_text("a fox,\nred: 2", "bad, worse", {**SETTINGS, "Model": 'a "b", c'})
    assert parse_parameters(text) == {
        "Prompt": "a fox,\nred: 2",
        "Negative prompt": "bad, worse",
        **SETTINGS,
        "Model": 'a "b", c',
    }


@pytest.mark.parametrize(
    ("text", "prompt", "negative"),
    [
        ("", "", ""),
        ("a fox", "a fox", ""),
        ("a: b, c: d", "a: b, c: d", ""),
        ("a fox\nNegative prompt: bad\nworse", "a fox", "bad\nworse"),
        ("Negative prompt: bad", "", "bad"),
        ("a fox\nSteps: 1, Seed: 2, Size: 8x8", "a fox", ""),
    ],
)
def test_the_prompts_are_told_apart(text, prompt, negative):
    found = parse_parameters(text)
    assert (found["Prompt"], found["Negative prompt"]) == (prompt, negative)


@given(LINES, LINES, LINES)
def test_what_was_written_is_read(prompt, negative, value):
    found = parse_parameters(parameters_text(prompt, negative, {**SETTINGS, "Model": value}))
    assert found["Prompt"] == prompt.strip()
    assert found["Negative prompt"] == negative.strip()
    assert found["Steps"] == "20"


@pytest.mark.parametrize("part", ['a: "', "a ", " ", 'a: "\\', "a: b, ", "Negative prompt: "])
@pytest.mark.parametrize("length", [LONGEST, 1_000_000])
def test_a_hostile_text_is_read_quickly(part, length):
    start = time.process_time()
    assert "Prompt" in parse_parameters(part * (length // len(part)))
    assert time.process_time() - start < 2


def test_a_quoted_value_with_half_a_character_stays_quoted():
    found = parse_parameters('a fox\nSteps: 20, Size: 8x8, Note: "\\ud800"')
    assert found["Note"] == '"\\ud800"'
