"""Every check that needs a GPU, as one command: `python -m benchmarks.gpu`."""
