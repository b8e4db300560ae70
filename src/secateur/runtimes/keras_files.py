"""What a `.keras` or `.h5` file holds, read once in a subprocess before Keras reads it here.

HDF5 never ends on some damaged files, and no exception reports it; a small file may also declare
tensors of any size, in its weights or in its configuration, or refer to other files.
"""

import hashlib
import io
import json
import math
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from secateur.apart import FACTOR, FREE, Limits, memory_limit, run_python
from secateur.errors import SecateurError
from secateur.runtimes import ending, one_line

# Long enough for a gigabyte from a slow disk.
SECONDS = 60
WEIGHTS = "model.weights.h5"
_passed: dict[tuple[bytes, str], int] = {}


def check(path: Path) -> int:
    """Return the bytes of the tensors in a file.

    Raises `SecateurError` for one that HDF5 does not get through, or that is out of bounds.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            key = hashlib.file_digest(file, "sha256").digest(), path.suffix.lower()
    except OSError as error:
        raise _damaged(path, error.strerror or one_line(error)) from error
    if key not in _passed:
        arguments = ["secateur.runtimes.keras_files", str(path)]
        done, _ = run_python(arguments, Limits.of_file(size, SECONDS), f"reading {path}")
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            line = done.returncode == 1 and lines
            raise _damaged(path, lines[-1] if line else f"HDF5 {ending(done.returncode)}")
        _passed[key] = int(done.stdout)
    return _passed[key]


@contextmanager
def at_most(stored: int) -> Iterator[None]:
    """Refuse, within a `with`, layers that ask for more weights than `stored` bytes allow for.

    A configuration of a few bytes can ask for tensors of any size: before their memory is filled.
    """
    import keras

    limit, asked = FREE + 2 * stored, 0
    add_weight = keras.Layer.add_weight

    def counted(self: Any, *args: Any, **settings: Any) -> Any:
        nonlocal asked
        shapes = (settings.get("shape"), *args)
        shape = next((s for s in shapes if isinstance(s, tuple | list | int)), ())
        sizes = shape if isinstance(shape, tuple | list) else (shape,)
        if all(isinstance(n, int) for n in sizes):
            asked += 4 * math.prod(sizes)
        if asked > limit:
            raise ValueError(
                f"its layers up to {self.name!r}, which has a weight of shape {tuple(sizes)}, need "
                f"{asked:,} bytes of weights and the file stores {stored:,}"
            )
        return add_weight(self, *args, **settings)

    keras.Layer.add_weight = counted
    try:
        yield
    finally:
        keras.Layer.add_weight = add_weight


def stored_loss(path: Path) -> Any:
    """Return the config of the loss that a `.keras` or `.h5` file was compiled with, else None."""
    import h5py

    try:
        if path.suffix.lower() == ".h5":
            with h5py.File(path, "r") as file:
                return json.loads(file.attrs["training_config"])["loss"]
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read("config.json"))["compile_config"]["loss"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError, zipfile.BadZipFile):
        return None


def _damaged(path: Path, why: str) -> SecateurError:
    return SecateurError(
        f"{path} could not be loaded ({why[:300]}), expected a model that Keras saved; "
        "fix: save it again"
    )


def main(path: str) -> int:
    """Read every attribute and dataset once and print their bytes; 1 and a line where it fails."""
    try:
        if path.lower().endswith(".h5"):
            total = _read(path, Path(path).stat().st_size)
        else:
            with zipfile.ZipFile(path) as archive:
                _require_bounded(archive, Path(path).stat().st_size)
                weights = archive.read(WEIGHTS)
            total = _read(io.BytesIO(weights), len(weights))
    except Exception as error:  # zipfile, zlib and h5py each raise their own
        print(one_line(error), file=sys.stderr)
        return 1
    print(total)
    return 0


def _require_bounded(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse an archive whose parts, all together, unpack to out of proportion to its size."""
    total = 0
    for part in archive.infolist():
        total += part.file_size
        if total > memory_limit(FREE + FACTOR * size):
            raise ValueError(
                f"{total:,} bytes up to {part.filename} in an archive of {size:,} bytes; "
                "--max-memory raises the limit"
            )


def _read(source: Any, size: int) -> int:
    import h5py

    limit, total = memory_limit(FREE + FACTOR * size), 0

    def visit(name: str, item: Any) -> None:
        nonlocal total
        dict(item.attrs)
        if isinstance(item, h5py.Dataset):
            total += item.size * item.dtype.itemsize
            if item.external or item.is_virtual:
                raise ValueError(f"{name} is in another file")
            if total > limit:
                raise ValueError(
                    f"{name}, of shape {item.shape}, in a file of {size:,} bytes; --max-memory raises the limit"
                )
            item[()]
        else:
            for key in item:
                if isinstance(item.get(key, getlink=True), h5py.ExternalLink):
                    raise ValueError(f"{name}/{key} is in another file")

    with h5py.File(source, "r") as file:
        visit("", file)
        file.visititems(visit)
    return total


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
