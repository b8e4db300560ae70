"""The first load and run of a `.tflite` or `.onnx` file, in a subprocess with limits.

The runtimes check that a file holds together, not what it says: a damaged or hostile one reads
beyond its tensors, does not end or fills the memory, which no exception reports.
"""

import hashlib
import sys

import numpy as np

from secateur.apart import Limits, run_python
from secateur.errors import SecateurError
from secateur.runtimes import ending, one_line

# Three samples through the slow reference kernels: two minutes are some 10^10 multiplications.
SECONDS = 120
NAMES = {"litert": "LiteRT", "onnx": "onnxruntime"}
_passed: set[tuple[bytes, str, str]] = set()


def require(blob: bytes, source: str, runtime: str, option: str = "") -> None:
    """Raise `SecateurError` for a file that crashes or exceeds the limits; each is tried once."""
    key = hashlib.sha256(blob).digest(), runtime, option
    if key in _passed:
        return
    done, _ = run_python(
        ["secateur.runtimes.trial", source, runtime, option],
        Limits.of_file(len(blob), SECONDS),
        f"a first run of {source} in {NAMES[runtime]}",
        input=blob,
    )
    lines = done.stderr.strip().splitlines()
    if done.returncode == 2 and lines:  # what the runtime itself says of the file
        raise SecateurError(lines[-1])
    if done.returncode:
        line = done.returncode == 1 and lines
        why = lines[-1] if line else f"its process {ending(done.returncode)}"
        suffix = ".tflite" if runtime == "litert" else ".onnx"
        raise SecateurError(
            f"{source} does not run in {NAMES[runtime]} ({why[:300]}), expected an unchanged "
            f"{suffix} file; fix: convert the model again"
        )
    _passed.add(key)


def main(source: str, runtime: str, option: str) -> int:
    """Read and run the file on standard input; a line on standard error says what is wrong."""
    try:
        session = _opened(sys.stdin.buffer.read(), source, runtime, option)
        session.macs()
        for constant in session.constants() if runtime == "litert" else ():
            constant.dequantized()
        samples = {name: [n or 1 for n in shape] for name, shape in session.samples.items()}
        try:
            for batch, value in ((1, 0), (1, 1), (2, 0)):
                filled = {n: np.full((batch, *s), value, np.float32) for n, s in samples.items()}
                session.predict(filled, batch)
        except SecateurError:
            pass  # these values, and sizes of 1, are not what every file takes; its own data tell
    except SecateurError as error:
        print(error, file=sys.stderr)
        return 2
    except Exception as error:  # a damaged file raises whatever its bytes point to
        print(f"{type(error).__name__}: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _opened(blob: bytes, source: str, runtime: str, option: str):
    if runtime == "onnx":
        from secateur.runtimes import onnx

        onnx.prepare()
        return onnx.OnnxSession(blob, 1, source)
    from secateur.runtimes import litert

    return litert.LiteRTSession(blob, 1, source, kernels=option)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
