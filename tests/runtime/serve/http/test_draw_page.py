"""The picture of the page for the guide."""

from __future__ import annotations

import os

import pytest
from PIL import Image

from docs import draw_page
from tests.support.fake_models import give_models


@pytest.mark.skipif(bool(os.environ.get("ERI_NO_BROWSER")), reason="ERI_NO_BROWSER is set")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_picture_is_small_and_shows_what_was_drawn(address, engine, tmp_path, scheme):
    give_models(engine)
    target = tmp_path / "page.png"
    arguments = [address, "-o", str(target), "--prompt", "a fox", "--prompt", "a cat"]
    assert draw_page.main([*arguments, *(["--dark"] if scheme == "dark" else [])]) == 0
    assert [request.prompt for request in engine.seen] == ["a fox", "a cat"]
    assert target.stat().st_size < draw_page.MOST_BYTES
    with Image.open(target) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "P", (1200, 900))
        corner = picture.convert("L").getpixel((5, 895))
    assert (corner < 128) == (scheme == "dark")
