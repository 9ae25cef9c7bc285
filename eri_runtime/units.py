"""Byte counts as text."""


def megabytes(size: int) -> str:
    """Formats a byte count in MB (1 MB = 10⁶ bytes), or in kB if it is below 0.1 MB."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"
