"""Run a command in a subprocess with limits on its time and memory; report what it used.

The one mechanism for heavy work and for files from elsewhere, whose native readers may crash, never
end or fill the memory. Memory is watched where the system reports what a process holds (Linux).
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.errors import SecateurError

# Names of the environment variables, and the options of every command that set them.
SECONDS, MEMORY = "SECATEUR_MAX_SECONDS", "SECATEUR_MAX_MEMORY"
OPTIONS = {"--max-seconds": SECONDS, "--max-memory": MEMORY}
# What a file may take by default: memory as a start plus so many times its size, in bytes.
FILE_MEMORY, FILE_FACTOR = 2 << 30, 8
# What a small file may unpack to, in bytes, and how many times its size a large one. Weights are
# stored as they are; of a file that was packed again, a hundredth is left where nearly all are zero.
FREE, FACTOR = 1 << 24, 100
SIZES = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
LOOK = 0.05  # seconds between two looks at the process


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long a process may run, in seconds, and how much memory it may hold, in bytes (None: any).

    >>> Limits(seconds=60).memory is None
    True
    """

    seconds: float = 3600.0
    memory: float | None = None

    @classmethod
    def of_environment(cls, seconds: float = 3600.0, memory: float | None = None) -> Limits:
        """Those that SECATEUR_MAX_SECONDS and SECATEUR_MAX_MEMORY set; without them these."""
        set_seconds, set_memory = (_from_environment(name) for name in (SECONDS, MEMORY))
        return cls(seconds=set_seconds or seconds, memory=set_memory or memory)

    @classmethod
    def of_file(cls, size: int, seconds: float) -> Limits:
        """Those for reading or first running a file of `size` bytes.

        >>> Limits.of_file(100 << 20, seconds=60).memory / 2**20
        2848.0
        """
        return cls.of_environment(seconds, FILE_MEMORY + FILE_FACTOR * size)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a process took: seconds, and the most memory it held in MiB (None: not reported).

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
    command: Sequence[str],
    environment: Mapping[str, str],
    limits: Limits,
    name: str,
    *,
    input: bytes = b"",
    cwd: str | None = None,
) -> tuple[subprocess.CompletedProcess[str], Cost]:
    """Run a command to its end and return how it ended, with its output, and what it took.

    Raises `SecateurError` where it went beyond a limit: it is ended, with what to do. `name`: what
    the message calls it; `input`: what it reads from standard input.

    >>> done, cost = run_apart(["true"], {}, Limits(seconds=60), "nothing")
    >>> done.returncode, cost.seconds < 60
    (0, True)
    """
    with (
        tempfile.TemporaryFile() as stdin,
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
    ):
        stdin.write(input)
        stdin.seek(0)
        begun = time.monotonic()
        child = subprocess.Popen(
            command, env=environment, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr
        )
        try:
            peak = _watch(child, begun, limits, name)
        except BaseException:  # Ctrl-C too: nothing goes on behind the user's back
            child.kill()
            child.wait()
            raise
        cost = Cost(seconds=time.monotonic() - begun, peak_mib=peak)
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return subprocess.CompletedProcess(command, child.returncode, *texts), cost


def run_python(
    arguments: Sequence[str],
    limits: Limits,
    name: str,
    environment: Mapping[str, str] | None = None,
    **options: Any,
) -> tuple[subprocess.CompletedProcess[str], Cost]:
    """Run `python -m ...` as `run_apart` does; what this process can import, the other can too."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        **(environment or {}),
    }
    # -P: and not what lies in the current folder.
    return run_apart([sys.executable, "-P", "-m", *arguments], environment, limits, name, **options)


def parse_size(value: float | str | None, name: str = "size") -> float | None:
    """Bytes from a number or from text: 300000, "250kB", "1MiB".

    >>> parse_size("250kB"), parse_size("1 MiB"), parse_size(300000)
    (250000.0, 1048576.0, 300000.0)
    """
    return quantity(
        value, SIZES, f"{name} {value!r} received, expected bytes as 250kB, 1MiB, 300000"
    )


def quantity(value: float | str | None, units: Mapping[str, float], wrong: str) -> float | None:
    """A number above 0, in the unit that stands behind it; raises SecateurError(wrong) for others.

    >>> quantity("2 min", {"min": 60.0}, "a time")
    120.0
    """
    if value is None:
        return None
    parts = re.fullmatch(r"\s*([\d.]+(?:e[+-]?\d+)?)\s*([a-z]*)\s*", str(value).lower())
    try:
        number = float(parts[1]) * units[parts[2]] if parts else 0.0
    except (ValueError, KeyError):
        number = 0.0
    if not 0 < number < math.inf:
        raise SecateurError(wrong)
    return number


def memory_limit(default: float) -> float:
    """Bytes that SECATEUR_MAX_MEMORY allows; where it is not set, `default`.

    >>> memory_limit(2**31) / 2**30
    2.0
    """
    return _from_environment(MEMORY) or default


def _watch(child: subprocess.Popen[bytes], begun: float, limits: Limits, name: str) -> float | None:
    peak: float | None = None
    limit = None if limits.memory is None else limits.memory / 2**20
    while child.poll() is None:
        peak = max(filter(None, (peak, _held(child.pid))), default=None)
        if limit is not None and (peak or 0.0) > limit:
            raise SecateurError(
                f"{name} held {peak:,.0f} MiB of memory, expected at most {limit:,.0f}; fix: "
                f"raise the limit (--max-memory 8GB, or {MEMORY}), or use a smaller model"
            )
        left = limits.seconds - (time.monotonic() - begun)
        if left <= 0:
            raise SecateurError(
                f"{name} was still at work after {limits.seconds:g} s and was ended, expected it to "
                f"take less; fix: raise the limit (--max-seconds, or {SECONDS}), or use a smaller "
                "model or fewer formats"
            )
        try:
            child.wait(min(LOOK, left))
        except subprocess.TimeoutExpired:
            continue
    return peak


def _held(pid: int) -> float | None:
    """The most memory that a process held so far, in MiB; None where the system does not say."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    peaks = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(peaks[0]) / 1024 if peaks else None


def _from_environment(variable: str) -> float | None:
    text = os.environ.get(variable, "").strip()
    units, unit = (
        (SIZES, "bytes as 8GB") if variable == MEMORY else ({"": 1.0, "s": 1.0}, "seconds")
    )
    option = next(option for option, name in OPTIONS.items() if name == variable)
    return quantity(
        text or None,
        units,
        f"{variable}={text!r} received, expected a number of {unit} above 0; fix: change it, or "
        f"unset it ({option} sets it for one command)",
    )
