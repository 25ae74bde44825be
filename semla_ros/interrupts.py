"""Whether SIGINT (Ctrl-C) ends the process without a word, as SIGTERM does, or raises KeyboardInterrupt.

Python raises it in the middle of whichever module is being imported; some of them take that for another error.
"""

import contextlib
import signal


def end_by_interrupts() -> None:
    """From here on SIGINT ends the process as SIGTERM does, unless it is ignored (`nohup`) or handled already."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        with contextlib.suppress(ValueError):  # not in the main thread, which then keeps what it has
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_interrupts() -> None:
    """From here on SIGINT raises KeyboardInterrupt again, for what has something to finish."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGINT, signal.default_int_handler)
