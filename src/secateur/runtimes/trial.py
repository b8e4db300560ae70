"""A `.tflite` file's first run in LiteRT, in a process of its own.

LiteRT checks that a file holds together, not what it says: on a damaged one, operators read
beyond their tensors or do not end, which no exception tells.
"""

import hashlib
import subprocess
import sys

import numpy as np

from secateur.errors import SecateurError
from secateur.runtimes import ending, one_line, run_child

# Three samples through the slow reference kernels: two minutes are some 10^10 multiplications.
SECONDS = 120
_passed: set[tuple[bytes, str]] = set()


def require(blob: bytes, source: str, kernels: str) -> None:
    """Raise `SecateurError` for a file that crashes or does not end; each is tried once."""
    key = hashlib.sha256(blob).digest(), kernels
    if key in _passed:
        return
    try:
        arguments = ["secateur.runtimes.trial", source, kernels]
        done = run_child(arguments, input=blob, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise _damaged(source, f"a first run did not end within {SECONDS} s") from None
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode == 2 and lines:  # what the runtime itself says of the file
        raise SecateurError(lines[-1])
    if done.returncode:
        told = done.returncode == 1 and lines
        raise _damaged(source, lines[-1] if told else f"its process {ending(done.returncode)}")
    _passed.add(key)


def _damaged(source: str, why: str) -> SecateurError:
    return SecateurError(
        f"{source} does not run in LiteRT ({why[:300]}), expected an unchanged .tflite file; "
        "fix: convert the model again"
    )


def main(source: str, kernels: str) -> int:
    """Read and run the file on standard input; a line on standard error says what is wrong."""
    from secateur.runtimes import litert

    try:
        session = litert.LiteRTSession(sys.stdin.buffer.read(), 1, source, kernels=kernels)
        session.macs()
        for constant in session.constants():
            constant.dequantized()
        samples = {name: [n or 1 for n in shape] for name, shape in session._samples.items()}
        try:
            for batch in (1, 2):
                session.predict({n: np.zeros((batch, *s)) for n, s in samples.items()}, batch)
        except SecateurError:
            pass  # zeros, and sizes of 1, are not what every file takes; its own data tell
    except SecateurError as error:
        print(error, file=sys.stderr)
        return 2
    except Exception as error:  # a damaged file raises whatever its bytes point to
        print(f"{type(error).__name__}: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
