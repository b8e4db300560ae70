"""Ctrl-C or SIGTERM at any moment of a command: one line, its exit code, no process left behind.

The first one unwinds the command by a KeyboardInterrupt. Not while a module is imported: native code
that is being loaded does not survive one, and libraries take it for a missing package; then, and
where the command is still there after `GRACE` seconds (something swallowed the exception, or native
code has not returned), the process ends as it stands. What a killed process leaves is carried on.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

GRACE = 1.2  # seconds in which a command may put its things in order
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_received: list[int] = []
_stderr = 2
_arguments: list[str] = []
_finished = threading.Event()  # nothing is left to put in order
_leaving = threading.Lock()  # held by who says the line


def listen(arguments: Sequence[str] = ()) -> None:
    """Watch for Ctrl-C and SIGTERM from now on; one that is ignored, as under nohup, stays so.

    Args:
        arguments: those of the command, for the line.
    """
    global _stderr
    _arguments[:] = arguments
    with suppress(OSError):  # none to write to
        _stderr = os.dup(2)  # imports may silence the process's own
    sys.unraisablehook = _unraisable
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_deadline, args=(reader,), daemon=True).start()
    for number in _WORDS:
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, _on_signal)
    _end_at_the_second()
    atexit.register(_complete)  # the first, which is called last


def received() -> bool:
    """Whether the command was asked to end, whatever became of the exception."""
    return bool(_received)


def code() -> int:
    """The exit code: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + (_received[0] if _received else signal.SIGINT)


def line(arguments: Sequence[str]) -> str:
    """What to say at the end of an interrupted command.

    >>> line(["recipes"]), line(["run", "demo"])
    ('interrupted', 'interrupted; what was finished is kept, the same command carries on')
    """
    word = _WORDS[signal.Signals(code() - 128)]
    if [word for word in arguments if word[:1] != "-"][:1] not in (["run"], ["sweep"]):
        return word
    same = "the same command" + " without --overwrite" * ("--overwrite" in arguments)
    return f"{word}; what was finished is kept, {same} carries on"


def unwound() -> bool:
    """Whether it is for the caller to say the line, which is said once."""
    return not _received or _leaving.acquire(blocking=False)


def finish() -> None:
    """End the process if it was asked to end; else what comes now may be cut short by Ctrl-C."""
    _finished.set()
    if _received:
        with suppress(OSError):  # nobody reads it any more
            sys.stdout.flush()
            sys.stderr.flush()
        atexit._run_exitfuncs()  # temporary files; in time, or the deadline ends them
        _leave()


def end_children(pid: int | str = "self") -> None:
    """Kill the processes that one started, and theirs, where the system lists them (Linux)."""
    for child in _children(pid):
        try:
            os.kill(child, signal.SIGKILL)
        except OSError:  # it has ended by itself
            continue


def _on_signal(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    if len(_received) > 1 or _finished.is_set() or _importing(frame):
        _leave()
    raise KeyboardInterrupt


def _complete() -> None:
    # Python takes its handlers off as it ends: Ctrl-C would make a failure of what is done.
    if signal.getsignal(signal.SIGINT) is _on_signal:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _unraisable(unraisable: Any) -> None:
    # A weak reference's callback swallows the exception with a traceback: the deadline ends it.
    if not isinstance(unraisable.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _deadline(reader: int) -> None:
    # The C library's handler wakes this thread, also while native code keeps the main one.
    while os.read(reader, 1)[0] not in _WORDS:
        continue
    time.sleep(GRACE)
    _leave()


def _leave() -> NoReturn:
    end_children()
    if unwound():
        clear = "\r\x1b[J\x1b[?25h" if os.isatty(_stderr) else ""  # the bar; show the cursor
        with suppress(OSError):
            os.write(_stderr, f"{clear}error: {line(_arguments)}\n".encode())
    os._exit(code())


def _children(pid: int | str) -> list[int]:
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            own = file.read_text().split()
        except OSError:
            continue
        for child in own:
            found += [int(child), *_children(int(child))]
    return found


def _end_at_the_second() -> None:
    """Have the system end the process at a second Ctrl-C: native code may hold Python's lock."""
    import ctypes

    try:
        library = ctypes.CDLL(None)
        once = library.__sysv_signal
    except (OSError, TypeError, AttributeError):  # a C library without it: the deadline remains
        return
    for function in (library.signal, once):
        function.argtypes, function.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    if signal.getsignal(signal.SIGINT) is _on_signal:
        once(signal.SIGINT, library.signal(signal.SIGINT, None))
