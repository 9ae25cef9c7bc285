"""Renders a record as one self-contained HTML page: no network, no scripts, no other files.

Start with `page`; `charts` draws the figures with the primitives of `svg`.
"""
