"""What holds for every test."""

from __future__ import annotations

import signal

# A shell's background job is started with Ctrl-C ignored, and so would be every process a test stops with it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
