"""What a `.keras` or `.h5` file holds, read once in another process before Keras reads it here.

HDF5 never ends on some damaged files, and no exception tells; a small file may also declare
tensors of any size, or point to other files.
"""

import hashlib
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from secateur.errors import SecateurError
from secateur.runtimes import ending, one_line, run_child

# Long enough for a gigabyte from a slow disk.
SECONDS = 60
# What a small file may unfold to, in bytes, and how many times its size a large one. Keras stores
# weights as they are; of a file that was packed again, a hundredth is left where nearly all are zero.
FREE, FACTOR = 1 << 24, 100
WEIGHTS = "model.weights.h5"
_passed: set[tuple[bytes, str]] = set()


def check(path: Path) -> None:
    """Raise `SecateurError` for a file that HDF5 does not get through, or that is out of bounds."""
    try:
        with path.open("rb") as file:
            key = hashlib.file_digest(file, "sha256").digest(), path.suffix.lower()
    except OSError as error:
        raise _damaged(path, error.strerror or one_line(error)) from error
    if key in _passed:
        return
    try:
        done = run_child(["secateur.runtimes.keras_files", str(path)], timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise _damaged(path, f"reading it did not end within {SECONDS} s") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        said = lines[-1] if done.returncode == 1 and lines else f"HDF5 {ending(done.returncode)}"
        raise _damaged(path, said)
    _passed.add(key)


def stored_loss(path: Path) -> Any:
    """Return the config of the loss that a `.keras` or `.h5` file was compiled with, else None."""
    import h5py

    try:
        if path.suffix.lower() == ".h5":
            with h5py.File(path, "r") as file:
                return json.loads(file.attrs["training_config"])["loss"]
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read("config.json"))["compile_config"]["loss"]
    except (OSError, ValueError, LookupError, TypeError, zipfile.BadZipFile):
        return None


def _damaged(path: Path, why: str) -> SecateurError:
    return SecateurError(
        f"{path} could not be loaded ({why[:300]}), expected a model that Keras saved; "
        "fix: save it again"
    )


def main(path: str) -> int:
    """Read every attribute and dataset once; 1 and a line on standard error where it fails."""
    try:
        if path.lower().endswith(".h5"):
            _read(path, Path(path).stat().st_size)
        else:
            with zipfile.ZipFile(path) as archive:
                for part in archive.infolist():
                    if part.file_size > FREE + FACTOR * part.compress_size:
                        told = f"{part.filename} of {part.file_size:,} bytes"
                        raise ValueError(f"{told} in {part.compress_size:,}")
                weights = archive.read(WEIGHTS)
            _read(io.BytesIO(weights), len(weights))
    except Exception as error:  # zipfile, zlib and h5py each raise their own
        print(one_line(error), file=sys.stderr)
        return 1
    return 0


def _read(source: Any, size: int) -> None:
    import h5py

    limit, total = FREE + FACTOR * size, 0

    def visit(name: str, item: Any) -> None:
        nonlocal total
        dict(item.attrs)
        if isinstance(item, h5py.Dataset):
            total += item.size * item.dtype.itemsize
            if item.external or item.is_virtual:
                raise ValueError(f"{name} is in another file")
            if total > limit:
                raise ValueError(f"{name}, of shape {item.shape}, in a file of {size:,} bytes")
            item[()]
        else:
            for key in item:
                if isinstance(item.get(key, getlink=True), h5py.ExternalLink):
                    raise ValueError(f"{name}/{key} is in another file")

    with h5py.File(source, "r") as file:
        visit("", file)
        file.visititems(visit)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
