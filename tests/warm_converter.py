"""On JAX and PyTorch every conversion is a subprocess that imports TensorFlow, for seconds.

Here it is forked from one that has imported it: the same `main`, the same limits, a clean process.
"""

import json
import os
import runpy
import select
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Forked:
    """What `secateur.apart` uses of `subprocess.Popen`, for a process that another one forks."""

    def __init__(self, server, command, environment, files):
        self._server, self.returncode = server, None
        paths = [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in files]
        words = command[command.index("-m") + 1 :]
        server.stdin.write(json.dumps([words, dict(environment), str(Path.cwd()), paths]) + "\n")
        server.stdin.flush()
        self.pid = int(server.stdout.readline())

    def poll(self, timeout=0.0):
        if self.returncode is None and select.select([self._server.stdout], [], [], timeout)[0]:
            self.returncode = int(self._server.stdout.readline())
        return self.returncode

    def wait(self, timeout=None):
        if self.poll(timeout) is None:
            raise subprocess.TimeoutExpired("a conversion", timeout)
        return self.returncode

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)


@contextmanager
def warm_converter() -> Iterator[None]:
    """Processes for TensorFlow are forked, not started, as long as the context lasts."""
    from secateur import apart

    servers: list[subprocess.Popen] = []

    def popen(command, *, env, stdout, stderr, **options):
        if env.get("KERAS_BACKEND") != "tensorflow":
            return subprocess.Popen(command, env=env, stdout=stdout, stderr=stderr, **options)
        if not servers:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            servers.append(
                subprocess.Popen([sys.executable, __file__], env=env, text=True, bufsize=1, **pipes)
            )
        return Forked(servers[0], command, env, (stdout, stderr))

    with pytest.MonkeyPatch.context() as patch:
        names = {**vars(subprocess), "Popen": popen}
        patch.setattr(apart, "subprocess", types.SimpleNamespace(**names))
        yield
    for server in servers:
        server.communicate()


def _serve() -> None:
    """Fork for every line on standard input; write the process's number, then its status."""
    import tensorflow  # noqa: F401

    import secateur.conversion  # noqa: F401

    for line in sys.stdin:
        child = os.fork()
        if not child:
            _run(*json.loads(line))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _run(words: list[str], environment: dict, folder: str, paths: list[str]) -> None:
    code = 1
    try:
        for number, path in enumerate(paths, 1):
            os.dup2(os.open(path, os.O_WRONLY), number)
        os.environ.update(environment)
        sys.path[:0] = environment["PYTHONPATH"].split(os.pathsep)
        os.chdir(folder)
        sys.argv = words
        sys.modules.pop(words[0], None)
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()
