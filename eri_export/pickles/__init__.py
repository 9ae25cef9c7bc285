"""Converts pickled weights to safetensors, in a process of its own.

`convert` starts that process, checks what it wrote and publishes it. `reader` is the process: it
gives up the network (`isolation`), reads the file with torch's weights-only loader, picks the
tensors out of what a training run saved (`contents`), and writes them. Start with `convert`.

Nothing is imported here: NumPy starts threads, and a process with threads keeps its network.
"""
