"""LoRAs in prompts."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eri_runtime.errors import UnknownNameError, UsageError
from eri_runtime.serve.http.lora_tags import take_known_loras
from eri_runtime.text.syntax.composition import TAG

KNOWN = ("ink", "wax")


@pytest.mark.parametrize(
    ("prompt", "text", "weights"),
    [
        ("a fox", "a fox", {}),
        ("a fox <lora:ink>", "a fox", {"ink": 1.0}),
        ("a fox, <lora:ink:0.5>snow", "a fox, snow", {"ink": 0.5}),
        ("<lora:ink:-2><lora:wax:.25> a fox", "a fox", {"ink": -2.0, "wax": 0.25}),
        ("a <lora:ink:0.5> fox <lora:ink:0.25>", "a  fox", {"ink": 0.75}),
        ("a <lora:ink:0> fox", "a  fox", {"ink": 0.0}),
        ("<b> a < b > (lora:ink:1)", "<b> a < b > (lora:ink:1)", {}),
    ],
)
def test_tags_become_weights(prompt, text, weights):
    assert take_known_loras(prompt, KNOWN) == (text, weights)


def test_an_unknown_name_names_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"lora: got 'x', expected one of ink, wax"):
        take_known_loras("a <lora:x:1> fox", KNOWN)
    with pytest.raises(UnknownNameError, match="the server has none"):
        take_known_loras("a <lora:x:1> fox", ())


BAD = ("", ":1", "ink:", "ink:much", "ink:nan", "ink:inf", "ink:1:2")


@pytest.mark.parametrize("inside", BAD)
def test_a_bad_tag_is_named(inside):
    tag = f"<lora:{inside}>"
    with pytest.raises(UsageError, match="lora") as error:
        take_known_loras(f"a fox {tag}", KNOWN)
    assert tag in error.value.got


@given(st.text(alphabet="<>lora:ink.0159-en ", max_size=80))
def test_nothing_but_a_typed_error_comes_of_any_text(prompt):
    with suppress(UsageError):
        text, weights = take_known_loras(prompt, KNOWN)
        assert bool(weights) == (TAG.search(prompt) is not None)
        assert len(text) <= len(prompt)
        assert set(weights) <= set(KNOWN)
