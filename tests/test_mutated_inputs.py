"""Thousands of mutated inputs of every kind through the commands that read them.

Each ends with 0, or with one line that is an error of the user's: no crash, hang, code that ran,
traceback, "unexpected", file outside, or memory above 3 GB. SECATEUR_CAMPAIGN says how many, over
all kinds (2000 for a full campaign: some 20 minutes on two free cores); SECATEUR_CAMPAIGN_SEED
gives others.
"""

import json
import os
import select
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.mutations import mutate

INPUTS = int(os.environ.get("SECATEUR_CAMPAIGN", "120"))
SEED = int(os.environ.get("SECATEUR_CAMPAIGN_SEED", "0"))
SECONDS, MEMORY = 90, 3 << 30  # for one command, with all its processes
WORKER = """
import contextlib, io, json, os, sys, traceback
results = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
from secateur import cli
for line in sys.stdin:
    folder, sys.argv = json.loads(line)
    os.chdir(folder)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            cli.main()
    except SystemExit as error:
        code = error.code
    except BaseException:
        code = traceback.format_exc()[-600:]
    if "keras" in sys.modules:
        sys.modules["keras"].utils.clear_session()
    print(json.dumps([code, said.getvalue()[-9000:]]), file=results, flush=True)
"""
RECIPE = """
name = "mutated"
description = "every kind of key"
seed = 0
control = true
[train]
optimizer = "adam"
learning_rate = 0.001
decay = "cosine"
batch_size = 32
epochs = 1
batchnorm = "keep"
[[steps]]
method = "prune"
sparsity = 0.5
schedule = { shape = "polynomial", begin = 0.0, end = 0.5, every = 2 }
criterion = "l1"
pattern = "unstructured"
allocation = "uniform"
select = { include = ["*"], exclude = ["dense/bias"], roles = ["kernel"] }
train = { epochs = 1 }
[[steps]]
method = "quantize"
format = "int8"
select = { exclude = ["dense/bias"], classes = ["Dense", "Conv2D"] }
[export]
formats = ["keras", "h5", "float32", "int8", "onnx"]
io = "int"
strip = false
"""
GRID = """
name = "small"
model = "lenet-300-100"
data = "digits"
seeds = [0]
[train]
epochs = 1
[[curves]]
name = "magnitude"
[[curves.steps]]
method = "prune"
sparsity = { sweep = [0.5, 0.9] }
train = { epochs = 1 }
"""


@dataclass(frozen=True)
class Kind:
    """A kind of input: the folder it lies in, its file there, and the commands that read it.

    In a command IN is the file and AT its folder. Every twentieth input goes through `slow`.
    """

    folder: str
    file: str
    commands: tuple[str, ...]
    slow: str | None = None


MODEL = ("inspect IN", "measure IN --data ../../data.npz", "inspect IN --recipe lab")
REPORT = ("report AT --html page.html", "choose AT --max-bytes 1MB", "report AT --markdown page.md")
KINDS = {
    "keras": Kind("run", "baseline-keras.keras", MODEL, "export IN --formats float32"),
    "h5": Kind("run", "baseline-h5.h5", MODEL, "export IN --formats float32"),
    "tflite": Kind(
        "run",
        "baseline-float32.tflite",
        ("measure IN --data ../../data.npz", "inspect IN"),
        "measure IN --runtime litert:reference",
    ),
    "tflite-int8": Kind("run", "quantized-int8.tflite", ("measure IN --data ../../data.npz",)),
    "onnx": Kind("run", "baseline-onnx.onnx", ("measure IN --data ../../data.npz", "measure IN")),
    "npz": Kind(".", "data.npz", ("measure ../../run/baseline-float32.tflite --data IN",)),
    "recipe": Kind(
        ".",
        "recipe.toml",
        ("inspect ../../model.keras --recipe IN", "run IN --model ../../model.keras --data no.npz"),
    ),
    "grid": Kind(".", "grid.toml", ("sweep IN --dry-run", "run IN --data no.npz")),
    "run.json": Kind("run", "run.json", REPORT, "report AT --notebook page.ipynb"),
    "record": Kind("sweep", "points/*/record.json", REPORT, "sweep ../../grid.toml --out AT"),
    "quantization": Kind(
        "run",
        "quantized-keras.quantization.json",
        (
            "inspect AT/quantized-keras.keras",
            "export AT/quantized-keras.keras --formats int8 --calibration ../../data.npz",
        ),
    ),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A folder with a sound input of every kind, and what stands beside each."""
    import keras
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("campaign")
    digits = load_digits()
    x = np.float32(digits.images[:240, ..., None] / 16)
    np.savez(folder / "data.npz", x_train=x[:200], y_train=digits.target[:200],
             x_test=x[200:], y_test=digits.target[200:240])  # fmt: skip
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((8, 8, 1)), layers.Conv2D(4, 3, activation="relu", name="conv2d"), layers.MaxPooling2D(2),
        layers.Flatten(), layers.Dense(10, activation="softmax", name="dense"),
    ])  # fmt: skip
    model.save(folder / "model.keras")
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "grid.toml").write_text(GRID)
    for command in (
        "run recipe.toml --model model.keras --data data.npz --out run --allow-chance",
        "sweep grid.toml --out sweep --limit 100",
    ):
        arguments = [sys.executable, "-m", "secateur", *command.split()]
        done = subprocess.run(arguments, cwd=folder, env=environment(), capture_output=True)
        assert done.returncode == 0, done.stderr[-800:]
    return folder


def environment():
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path),
        "SECATEUR_MAX_SECONDS": "10",
        "MPLBACKEND": "agg",
    }


class Worker:
    """A process that carries out one command after the other, watched from outside."""

    def __init__(self):
        self.process, self.peak = None, 0

    def run(self, folder, command):
        """(exit code, what it said): the code is a text where it is none that a command may have."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", WORKER],
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
        self.process.stdin.write(json.dumps([str(folder), ["secateur", *command]]) + "\n")
        self.process.stdin.flush()
        begun = time.monotonic()
        while time.monotonic() - begun < SECONDS:
            held = memory(self.process.pid)
            self.peak = max(self.peak, held)
            if held > MEMORY:
                self.stop()
                return f"{held >> 20} MiB held", ""
            if select.select([self.process.stdout], [], [], 0.1)[0]:
                line = self.process.stdout.readline()
                if line:
                    return json.loads(line)
                code = self.process.wait()
                self.stop()
                return f"the process ended with {code}", ""
        self.stop()
        return f"still at work after {SECONDS} s", ""

    def stop(self):
        if self.process is not None:
            for pid in (*children(self.process.pid), self.process.pid):
                try:
                    os.kill(pid, 9)
                except ProcessLookupError:
                    continue
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
            self.process = None


