"""AUTOMATIC1111's prompt syntax, as text: weights, breaks, schedules, several texts, LoRAs."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eri_runtime.errors import UsageError
from eri_runtime.text.syntax import (
    compose,
    parse_emphasis,
    parse_schedule,
    plainly_uses_syntax,
    take_loras,
    text_at,
)
from eri_runtime.text.syntax.emphasis import ROUND

SIGNS = "()[]\\:|<>"
plain = st.text(st.characters(exclude_characters=SIGNS, exclude_categories=["Cs"]), max_size=30)
signed = st.text(st.sampled_from(list(SIGNS + " ab.,:15-BREAK AND")), max_size=60)
factors = st.floats(0.1, 3).map(lambda value: round(value, 2))


def pieces(text):
    return [
        [(piece.text, round(piece.weight, 6)) for piece in g] for g in parse_emphasis(text).groups
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a fox", [[("a fox", 1)]]),
        ("", [[]]),
        ("a (red) fox", [[("a ", 1), ("red", 1.1), (" fox", 1)]]),
        ("((red))", [[("red", 1.21)]]),
        ("[red]", [[("red", 0.909091)]]),
        ("[[red]]", [[("red", 0.826446)]]),
        ("(red:1.3)", [[("red", 1.3)]]),
        ("(red: 1.3 )", [[("red", 1.3)]]),
        ("(red:-.5)", [[("red", -0.5)]]),
        ("(a (b:2) c:3)", [[("a ", 3), ("b", 6), (" c", 3)]]),
        ("([a])", [[("a", 1)]]),
        ("(a)(b)", [[("ab", 1.1)]]),
        ("(open", [[("open", 1.1)]]),
        ("[open", [[("open", 0.909091)]]),
        ("shut) :)", [[("shut) :)", 1)]]),
        (r"\(a\) \[b\] \\", [[("(a) [b] \\", 1)]]),
        (r"\a", [[("a", 1)]]),
        ("3:4 ratio", [[("3:4 ratio", 1)]]),
        ("(a:b)", [[("a:b", 1.1)]]),
        ("(a:1.2.3)", [[("a:1.2.3", 1.1)]]),
        ("a BREAK b", [[("a", 1)], [("b", 1)]]),
        ("(a BREAK b:2)", [[("a", 2)], [("b", 2)]]),
        ("BREAK", [[], []]),
        ("BREAKfast", [[("BREAKfast", 1)]]),
    ],
)
def test_weights_and_breaks(text, found):
    assert pieces(text) == found


@given(st.one_of(st.text(), signed))
def test_any_text_parses(text):
    for group in parse_emphasis(text).groups:
        assert all(piece.text for piece in group)
        weights = [piece.weight for piece in group]
        assert all(a != b for a, b in pairwise(weights))
    for total in (1, 7):
        stages = parse_schedule(text, total)
        assert stages[-1].last == total
        lasts = [stage.last for stage in stages]
        assert lasts == sorted(set(lasts))
        for k in range(total):
            parse_emphasis(text_at(stages, k))
    assert compose(text)
    plainly_uses_syntax(text)


@given(plain)
def test_plain_text_is_unchanged(text):
    if not re.search(r"\bBREAK\b", text):
        assert "".join(piece.text for piece in parse_emphasis(text).pieces) == text
        assert all(piece.weight == 1 for piece in parse_emphasis(text).pieces)
    assert parse_schedule(text, 9) == ((9, text),)
    if not re.search(r"\bAND\b", text):
        assert compose(text) == ((text, 1.0),)
    assert take_loras(text) == (text, {})
    assert plainly_uses_syntax(text) == bool(re.search(r"\bBREAK\b", text, re.ASCII))


@given(st.lists(factors, min_size=1, max_size=6), st.integers(0, 3), st.integers(0, 3))
def test_weights_multiply(chain, rounds, squares):
    text, expected = "x", 1.0
    for factor in chain:
        text, expected = f"({text}:{factor})", expected * factor
    text = "(" * rounds + "[" * squares + text + "]" * squares + ")" * rounds
    expected *= ROUND ** (rounds - squares)
    (piece,) = parse_emphasis(text).pieces
    assert piece.text == "x"
    assert piece.weight == pytest.approx(expected)


@given(plain.filter(lambda text: "BREAK" not in text and text))
def test_what_is_escaped_is_text(text):
    mixed = "".join(a + b for a, b in zip(text, SIGNS[:4] * 8, strict=False))
    escaped = "".join(f"\\{each}" if each in SIGNS[:4] else each for each in mixed)
    assert str(parse_emphasis(escaped)) == mixed
    assert text_at(parse_schedule(escaped, 3), 0) == escaped


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("a fox", [(10, "a fox")]),
        ("a [b:3]", [(3, "a "), (10, "a b")]),
        ("a [b: 3 ]", [(3, "a "), (10, "a b")]),
        ("a [b:c:0.5] d", [(5, "a b d"), (10, "a c d")]),
        ("a [b::.3]", [(3, "a b"), (10, "a ")]),
        ("a [b:c:0]", [(10, "a c")]),
        ("a [b:c:-1]", [(10, "a c")]),
        ("a [b:c:99]", [(10, "a b")]),
        ("a [b:c:1.0]", [(10, "a b")]),
        ("[x:[y:z:6]:2]", [(2, "x"), (6, "y"), (10, "z")]),
        ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
        ("a [[b]:2]", [(2, "a "), (10, "a [b]")]),
        ("a [b] (c:1.2)", [(10, "a [b] (c:1.2)")]),
        ("a [b", [(10, "a [b")]),
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
        ("a [b|c:.5] d", [(5, "a  d"), (10, "a b|c d")]),
        ("[a:b:c:3]", [(10, "[a:b:c:3]")]),
        (r"[a\:3]", [(10, r"[a\:3]")]),
        (r"\[a:b:3]", [(10, r"\[a:b:3]")]),
        ("[(a|b):c:4]", [(4, "(a|b)"), (10, "c")]),
    ],
)
def test_schedules(text, stages):
    assert parse_schedule(text, 10) == tuple(stages)


def test_alternatives_take_turns():
    assert parse_schedule("[a|(b:1.1)]", 4) == ((1, "a"), (2, "(b:1.1)"), (3, "a"), (4, "(b:1.1)"))
    assert [text for _, text in parse_schedule("[fe||]male", 4)] == ["female", "male", "female"]
    assert parse_schedule("[a|a]", 5) == ((5, "a"),)


def test_an_evaluation_has_the_first_stage_that_is_not_over():
    stages = parse_schedule("[a:b:3]", 10)
    assert [text_at(stages, k) for k in range(6)] == ["a", "a", "a", "a", "b", "b"]
    assert text_at(stages, 99) == "b"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a fox", [("a fox", 1)]),
        ("a AND b", [("a ", 1), (" b", 1)]),
        ("a :0.7 AND b: -.5", [("a", 0.7), (" b", -0.5)]),
        ("a :0.7", [("a", 0.7)]),
        ("a: b", [("a: b", 1)]),
        ("(a:0.7)", [("(a:0.7)", 1)]),
        ("HAND AND", [("HAND ", 1), ("", 1)]),
        (":3", [(":3", 1)]),
    ],
)
def test_several_texts(text, parts):
    assert compose(text) == tuple(parts)


def test_tags_of_loras_add_up():
    text, loras = take_loras("a <lora:ink:0.5> fox <lora:wax><lora:ink:.25>")
    assert (text, loras) == ("a  fox", {"ink": 0.75, "wax": 1.0})
    for bad in ("<lora:>", "<lora:x:much>", "<lora:x:nan>", "<lora::1>"):
        with pytest.raises(UsageError, match=r"^lora: got "):
            take_loras(f"a fox {bad}")


@pytest.mark.parametrize("text", ["(", "[", "a:", " ", "\\", "(a:", "[a|", "1", "BREAK ", "<lora:"])
def test_a_long_text_of_signs_is_parsed_in_time(text):
    parse_emphasis(text * 2000)
    parse_schedule(text * 2000, 2)
    compose(text * 2000)
    plainly_uses_syntax(text * 20_000)


@pytest.mark.parametrize(
    ("text", "plainly"),
    [
        ("a (red:1.3) fox", True),
        ("a ((red)) fox", True),
        ("a [red:blue:0.4] fox", True),
        ("a [red|blue] fox", True),
        ("<lora:x:1>", True),
        ("a BREAK b", True),
        ("a (red) fox", False),
        ("a fox [2024]", False),
        ("ratio 3:4 (wide)", False),
        ("salt AND pepper", False),
    ],
)
def test_what_plainly_uses_the_syntax(text, plainly):
    assert plainly_uses_syntax(text) == plainly
