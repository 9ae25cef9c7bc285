"""What the embedded checkpoints were trained to draw, to look drawings up in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from eri_export.embedded.emoji_data import captions, chosen_names
from eri_export.embedded.retrieval import nearest_vectors, shrink

THUMBNAILS = Path(__file__).parents[1] / "data" / "emoji-24px.webp"
CAPTIONS = [captions(name)[0] for name in chosen_names()]


def nearest_captions(images):
    """The caption of the training image nearest to each (N, 96, 96, 3) uint8 image."""
    training = np.asarray(Image.open(THUMBNAILS), dtype=np.float64).reshape(-1, 24, 24, 3)
    assert len(training) == len(CAPTIONS)
    shrunk = shrink("generated", np.stack([np.asarray(image) for image in images]), 4)
    return [CAPTIONS[i] for i in nearest_vectors(shrunk, training).nearest]


def sheet_images(sheet):
    """The eight 96x96 pictures of the demo's contact sheet, which shows them twice as large."""
    assert sheet.size == (4 * 200 + 8, 2 * 200 + 8)
    half = np.asarray(sheet.resize((404, 204), Image.Resampling.BOX))
    return [
        half[4 + row * 100 : 100 + row * 100, 4 + column * 100 : 100 + column * 100]
        for row in range(2)
        for column in range(4)
    ]
