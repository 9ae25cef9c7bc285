"""The page at `/` in a real Chromium: drawing, previews, masks, reading a PNG, and the keyboard."""

from __future__ import annotations

import io
import os
import shutil

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import expect, sync_playwright

from eri_runtime.errors import OverloadedError
from eri_runtime.serve import EngineOptions
from eri_runtime.serve.http import ServerOptions, make_app
from tests.runtime.serve.http.conftest import listening
from tests.support.fake_engine import FakeEngine
from tests.support.fake_models import give_models

NAMES = ("chromium", "chromium-browser", "google-chrome")
SLOW = 0.2  # seconds a step, so that a test sees what happens between

pytestmark = pytest.mark.skipif(
    bool(os.environ.get("ERI_NO_BROWSER")), reason="ERI_NO_BROWSER is set"
)


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.fail("no Chromium is installed: `apt-get install chromium`, or set ERI_NO_BROWSER=1")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def engine(tmp_path):
    loras = {"ink": tmp_path / "ink.safetensors", "old wax": tmp_path / "wax.safetensors"}
    return give_models(FakeEngine(options=EngineOptions(loras=loras)))


def is_fault(said) -> bool:
    """Whether a line of the console is an error other than a status of HTTP."""
    return said.type == "error" and not said.text.startswith("Failed to load resource")


