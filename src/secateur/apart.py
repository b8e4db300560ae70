"""A process of its own for heavy work, with a limit on its time and memory, and its cost told.

The limit on memory is looked after where the system tells what a running process holds (Linux).
"""

from __future__ import annotations

import math
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from secateur.errors import SecateurError

# Names of the environment variables, for commands; from Python `limits=` is there.
SECONDS, MIB = "SECATEUR_CONVERSION_SECONDS", "SECATEUR_CONVERSION_MIB"
LOOK = 0.05  # seconds between two looks at the process


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long a process may run, in seconds, and how much memory it may hold, in MiB (None: any).

    >>> Limits(seconds=60).mib is None
    True
    """

    seconds: float = 3600.0
    mib: float | None = None

    @classmethod
    def of_environment(cls) -> Limits:
        """Those that SECATEUR_CONVERSION_SECONDS and SECATEUR_CONVERSION_MIB name, if they do."""
        return cls(seconds=_number(SECONDS) or cls.seconds, mib=_number(MIB))


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a process took: seconds, and the most memory it held in MiB (None: not told).

    >>> str(Cost(seconds=6.04, peak_mib=812.3))
    '6.0 s, 812 MiB at most'
    """

    seconds: float
    peak_mib: float | None

    def __str__(self) -> str:
        """The cost in words."""
        peak = "" if self.peak_mib is None else f", {self.peak_mib:,.0f} MiB at most"
        return f"{self.seconds:.1f} s{peak}"


def run_apart(
    command: Sequence[str], environment: Mapping[str, str], limits: Limits, name: str
) -> tuple[subprocess.CompletedProcess[str], Cost]:
    """Run a command to its end and return how it ended, with its output, and what it took.

    Raises `SecateurError` where it went beyond a limit: it is ended, with what to do. `name`: what
    the message calls it.

    >>> done, cost = run_apart(["true"], {}, Limits(seconds=60), "nothing")
    >>> done.returncode, cost.seconds < 60
    (0, True)
    """
    with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as complained:
        begun = time.monotonic()
        child = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=told, stderr=complained
        )
        try:
            peak = _watch(child, begun, limits, name)
        except BaseException:  # Ctrl-C too: nothing goes on behind the user's back
            child.kill()
            child.wait()
            raise
        cost = Cost(seconds=time.monotonic() - begun, peak_mib=peak)
        texts = []
        for file in (told, complained):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return subprocess.CompletedProcess(command, child.returncode, *texts), cost


def _watch(child: subprocess.Popen[bytes], begun: float, limits: Limits, name: str) -> float | None:
    peak: float | None = None
    while child.poll() is None:
        peak = max(filter(None, (peak, _held(child.pid))), default=None)
        if limits.mib is not None and (peak or 0.0) > limits.mib:
            raise SecateurError(
                f"{name} held {peak:,.0f} MiB of memory, expected at most {limits.mib:,.0f}; fix: "
                f"raise the limit ({MIB}), or convert a smaller model"
            )
        left = limits.seconds - (time.monotonic() - begun)
        if left <= 0:
            raise SecateurError(
                f"{name} was still at work after {limits.seconds:g} s and was ended, expected it to "
                f"take less; fix: raise the limit ({SECONDS}), or convert fewer formats at a time"
            )
        try:
            child.wait(min(LOOK, left))
        except subprocess.TimeoutExpired:
            continue
    return peak


def _held(pid: int) -> float | None:
    """The most memory that a process held so far, in MiB; None where nobody tells."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(found[0]) / 1024 if found else None


def _number(variable: str) -> float | None:
    text = os.environ.get(variable, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (value > 0 and math.isfinite(value)):
        raise SecateurError(
            f"{variable}={text!r} received, expected a number above 0; fix: change it, or unset it"
        )
    return value
