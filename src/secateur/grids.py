"""A grid: a recipe in which any value may be swept, as plain data; its points are plain recipes.

`{ sweep = [...] }` stands wherever a recipe has a value. `[[curves]]` are the lines of a figure:
each is the grid's own keys with its own on top, and sweeps what it wants.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from secateur.errors import SecateurError, nearest
from secateur.recipe import Recipe, Step
from secateur.recipes import builtin_grids, builtin_recipes
from secateur.records import of_file, parse_toml, read_text, read_toml

SWEEP = "sweep"
FILES = ("all", "first-seed", "none")
# What a grid and a curve have beside the keys of a recipe.
_OWN = ("name", "description", "seeds", "files", "curves")
_RECIPE = tuple(f.name for f in dataclasses.fields(Recipe) if f.name not in _OWN)


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """A smaller network of the same kind, trained from its own start instead of compressed.

    sparsity: the share of units that each hidden layer does not have. epochs: of its training.
    """

    sparsity: float
    epochs: int


@dataclass(frozen=True, kw_only=True)
class Point:
    """One trial of a sweep: a curve, the values that were swept, and the recipe they make.

    settings: dotted path into the recipe -> value. scratch: set where a small network is trained
    instead. files: whether files are written and measured.
    """

    grid: str
    curve: str
    settings: Mapping[str, Any]
    recipe: Recipe
    scratch: Scratch | None = None
    files: bool = True

    @property
    def seed(self) -> int:
        """The seed of the dense training, of the masks and of the training after."""
        return self.recipe.seed

    @property
    def label(self) -> str:
        """What people read: the curve, what was swept, the seed."""
        words = [f"{path.rsplit('.', 1)[-1]}={value}" for path, value in self.settings.items()]
        return ", ".join([self.curve, *words, f"seed {self.seed}"])


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of the figure: its name and its keys, sweeps not yet spread."""

    name: str
    keys: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Recipes to be tried, as data.

    curves: what is compared. seeds: each point is tried with every one. files: "all" writes and
    measures the export block's formats of every point, "first-seed" of the first seed's, "none".

    >>> grid = Grid.from_toml('''
    ... name = "two"
    ... model = "lenet-300-100"
    ... data = "digits"
    ... [[curves]]
    ... name = "weights"
    ... steps = [{ method = "prune", sparsity = { sweep = [0.5, 0.9] }, train = { epochs = 0 } }]
    ... ''')
    >>> [point.label for point in grid.points()]
    ['weights, sparsity=0.5, seed 0', 'weights, sparsity=0.9, seed 0']
    """

    name: str
    curves: Sequence[Curve]
    description: str = ""
    seeds: Sequence[int] = (0,)
    files: str = "all"
    text: str = field(default="", repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.files not in FILES:
            raise SecateurError(f"files {self.files!r} received; {nearest(self.files, FILES)}")
        seeds = list(self.seeds)
        whole = all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in seeds)
        if not seeds or not whole or len(set(seeds)) != len(seeds):
            raise SecateurError(
                f"seeds {seeds} received, expected whole numbers of at least 0, each once"
            )
        names = [curve.name for curve in self.curves]
        if not names or len(set(names)) != len(names):
            raise SecateurError(
                f"curves {names} received, expected at least one, each with a name of its own"
            )
        object.__setattr__(self, "seeds", tuple(seeds))
        object.__setattr__(self, "curves", tuple(self.curves))

    def points(self, seeds: Sequence[int] | None = None) -> list[Point]:
        """Every point of every curve, seed by seed; the same grid, the same order.

        Raises SecateurError for a key or value that no recipe can have, naming the curve.
        """
        seeds = list(self.seeds if seeds is None else seeds)
        return [
            point
            for seed in seeds
            for curve in self.curves
            for point in self._spread(curve, seed, first=seed == seeds[0])
        ]

    def _spread(self, curve: Curve, seed: int, *, first: bool) -> Iterator[Point]:
        files = self.files == "all" or (self.files == "first-seed" and first)
        for settings, keys in spread(curve.keys):
            keys = {**keys, "seed": seed, "name": f"{self.name}, {curve.name}"}
            scratch = keys.pop("from_scratch", None)
            try:
                if scratch is not None:
                    scratch = _scratch(scratch)
                    if keys.get("steps"):
                        raise SecateurError(
                            "from_scratch received with steps, expected one of them"
                        )
                recipe = _of_steps(Recipe.from_dict(keys))
            except SecateurError as error:
                raise SecateurError(f"curve {curve.name!r} of {self.name}: {error}") from error
            yield Point(
                grid=self.name,
                curve=curve.name,
                settings=settings,
                recipe=recipe,
                scratch=scratch,
                files=files and bool(recipe.export.formats),
            )

    @classmethod
    def from_dict(cls, found: Mapping[str, Any], text: str = "") -> Grid:
        """A grid from plain data; unknown keys are refused with the nearest known one."""
        if not sweeps(found):
            raise SecateurError(
                f"{found.get('name', 'a recipe')!r} sweeps nothing, expected a grid: {{ sweep = [...] }}"
                " in place of a value, or [[curves]]; fix: `secateur run` carries out one recipe"
            )
        known = (*_OWN, *_RECIPE)
        for key in found:
            if key not in known:
                raise SecateurError(f"unknown key {key!r} in the grid; {nearest(key, known)}")
        curves = found.get("curves")
        base = {key: value for key, value in found.items() if key in _RECIPE and key != "seed"}
        if curves is None:  # a recipe with sweeps in it is a grid of one curve
            curves = [{"name": found.get("name", "recipe")}]
        if not isinstance(curves, list | tuple) or not all(isinstance(c, Mapping) for c in curves):
            raise SecateurError("`curves` must be a list of tables: write each as [[curves]]")
        return cls(
            name=str(found.get("name", "grid")),
            description=str(found.get("description", "")),
            seeds=_seeds(found),
            files=str(found.get("files", "all")),
            curves=[_curve(number, own, base) for number, own in enumerate(curves, 1)],
            text=text,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` turns into an equal grid."""
        return {
            "name": self.name,
            "description": self.description,
            "seeds": list(self.seeds),
            "files": self.files,
            "curves": [{"name": curve.name, **curve.keys} for curve in self.curves],
        }

    def to_toml(self) -> str:
        """The grid as TOML: its own text, else what reads back as an equal grid.

        Raises SecateurError for values that TOML cannot hold, such as a function.
        """
        if self.text:
            return self.text
        try:
            return tomli_w.dumps(self.to_dict())
        except TypeError as error:
            raise SecateurError(
                f"grid {self.name!r} holds a value that no .toml file can ({error}), expected text, "
                "numbers, lists and tables; fix: name a built-in criterion, pattern or schedule"
            ) from None

    def as_text(self) -> str:
        """The grid to read: as TOML where that can hold it, else as JSON with functions by name."""
        try:
            return self.to_toml()
        except SecateurError:
            return json.dumps(self.to_dict(), indent=1, default=str)

    @classmethod
    def from_toml(cls, text: str, where: str = "grid") -> Grid:
        """A grid from TOML text."""
        try:
            found = parse_toml(text)
        except ValueError as error:
            raise SecateurError(f"{where} is not valid TOML: {error}") from None
        return cls.from_dict(found, text)

    @classmethod
    def load(cls, name: str | Path | Grid | Mapping[str, Any]) -> Grid:
        """A built-in grid by name, one from a `.toml` file, or one from plain data."""
        if isinstance(name, Grid):
            return name
        if isinstance(name, Mapping):
            return cls.from_dict(name)
        known, path = builtin_grids(), Path(name)
        if str(name) in known:
            return cls.from_toml(known[str(name)], str(name))
        if str(name) in builtin_recipes():
            raise SecateurError(
                f"{str(name)!r} is one recipe, expected a grid of several; fix: "
                f"`secateur run {name}`, or give it {{ sweep = [...] }} in place of a value"
            )
        text = None
        try:
            text = read_text(path)
        except (OSError, ValueError) as error:
            if path.suffix == ".toml":
                cause = getattr(error, "strerror", None) or error
                raise SecateurError(f"cannot read grid {path}: {cause}") from None
        if text is not None:
            with of_file(path):
                return cls.from_toml(text)
        raise SecateurError(f"no grid {str(name)!r}; {nearest(str(name), known)}, or give a .toml")


