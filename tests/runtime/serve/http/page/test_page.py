"""The page: drawing, previews, cancelling, the gallery, and reading a picture's settings."""

from __future__ import annotations

import io

import pytest
from PIL import Image
from playwright.sync_api import expect

from eri_runtime.errors import OverloadedError
from tests.support.page_actions import draw, png, says, upload, value

SLOW = 0.2  # seconds a step, so that a test sees what happens between


def test_it_draws_with_the_forms_settings(page, engine):
    page.fill("#negative", "bad")
    page.fill("#seed", "18446744073709551615")
    page.fill("#steps", "3")
    page.fill("#guidance", "5.5")
    page.fill("#width", "128")
    page.select_option("#sampler", label="Euler a")
    page.select_option("#sigmas", "karras")
    page.check("#lora-1")
    page.fill("#lora-list li:nth-child(2) input[type=number]", "0.5")
    draw(page)
    request = engine.seen[-1]
    assert (request.model, request.prompt, request.negative_prompt) == ("flow", "a fox", "bad")
    assert request.loras == {"old wax": 0.5}
    assert request.words == {
        "seed": 2**64 - 1,
        "num_inference_steps": 3,
        "guidance_scale": 5.5,
        "width": 128,
        "height": 64,
        "num_images_per_prompt": 1,
        "sampler": "euler_a",
        "sigmas": "karras",
    }
    assert page.locator("#preview img").count() == 1
    assert page.evaluate("document.querySelector('#preview img').naturalWidth") == 128


def test_each_model_has_its_own_samplers_and_defaults(page):
    labels = "[...document.getElementById('sampler').options].map((each) => each.text)"
    assert "DDIM" not in page.evaluate(labels)
    page.select_option("#model", "vp")
    assert "DDIM" in page.evaluate(labels)
    assert (value(page, "sampler"), value(page, "steps")) == ("euler", "4")


def test_previews_and_steps_show_while_it_draws(page, engine):
    engine.delay = SLOW
    page.fill("#steps", "8")
    page.click("#draw")
    page.wait_for_selector("#preview.drawing img")
    assert page.get_attribute("#stage", "aria-busy") == "true"
    assert page.locator("#step").inner_text().endswith("of 8")
    assert 0 < page.evaluate("document.getElementById('progress').value") < 1
    assert page.is_disabled("#draw")
    says(page, "#status", "done")
    assert page.locator("#preview.drawing").count() == 0
    assert page.get_attribute("#stage", "aria-busy") == "false"


@pytest.mark.parametrize("way", ["button", "escape"])
def test_cancel_stops_the_engine(page, engine, way):
    engine.delay = SLOW
    page.fill("#steps", "100")
    page.click("#draw")
    page.wait_for_selector("#preview.drawing img")
    page.click("#cancel") if way == "button" else page.keyboard.press("Escape")
    says(page, "#status", "Cancelled.")
    for _ in range(50):
        if engine.outcomes:
            break
        page.wait_for_timeout(100)
    assert engine.outcomes == ["cancelled"]
    assert page.locator("#gallery li").count() == 0
    assert page.is_enabled("#draw")


def test_closing_the_page_cancels_too(browser, address, engine):
    engine.delay = SLOW
    context = browser.new_context()
    page = context.new_page()
    page.goto(address)
    page.fill("#steps", "100")
    page.click("#draw")
    page.wait_for_selector("#preview.drawing img")
    context.close()
    other = browser.new_page()
    for _ in range(50):
        if engine.outcomes:
            break
        other.wait_for_timeout(100)
    other.close()
    assert engine.outcomes == ["cancelled"]


def test_the_gallery_keeps_pictures_with_what_to_do_with_them(page, engine):
    page.fill("#count", "2")
    page.fill("#seed", "5")
    draw(page, "a fox")
    assert page.locator("#gallery li").count() == 2
    assert "seed 6" in page.locator("#gallery li").first.inner_text()
    with page.expect_download() as download:
        page.click("a[aria-label='Save, seed 6']")
    saved = Image.open(io.BytesIO(download.value.path().read_bytes()))
    assert saved.info["parameters"].startswith("a fox\n")
    page.fill("#prompt", "another")
    page.click("button[aria-label='Draw again, seed 6']")
    expect(page.locator("#seed")).to_have_value("6")
    assert value(page, "prompt") == "a fox"
    page.click("button[aria-label='Start from it, seed 6']")
    page.wait_for_selector("#edit-tools:not([hidden])")
    page.click("button[aria-label='Remove, seed 6']")
    assert page.locator("#gallery li").count() == 1


TEXT = (
    "a fox, red\nNegative prompt: bad\nSteps: 7, Sampler: Euler a, Schedule type: Karras, "
    'CFG scale: 6.5, Seed: 9, Size: 128x64, Loras: "ink: 0.5; old wax: -1", '
    "Timestep spacing: leading, Model: vp, Version: eri 1"
)


@pytest.mark.parametrize("way", ["drop", "field"])
def test_a_png_fills_the_form(page, way):
    content = png(TEXT)
    if way == "field":
        upload(page, "#read", content)
    else:
        drop = """(bytes) => {
            const files = new DataTransfer();
            files.items.add(new File([new Uint8Array(bytes)], "a.png", { type: "image/png" }));
            const options = { dataTransfer: files, bubbles: true, cancelable: true };
            document.body.dispatchEvent(new DragEvent("dragover", options));
            document.body.dispatchEvent(new DragEvent("drop", options));
        }"""
        page.evaluate(drop, list(content))
    says(page, "#status", "read")
    assert page.text_content("#status") == "Settings read, but not these: Timestep spacing."
    names = ("prompt", "negative", "model", "steps", "sampler", "sigmas", "guidance", "seed")
    assert [value(page, name) for name in names] == [
        "a fox, red",
        "bad",
        "vp",
        "7",
        "euler_a",
        "karras",
        "6.5",
        "9",
    ]
    assert (value(page, "width"), value(page, "height")) == ("128", "64")
    weights = "[...document.querySelectorAll('#lora-list li')].map((row) => row.children[1].value)"
    assert page.evaluate(weights) == ["0.5", "-1"]
    assert page.is_checked("#lora-0")
    assert page.is_checked("#lora-1")


def test_what_goes_wrong_is_said(page, engine):
    upload(page, "#read", png())
    says(page, "#error", "no settings")
    engine.fault = OverloadedError("memory", got="too little", expected="enough")
    page.click("#draw")
    says(page, "#error", "too little")
    assert page.get_attribute("#error", "role") == "alert"
    engine.fault = None
    draw(page)
    assert page.text_content("#error") == ""
