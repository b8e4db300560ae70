"""A recipe: ordered steps, one `train` block, one `export` block and a seed, as plain data.

TOML in and out, every key checked; `Recipe.plan` is the dry run. docs/decisions/003 explains how
the order of steps is validated.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from secateur.arrays.schedules import Schedule
from secateur.errors import SecateurError, nearest
from secateur.methods.fine_tune import FineTune
from secateur.methods.keep_zeros import KeepZeros
from secateur.methods.prune import Prune
from secateur.plan import Change, Method, Plan
from secateur.recipes import builtin_recipes
from secateur.training import Train
from secateur.weights import Select, weight_table

METHODS: dict[str, type] = {m.kind: m for m in (Prune, KeepZeros, FineTune)}
_NESTED: dict[str, type] = {"schedule": Schedule, "select": Select}
FORMATS = ("keras", "h5", "float32", "dynamic")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One method and, where it differs from the recipe's, how this step trains."""

    method: Method
    train: Train | None = None


@dataclass(frozen=True, kw_only=True)
class Export:
    """Which formats are written, of the baseline and of the last stage."""

    formats: tuple[str, ...] = ("keras", "float32", "dynamic")

    def __post_init__(self) -> None:
        formats = (self.formats,) if isinstance(self.formats, str) else tuple(self.formats)
        object.__setattr__(self, "formats", formats)
        for name in formats:
            if name not in FORMATS:
                raise SecateurError(f"unknown format {name!r}; {nearest(name, FORMATS)}")


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
        for step in self.steps:
            changes.extend(step.method.plan(table))
        return Plan(changes)

    def train_of(self, step: Step) -> Train:
        """How a step trains."""
        return step.train or self.train

    def stage_names(self) -> tuple[str, ...]:
        """A name for the result of each step: `pruned`, `tuned`, `pruned-2`, ..."""
        names: list[str] = []
        for step in self.steps:
            stage = step.method.stage
            seen = sum(n == stage or n.startswith(f"{stage}-") for n in names)
            names.append(stage if not seen else f"{stage}-{seen + 1}")
        return tuple(names)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` turns into an equal recipe."""
        found: dict[str, Any] = {
            k: getattr(self, k)
            for k in ("name", "description", "model", "data", "seed", "control")
            if getattr(self, k) is not None
        }
        found["train"] = _plain(self.train)
        found["steps"] = [self._step_to_dict(step) for step in self.steps]
        found["export"] = _plain(self.export)
        return found

    def to_toml(self) -> str:
        """The recipe as TOML."""
        return tomli_w.dumps(self.to_dict())

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
            found = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
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
                return cls.from_toml(path.read_text(encoding="utf-8"), str(path))
            except OSError as error:
                raise SecateurError(f"cannot read recipe {path}: {error.strerror}") from None
            except UnicodeDecodeError:
                raise SecateurError(f"{path} is not a text file; expected a TOML recipe") from None
        raise SecateurError(
            f"no recipe {str(name)!r}; {nearest(str(name), known)}, or give a .toml file"
        )

    def _step_to_dict(self, step: Step) -> dict[str, Any]:
        plain = {"method": step.method.kind, **_plain(step.method)}
        if step.train is not None:
            base = dataclasses.asdict(self.train)
            plain["train"] = {
                k: "auto" if v is None else v
                for k, v in dataclasses.asdict(step.train).items()
                if base[k] != v
            }
        return plain


def _check_order(steps: Iterable[Step]) -> None:
    """Refuse a step that does not keep a kind of promise that an earlier step made."""
    made: dict[str, str] = {}
    for number, step in enumerate(steps, 1):
        method = step.method
        for kind, maker in made.items():
            if kind not in method.keeps:
                fix = [k for k, m in METHODS.items() if kind in m.keeps and k != "prune"]
                raise SecateurError(
                    f"step {number} ({method.kind}) would break the promise {kind!r} of {maker}; "
                    f"put it before, or use {' or '.join(map(repr, fix))} instead"
                )
        made.update({kind: f"step {number} ({method.kind})" for kind in method.makes})


def _build_step(found: Any, train: Train, where: str) -> Step:
    if isinstance(found, Step):
        return found
    if not isinstance(found, Mapping):
        raise SecateurError(f"{where} must be a table: write it as [[steps]]")
    found = dict(found)
    kind = found.pop("method", None)
    if kind not in METHODS:
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
        raise SecateurError(f"{where} train must be a table of keys, received {override!r}")
    return {**dataclasses.asdict(train), **override}


def _build(cls: type, found: Any, where: str) -> Any:
    if not isinstance(found, Mapping):
        raise SecateurError(f"{where} must be a table of keys, received {found!r}")
    known = {f.name: f for f in dataclasses.fields(cls)}
    for key, value in found.items():
        if key not in known:
            raise SecateurError(f"unknown key {key!r} in {where}; {nearest(key, known)}")
        scalar = "tuple" not in str(known[key].type) and "Sequence" not in str(known[key].type)
        if isinstance(value, list) and scalar:
            raise SecateurError(
                f"{key} in {where} is a list {value}; a recipe holds one value: run it once for each"
            )
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


def _plain(config: Any) -> dict[str, Any]:
    """The fields of a config that differ from their defaults, as TOML can hold them."""
    plain: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if value == default or value is None:
            continue
        if dataclasses.is_dataclass(value):
            value = _plain(value)
        elif isinstance(value, tuple):
            value = list(value)
        elif callable(value):
            raise SecateurError(
                f"{f.name}={value.__name__} is a function: it works from Python, "
                "but cannot be written into a recipe file"
            )
        plain[f.name] = value
    return plain
