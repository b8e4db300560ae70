"""A recipe: ordered steps, one `train` block, one `export` block and a seed, as plain data.

TOML in and out, every key checked; `Recipe.plan` is the dry run. docs/decisions/003 explains how
the order of steps is validated.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import tomli_w

from secateur.arrays.schedules import Rewind, Schedule
from secateur.artifact import FORMATS
from secateur.callables import called, identity
from secateur.errors import SecateurError, nearest
from secateur.methods.fine_tune import FineTune
from secateur.methods.keep_zeros import KeepZeros
from secateur.methods.prune import Prune
from secateur.methods.quantize import Quantize
from secateur.methods.rigl import RigL
from secateur.methods.units import PruneUnits
from secateur.plan import Change, Method, Plan
from secateur.quantization import IO, MIXED
from secateur.recipes import builtin_recipes
from secateur.records import of_file, parse_toml, read_text
from secateur.training import Train
from secateur.weights import Select, WeightTable, weight_table
from secateur.widths import Specification

METHODS: dict[str, type] = {
    m.kind: m for m in (Prune, PruneUnits, RigL, KeepZeros, FineTune, Quantize)
}
_NESTED: dict[str, type] = {"schedule": Schedule, "select": Select, "rewind": Rewind}
# What a step that only trains on can be replaced by, if it would break a promise.
_TRAINED_ON = ("rigl", "keep-zeros", "fine-tune")
# What a recipe file can hold as one value: its test, and its name in a message.
_SCALARS: dict[type, tuple[Callable[[Any], bool], str]] = {
    bool: (lambda value: isinstance(value, bool), "true or false"),
    int: (
        lambda value: isinstance(value, Integral) and not isinstance(value, bool),
        "a whole number",
    ),
    float: (lambda value: isinstance(value, Real) and not isinstance(value, bool), "a number"),
    str: (lambda value: isinstance(value, str), "text"),
}
_Lower = Callable[[str, Any], Any]  # (field, function) -> what stands for the function


@dataclass(frozen=True, kw_only=True)
class Step:
    """One method and, where it differs from the recipe's, how this step trains."""

    method: Method
    train: Train | None = None


