"""The `eri` command, also as `python -m eri_runtime`.

Imports nothing before it handles Ctrl-C, so that one at any moment gives one line on standard error
and exit status 130.
"""

TYPE_CHECKING = False  # typing's own takes milliseconds to import
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> int:
    """Runs the command line of the process and returns its exit status."""
    try:
        return _run()
    except KeyboardInterrupt:
        _stop()


def _run() -> int:
    """Runs the command line; changes nothing for a process that was started to ignore Ctrl-C."""
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)  # nothing to undo yet
    from eri_runtime.commands.interrupts import ended_by_signals

    with ended_by_signals():
        from eri_runtime.commands.main import main as run_command

        return run_command()


def _stop(*_: object) -> "NoReturn":
    """Ends the process with a line on standard error and status 130."""
    import os  # Python's own start has imported it

    try:
        os.write(2, b"eri: stopped\n")
    finally:  # also if standard error is closed
        os._exit(130)


if __name__ == "__main__":
    raise SystemExit(main())