@pytest.fixture
def page(browser, address):
    """The page, loaded; the test fails if it logs an error."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(10_000)
    logged = []
    page.on("console", lambda said: is_fault(said) and logged.append(said.text))
    page.on("pageerror", lambda error: logged.append(str(error)))
    page.goto(address)
    loaded(page)
    yield page
    context.close()
    assert logged == []


def says(page, selector, text):
    """Waits until an element says something."""
    expect(page.locator(selector)).to_contain_text(text)


def loaded(page):
    """Waits until the page has its models."""
    expect(page.locator("#model option")).not_to_have_count(0)


def draw(page, prompt="a fox"):
    """Draws and waits for the picture."""
    page.fill("#prompt", prompt)
    page.click("#draw")
    says(page, "#status", "done")


def png(parameters="", size=(64, 64)) -> bytes:
    info = PngInfo()
    if parameters:
        info.add_text("parameters", parameters)
    stream = io.BytesIO()
    Image.new("RGB", size, "teal").save(stream, format="PNG", pnginfo=info)
    return stream.getvalue()


def upload(page, selector, content):
    page.set_input_files(selector, {"name": "a.png", "mimeType": "image/png", "buffer": content})


def value(page, name):
    return page.input_value(f"#{name}")


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


def test_a_painted_mask_is_sent_white_on_black(page, engine):
    upload(page, "#source", png(size=(64, 64)))
    page.wait_for_selector("#edit-tools:not([hidden])")
    page.fill("#brush", "8")
    page.locator("#mask").scroll_into_view_if_needed()
    box = page.locator("#mask").bounding_box()
    page.mouse.move(box["x"] + 10, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] + 30, box["y"] + 10, steps=4)
    page.mouse.up()
    page.check("#only-masked")
    draw(page)
    words = engine.seen[-1].words
    assert (words["image"].size, words["mask"].size) == ((64, 64), (64, 64))
    assert (words["strength"], words["overlay"], words["padding_mask_crop"]) == (0.6, True, 32)
    assert words["mask"].getpixel((20, 10)) == 255
    assert words["mask"].getpixel((50, 50)) == 0


def test_a_mask_can_be_inverted_erased_and_cleared(page, engine):
    upload(page, "#source", png())
    page.wait_for_selector("#edit-tools:not([hidden])")
    page.click("#invert-mask")
    page.check("#erase")
    page.fill("#brush", "8")
    page.click("#mask", position={"x": 20, "y": 20})
    draw(page)
    mask = engine.seen[-1].words["mask"]
    assert (mask.getpixel((20, 20)), mask.getpixel((50, 50))) == (0, 255)
    page.click("#clear-mask")
    draw(page)
    expect(page.locator("#gallery li")).to_have_count(2)
    assert "mask" not in engine.seen[-1].words
    page.click("#remove-source")
    page.click("#draw")
    expect(page.locator("#gallery li")).to_have_count(3)
    assert "image" not in engine.seen[-1].words


def test_a_mask_is_painted_with_the_keyboard(page, engine):
    upload(page, "#source", png())
    page.wait_for_selector("#edit-tools:not([hidden])")
    page.fill("#brush", "4")
    page.focus("#mask")
    for key in ("ArrowLeft", "ArrowLeft", "ArrowUp", " "):
        page.keyboard.press(key)
    assert "Painted at" in page.text_content("#mask-state")
    draw(page)
    mask = engine.seen[-1].words["mask"]
    assert (mask.getpixel((28, 30)), mask.getpixel((50, 30))) == (255, 0)


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


FOCUSED = "document.activeElement.id || document.activeElement.textContent"


def test_the_keyboard_alone_draws(page, engine):
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.keyboard.type("a fox")
    page.keyboard.press("Control+Enter")
    says(page, "#status", "done")
    assert engine.seen[-1].prompt == "a fox"
    page.focus("#model")
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.id || document.activeElement.textContent")
        )
    wanted = {"prompt", "negative", "draw", "width", "height", "count", "seed", "steps", "guidance"}
    wanted |= {"sampler", "sigmas", "lora-0", "source", "read", "Save", "Draw again", "Remove"}
    assert wanted <= set(reached)


def test_every_control_has_a_name(page):
    upload(page, "#source", png())
    page.wait_for_selector("#edit-tools:not([hidden])")
    draw(page)
    unnamed = page.evaluate("""() => [...document.querySelectorAll(
        'input, select, textarea, button, a, canvas[tabindex], progress, img, fieldset')]
        .filter((each) => {
          const label = each.labels?.[0]?.textContent || each.getAttribute('aria-label');
          const legend = each.matches('fieldset') && each.querySelector('legend')?.textContent;
          const own = each.matches('button, a') && each.textContent;
          return !(label || legend || own || each.alt || '').trim();
        }).map((each) => each.outerHTML)""")
    assert unnamed == []
    doubled = page.evaluate("""() => {
        const ids = [...document.querySelectorAll('[id]')].map((each) => each.id);
        return ids.filter((id, i) => ids.indexOf(id) !== i);
    }""")
    assert doubled == []
    lost = page.evaluate("""() => [...document.querySelectorAll(
        '[aria-describedby], [aria-labelledby], label[for]')]
        .flatMap((each) => ['aria-describedby', 'aria-labelledby', 'for']
          .flatMap((name) => (each.getAttribute(name) ?? '').split(' ').filter(Boolean)))
        .filter((id) => !document.getElementById(id))""")
    assert lost == []
    assert page.get_attribute("html", "lang") == "en"
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map((h) => h.tagName)")
    assert levels[0] == "H1"
    assert levels.count("H1") == 1


TEXTS = "h1, label, legend, .help, #draw, #status, #empty, select"
CONTRAST = """(texts) => {
    const light = (colour) => {
      const [r, g, b] = colour.match(/[\\d.]+/g).map((part) => part / 255)
        .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (each) => {
      const colour = getComputedStyle(each).backgroundColor;
      return colour === 'rgba(0, 0, 0, 0)' ? behind(each.parentElement) : colour;
    };
    return [...document.querySelectorAll(texts)].map((each) => {
      const colours = [getComputedStyle(each).color, behind(each)];
      const [least, most] = colours.map(light).sort((a, b) => a - b);
      return [each.id || each.tagName, (most + 0.05) / (least + 0.05)];
    });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.wait_for_timeout(300)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    darkness = sum(int(part) for part in background[4:-1].split(",")) < 384
    assert darkness == (scheme == "dark")
    for name, contrast in page.evaluate(CONTRAST, TEXTS):
        assert contrast >= 4.5, name


def test_nothing_moves_for_those_who_ask_for_that(page):
    seconds = "getComputedStyle(document.getElementById('draw')).transitionDuration"
    assert page.evaluate(seconds) != "0s"
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(seconds) == "0s"


def test_a_narrow_screen_needs_no_sideways_scrolling(page):
    page.set_viewport_size({"width": 320, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_everything_comes_from_the_server(browser, address):
    context = browser.new_context()
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    reply = page.goto(address)
    loaded(page)
    assert all(url.startswith(address) for url in asked)
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    context.close()


def test_it_asks_for_the_key_and_keeps_it(browser, engine):
    with listening(make_app(engine, ServerOptions(api_keys=["secret"]))) as address:
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.goto(address)
        for key in ("wrong", "secret"):
            page.wait_for_selector("#key-dialog[open]")
            assert page.evaluate("document.activeElement.id") == "key"
            page.keyboard.type(key)
            page.keyboard.press("Enter")
        loaded(page)
        draw(page)
        page.reload()
        loaded(page)
        assert page.locator("#key-dialog[open]").count() == 0
        context.close()
    assert engine.seen[-1].prompt == "a fox"