@dataclass(frozen=True, kw_only=True)
class Export:
    """Which formats are written, of the baseline and of the last stage.

    io: "int" or "float", what integer formats take in and give out. strip: leave names, metadata
    and signatures out of `.tflite` files. allow_float: keep an integer file in which an operator
    computes in float, named "mixed".
    """

    formats: tuple[str, ...] = ("keras", "float32", "dynamic")
    io: str = "int"
    strip: bool = False
    allow_float: bool = False

    def __post_init__(self) -> None:
        formats = (self.formats,) if isinstance(self.formats, str) else tuple(self.formats)
        object.__setattr__(self, "formats", formats)
        for name in formats:
            if name not in FORMATS:
                raise SecateurError(f"unknown format {name!r}; {nearest(name, FORMATS)}")
        if self.io not in IO:
            raise SecateurError(f"unknown io {self.io!r}; {nearest(self.io, IO)}")

    def settings(self) -> dict[str, Any]:
        """What `export` takes beside the formats."""
        return {"io": self.io, "strip": self.strip, "allow_float": self.allow_float}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is done to a model, in order, and everything that decides the result.

    steps: methods (or `Step`s, to train differently). train: how the baseline and the steps are
    trained. control: also train the dense model as long as the steps do, for an honest
    comparison. model, data: built-in names used when none is given. Raises SecateurError for a
    step that would break what an earlier one promised.

    >>> recipe = Recipe(steps=[Prune(sparsity=0.8)], train=Train(epochs=2))
    >>> Recipe.from_toml(recipe.to_toml()) == recipe
    True
    """

    steps: Sequence[Any] = ()  # of Step or Method; a tuple of Step once made
    train: Train = field(default_factory=Train)
    export: Export = field(default_factory=Export)
    seed: int = 0
    control: bool = True
    name: str = "recipe"
    description: str = ""
    model: str | None = None
    data: str | None = None

    def __post_init__(self) -> None:
        steps = tuple(s if isinstance(s, Step) else Step(method=s) for s in self.steps)
        object.__setattr__(self, "steps", steps)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise SecateurError(
                f"seed {self.seed!r} received, expected a whole number of at least 0"
            )
        _check_order(steps)

    def plan(self, model: Any) -> Plan:
        """What every step would do to every weight of `model`; changes nothing."""
        table = weight_table(model)
        changes: list[Change] = []
        promised: set[str] = set()
        for step in self.steps:
            plan = step.method.plan(table, zeros=promised)
            changes.extend(plan)
            if "zeros" in step.method.makes:
                promised |= set(plan.changed)
        _require_integers(self.specification(table), self.export)
        return Plan(changes)

    def specification(self, table: WeightTable, steps: int | None = None) -> Specification | None:
        """What the quantize steps (among the first `steps`) leave for export; None without one."""
        found = None
        for step in self.steps[:steps]:
            if hasattr(step.method, "specify"):
                found = step.method.specify(table, found)
        return found

    def train_of(self, step: Step) -> Train:
        """How a step trains: not at all where its method trains nothing."""
        if not getattr(step.method, "trains", True):
            return dataclasses.replace(self.train, epochs=0)
        return step.train or self.train

    def with_outputs(self, word: str) -> Recipe:
        """The recipe for a model that gives `word`, "logits" or "probabilities"."""
        train = dataclasses.replace(self.train, outputs=word)
        steps = tuple(
            dataclasses.replace(s, train=s.train and dataclasses.replace(s.train, outputs=word))
            for s in self.steps
        )
        return dataclasses.replace(self, train=train, steps=steps)

    def epochs_of(self, step: Step) -> int:
        """Epochs that a step trains in all, rounds included."""
        epochs, rewind = self.train_of(step).epochs, getattr(step.method, "rewind", None)
        return epochs if rewind is None else rewind.rounds * (epochs - int(rewind.to))

    def stage_names(self) -> tuple[str, ...]:
        """A name for the result of each step: `pruned`, `tuned`, `pruned-2`, ..."""
        names: list[str] = []
        for step in self.steps:
            stage = step.method.stage
            seen = sum(n == stage or n.startswith(f"{stage}-") for n in names)
            names.append(stage if not seen else f"{stage}-{seen + 1}")
        return tuple(names)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` turns into an equal recipe; refuses functions."""
        return self._described(_refuse_function)

    def to_record(self) -> dict[str, Any]:
        """Plain data for reading and comparing: a function stands as its name and a hash.

        >>> step = Prune(sparsity=0.5, criterion=lambda weight, rng: abs(weight))
        >>> Recipe(steps=[step]).to_record()["steps"][0]["criterion"]
        '<lambda> (function, code ...)'
        """
        return self._described(lambda name, function: identity(function))

    def to_toml(self) -> str:
        """The recipe as TOML; refuses functions."""
        return tomli_w.dumps(self.to_dict())

    def as_text(self) -> str:
        """The recipe as TOML to read; says so where functions keep it from being repeated."""
        record, found = self.to_record(), []
        self._described(lambda name, function: found.append(name))
        if not found:
            return tomli_w.dumps(record)
        return (
            f"# Not to be repeated from this file alone: it holds a function ({', '.join(found)}).\n"
            "# Give the recipe from Python, with the function itself.\n" + tomli_w.dumps(record)
        )

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Recipe:
        """A recipe from plain data; unknown keys are refused with the nearest known one."""
        found = dict(found)
        train = _build(Train, found.pop("train", {}), "[train]")
        export = _build(Export, found.pop("export", {}), "[export]")
        steps = found.pop("steps", [])
        if not isinstance(steps, list | tuple):
            raise SecateurError("`steps` must be a list: write each step as [[steps]]")
        built = [_build_step(s, train, f"step {i}") for i, s in enumerate(steps, 1)]
        return _build(cls, {**found, "steps": built, "train": train, "export": export}, "recipe")

    @classmethod
    def from_toml(cls, text: str, where: str = "recipe") -> Recipe:
        """A recipe from TOML text."""
        try:
            found = parse_toml(text)
        except ValueError as error:
            raise SecateurError(f"{where} is not valid TOML: {error}") from None
        return cls.from_dict(found)

    @classmethod
    def load(cls, name: str | Path | Recipe) -> Recipe:
        """A built-in recipe by name, or one from a `.toml` file."""
        if isinstance(name, Recipe):
            return name
        known = builtin_recipes()
        if str(name) in known:
            return cls.from_toml(known[str(name)], str(name))
        path = Path(name)
        if path.suffix == ".toml" or path.exists():
            try:
                text = read_text(path)
            except OSError as error:
                raise SecateurError(f"cannot read recipe {path}: {error.strerror}") from None
            except ValueError as error:
                raise SecateurError(f"{path} is {error}; expected a TOML recipe") from None
            with of_file(path):
                return cls.from_toml(text)
        raise SecateurError(
            f"no recipe {str(name)!r}; {nearest(str(name), known)}, or give a .toml file"
        )

    def _described(self, lower: _Lower) -> dict[str, Any]:
        found: dict[str, Any] = {
            k: getattr(self, k)
            for k in ("name", "description", "model", "data", "seed", "control")
            if getattr(self, k) is not None
        }
        found["train"] = _plain(self.train, lower)
        found["steps"] = [self._step_described(step, lower) for step in self.steps]
        found["export"] = _plain(self.export, lower)
        return found

    def _step_described(self, step: Step, lower: _Lower) -> dict[str, Any]:
        plain = {"method": step.method.kind, **_plain(step.method, lower)}
        if step.train is not None:
            plain["train"] = {
                f.name: "auto" if value is None else _lowered(f.name, value, lower)
                for f in dataclasses.fields(Train)
                if (value := getattr(step.train, f.name)) != getattr(self.train, f.name)
            }
        return plain


