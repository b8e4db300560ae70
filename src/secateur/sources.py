"""What a user can hand over as data, read into arrays. No framework is imported.

Names, `.npz` files, arrays, folders of images; the data sets of the frameworks through `streams`.
"""

import gzip
import io
import math
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from secateur.errors import SecateurError, nearest
from secateur.records import of_file, read_npz
from secateur.streams import Pair, first_line, gather, kind_of, refused, require_memory

NAMED = {"digits": 16.0, "mnist": 255.0, "fashion-mnist": 255.0, "plant-leaves": 255.0}
FILES = {"plant-leaves": "plant-leaves-jpeg.npz"}  # of a named data set, if not its name + .npz
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
KEYS = ("x_train", "y_train", "x_test", "y_test", "x", "y")  # of a .npz
JPEG_KEYS = ("jpeg_train", "offsets_train", "jpeg_test", "offsets_test", "classes")
NPZ_FIX = "write it with np.savez(path, x_train=..., y_train=..., x_test=..., y_test=...)"
FOLDER_FIX = "arrange it as train/<class>/*.jpg and test/<class>/*.jpg, or <class>/*.jpg"

Image = tuple[str, Path | bytes]  # what messages call it, and where or what it is
Size = tuple[int, int]  # height, width


@dataclass(frozen=True, eq=False)
class Source:
    """Raw numeric arrays, `train` or `test` or both; test None: to be held out of train.

    `scale` is what such inputs are divided by unless the user says otherwise, None: left as they
    are. `named`: a public data set, that no model of the user's own is trained on by chance.

    >>> Source("mine", (np.zeros((5, 8, 8)), None)).test is None
    True
    """

    name: str
    train: Pair | None
    test: Pair | None = None
    scale: float | None = None
    notes: tuple[str, ...] = ()
    named: bool = False


def read(spec: Any, image_size: Size | None = None) -> Source:
    """Return what `spec` names or holds as numeric arrays, before splitting and scaling.

    `spec` is what `datasets.load` takes. `image_size` (height, width), for folders of images and
    for JPEG: resize to it. Raises `SecateurError` for what is missing, damaged, infinite, too
    large for memory (`streams.MEMORY_LIMIT`), not finite or not numeric.

    >>> source = read("digits")
    >>> source.train[0].shape, source.train[0].dtype, source.scale
    ((1797, 8, 8), dtype('float64'), 16.0)
    """
    if image_size is not None and not _is_size(image_size):
        raise refused(f"image_size={image_size!r}", "(height, width) in pixels", "try (96, 96)")
    source, has_images = _read(spec, image_size)
    if image_size is not None and not has_images:
        expected = "a folder of images or a .npz of JPEG files"
        raise refused(f"image_size with {source.name}", expected, "leave it out, or resize x")
    return source


def _is_size(given: Any) -> bool:
    pair = isinstance(given, tuple | list) and len(given) == 2
    return pair and all(type(side) is int and side > 0 for side in given)


def _read(spec: Any, size: Size | None) -> tuple[Source, bool]:
    """Return the source, and whether it was decoded from image files."""
    parts = spec if isinstance(spec, tuple) and len(spec) == 2 else (spec, None)
    if any(kind_of(part) for part in parts):
        return _gathered(parts), False
    if isinstance(spec, np.ndarray):
        return Source("arrays", _checked(spec, None)), False
    if isinstance(spec, tuple) and len(spec) == 2:
        if all(isinstance(part, str | Path) for part in spec):
            return _read_folders(dict(zip(("train", "test"), map(_path, spec), strict=True)), size)
        if all(isinstance(part, tuple) and len(part) == 2 for part in spec):
            return Source("arrays", _checked(*spec[0]), _checked(*spec[1])), False
        return Source("arrays", _checked(*spec)), False
    if not isinstance(spec, str | Path):
        expected = "a name, a path, arrays, a tf.data.Dataset, a DataLoader or a PyDataset"
        raise refused(f"data of {type(spec)}", expected, "pass (x, y)")
    name = str(spec)
    if name == "digits":
        from sklearn.datasets import load_digits  # its first import takes more than a second

        digits: Any = load_digits()
        train = _checked(digits.images, digits.target)
        return Source(name, train, scale=NAMED[name], named=True), False
    if name in NAMED:
        return _read_cached(name, size)
    path = _path(spec)
    if path.is_file():
        return _read_npz(path, size, path.name, None)
    if path.is_dir():
        return _read_folder(path, size)
    expected = f"{', '.join(NAMED)}, an existing .npz file or folder of images"
    fix = "check the path" if path.suffix or len(path.parts) > 1 else nearest(name, NAMED)
    raise refused(f"data {name!r}", expected, fix)


