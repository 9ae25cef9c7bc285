"""Take the picture of the server's page that the guide shows, in a real Chromium.

`python docs/draw_page.py http://127.0.0.1:8000` draws three pictures on the page of a running
server and writes `docs/assets/page.png`; `--dark` takes the page's dark colours. The PNG has a
palette and less than 60,000 bytes.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, ViewportSize, expect, sync_playwright

TARGET = Path(__file__).resolve().parent / "assets" / "page.png"
PROMPTS = ("a red heart", "a slice of pizza", "a fox")
WIDTH, HEIGHT = 1200, 900
MOST_BYTES = 60_000
COLOURS = (256, 128, 64, 32, 16)  # as many as fit
PATIENCE = 600_000  # milliseconds for a picture: a server may run on a slow CPU
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def draw(page: Page, prompts: Sequence[str]) -> None:
    """Draws a picture of each prompt on the page."""
    for count, prompt in enumerate(prompts, start=1):
        page.fill("#prompt", prompt)
        page.fill("#seed", str(count))
        page.click("#draw")
        expect(page.locator("#gallery li")).to_have_count(count, timeout=PATIENCE)


def photograph(address: str, prompts: Sequence[str], *, dark: bool) -> bytes:
    """Returns a PNG of the page after it drew the prompts."""
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        sys.exit("no Chromium is installed: `apt-get install chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        size: ViewportSize = {"width": WIDTH, "height": HEIGHT}
        page = browser.new_page(viewport=size, color_scheme="dark" if dark else "light")
        page.goto(address)
        expect(page.locator("#model option")).not_to_have_count(0)
        draw(page, prompts)
        taken = page.screenshot()
        browser.close()
    return taken


def reduced(png: bytes) -> bytes:
    """Returns a PNG with a palette, with as many colours as fit into `MOST_BYTES`."""
    with Image.open(io.BytesIO(png)) as image:
        picture = image.convert("RGB")
    for colours in COLOURS:
        stream = io.BytesIO()
        picture.quantize(colours, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
        if stream.tell() < MOST_BYTES:
            return stream.getvalue()
    sys.exit(f"the picture has {stream.tell()} bytes with {colours} colours, expected fewer")


def main(arguments: Sequence[str]) -> int:
    """Takes the picture and writes it; gives the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("address", help="address of a running server")
    parser.add_argument("-o", "--output", type=Path, default=TARGET, help="file to write")
    parser.add_argument("--prompt", action="append", help="prompt to draw; may come several times")
    parser.add_argument("--dark", action="store_true", help="take the page's dark colours")
    options = parser.parse_args(arguments)
    taken = photograph(options.address, options.prompt or PROMPTS, dark=options.dark)
    options.output.write_bytes(reduced(taken))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
