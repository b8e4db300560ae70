"""Keras 2 `.h5` files that Keras 3 refuses over keys it no longer knows: mended on the way in.

Only what means nothing any more, or the same under another spelling, is touched: every entry says
under which values. The file stays as it is, and what was done is told in a warning.
"""

import json
import shutil
import tempfile
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def _is(*values: Any) -> Callable[[Any], bool]:
    return lambda value: any(value is v or (value == v and type(value) is type(v)) for v in values)


def _any(value: Any) -> bool:
    return True


# Layer -> key that its Keras 3 class does not take -> values under which it says nothing.
_SEPARABLE = {
    "groups": _is(1),
    "kernel_initializer": _any,  # of a kernel that the layer does not have: it has two others
    "kernel_regularizer": _is(None),
    "kernel_constraint": _is(None),
}
_RECURRENT = {"time_major": _is(False)}
_RANDOM = {"rng_type": _any}  # how seeds are drawn, while training
_SPATIAL = {"trainable": _any, "noise_shape": _is(None)}  # no weights that could be trained
DROPPED: dict[str, dict[str, Callable[[Any], bool]]] = {
    **{f"DepthwiseConv{n}D": {"groups": _is(1)} for n in (1, 2)},
    **{f"Conv{n}DTranspose": {"groups": _is(1)} for n in (1, 2, 3)},
    **{f"SeparableConv{n}D": _SEPARABLE for n in (1, 2)},
    **dict.fromkeys(("RNN", "SimpleRNN", "LSTM", "GRU"), _RECURRENT),
    **{f"SpatialDropout{n}D": _SPATIAL for n in (1, 2, 3)},
    **{
        f"Random{what}": _RANDOM
        for what in ("Brightness", "Contrast", "Flip", "Rotation", "Translation", "Zoom")
    },
    # Keras 3 takes the name for the layer Dot's; it is the default.
    "Attention": {"score_mode": _is("dot")},
}
# Activation that both know and compute differently.
CHANGED = {"hard_sigmoid": "0.2 x + 0.5 in Keras 2, x / 6 + 0.5 in Keras 3"}


@contextmanager
def mended(path: Path) -> Iterator[Path]:
    """Give the path of a file that Keras 3 takes: the same, or a mended copy that goes again.

    What was changed, and what Keras 3 computes differently, is told in a `UserWarning`.
    """
    config = _model_config(path)
    if config is None:
        yield path
        return
    changed = sorted(set(_activations(config)) & set(CHANGED))
    for name in changed:
        warnings.warn(f"{path}: {name} is {CHANGED[name]}: outputs differ", stacklevel=4)
    done = {} if changed else mend(config)  # what is mended must be the same model
    if not done:
        yield path
        return
    import h5py

    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        copy = Path(folder) / "model.h5"
        shutil.copyfile(path, copy)
        with h5py.File(copy, "r+") as file:
            file.attrs["model_config"] = json.dumps(config)
        said = ", ".join(f"{what} ({n} layer{'s' * (n > 1)})" for what, n in done.items())
        warnings.warn(f"{path}: mended on load: {said}", stacklevel=4)
        yield copy


def mend(config: Any) -> dict[str, int]:
    """Change a model's Keras 2 configuration in place; what was done, and to how many layers.

    >>> layer = {"class_name": "DepthwiseConv2D", "config": {"kernel_size": 3, "groups": 1}}
    >>> mend({"config": {"layers": [layer]}}), layer["config"]
    ({"DepthwiseConv2D 'groups' dropped": 1}, {'kernel_size': 3})
    """
    done: Counter[str] = Counter()
    for part in _parts(config):
        settings = part.get("config")
        if not isinstance(settings, dict):
            continue
        name = part.get("class_name")
        known = DROPPED.get(str(name), {})
        gone = [
            key for key, harmless in known.items() if key in settings and harmless(settings[key])
        ]
        for key in gone:
            del settings[key]
        if gone:
            done[f"{name} {', '.join(map(repr, gone))} dropped"] += 1
        if isinstance(settings.get("layers"), list):
            done["'/' in names is '_'"] += _rename(settings)
    return {what: n for what, n in done.items() if n}


def _rename(model: dict[str, Any]) -> int:
    """Rename layers with a '/' in their name, which Keras 3 refuses; weights are found by order."""
    layers = [layer for layer in model["layers"] if isinstance(layer, dict)]
    names: list[Any] = [
        layer.get("name") or (layer.get("config") or {}).get("name") for layer in layers
    ]
    renamed: dict[Any, str] = {
        n: n.replace("/", "_") for n in names if isinstance(n, str) and "/" in n
    }
    if not renamed or len({renamed.get(n, n) for n in names}) < len(set(names)):
        return 0

    def replaced(value: Any) -> Any:
        if isinstance(value, str):
            return renamed.get(value, value)
        if isinstance(value, list):
            return [replaced(one) for one in value]
        if isinstance(value, dict):
            return {key: replaced(one) for key, one in value.items()}
        return value

    for part in (model, *layers):
        for key in ("name", "inbound_nodes", "input_layers", "output_layers"):
            if key in part and part is not (model if key == "name" else None):
                part[key] = replaced(part[key])
    for layer in layers:
        settings = layer.get("config")
        if isinstance(settings, dict) and "name" in settings:
            settings["name"] = replaced(settings["name"])
    return len(renamed)


def _model_config(path: Path) -> Any:
    """The configuration in a file of Keras 2; None for any other, which is Keras's to judge."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            version, config = (file.attrs.get(k) for k in ("keras_version", "model_config"))
        text, version = (v.decode() if isinstance(v, bytes) else v for v in (config, version))
        if isinstance(version, str) and version.split(".")[0] not in ("1", "2"):
            return None
        return json.loads(text)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, RecursionError):
        return None


def _parts(config: Any) -> list[dict[str, Any]]:
    """Every dictionary of a configuration, nested models and wrapped layers included."""
    found, waiting = [], deque([config])
    while waiting:
        part = waiting.popleft()
        if isinstance(part, dict):
            found.append(part)
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
    return found


def _activations(config: Any) -> Iterator[str]:
    for part in _parts(config):
        for key in ("activation", "recurrent_activation"):
            if isinstance(part.get(key), str):
                yield part[key]
