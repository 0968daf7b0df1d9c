"""How much memory a piece of work takes, measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys

PEAK = """
def peak():
    # Unlike ru_maxrss this begins anew with the program: it is not what the process was before that started this one.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
"""


def peaks(prepare: str, work: str) -> tuple[int, int]:
    """Runs two pieces of code one after the other in a fresh process.

    Returns:
        The largest memory use in bytes: before the work, and after it.
    """
    code = f"{PEAK}\n{prepare}\nfirst = peak()\n{work}\nprint(first, peak())\n"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, last = map(int, run.stdout.split()[-2:])
    return first, last
