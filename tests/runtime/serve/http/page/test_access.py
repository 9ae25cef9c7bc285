"""The page: the keyboard alone, names, contrast, small screens, its policy and the API key."""

from __future__ import annotations

import pytest

from eri_runtime.serve.http import ServerOptions, make_app
from tests.support.http_server import listening
from tests.support.page_actions import draw, loaded, png, says, upload

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