def children(pid):
    try:
        own = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [int(child) for one in own for child in (one, *children(one))]


def memory(pid):
    """Bytes that a process and its children hold; 0 where the system does not say."""
    total = 0
    for one in (pid, *children(pid)):
        try:
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * 4096
        except (OSError, IndexError):
            continue
    return total


def placed(kind, sound, case, rng, marker):
    """Lay a mutant out in a folder of its own, with what a sound one stands beside."""
    source, target = sound / kind.folder, case / Path(kind.folder).name
    file = sorted(source.glob(kind.file))[0].relative_to(source)
    if "AT" in "".join(kind.commands):
        shutil.copytree(source, target, copy_function=os.link)
    path = target / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # a link until here
    path.write_bytes(mutate((source / file).read_bytes(), file.suffix, rng, marker))
    return path, target


def wrong(code, said):
    """Why an outcome is none that a user should see; None for a good one."""
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    if code not in (0, 1, 2):
        return str(code)
    if "Traceback" in said or "error: unexpected" in said or "please report" in said:
        return said.strip()[-600:]
    if code == 1 and len(errors) != 1 and "refused" not in said:
        return f"{len(errors)} lines of error: {said.strip()[-300:]}"
    if any(len(line) > 1500 for line in errors):
        return f"an error of {max(map(len, errors))} characters"
    return None


@pytest.mark.slow
@pytest.mark.parametrize("name", list(KINDS))
def test_mutated_inputs_end_in_an_answer_or_in_one_line(name, sound):
    kind, worker = KINDS[name], Worker()
    rng = np.random.default_rng([SEED, *name.encode()])
    marker, faults = sound / "ran", []
    (sound / "cases").mkdir(exist_ok=True)
    before = set(sound.iterdir()), set(sound.parent.iterdir()), set(Path("/").iterdir())
    begun, refused, count = time.monotonic(), 0, -(-INPUTS // len(KINDS))
    for number in range(count):
        case = sound / "cases" / f"{name}-{number}"
        path, folder = placed(kind, sound, case, rng, marker)
        command = kind.commands[number % len(kind.commands)]
        if kind.slow and number % 20 == 19:
            command = kind.slow
        words = command.replace("IN", str(path)).replace("AT", str(folder)).split()
        code, said = worker.run(case, words)
        refused += code != 0
        print(number, code, " ".join(said.split())[:200])
        why = wrong(code, said)
        if marker.exists():
            marker.unlink()
            why = "code of the file ran"
        if (set(sound.iterdir()), set(sound.parent.iterdir()), set(Path("/").iterdir())) != before:
            why = "a file outside"
        if why:
            faults.append(f"{command} ({path}): {why}")
        else:
            shutil.rmtree(case)
    worker.stop()
    seconds, peak = time.monotonic() - begun, worker.peak >> 20
    told = f"{name}: {count} inputs, {refused} refused, {seconds:.0f} s, {peak} MiB at most"
    print(told)
    assert not faults, f"{told}; {len(faults)} faults:\n" + "\n".join(faults)
    assert refused > count // 8
