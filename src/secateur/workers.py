"""Worker processes of a sweep: started, watched, replaced; each does what a lone sweep would do.

A worker is a process of its own (spawned, so that no framework is shared), leaves after some
points so that its memory is returned, and dies with the sweep that started it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import keras

from secateur.errors import SecateurError
from secateur.interrupts import end_children
from secateur.store import Store

POINTS = 40  # points after which a worker makes way for a fresh one
DEATHS = 2  # a point that was being computed when so many workers died is recorded as failed
STARTS = 3  # workers that may die before they have begun anything
WATCH = 0.3  # seconds between looks
# Threads of the backends and of what they compute with, read when they are imported.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")

# work(store, limit): compute at most `limit` points that nobody else has claimed.
Task = Callable[[Store, int], None]


def supervise(
    task: Task,
    store: Store,
    names: list[str],
    *,
    workers: int,
    failed: Callable[[str, str], None],
    watch: Callable[[int, int], None],
) -> None:
    """Keep `workers` processes at `task` until every point of `names` has a record.

    task: sent to each process. failed(name, cause): record a point that kills its process.
    watch(left, running): called again and again. Raises SecateurError where workers cannot start.
    """
    context = multiprocessing.get_context("spawn")
    errors = context.Queue()
    alive: list[Any] = []
    deaths: Counter[str] = Counter()
    starts = 0
    left = [name for name in names if store.read(name) is None]
    try:
        with _threads(max(1, (os.cpu_count() or 1) // workers)):
            while left or alive:
                while left and len(alive) < min(workers, len(left)):
                    arguments = (task, store.path, keras.backend.backend(), errors)
                    process = context.Process(target=_work, args=arguments)
                    with _deaf_to_ctrl_c():
                        process.start()
                    alive.append(process)
                time.sleep(WATCH)
                left = [name for name in left if store.read(name) is None]
                for process in [p for p in alive if p.exitcode is not None]:
                    alive.remove(process)
                    if process.exitcode == 0:
                        continue
                    _raise_told(errors)
                    begun = [name for name in left if store.begun(name) == process.pid]
                    starts += not begun
                    if starts >= STARTS:
                        raise SecateurError(
                            f"{starts} workers died before they began ({_how(process.exitcode)}), "
                            "expected them to start; fix: try --workers 1, which shows the error"
                        )
                    for name in begun:
                        deaths[name] += 1
                        if deaths[name] >= DEATHS:
                            failed(
                                name, f"its process died {DEATHS} times ({_how(process.exitcode)})"
                            )
                watch(len(left), len(alive))
    finally:
        for process in alive:
            end_children(process.pid)
            process.terminate()
        for process in alive:
            process.join(10)
            process.kill()


def _work(task: Task, path: Path, backend: str, errors: Any) -> None:
    """What a worker does, in its own process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where signals cannot be blocked
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        if keras.backend.backend() != backend:
            raise SecateurError(
                f"a worker came up with backend {keras.backend.backend()}, expected {backend}; "
                "fix: set KERAS_BACKEND in the environment"
            )
        task(Store(path), POINTS)
    except SecateurError as error:
        errors.put(str(error))
        errors.close()
        errors.join_thread()
        sys.exit(3)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        end_children()
        os._exit(4)


def _raise_told(errors: Any) -> None:
    """Raise what a worker said of its end; a sweep's own trouble, as a full disk, is everybody's."""
    try:
        told = errors.get(timeout=0.2)
    except queue.Empty:
        return
    raise SecateurError(told)


def _how(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        killed = ", out of memory?" if exitcode == -signal.SIGKILL else ""
        return f"signal {-exitcode}{killed}"
    return f"exit code {exitcode}"


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes started meanwhile never get Ctrl-C: the sweep is asked, and ends them.

    Blocked and not ignored: what comes meanwhile reaches the sweep afterwards. Set in the worker
    itself it would come too late for the seconds of its imports.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # its start would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Processes that are started in the block share the cores instead of each taking all."""
    before = {name: os.environ.get(name) for name in (*THREADS, "KERAS_BACKEND")}
    os.environ.update({name: os.environ.get(name, str(count)) for name in THREADS})
    os.environ["KERAS_BACKEND"] = keras.backend.backend()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
