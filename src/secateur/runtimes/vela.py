"""Vela, Arm's compiler for Ethos-U NPUs: what a file would take there, estimated and not run.

The compiler works in a process of its own, on a copy of the file: on some files it crashes.
"""

import csv
import math
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from secateur.apart import FILE_FACTOR, FILE_MEMORY, Limits, run_python
from secateur.errors import SecateurError, nearest
from secateur.outputs import Meanings
from secateur.runtimes import RUNTIMES, Arrays, Constant, ending, litert, read, require
from secateur.tflite import PACKED, TfliteFile

ACCELERATORS = RUNTIMES["vela"].options
# What the compiler prints about an operator that it leaves to the CPU.
LEFT = re.compile(r"operator: \w+, ofm: '(.*)'\s*Reason: (.*)")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What Vela's cycle model says of a file on an accelerator; sizes in bytes.

    `seconds` are those of the NPU alone, and None where it has nothing to do; an operator on the
    CPU is not in them. `operators` counts those of the file, `cpu_operators` names those of them
    that stay on the CPU, with the tensor and the reason.
    """

    label: str
    accelerator: str
    system_config: str
    memory_mode: str
    clock_hz: float
    seconds: float | None
    cycles: int
    sram_bytes: int
    dram_bytes: int
    flash_bytes: int
    original_weight_bytes: int
    encoded_weight_bytes: int
    operators: int
    cpu_operators: list[dict[str, str]]

    def to_record(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self)


def prepare() -> None:
    """Raise `SecateurError` where the compiler is not installed."""
    require("ethosu", "micro")
    litert.prepare()  # whose schema reads the file


def load(
    path: str | Path | bytes, threads: int = 1, accelerator: str = ACCELERATORS[0]
) -> "VelaSession":
    """Compile a `.tflite` file (or its bytes); `threads` is ignored. Raises as `estimate` does."""
    del threads
    blob, source = read(path)
    return VelaSession(blob, source, accelerator)


def estimate(
    path: str | Path | bytes,
    accelerator: str = ACCELERATORS[0],
    *,
    system_config: str | None = None,
    memory_mode: str | None = None,
) -> Estimate:
    """Return what Vela estimates for a `.tflite` file (or its bytes) on an accelerator.

    Args:
        path: a file; one with int8 or int16 activations, or all of it is left to the CPU.
        accelerator: "ethos-u55-128", and the others that `ACCELERATORS` lists.
        system_config: clock and memories, a section of Vela's Arm/vela.ini ("Ethos_U55_Deep_Embedded").
        memory_mode: where weights and tensors lie, likewise ("Sram_Only"). Both, or neither, for
            what Vela takes for the accelerator when it is not told.

    Raises `SecateurError` for a file that the compiler refuses or crashes on.
    """
    if accelerator not in ACCELERATORS:
        raise SecateurError(
            f"unknown accelerator {accelerator!r}; {nearest(accelerator, ACCELERATORS)}"
        )
    if (system_config is None) != (memory_mode is None):
        raise SecateurError(
            f"system_config {system_config!r} with memory_mode {memory_mode!r} received, expected "
            "both or neither: Vela takes them together; fix: name the other too"
        )
    return _estimate(*read(path), accelerator, system_config, memory_mode)


def _estimate(
    blob: bytes, source: str, accelerator: str, system_config: str | None, memory_mode: str | None
) -> Estimate:
    prepare()
    file = TfliteFile.parse(blob, source)
    options = ["--accelerator-config", accelerator, "--verbose-performance"]
    if system_config and memory_mode:
        options += ["--config", "Arm/vela.ini"]
        options += ["--system-config", system_config, "--memory-mode", memory_mode]
    with tempfile.TemporaryDirectory(prefix="secateur-vela-") as folder:
        # Under a name of its own: the tables are named after the file.
        (Path(folder) / "model.tflite").write_bytes(blob)
        command = ["ethosu.vela", "model.tflite", "--output-dir", ".", *options]
        limits = Limits.of_environment(memory=FILE_MEMORY + FILE_FACTOR * len(blob))
        done, _ = run_python(command, limits, f"Vela with {source}", cwd=folder)
        said = done.stdout + done.stderr
        summary, layers = _table(folder, "model_summary_*.csv"), _table(folder, "model_per-layer*")
    if done.returncode or not summary:
        _refuse(source, file, accelerator, ending(done.returncode), said)
    found = summary[0]
    reasons = {tensor: " ".join(why.split()) for tensor, why in LEFT.findall(said)}
    left = [
        {
            "operator": row["Original Operator"],
            "tensor": row["Name"],
            "reason": reasons.get(row["Name"], "not given"),
        }
        for row in layers
        if row["Target"] == "CPU"
    ]
    seconds = float(found["inference_time"])
    return Estimate(
        label=f"estimated by Vela {metadata.version('ethos-u-vela')}, not silicon",
        accelerator=accelerator,
        system_config=found["system_config"],
        memory_mode=found["memory_mode"],
        clock_hz=float(found["core_clock"]),
        seconds=seconds if seconds > 0 and math.isfinite(seconds) else None,
        cycles=int(float(found["cycles_total"])),
        sram_bytes=_bytes(found["sram_memory_used"]),
        dram_bytes=_bytes(found["dram_memory_used"]),
        flash_bytes=_bytes(found["on_chip_flash_memory_used"])
        + _bytes(found["off_chip_flash_memory_used"]),
        original_weight_bytes=int(found["total_original_weights"]),
        encoded_weight_bytes=int(found["total_npu_encoded_weights"]),
        operators=len(file.operators),
        cpu_operators=left,
    )


class VelaSession:
    """A compiled file; see `secateur.runtimes.Session`. It predicts nothing."""

    threads: int | None = None
    resizable = False
    output_steps: Mapping[str, float] = MappingProxyType({})

    def __init__(self, blob: bytes, source: str, accelerator: str):
        self.estimate = _estimate(blob, source, accelerator, None, None)
        self._source = source
        self._file = TfliteFile.parse(blob, source)
        self.name = f"vela {metadata.version('ethos-u-vela')}, {accelerator} (estimate)"
        self.input_names, self.output_names = tuple(self._file.inputs), tuple(self._file.outputs)
        self.input_shape: tuple[int | None, ...] = ()
        self.output_shape: tuple[int | None, ...] = ()

    def predict(self, x: Arrays, batch: int = 256) -> NoReturn:
        """Raise `SecateurError`: nothing is run."""
        raise SecateurError(
            f"predictions of {self._source} asked of Vela, which compiles and does not run; "
            "fix: take litert:reference or tflm, which compute the same integers"
        )

    def invoke_once(self, x: Arrays) -> NoReturn:
        """Raise `SecateurError`: nothing is run."""
        self.predict(x)

    def constants(self) -> list[Constant]:
        """Return weights and biases as the file stores them, each tensor once."""
        return self._file.constants()

    def operators(self) -> list[tuple[str, int]]:
        """Return (operator, how many), in order of first appearance."""
        return list(Counter(operator.name for operator in self._file.operators).items())

    def macs(self) -> int | None:
        """Return multiply-accumulates of the file; None where an operator does not tell."""
        counts = [operator.macs() for operator in self._file.operators]
        if any(count is None for count in counts):
            return None
        return sum(count for count in counts if count is not None)

    def meanings(self) -> Meanings:
        """Return nothing: there are no outputs."""
        return {}

    def input_coding(self, name: str) -> None:
        """Return nothing: there are no inputs."""

    def costs(self) -> dict[str, Any]:
        """Return the estimate."""
        return {"npu": self.estimate.to_record()}


def _table(folder: str, pattern: str) -> list[dict[str, str]]:
    paths = sorted(Path(folder).glob(pattern))
    if not paths:
        return []
    with paths[0].open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def _bytes(kib: str) -> int:
    return round(float(kib) * 1024)


def _refuse(source: str, file: TfliteFile, accelerator: str, how: str, said: str) -> NoReturn:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower() or line.startswith("Failed")]
    # Warnings are not why it stopped.
    cause = f": {telling[-1][:200]}" if telling else ""
    tensors = [t for o in file.operators for t in o.inputs if t is not None]
    packed = any(t.type in PACKED for t in tensors)
    fix = "export it as int8: Vela reads no 4-bit codes" if packed else "export it as int8"
    raise SecateurError(
        f"{source} could not be compiled for {accelerator} (Vela {how}{cause}), expected a "
        f".tflite with int8 weights and activations; fix: {fix}"
    )
