"""What tests do on the server's page in a browser."""

from __future__ import annotations

import io

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import expect


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
