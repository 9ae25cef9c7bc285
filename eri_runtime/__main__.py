"""Runs the `eri` command as `python -m eri_runtime`."""

import sys

from eri_runtime.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
