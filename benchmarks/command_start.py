"""How long the command takes to answer: `--help`, `import secateur`, `measure` of a .tflite.

    python benchmarks/command_start.py            # about a minute
    python benchmarks/command_start.py --quick    # a smoke test

Wall time of whole processes, started one at a time, in rounds: each round runs every command once,
and each round begins with another one, so that the machine's drift hits all alike. The first round
is not counted (cold files). Reported: medians, and the median of the ratios to a bare `python -c
pass` (for `measure`: to a bare loop over an interpreter) of the same round.

The file is the lab CNN, float32, untrained (times only); with data it answers 10,000 random images,
`measure` in batches, the bare loop one by one, as the labs write it. `python -m secateur` stands
for the installed command: the same interpreter, the same `main`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from step_overhead import installed, interval

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "benchmarks" / "records" / "command-start.json"

MAKE = """
import sys, keras, secateur
from secateur import zoo
keras.utils.set_random_seed(0)
secateur.export(zoo.lab_cnn(), ["float32"], sys.argv[1], stage="lab")
"""

# What a notebook does: load, allocate, invoke once.
BARE = """
import sys, numpy as np
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(sys.argv[1], num_threads=1)
interpreter.allocate_tensors()
given = interpreter.get_input_details()[0]
interpreter.set_tensor(given["index"], np.zeros(given["shape"], given["dtype"]))
interpreter.invoke()
"""

# ... and with images: one at a time, then the share that is right.
BARE_LOOP = """
import sys, numpy as np
from ai_edge_litert.interpreter import Interpreter
with np.load(sys.argv[2]) as data:
    x, y = data["x_test"], data["y_test"]
interpreter = Interpreter(sys.argv[1], num_threads=1)
interpreter.allocate_tensors()
given = interpreter.get_input_details()[0]["index"]
answer = interpreter.get_output_details()[0]["index"]
right = 0
for image, label in zip(x, y):
    interpreter.set_tensor(given, image[None])
    interpreter.invoke()
    right += interpreter.get_tensor(answer).argmax() == label
print(right / len(x))
"""


def commands(file: Path, data: Path) -> dict[str, tuple[list[str], str]]:
    """Name -> (arguments of the interpreter, the name it is set against)."""
    secateur = ["-m", "secateur"]
    return {
        "python -c pass": (["-c", "pass"], "python -c pass"),
        "import secateur": (["-c", "import secateur"], "python -c pass"),
        "secateur --help": ([*secateur, "--help"], "python -c pass"),
        "bare interpreter": (["-c", BARE, str(file)], "bare interpreter"),
        "secateur measure": ([*secateur, "measure", str(file)], "bare interpreter"),
        "bare loop, 10,000 images": (
            ["-c", BARE_LOOP, str(file), str(data)],
            "bare loop, 10,000 images",
        ),
        "secateur measure --data, 10,000 images": (
            [*secateur, "measure", str(file), "--data", str(data)],
            "bare loop, 10,000 images",
        ),
    }


def run(arguments: list[str], **environment: str) -> float:
    """Wall time of one process in seconds; its failure ends the benchmark."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TF_CPP_MIN_LOG_LEVEL": "3"}
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**env, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"{done.stderr.strip()}\nerror: {arguments[:3]} failed, see above")
    return seconds


def write_data(path: Path, images: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.random((images, 28, 28), dtype=np.float32)
    y = rng.integers(0, 10, images)
    np.savez(path, x_train=x[:100], y_train=y[:100], x_test=x, y_test=y)


def main() -> None:
    """Time the commands, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help=f"default: {RECORD.relative_to(ROOT)}")
    parser.add_argument("--quick", action="store_true", help="two rounds; writes --out only")
    given = parser.parse_args()
    rounds = 2 if given.quick else given.rounds
    load = [round(os.getloadavg()[0], 2)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(["-c", MAKE, str(folder)], KERAS_BACKEND="tensorflow", CUDA_VISIBLE_DEVICES="")
        write_data(folder / "random.npz", 10_000)
        wanted = commands(folder / "lab-float32.tflite", folder / "random.npz")
        taken: dict[str, list[float]] = {label: [] for label in wanted}
        order = list(wanted)
        for number in range(rounds + 1):
            turn = number % len(order)
            for label in [*order[turn:], *order[:turn]]:
                seconds = run(wanted[label][0])
                if number:
                    taken[label].append(seconds)
    rows = []
    for label, (_, against) in wanted.items():
        ratios = [a / b for a, b in zip(taken[label], taken[against], strict=True)]
        rows.append(
            {
                "command": label,
                "against": against,
                "seconds": interval(taken[label]),
                "ratio": round(statistics.median(ratios), 3),
                "runs": len(ratios),
            }
        )
        print(
            f"{label}: {rows[-1]['seconds']['median']:.3f} s, {rows[-1]['ratio']:.2f} of {against}"
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from secateur.runtimes import quiet

    with quiet():
        from secateur.pipeline import machine  # late: it loads Keras

    record = {
        "kind": "command-start",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": given.quick,
        "machine": machine(),
        "versions": installed(),
        "load": [*load, round(os.getloadavg()[0], 2)],
        "rows": rows,
    }
    out = given.out if given.out or given.quick else RECORD
    if out:
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {out.name}")


if __name__ == "__main__":
    main()
