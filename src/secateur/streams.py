"""The data sets of the frameworks, gathered into arrays. No framework is imported.

A `tf.data.Dataset`, a torch `DataLoader`, a `keras.utils.PyDataset` are known by the names of
their classes: whoever has one has loaded its framework.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from secateur.apart import memory_limit
from secateur.errors import SecateurError

MEMORY_LIMIT = 8 * 2**30  # bytes that samples read from images or batches may fill
KINDS = {  # name of the class: (its package, what users call it)
    "DatasetV2": ("tensorflow", "tf.data.Dataset"),
    "DataLoader": ("torch", "DataLoader"),
    "PyDataset": ("keras", "PyDataset"),
}
INFINITE = -1  # what tf.data counts for a data set without an end

Pair = tuple[np.ndarray, np.ndarray | None]


def kind_of(spec: Any) -> str | None:
    """Return "tf.data.Dataset", "DataLoader" or "PyDataset", or None for anything else.

    >>> kind_of([1, 2]) is None
    True
    """
    for base in type(spec).__mro__:
        package, name = KINDS.get(base.__name__, (None, None))
        if package == base.__module__.split(".")[0]:
            return name
    return None


def gather(data: Any, *, fixed_order: bool = False) -> tuple[Pair, list[str]]:
    """Iterate once over a framework's data set; return x (n, ...) and y (n, ...) or None, and notes.

    Batches are joined, dtypes and channels stay. `fixed_order` sorts the samples by their bytes:
    a data set that shuffles gives the same arrays, and splits of them, at each reading. Raises
    `SecateurError` for several inputs, an infinite data set, more than `MEMORY_LIMIT` bytes.

    >>> (x, y), notes = gather([(np.zeros((4, 3)), np.zeros(4)), (np.ones((2, 3)), np.ones(2))])
    >>> x.shape, y.shape, notes
    ((6, 3), (6,), ['6 samples from 2 batches of a list'])
    """
    kind = kind_of(data) or type(data).__name__
    count, elements = _opened(data, kind)
    batched = kind != "DataLoader" or data.batch_size is not None or data.batch_sampler is not None
    xs, ys, size = [], [], 0
    for number, element in enumerate(_guarded(elements, kind)):
        x, y = (_array(part) for part in _two_parts(element, kind))
        if number == 0 and (kind == "tf.data.Dataset" or not batched):
            batched = _is_batch(x, y, data, kind)
        if not batched:
            x, y = x[None], None if y is None else y[None]
        rows = x.shape[:1]
        if rows == () or (y is not None and y.shape[:1] != rows):
            labels = "no y" if y is None else f"y of shape {y.shape}"
            received = f"a {kind} whose batch {number} has x of shape {x.shape} and {labels}"
            raise refused(received, "samples along the first axis", "batch x and y alike")
        size += sum(4 * part.size for part in (x, y) if part is not None)
        require_memory(max(size, size * count) if number == 0 and count else size, f"this {kind}")
        xs.append(x)
        ys.append(y)
    if not xs:
        raise refused(f"a {kind} without samples", "a sample or more", "check what fills it")
    labelled = [y for y in ys if y is not None]
    if len(labelled) not in (0, len(xs)):
        raise refused(f"a {kind} with labels in some batches", "in all or none", "check its source")
    pair = _joined("x", xs, kind), _joined("y", labelled, kind) if labelled else None
    notes = [f"{len(pair[0]):,} samples" + f" from {len(xs):,} batches" * batched + f" of a {kind}"]
    if fixed_order:
        pair = _sorted(pair)
        notes[0] += ", in the order of their bytes: its shuffling changes no split"
    if getattr(data, "drop_last", False):
        notes.append("drop_last=True: the loader leaves out the samples of its last batch")
    return pair, notes


def require_memory(size: int, what: str, fix: str = "") -> None:
    """Refuse what would fill more bytes than `MEMORY_LIMIT`; 4 a value, for it becomes float32.

    >>> require_memory(10 * 2**30, "these images", fix="image_size=(96, 96)")
    Traceback (most recent call last):
    ...
    secateur.errors.SecateurError: these images, 10.0 GiB or more in memory, received, ...
    """
    limit = memory_limit(MEMORY_LIMIT)
    if size > limit:
        streaming = "or keep your own model.fit with Prune(...).callback(), which streams"
        raise refused(
            f"{what}, {size / 2**30:.1f} GiB or more in memory,",
            f"at most {limit / 2**30:.1f} GiB",
            f"{fix or 'resize the samples, take(n) fewer'}, {streaming}, or --max-memory 16GB",
        )


def refused(received: str, expected: str, fix: str) -> SecateurError:
    """Return the error for data that cannot be used.

    >>> str(refused("no data", "a sample or more", "give some"))
    'no data received, expected a sample or more; fix: give some'
    """
    return SecateurError(f"{received} received, expected {expected}; fix: {fix}")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type when it has none.

    >>> first_line(KeyError())
    'KeyError'
    """
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _opened(data: Any, kind: str) -> tuple[int | None, Iterable]:
    """Return how many elements there are, None: unknown, and what gives them."""
    endless = refused(
        f"an infinite {kind}", "one with an end", "take(n) batches of it, no repeat()"
    )
    if kind == "tf.data.Dataset":
        count = int(data.cardinality())
        if count == INFINITE:
            raise endless
        return (count if count >= 0 else None), data.as_numpy_iterator()
    if kind == "PyDataset":
        try:
            count = data.num_batches
        except NotImplementedError:
            count = None
        if count is None:
            fix = "let num_batches return a number"
            raise refused(f"an infinite {kind} (num_batches None)", "one with an end", fix)
        data.on_epoch_begin()  # as fit does: some fill their index there
        return count, (data[number] for number in range(count))
    try:
        return len(data), data
    except TypeError:  # an IterableDataset need not know
        return None, data


