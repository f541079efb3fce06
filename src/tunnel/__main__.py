"""The command ``tunnel``, also as ``python -m tunnel``."""

import signal
import sys


def main() -> int:
    """Runs the command and returns its exit code. Ctrl-C during the imports prints nothing."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # it may be ignored, as with nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from tunnel import cli  # noqa: PLC0415

    signal.signal(signal.SIGINT, before)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