def _path(spec: str | Path) -> Path:
    return Path(spec).expanduser()


def _read_cached(name: str, size: Size | None) -> tuple[Source, bool]:
    """Read a named data set from the first place that has it."""
    cache = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "datasets"
    own, file = os.environ.get("SECATEUR_DATA"), FILES.get(name, f"{name}.npz")
    places = [Path(folder) / file for folder in (own, cache) if folder]
    for path in places:
        if path.is_file():
            return _read_npz(path, size, name, NAMED[name])
    if name == "fashion-mnist":  # Keras caches it as the four original files
        places.append(cache / name)
        if places[-1].is_dir():
            train, test = _read_idx_folder(places[-1])
            return Source(name, train, test, NAMED[name], named=True), False
    other = (
        "pass a folder of images: train/<class>/*.jpg, test/<class>/*.jpg"
        if name in FILES
        else "let Keras fetch it once: python -c "
        f"'import keras; keras.datasets.{name.replace('-', '_')}.load_data()'"
    )
    raise refused(
        f"{name}, which is not installed,",
        f"one of {', '.join(map(str, places))}",
        f"set SECATEUR_DATA to a folder with {file}, or {other}",
    )


def _read_npz(path: Path, size: Size | None, name: str, scale: float | None) -> tuple[Source, bool]:
    try:
        arrays = read_npz(path, (*KEYS, *JPEG_KEYS))
    except (OSError, ValueError) as error:
        raise refused(
            f"{path}, unreadable ({first_line(error)}),", "plain numeric arrays", NPZ_FIX
        ) from error
    named, notes = name in NAMED, ()
    has_images = "jpeg_train" in arrays or "jpeg_test" in arrays
    if has_images:
        notes = _decode_blobs(path, arrays, size)
    with of_file(path):
        train, test = (
            None if x not in arrays else _checked(arrays[x], arrays.get(y))
            for x, y in (("x_train", "y_train"), ("x_test", "y_test"))
        )
        if train is None and "x" in arrays:
            train = _checked(arrays["x"], arrays.get("y"))
    if train is None and test is None:
        with zipfile.ZipFile(path) as archive:
            names = ", ".join(name.removesuffix(".npy") for name in archive.namelist()) or "nothing"
        raise refused(f"{path} with {names}", "x_train, y_train, x_test, y_test or x, y", NPZ_FIX)
    return Source(name, train, test, scale, notes, named), has_images


def _decode_blobs(path: Path, arrays: dict[str, np.ndarray], size: Size | None) -> tuple[str, ...]:
    """Fill x_train and x_test of a `.npz` that holds JPEG files end to end."""
    images: dict[str, list[Image]] = {}
    for part in ("train", "test"):
        if f"jpeg_{part}" not in arrays:
            continue
        blob, offsets = arrays[f"jpeg_{part}"], arrays.get(f"offsets_{part}", np.empty(0))
        whole = offsets.ndim == blob.ndim == 1 and len(offsets) > 1 and offsets.dtype.kind in "iu"
        ends = (int(offsets[0]), int(offsets[-1])) if whole else ()
        if blob.dtype != np.uint8 or ends != (0, blob.size) or (np.diff(offsets) <= 0).any():
            expected = f"uint8 jpeg_{part} and its rising offsets_{part}, from 0 to its length"
            raise refused(f"{path}, unreadable (offsets_{part}),", expected, "write the file again")
        images[part] = [
            (f"image {number} of jpeg_{part} in {path}", blob[start:end].tobytes())
            for number, (start, end) in enumerate(pairwise(offsets))
        ]
    decoded, notes = _decode(images, size)
    arrays.update({f"x_{part}": x for part, x in decoded.items()})
    names = arrays["classes"].ravel().tolist() if "classes" in arrays else []
    return (*([_class_note(names)] if names else []), *notes)


