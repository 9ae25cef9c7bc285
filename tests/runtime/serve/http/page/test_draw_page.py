"""The picture of the page for the guide."""

from __future__ import annotations

import subprocess
import sys

import pytest
from PIL import Image

from docs import draw_page
from tests.support.fake_models import give_models


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_picture_is_small_and_shows_what_was_drawn(chromium, address, engine, tmp_path, scheme):
    give_models(engine)
    target = tmp_path / "page.png"
    arguments = [address, "-o", str(target), "--prompt", "a fox", "--prompt", "a cat"]
    dark = ["--dark"] if scheme == "dark" else []
    subprocess.run([sys.executable, "-m", "docs.draw_page", *arguments, *dark], check=True)
    assert [request.prompt for request in engine.seen] == ["a fox", "a cat"]
    assert target.stat().st_size < draw_page.MOST_BYTES
    with Image.open(target) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "P", (1200, 900))
        corner = picture.convert("L").getpixel((5, 895))
    assert (corner < 128) == (scheme == "dark")