def spread(keys: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield (settings, keys) for each combination of the values that are swept.

    >>> list(spread({"a": {"sweep": [1, 2]}, "b": 3}))
    [({'a': 1}, {'a': 1, 'b': 3}), ({'a': 2}, {'a': 2, 'b': 3})]
    """
    found = list(_sweeps(keys))
    for path, values in found:
        where = ".".join(map(str, path))
        if not isinstance(values, list | tuple) or not values:
            raise SecateurError(f"{where} sweeps {values!r}, expected a list of at least one value")
        if any(True for _ in _sweeps(values)):
            raise SecateurError(
                f"{where} has a sweep within a sweep, expected plain values; fix: write the "
                "combinations as [[curves]]"
            )
    for values in itertools.product(*(values for _, values in found)):
        chosen = {path: value for (path, _), value in zip(found, values, strict=True)}
        yield {".".join(map(str, path)): v for path, v in chosen.items()}, _settled(keys, chosen)


def sweeps(found: Any) -> bool:
    """Whether plain data are a grid: something is swept, or there are curves.

    >>> sweeps({"seed": {"sweep": [0, 1]}}), sweeps({"seed": 0})
    (True, False)
    """
    return isinstance(found, Mapping) and ("curves" in found or any(True for _ in _sweeps(found)))


def refuse_grid(name: str | Path) -> None:
    """Raise SecateurError where a recipe is wanted and a grid was named; whatever else passes.

    >>> refuse_grid("lab")
    >>> refuse_grid("challenge")
    Traceback (most recent call last):
    ...
    secateur.errors.SecateurError: 'challenge' is a grid of several recipes, expected one; fix: \
use `secateur sweep challenge`
    """
    text, found = builtin_grids().get(str(name)), None
    with contextlib.suppress(OSError, ValueError):
        if text is not None:
            found = parse_toml(text)
        elif Path(name).suffix == ".toml":
            found = read_toml(Path(name))
    if sweeps(found):
        raise SecateurError(
            f"{str(name)!r} is a grid of several recipes, expected one; fix: use "
            f"`secateur sweep {name}`"
        )


def fingerprint(*parts: Any) -> str:
    """A hash of plain data: equal data, equal name, in every process.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _sweeps(found: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    if isinstance(found, Mapping):
        if set(found) == {SWEEP}:
            yield path, found[SWEEP]
            return
        for key, value in found.items():
            yield from _sweeps(value, (*path, key))
    elif isinstance(found, list | tuple):
        for place, value in enumerate(found):
            yield from _sweeps(value, (*path, place))


def _settled(found: Any, chosen: Mapping[tuple, Any], path: tuple = ()) -> Any:
    if path in chosen:
        return chosen[path]
    if isinstance(found, Mapping):
        return {key: _settled(value, chosen, (*path, key)) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [_settled(value, chosen, (*path, place)) for place, value in enumerate(found)]
    return found


def _curve(number: int, own: Mapping[str, Any], base: Mapping[str, Any]) -> Curve:
    known = ("name", "from_scratch", *_RECIPE)
    if "seed" in own:
        raise SecateurError(
            f"curve {number} has a seed of its own, expected the same seeds for every curve; fix: "
            "seeds = [0, 1] at the top of the grid"
        )
    for key in own:
        if key not in known:
            raise SecateurError(f"unknown key {key!r} in curve {number}; {nearest(key, known)}")
    if not isinstance(own.get("name"), str):
        raise SecateurError(f'curve {number} has no name, expected name = "..." of its own')
    keys = dict(base)
    for key, value in own.items():
        if key == "name":
            continue
        both = isinstance(value, Mapping) and isinstance(keys.get(key), Mapping)
        keys[key] = {**keys[key], **value} if both and SWEEP not in value else value
    return Curve(name=own["name"], keys=keys)


def _scratch(found: Any) -> Scratch:
    if not isinstance(found, Mapping) or set(found) != {"sparsity", "epochs"}:
        raise SecateurError(
            f"from_scratch = {found!r} received, expected {{ sparsity = 0.8, epochs = 20 }}"
        )
    sparsity, epochs = found["sparsity"], found["epochs"]
    number = isinstance(sparsity, int | float) and 0 <= sparsity < 1
    if not number or not isinstance(epochs, int) or epochs < 1:
        raise SecateurError(
            f"from_scratch = {found!r} received, expected a sparsity in [0, 1) and whole epochs"
        )
    return Scratch(sparsity=float(sparsity), epochs=epochs)


def _of_steps(recipe: Recipe) -> Recipe:
    """The recipe with every step's own training written out, so that the dense one may differ."""
    steps = [Step(method=s.method, train=recipe.train_of(s)) for s in recipe.steps]
    return dataclasses.replace(recipe, steps=steps, control=False)


def _seeds(found: Mapping[str, Any]) -> list[Any]:
    """The grid's seeds: `seeds`, or a recipe's `seed`, swept or not."""
    given = [found[key] for key in ("seeds", "seed") if key in found]
    if len(given) > 1:
        raise SecateurError("both seeds and seed received, expected one; fix: leave `seed` out")
    value = given[0] if given else 0
    if isinstance(value, Mapping) and set(value) == {SWEEP}:
        value = value[SWEEP]
    return list(value) if isinstance(value, list | tuple) else [value]
