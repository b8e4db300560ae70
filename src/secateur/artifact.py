"""Files that Secateur hands out: written whole or not at all, and described by a manifest.

Anything that puts a result on the disk goes through here. Knows no model and no file format.
"""

import gzip
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from secateur.errors import SecateurError

# Every format that can be written, and the suffix of its files.
FORMATS = {
    "keras": ".keras",
    "h5": ".h5",
    "float32": ".tflite",
    "sparse": ".tflite",
    "float16": ".tflite",
    "dynamic": ".tflite",
    "int8": ".tflite",
    "int16x8": ".tflite",
    "int4": ".tflite",
    "onnx": ".onnx",
    "onnx-dynamic": ".onnx",
    "onnx-int8": ".onnx",
}

# What decides the bytes of a file and the numbers measured on it.
PACKAGES = (
    "secateur",
    "keras",
    "tensorflow",
    "jax",
    "torch",
    "ai-edge-litert",
    "ai-edge-quantizer",
    "tf2onnx",
    "onnx",
    "onnxruntime",
    "numpy",
    "h5py",
)


@dataclass(frozen=True)
class Artifact:
    """A verified file: `stage` says which model, `format` how it was written.

    `parity` holds how far its outputs are from the model's, `tensors` which tensor of the file
    each weight became, `notes` what a user should know of it. `sha256` and `bytes` are of the file
    as it stands at `path`.
    """

    path: Path
    format: str
    stage: str
    bytes: int
    sha256: str
    parity: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_record(self) -> dict[str, Any]:
        """Return plain JSON data; the path is the bare file name, so that a folder can move."""
        return {**asdict(self), "path": self.path.name}


def gzip_bytes(data: bytes) -> int:
    """Return the length of `data` after gzip at level 9 without a clock: same data, same length.

    >>> gzip_bytes(bytes(1000)) < 50
    True
    """
    return len(gzip.compress(data, 9, mtime=0))


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with its suffix, that takes its place at the end.

    Whatever goes wrong before, Ctrl-C included, nothing is left behind and an older file at `path`
    stays as it was. Raises `SecateurError` where the file cannot be written (no space, no right).

    >>> with staged(Path("weights.bin")) as temporary:
    ...     temporary.suffix
    ...     _ = temporary.write_bytes(b"12")
    '.bin'
    >>> Path("weights.bin").unlink()
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        # Not error.strerror: HDF5's runs over several lines.
        cause = os.strerror(error.errno) if error.errno else type(error).__name__
        raise SecateurError(
            f"{path} could not be written ({cause}), expected a folder with "
            "space and the right to write; fix: free some space or choose another folder"
        ) from error
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:  # a folder in the way: the error above says what happened
            pass


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a lock of the operating system, which dies with its process; yield whether it is ours.

    Args:
        path: of the lock file, which stays.
        wait: for another process that holds it; else the block runs without it.

    Raises:
        SecateurError: the file cannot be written, or the folder has no locks.

    >>> with locked(Path("a.lock"), wait=False) as ours, locked(Path("a.lock"), wait=False) as also:
    ...     ours, also
    (True, False)
    >>> Path("a.lock").unlink(missing_ok=True)
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=-1 if wait else 0, poll_interval=0.2)
    except Timeout:
        yield False
        return
    except OSError as error:
        raise SecateurError(
            f"cannot write to {path.parent}, or it cannot be locked ({error.strerror}), expected "
            "space, the right to write, and locks; fix: choose another --out"
        ) from error
    try:
        yield True
    finally:
        lock.release()


def write_atomically(path: Path, content: bytes | str | Callable[[Path], Any]) -> None:
    """Write bytes, UTF-8 text, or what `content(temporary path)` writes, whole or not at all.

    Raises `SecateurError` as `staged` does.

    >>> write_atomically(Path("note.txt"), "0 or 1")
    >>> Path("note.txt").read_text(), Path("note.txt").unlink()
    ('0 or 1', None)
    """
    with staged(path) as temporary:
        if callable(content):
            content(temporary)
        else:
            data = content.encode() if isinstance(content, str) else content
            temporary.write_bytes(data)


def write_json_atomically(path: Path, record: Any) -> None:
    """Write plain data as indented JSON; NaN and unknown types are refused, not written.

    >>> write_json_atomically(Path("record.json"), {"zeros": 86})
    >>> Path("record.json").read_text().splitlines()[1], Path("record.json").unlink()
    ('  "zeros": 86', None)
    """
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, text + "\n")


def describe(path: Path, *, format: str, stage: str, **found: Any) -> Artifact:
    """Return the `Artifact` of a file on the disk; `found`: its `parity`, `tensors` and `notes`."""
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    return Artifact(path, format, stage, len(data), digest, **found)


def versions() -> dict[str, str]:
    """Return the installed versions of what decides a result; nothing is imported for it.

    >>> "numpy" in versions()
    True
    """
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def write_manifest(
    folder: Path, artifacts: Iterable[Artifact], extra: Mapping[str, Any] | None = None
) -> Path:
    """Write `manifest.json`: each file with its sha256, then versions and `extra` (recipe, seed).

    >>> write_manifest(Path("."), [], {"seed": 0}).name, Path("manifest.json").unlink()
    ('manifest.json', None)
    """
    path = folder / "manifest.json"
    files = [artifact.to_record() for artifact in artifacts]
    write_json_atomically(path, {"files": files, "versions": versions(), **(extra or {})})
    return path