def _read_idx_folder(folder: Path) -> tuple[Pair, Pair]:
    def read(name: str, header: int) -> np.ndarray:
        try:
            content = gzip.decompress((folder / name).read_bytes())
            return np.frombuffer(content, np.uint8, offset=header)
        except Exception as error:
            fix = f"delete {folder} and let Keras fetch it again"
            raise refused(f"{folder / name} ({error})", "a gzipped IDX file", fix) from error

    def pair(part: str) -> Pair:
        images = read(f"{part}-images-idx3-ubyte.gz", header=16)
        return images.reshape(-1, 28, 28), read(f"{part}-labels-idx1-ubyte.gz", header=8)

    return pair("train"), pair("t10k")


# --- folders of images ----------------------------------------------------------------------------


def _read_folder(folder: Path, size: Size | None) -> tuple[Source, bool]:
    """Read folder/train/<class>/* and folder/test/<class>/*, or folder/<class>/*."""
    folders, images, _ = _entries(folder)
    parts = {part: folder / part for part in ("train", "test") if folder / part in folders}
    if not parts:
        return _read_folders({"train": folder}, size, folder.resolve().name)
    others = [path for path in folders if path not in parts.values()]
    mistaken = [path.name for path in others if _entries(path)[1]]
    if mistaken:
        received = f"{folder} with images in {', '.join(mistaken)}, beside {' and '.join(parts)},"
        raise refused(received, "class folders inside train and test only", FOLDER_FIX)
    left = [path.name for path in (*others, *images)]
    note = [f"left out beside {' and '.join(parts)}: {', '.join(left)}"] if left else []
    return _read_folders(parts, size, folder.resolve().name, note)


def _read_folders(
    roots: dict[str, Path], size: Size | None, name: str = "images", notes: Iterable[str] = ()
) -> tuple[Source, bool]:
    """Read root/<class>/* for each of "train" and "test"; the sorted names number the classes."""
    notes, names = list(notes), []
    images: dict[str, list[Image]] = {}
    labels: dict[str, list[int]] = {}
    for part, root in roots.items():
        if not root.is_dir():
            raise refused(f"data '{root}'", "a folder with <class>/*.jpg", "check the path")
        folders, loose, skipped = _entries(root)
        if loose or not folders:
            received = f"{root} with {len(loose)} images outside of class folders"
            raise refused(received, "a folder for each class", FOLDER_FIX)
        names = names or [path.name for path in folders]
        unknown = sorted({path.name for path in folders} - set(names))
        if unknown:
            received = f"{root} with classes that the training part lacks ({', '.join(unknown)})"
            raise refused(received, ", ".join(names), "give both parts the same class folders")
        images[part], labels[part] = [], []
        for folder in folders:
            inner, files, others = _entries(folder)
            if inner or not files:
                received = f"{folder} with {len(files)} images and {len(inner)} folders"
                raise refused(received, "the images of one class and no folder", FOLDER_FIX)
            skipped += others
            images[part] += [(str(file), file) for file in files]
            labels[part] += [names.index(folder.name)] * len(files)
        if skipped:
            notes.append(f"{part}: {len(skipped)} files that are no images left out")
    decoded, more = _decode(images, size)
    pairs = {part: (x, np.array(labels[part])) for part, x in decoded.items()}
    notes = (_class_note(names), *more, *notes)
    return Source(name, pairs.get("train"), pairs.get("test"), 255.0, notes), True


