"""The figures of a record as people read them: in a terminal of 80 columns, and on the page."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from eri_runtime.bench.record import Sample
from eri_runtime.bench.report.cards import cards
from eri_runtime.bench.report.page import page
from eri_runtime.bench.statistics import STEP, WHOLE, pictures_per_minute
from eri_runtime.bench.summary import COLD, best_comparisons
from eri_runtime.bench.table import TABLES, show

SIZE = (32, 32)


def sample(step):
    return Sample(
        encode=1.0, steps=(step, step), denoise=2 * step, decode=1.0, png=1.0, total=10 * step
    )


def timed(record, steps):
    """The record with each row's steps as given by its subject's name, in both rounds."""
    rows = (
        replace(row, samples=(sample(steps[row.subject]),) * 2) if row.subject in steps else row
        for row in record.rows
    )
    return replace(record, rows=tuple(rows))


@pytest.fixture
def told(record):
    """A record whose bfloat16 is eight times as fast as its float32, for ours and for the peer."""
    steps = {"torch/eager": 8.0, "torch/compile": 6.0, "eri/well": 4.0, "eri/well:bf16": 1.0}
    return timed(record, {**steps, "openvino-genai": 5.0, "openvino-genai+bf16": 1.5})


def test_best_is_compared_with_best_of_the_same_precision_first(told):
    found = [each for each in best_comparisons(told) if each.figure == STEP]
    assert [(each.ours, each.theirs, each.label) for each in found] == [
        ("eri/well", "torch/compile", "both fp32"),
        ("eri/well", "torch/eager", "both fp32"),
        ("eri/well", "openvino-genai", "both fp32"),
        ("eri/well:bf16", "openvino-genai+bf16", "both bf16"),
        ("eri/well:bf16", "torch/eager", "mixed precision: bf16 against fp32"),
    ]
    assert [each.ratio.median for each in found] == pytest.approx([2 / 3, 0.5, 0.8, 2 / 3, 1 / 8])
    assert {each.figure for each in best_comparisons(told)} == {STEP, WHOLE, COLD}


def test_a_pair_of_subjects_is_compared_once(told):
    """Where eager is the best PyTorch, it is not named twice."""
    quick = timed(told, {"torch/eager": 5.0})
    found = [each for each in best_comparisons(quick) if each.figure == STEP and not each.mixed]
    assert [(each.claim, each.theirs) for each in found][:2] == [
        ("the best PyTorch", "torch/eager"),
        ("openvino-genai", "openvino-genai"),
    ]


def test_the_first_card_is_of_equal_precision_and_mixed_ones_say_so(told):
    *equal, mixed = cards(told)
    assert [card.heading for card in equal] == [
        "One denoising step, equal precision",
        "A picture, end to end, equal precision",
        "A cold start, equal precision",
    ]
    assert all(claim.label in ("both fp32", "both bf16") for c in equal for claim in c.claims)
    assert mixed.heading == "Mixed precision"
    assert {claim.label for claim in mixed.claims} == {"mixed precision: bf16 against fp32"}
    assert equal[0].claims[0].times == "1.50"
    assert mixed.claims[0].than == "PyTorch eager in a step"
    html = page(told)
    assert html.index("equal precision</h2>") < html.index("Mixed precision</h2>")
    assert "PyTorch eager in a step, mixed precision: bf16 against fp32<span" in html


def test_without_another_precision_there_is_no_card_of_mixed_ones(told):
    kept = tuple(row for row in told.rows if "bf16" not in row.subject)
    assert all("equal precision" in card.heading for card in cards(replace(told, rows=kept)))


def test_pictures_per_minute_are_those_of_the_mean_call(told):
    row = replace(told.row("eri/well", SIZE), samples=(sample(1.0), sample(5.0)))
    assert pictures_per_minute(row, 4) == pytest.approx(4 * 60 / 0.030)
    assert pictures_per_minute(replace(row, samples=()), 1) is None


def shown(record, width=80):
    stream = io.StringIO()
    show(record, Console(file=stream, width=width))
    return stream.getvalue()


def test_every_table_fits_a_terminal_of_80_columns(told):
    names = {"eri/well": "torch/channels-last+compile+bf16", "eri/dark": "openvino-genai+bf16 "}
    subjects = tuple(replace(s, name=names.get(s.name, s.name)) for s in told.subjects)
    slow = Sample(
        encode=12345.6, steps=(123456.7, 98765.4), denoise=222222.1, decode=11111.1, png=100.4,
        total=345678.9,
    )  # fmt: skip
    rows = tuple(
        replace(r, subject=names.get(r.subject, r.subject), samples=(slow,) * 2) for r in told.rows
    )
    lines = shown(replace(told, subjects=subjects, rows=rows)).splitlines()
    tables = [line for line in lines if line.strip() and "takes" not in line and ": " not in line]
    assert len(tables) > 4 * len(rows)
    assert max(map(cell_len, tables)) <= 80
    assert not any("…" in line for line in tables)  # nothing is cut off


def test_the_terminal_shows_percentiles_throughput_and_what_did_not_run(told):
    text = shown(told)
    for title, columns in TABLES.items():
        assert f"32x32, 2 steps: {title}" in text
        assert all(name in text for name in columns)
    assert "eri/crash: failed: " in text
    assert "eri/dark: does not count: parity failed" in text
    assert "step at 32x32, both fp32: eri/well takes 0.67" in text
    assert "step at 32x32, mixed precision: bf16 against fp32: eri/well:bf16 takes 0.12" in text


@pytest.fixture
def tab(browser):
    """Opens HTML in a window of some width."""
    contexts = []

    def open_page(html, width):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}))
        tab = contexts[-1].new_page()
        tab.set_content(html)
        return tab

    yield open_page
    for each in contexts:
        each.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_of_the_page_is_wider_than_the_window(told, tab, width):
    """Neither the page nor a part of it scrolls sideways, and no text leaves its box."""
    long = tuple(replace(s, reason=s.reason and "x" * 300) for s in told.subjects)
    rows = tuple(replace(r, reason=r.reason and "x" * 300) for r in told.rows)
    seen = tab(page(replace(told, subjects=long, rows=rows)), width)
    assert seen.evaluate("document.documentElement.scrollWidth") <= width
    wide = """() => [...document.querySelectorAll('body *')].filter(e =>
        e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('thead')
        || e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX != 'visible'
           && !e.closest('thead')).map(e => e.outerHTML.slice(0, 90))"""
    assert seen.evaluate(wide) == []


def test_a_label_of_mixed_precision_is_as_large_as_its_claim(told, tab):
    seen = tab(page(told), 1280)
    size = "e => getComputedStyle(e).fontSize"
    labels = seen.get_by_text("mixed precision: bf16 against fp32").all()
    equal = seen.get_by_text("both fp32").first
    assert labels
    assert {each.evaluate(size) for each in labels} == {equal.evaluate(size)}
