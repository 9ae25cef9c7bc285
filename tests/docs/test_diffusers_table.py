"""The table of diffusers' words has every word of its nine pipelines, as the tests prove it."""

from __future__ import annotations

import inspect
import re

import diffusers
import pytest

from eri_runtime.pipeline.diffusers_advice import ADVICE, MODULES
from eri_runtime.pipeline.pipeline import Pipeline
from eri_runtime.request import Words
from tests.docs.pages import ROOT
from tests.support.diffusers_words import REFUSED

FAMILIES = ("StableDiffusionXL", "StableDiffusion3", "Flux")
PIPELINES = [
    getattr(diffusers, f"{family}{kind}Pipeline")
    for family in FAMILIES
    for kind in ("", "Img2Img", "Inpaint")
]
PAGE = (ROOT / "docs" / "reference" / "diffusers.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (`[^|]+`) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|", flags=re.MULTILINE)
TABLE = {
    word: row.group(2, 3, 4)
    for row in ROW.finditer(PAGE)
    for word in re.findall(r"`(\w+)`", row[1])
}


def words_of(pipeline):
    """The words of a pipeline of diffusers."""
    names = inspect.signature(pipeline.__call__).parameters
    return {name for name in names if name not in ("self", "kwargs")}


def test_the_table_says_what_each_family_has():
    """Fails when diffusers adds a word, or takes one away."""
    families = [
        set().union(*(words_of(each) for each in PIPELINES if each.__name__.startswith(family)))
        for family in FAMILIES
    ]
    expected = {
        word: tuple(
            "—" if word not in words else "refused" if word in REFUSED else "equal"
            for words in families
        )
        for word in set().union(*families)
    }
    assert expected == TABLE


def test_what_is_equal_is_a_keyword_and_what_is_refused_is_none():
    own = {"prompt", "negative_prompt", *Words.__annotations__}
    for word, cells in TABLE.items():
        assert ("equal" in cells) == (word in own), word


@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda pipeline: pipeline.__name__)
def test_every_public_name_of_a_pipeline_is_there_or_says_what_to_do(pipeline):
    """Methods and attributes, and the modules that a pipeline is made of."""
    modules = set(inspect.signature(pipeline.__init__).parameters)
    modules -= {"self", "args", "kwargs", "force_zeros_for_empty_prompt", "add_watermarker"}
    modules -= {"requires_aesthetics_score"}
    names = modules | {name for name in dir(pipeline) if not name.startswith("_")}
    assert not {name for name in names if not hasattr(Pipeline, name)} - ADVICE.keys()
    assert modules <= set(MODULES)


def test_advice_is_for_what_is_not_there():
    assert not {name for name in ADVICE if hasattr(Pipeline, name)}
    assert set(MODULES) <= ADVICE.keys()
