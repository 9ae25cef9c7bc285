"""The page: a picture to start from, and a mask that is painted on it."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.support.page_actions import draw, png, upload


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