def _entries(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Return the folders, the images and the other files in a folder, sorted; no hidden ones."""
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    folders = [path for path in paths if path.is_dir()]
    files = [path for path in paths if not path.is_dir()]
    images = [path for path in files if path.suffix.lower() in IMAGES]
    return folders, images, [path for path in files if path not in set(images)]


def _class_note(names: list[str]) -> str:
    return f"classes: {', '.join(f'{number} {name}' for number, name in enumerate(names))}"


def _decode(
    images: dict[str, list[Image]], size: Size | None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return uint8 (n, height, width), or (n, height, width, 3) unless all are grey; and notes."""
    try:
        import PIL.Image as pillow
    except ImportError as error:
        raise SecateurError(
            "image files need Pillow, which is missing; fix: pip install 'secateur[images]'"
        ) from error

    def opened(image: Image) -> Any:
        return pillow.open(io.BytesIO(image[1]) if isinstance(image[1], bytes) else image[1])

    def damaged(image: Image, error: Exception) -> SecateurError:
        why = "no image of a known kind" if "identify" in str(error) else first_line(error)
        return refused(f"{image[0]}, damaged ({why}),", "a whole image", "delete or replace it")

    sizes: dict[Size, str] = {}  # and the first image that has it
    modes = set()
    for image in (image for part in images.values() for image in part):
        try:
            with opened(image) as header:
                sizes.setdefault((header.height, header.width), image[0])
                modes.add("L" if _is_grey(header) else header.mode)
        except Exception as error:  # Pillow's readers raise a dozen kinds of error
            raise damaged(image, error) from error
        if header.mode.startswith(("I", "F")):
            fix = "convert it to 8 bits a channel"
            raise refused(f"{image[0]} of mode {header.mode}", "an 8-bit image", fix)
    if size is None and len(sizes) > 1:
        two = " and ".join(f"{name} of {h}x{w}" for (h, w), name in list(sizes.items())[:2])
        raise refused(two, "images of one size", "image_size=(height, width), or resize the files")
    notes = [] if size is None else [f"images resized to {size[0]}x{size[1]}, bilinear"]
    height, width = size or next(iter(sizes))
    grey = modes == {"L"}
    shape = (height, width) if grey else (height, width, 3)
    count = sum(map(len, images.values()))
    fix = f"image_size below {(height, width)}, fewer files"
    require_memory(4 * count * math.prod(shape), f"{count:,} images of {height}x{width}", fix)
    decoded = {part: np.empty((len(items), *shape), np.uint8) for part, items in images.items()}
    for part, items in images.items():
        for number, image in enumerate(items):
            try:
                with opened(image) as file:
                    pixels = file.convert("L" if grey else "RGB")
            except Exception as error:
                raise damaged(image, error) from error
            if pixels.size != (width, height):
                pixels = pixels.resize((width, height), pillow.Resampling.BILINEAR)
            decoded[part][number] = np.asarray(pixels)
    return decoded, notes


def _is_grey(image: Any) -> bool:
    """Whether a Pillow image has no colours; a GIF has a palette even for its greys."""
    if image.mode == "P":
        palette = np.array(image.getpalette("RGB")).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in ("1", "L", "LA")


def _gathered(parts: tuple[Any, Any]) -> Source:
    """Read (train, test) of which at least one is a framework's data set."""
    pairs: dict[str, Pair] = {}
    notes, kinds = [], []
    for name, part in zip(("train", "test"), parts, strict=True):
        if kind := kind_of(part):
            # A test part is never split, and stays in the order that its user knows.
            pair, more = gather(part, fixed_order=name == "train")
            pairs[name] = _checked(*pair)
            notes += [f"{name}: {note}" for note in more]
            kinds.append(kind)
        elif isinstance(part, tuple) and len(part) == 2:
            pairs[name] = _checked(*part)
        elif part is not None:
            fix = "pass (train, test); labels belong into the data set"
            raise refused(f"a {name} part of {type(part)}", "a data set or a pair (x, y)", fix)
    return Source(kinds[0], pairs.get("train"), pairs.get("test"), notes=tuple(notes))


def _checked(x: Any, y: Any) -> Pair:
    """Return numeric, finite arrays; integer labels (n, 1) as (n,)."""
    x, y = _numeric("x", x), None if y is None else _numeric("y", y)
    if y is not None:
        if y.dtype == bool:
            y = y.astype(np.int64)
        if y.dtype.kind in "iu" and y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
    return x, y


def _numeric(name: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values)
        received = f"{name} of dtype {array.dtype}"
    except ValueError:
        array, received = np.empty(0, object), f"{name} with rows of unequal length"
    if array.dtype.kind not in "biuf":
        labels = "number the classes: y = np.unique(y, return_inverse=True)[1]"
        fix = labels if name == "y" else "give one array, all samples of one shape"
        raise refused(received, "numbers", fix)
    bad = ~np.isfinite(array) if array.dtype.kind == "f" and array.ndim else np.zeros(1, bool)
    if bad.any():
        first = f"the first in sample {np.argwhere(bad)[0][0]},"
        received = f"{name} with {np.count_nonzero(bad):,} NaN or infinite values, {first}"
        raise refused(received, "finite numbers", "drop those samples, or repair the values")
    return array
