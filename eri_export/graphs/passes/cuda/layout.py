"""The orders of an image's axes."""

LAST = (0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
FIRST = (0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
