"""Files that Secateur hands out: written whole or not at all, and described by a manifest.

Anything that puts a result on the disk goes through here. Knows no model and no file format.
"""

import glob
import gzip
import hashlib
import json
import math
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from secateur.errors import SecateurError
from secateur.records import read_json

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

# What stands in a folder of a Run or a sweep beside the files: records, and a sweep's own folders.
RECORDS = {
    "run.json", "manifest.json", "recipe.toml", "sweep.json", "index.json", "record.json", "begun.json",
}  # fmt: skip
STORED_IN = ("points", "dense", "locks", "model")
BESIDE = (".quantization.json", ".h")  # written beside a file, with its stem

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
    as it stands at `path`. `outputs` says what the numbers of each output mean (`measure`).
    """

    path: Path
    format: str
    stage: str
    bytes: int
    sha256: str
    parity: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    outputs: Mapping[str, str | None] = field(default_factory=dict)

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
    own = f".{path.stem}.{platform.node()[:20]}-"  # a pid means something on its machine alone
    temporary = path.with_name(f"{own}{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f"{glob.escape(own)}*{path.suffix}"):
            if _is_dead(left.name.removeprefix(own).removesuffix(path.suffix)):
                left.unlink(missing_ok=True)  # what a killed process had written of this very file
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


def plain(value: Any) -> Any:
    """A record as JSON can hold it: NaN and infinity become None, NumPy's numbers Python's.

    >>> import numpy as np
    >>> plain({"loss": [0.5, float("inf")], "zeros": np.int64(3)})
    {'loss': [0.5, None], 'zeros': 3}
    """
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if hasattr(value, "item") and not getattr(value, "shape", ()):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sha256(path: Path) -> str:
    """The hash of a file's bytes, as the manifest holds it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def describe(path: Path, *, format: str, stage: str, **found: Any) -> Artifact:
    """Return the `Artifact` of a file on the disk; `found`: its `parity`, `notes` and so on."""
    return Artifact(path, format, stage, path.stat().st_size, sha256(path), **found)


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


def add_to_manifest(folder: Path, artifacts: Sequence[Artifact]) -> None:
    """Write `manifest.json` with what earlier exports of the same versions wrote and is unchanged."""
    lock = folder / ".manifest.lock"
    with locked(lock, wait=True):
        before = read_record(folder / "manifest.json") or {}
        names = own_files(folder, exported=True) - {artifact.path.name for artifact in artifacts}
        files = before.get("files") if before.get("versions") == versions() else None
        kept = [
            entry
            for entry in (files if isinstance(files, list) else ())
            if isinstance(entry, dict)
            and entry.get("path") in names
            and entry.get("sha256") == sha256(folder / entry["path"])
        ]
        record = {"files": [*kept, *(a.to_record() for a in artifacts)], "versions": versions()}
        write_json_atomically(folder / "manifest.json", record)
        with suppress(OSError):
            lock.unlink()


def refuse_inputs(outputs: Mapping[str, Path | None], inputs: Iterable[str | Path | None]) -> None:
    """Refuse outputs onto what a command reads, or onto each other, before it computes anything.

    Args:
        outputs: what names each path in a message (an option, or what is written) -> the path.
        inputs: files that are read; what is no file (a built-in name, None) is passed over.

    Raises:
        SecateurError: two paths are one file, also by a link or in another case.
    """
    paths = [(name, Path(path)) for name, path in outputs.items() if path is not None]
    files = [Path(path) for path in inputs if path is not None and Path(path).is_file()]
    for place, (name, path) in enumerate(paths):
        for other, also in paths[:place]:
            if _same(path, also):
                raise SecateurError(
                    f"{name} {path} is the file of {other} too, expected a file for each; fix: "
                    "name another path"
                )
        for file in files:
            if _same(path, file):
                raise SecateurError(
                    f"{name} {path} would overwrite {file}, which this command reads; fix: name "
                    "another path or folder"
                )


def refuse_records(
    outputs: Mapping[str, Path | None],
    folder: Path | None = None,
    inputs: Iterable[str | Path | None] = (),
) -> None:
    """Refuse outputs onto a record or a file of a Run or sweep, and as `refuse_inputs` does.

    An earlier report there may be written again. folder: that of the Run or sweep which is read,
    whose files are recognised by a hard link too.

    Raises:
        SecateurError: with the path and what it is.
    """
    refuse_inputs(outputs, inputs)
    for name, path in outputs.items():
        if path is None:
            continue
        real = Path(path).resolve()
        kind = _kept_as(real)
        if kind is None and folder is not None and real.is_file() and real.stat().st_nlink > 1:
            linked = (f for f in folder.rglob("*") if f.is_file() and f.samefile(real))
            kind = next(filter(None, (_kept_as(f.resolve()) for f in linked)), None)
        if kind is not None:
            raise SecateurError(
                f"{name} {path} would overwrite {kind}, expected a new file or an earlier report; "
                "fix: name another path"
            )


def own_files(folder: Path, *, exported: bool = False) -> set[str]:
    """Names of the files that the Run in a folder wrote, finished or not, and that are still there.

    exported: those of `secateur export` too, which are no Run's.
    """
    manifest = read_record(folder / "manifest.json") or {}
    if "fingerprint" not in manifest and not exported:
        manifest = {}
    rows = (read_record(folder / "run.json") or {}).get("rows")
    begun = (read_record(folder / ".stages" / "begun.json") or {}).get("files")
    found = set()
    for entries in (manifest.get("files"), rows, begun):
        for entry in entries if isinstance(entries, list) else ():
            name = entry.get("path") if isinstance(entry, dict) else entry
            # Never a path to somewhere else, whatever an edited file says.
            if isinstance(name, str) and name and Path(name).name == name:
                found |= {name, *(Path(name).with_suffix(suffix).name for suffix in BESIDE)}
    return {name for name in found if (folder / name).is_file()}


def read_record(path: Path) -> dict[str, Any] | None:
    """The dictionary in a JSON file; None where there is none, or the file is damaged."""
    with suppress(OSError, ValueError):
        record = read_json(path)
        return record if isinstance(record, dict) else None
    return None


def _kept_as(real: Path) -> str | None:
    """What a resolved path is of a Run or sweep; None for a file that is neither's."""
    home = real.parent
    for parent in real.parents:
        if parent.name == ".stages" or (
            parent.name in STORED_IN and (parent.parent / "sweep.json").exists()
        ):
            return f"a file of {parent.parent}"
    ours = any((home / name).exists() for name in ("run.json", ".stages", "sweep.json"))
    if real.name.lower() in RECORDS and (ours or real.exists()):
        return f"a record of {home}"
    own = (home / name for name in own_files(home, exported=True))
    return f"a file of {home}" if real.exists() and any(map(real.samefile, own)) else None


def _is_dead(pid: str) -> bool:
    if os.name != "posix" or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there yet
        return one.resolve() == other.resolve()
