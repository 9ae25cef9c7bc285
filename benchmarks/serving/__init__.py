"""Serving under load: our engine beside one request at a time, and beside batches in a window.

`load` draws the requests, `servers` are the three ways to serve them, `__main__` measures them in
turns on the same open pipeline. Start with `__main__`.
"""