def _check_order(steps: Iterable[Step]) -> None:
    """Refuse a step that does not keep a kind of promise that an earlier step made."""
    made: dict[str, str] = {}
    for number, step in enumerate(steps, 1):
        method = step.method
        if step.train is not None and not getattr(method, "trains", True):
            raise SecateurError(
                f"step {number} ({method.kind}) received with a `train` block, expected none: it "
                "trains nothing; fix: leave the block out, or put a step that trains before it"
            )
        for kind, maker in made.items():
            if kind not in method.keeps:
                fix = [k for k, m in METHODS.items() if kind in m.keeps and k in _TRAINED_ON]
                instead = f", or use {' or '.join(map(repr, fix))} instead" if fix else ""
                raise SecateurError(
                    f"step {number} ({method.kind}) would break the promise {kind!r} of {maker}; "
                    f"fix: put it before {maker}{instead}"
                )
        made.update({kind: f"step {number} ({method.kind})" for kind in method.makes})


def _require_integers(found: Specification | None, export: Export) -> None:
    """Refuse kernels left in float where the file is to hold integers, before anything is trained."""
    if found is None or found.format not in MIXED or export.allow_float:
        return
    floats = [path for path, width in found.widths.items() if width.bits is None]
    if floats:
        raise SecateurError(
            f"{', '.join(floats)} left in float by the quantize step received, expected integers "
            f"throughout an {found.format} file; fix: otherwise = 8, or allow_float = true in the "
            f"export block for a file named {MIXED[found.format]}"
        )