def _guarded(elements: Iterable, kind: str) -> Iterable:
    """Yield the elements; what the user's own code raises becomes one line, with its cause."""
    iterator, number = iter(elements), 0
    while True:
        try:
            element = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            why = f"{type(error).__name__}: {first_line(error)}"
            fix = "iterate over it alone to see where (--debug shows the cause)"
            received = f"a {kind} that fails at element {number} ({why})"
            raise refused(received, "elements that can be read", fix) from error
        yield element
        number += 1


def _two_parts(element: Any, kind: str) -> tuple[Any, Any]:
    """Return x, and y or None; refuse what holds more than one input or target."""
    parts = tuple(element) if isinstance(element, tuple | list) else (element,)
    if isinstance(element, Mapping):
        received = f"dictionaries ({', '.join(map(str, element))})"
    elif any(isinstance(part, Mapping | tuple | list) for part in parts):
        received = "several inputs or targets"
    elif len(parts) not in (1, 2):
        received = f"{len(parts)} parts (x, y, sample weights?)"
    else:
        return parts[0], parts[1] if len(parts) == 2 else None
    fix = "map it to (x, y), an array each: one input, one target"
    raise refused(f"a {kind} of {received}", "x or (x, y)", fix)


def _array(value: Any) -> Any:
    """Return a NumPy copy, for a loader may fill the same memory again; None stays None."""
    if hasattr(value, "detach"):  # a torch tensor, perhaps on a GPU
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # NumPy has no such type
            value = value.float()
        value = value.numpy()
    return None if value is None else np.array(value)


def _is_batch(x: np.ndarray, y: np.ndarray | None, data: Any, kind: str) -> bool:
    """Whether the first element is a batch of samples, or one sample."""
    if x.ndim == 0 or (y is not None and y.ndim == 0):
        return False
    if kind == "tf.data.Dataset":
        specs = data.element_spec if isinstance(data.element_spec, tuple) else [data.element_spec]
        if all(spec.shape.rank and spec.shape[0] is None for spec in specs):
            return True  # both of one unknown length: that of the last batch
    if y is not None:
        return y.shape[:1] == x.shape[:1]
    received = f"a {kind} of elements of shape {x.shape} without labels, a batch or a sample,"
    raise refused(received, "batches", ".batch(32), without drop_remainder")


def _joined(name: str, parts: list[np.ndarray], kind: str) -> np.ndarray:
    shapes = list(dict.fromkeys(part.shape[1:] for part in parts))
    if len(shapes) > 1:
        received = f"a {kind} with {name} of shapes {shapes[0]} and {shapes[1]} a sample"
        raise refused(received, "one shape", "resize or pad the samples to one shape")
    return np.concatenate(parts)


def _sorted(pair: Pair) -> Pair:
    """Return the samples in an order that depends on what they are, not on how they came."""
    x, y = pair

    def key(row: int) -> bytes:
        digest = hashlib.blake2b(np.asarray(x[row]).tobytes(), digest_size=16)
        digest.update(b"" if y is None else np.asarray(y[row]).tobytes())
        return digest.digest()

    order = np.array(sorted(range(len(x)), key=key))
    return x[order], None if y is None else y[order]
