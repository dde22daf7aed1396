"""The command: ``fourfold`` or ``python -m fourfold``."""

import signal
import sys


def main() -> None:
    """Run the command line, or the one role that an owner wants."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Importing takes a moment: until `cli.app.run` is done with it, Ctrl-C ends the process, without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Imported here so that `python -m fourfold.worker.child` pays nothing for it.
    if sys.argv[2:3] == ["--supervised"]:
        from fourfold.cli import supervised

        supervised.run(sys.argv[1])
    else:
        from fourfold.cli.app import run

        run()


if __name__ == "__main__":
    main()