def _build_step(found: Any, train: Train, where: str) -> Step:
    if isinstance(found, Step):
        return found
    if not isinstance(found, Mapping):
        raise SecateurError(f"{where} must be a table: write it as [[steps]]")
    found = dict(found)
    kind = found.pop("method", None)
    if not isinstance(kind, str) or kind not in METHODS:
        raise SecateurError(f"{where}: method {kind!r} received; {nearest(str(kind), METHODS)}")
    override = found.pop("train", None)
    own = (
        None
        if override is None
        else _build(Train, _merged(train, override, where), f"{where} train")
    )
    for key, cls in _NESTED.items():
        if key in found and not isinstance(found[key], cls):
            found[key] = _build(cls, found[key], f"{where} {key}")
    return Step(method=_build(METHODS[kind], found, f"{where} ({kind})"), train=own)


def _merged(train: Train, override: Any, where: str) -> dict[str, Any]:
    if not isinstance(override, Mapping):
        raise SecateurError(
            f"{where} train must be a table of keys, received {reprlib.repr(override)}"
        )
    return {**dataclasses.asdict(train), **override}


def _build(cls: type, found: Any, where: str) -> Any:
    if not isinstance(found, Mapping):
        raise SecateurError(f"{where} must be a table of keys, received {reprlib.repr(found)}")
    known = {f.name: f for f in dataclasses.fields(cls)}
    for key, value in found.items():
        if key not in known:
            raise SecateurError(f"unknown key {key!r} in {where}; {nearest(key, known)}")
        scalar = "tuple" not in str(known[key].type) and "Sequence" not in str(known[key].type)
        if isinstance(value, list) and scalar:
            raise SecateurError(
                f"{key} in {where} is a list {value}; a recipe holds one value: run it once for each"
            )
    _check_scalars(cls, found, where)
    try:
        return cls(**found)
    except TypeError as error:
        missing = [
            f.name
            for f in known.values()
            if f.default is dataclasses.MISSING
            and f.default_factory is dataclasses.MISSING
            and f.name not in found
        ]
        if missing:
            raise SecateurError(f"{where} needs {' and '.join(missing)}") from None
        raise SecateurError(f"{where}: a value has the wrong type ({error})") from None


def _check_scalars(cls: type, found: Mapping[str, Any], where: str) -> None:
    """Refuse a value of another type than its field's, where that is a scalar (or a function)."""
    hints = get_type_hints(cls)
    for key, value in found.items():
        if hints[key] == tuple[str, ...]:
            words = (value,) if isinstance(value, str) else value
            if not isinstance(words, list | tuple) or not all(isinstance(w, str) for w in words):
                raise SecateurError(f"{key} {value!r} received in {where}, expected a list of text")
        options = get_args(hints[key]) or (hints[key],)
        known = [_SCALARS[option] for option in options if option in _SCALARS]
        empty = type(None) in options and (value is None or value == "auto")
        if not known or len(known) < len(options) - (type(None) in options) - _takes_functions(
            options
        ):
            continue
        if not (empty or callable(value) or any(fits(value) for fits, _ in known)):
            raise SecateurError(
                f"{key} {value!r} received in {where}, expected {' or '.join(n for _, n in known)}"
            )


def _takes_functions(options: Sequence[Any]) -> bool:
    return any(get_origin(option) is Callable for option in options)


def _plain(config: Any, lower: _Lower) -> dict[str, Any]:
    """The fields of a config that differ from their defaults, as TOML can hold them."""
    plain: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if value is not None and value != default:
            plain[f.name] = _lowered(f.name, value, lower)
    return plain


def _lowered(name: str, value: Any, lower: _Lower) -> Any:
    if dataclasses.is_dataclass(value):
        return _plain(value, lower)
    if callable(value):
        return lower(name, value)
    return list(value) if isinstance(value, tuple) else value


def _refuse_function(name: str, function: Any) -> None:
    raise SecateurError(
        f"{name}={called(function)} is a function: it works from Python, but cannot be written into "
        "a recipe file; fix: name a built-in one, or keep the recipe in Python"
    )
