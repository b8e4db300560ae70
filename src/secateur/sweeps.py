"""Many points of a grid, computed once each: resumed, shared between processes, kept in a store.

Every process does the same: it takes the next point that nobody has finished or claimed. Workers
are such processes, and so is a second `secateur sweep` on the same folder.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from secateur import clusters, datasets, points
from secateur.artifact import refuse_records, versions, write_atomically
from secateur.compression import snapshot_for
from secateur.datasets import Data
from secateur.errors import SecateurError
from secateur.grids import Grid, Point
from secateur.outlook import Outlook
from secateur.point_records import fingerprint_of, unfinished
from secateur.points import Dense
from secateur.reporting.sweep_console import rich_tables
from secateur.reporting.sweep_page import write_sweep_html
from secateur.reporting.sweep_series import point_row
from secateur.runtimes.keras import import_modules, save_model
from secateur.shape_timing import time_shapes
from secateur.store import Store
from secateur.subjects import Subject
from secateur.training import Progress
from secateur.workers import supervise

FINISHED = ("done", "impossible", "failed")
WAIT = 0.5  # seconds between looks at points that other processes have claimed
Say = Callable[[str], None]


@dataclass(frozen=True)
class Sweep:
    """The points of a finished sweep, one record each, in the grid's order.

    In a notebook it shows as a table; `column` gives one column of it as a list.

    >>> Sweep(Path("runs"), [{"curve": "dense", "seed": 0, "status": "done"}]).column("curve")
    ['dense']
    """

    path: Path
    records: list[dict[str, Any]] = field(repr=False)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One flat row a point, with the names and values of `secateur report --csv`.

        None is what was not taken. Accuracies are fractions, times in seconds or, `_us`, microseconds.
        """
        return [point_row(record) for record in self.records]

    def column(self, name: str) -> list[Any]:
        """One column of the rows; raises SecateurError for a name that no row has."""
        rows = self.rows
        if not any(name in row for row in rows):
            known = ", ".join(dict.fromkeys(key for row in rows for key in row))
            raise SecateurError(f"no column {name!r}, expected one of {known}")
        return [row.get(name) for row in rows]

    def report(self, path: str | Path | None = None) -> Path:
        """Write the HTML page (default: report.html in the store) and return its path."""
        target = self.path / "report.html" if path is None else Path(path)
        refuse_records({"report": target}, self.path)
        return write_sweep_html(self.records, target)

    def _repr_html_(self) -> str:
        console = Console(record=True, width=130, file=io.StringIO())
        for part in rich_tables(self.records):
            console.print(part)
        return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.records)


def sweep(
    grid: str | Path | Grid | Mapping[str, Any],
    model: Any = None,
    data: Any = None,
    *,
    out: str | Path | None = None,
    seeds: int | Sequence[int] | None = None,
    workers: int = 1,
    cluster: str | None = None,
    retry: bool = False,
    imports: Sequence[str] = (),
    load: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Sweep:
    """Try every point of a grid, each once, and return their records.

    grid: a built-in one ("challenge"), a `.toml` file, a `Grid`, or plain data. model, data: as
    `run` takes them (None: the grid's). out: the store; what is finished there is not computed
    again (None: a new temporary folder). seeds: a number of them or their list (None: the grid's).
    workers: processes that share the points. cluster: a Ray cluster that computes them instead
    ("ray://host:10001", "auto" for the one this machine belongs to). retry: compute failed points
    again. load: what `load_data` takes beside the data and the seed.

    Raises SecateurError before any training when things do not fit; a point that fails is recorded
    and the sweep goes on.
    """
    say = say or (lambda text: None)
    import_modules(imports)
    grid = Grid.load(grid)
    chosen = list(range(seeds)) if isinstance(seeds, int) else seeds
    work = Work(
        grid=grid,
        model=model,
        data=data,
        seeds=tuple(grid.seeds if chosen is None else chosen),
        imports=tuple(imports),
        load=dict(load or {}),
    )
    if workers < 1:
        raise SecateurError(f"{workers} workers received, expected at least 1")
    path = Path(tempfile.mkdtemp(prefix="secateur-")) if out is None else Path(out)
    named = work.named()  # also refuses what does not fit, before anything is written
    store = Store(path, create=True)
    store.describe(grid=grid.as_text(), name=grid.name, seeds=list(work.seeds), versions=versions())
    if retry:
        for name in named.values():
            if (store.read(name) or {}).get("status") == "failed":
                store.forget(name)
    before = sum(store.read(name) is not None for name in named.values())
    if before:
        say(f"{before} of {len(named)} points are finished already")
    if cluster is not None:
        clusters.carry_out(work, store, cluster, progress=progress, say=say)
    elif workers == 1:
        carry_out(work, store, progress=progress, say=say)
    else:
        _share_out(work, store, workers, progress, say)
    every = work.points()
    points_of = {name: every[place] for place, name in named.items()}
    _rename(store, points_of)
    time_shapes(store, points_of, work.subject, say)
    store.index()
    records = [store.read(name) for name in named.values()]
    return Sweep(path, [record for record in records if record is not None])


def _rename(store: Store, named: Mapping[str, Point]) -> None:
    """Give points that an earlier grid computed the names that this one has for them."""
    for name, point in named.items():
        record = store.read(name)
        names = {"grid": point.grid, "curve": point.curve, "settings": dict(point.settings)}
        if record is not None and {key: record.get(key) for key in names} != names:
            store.write({**record, **names})


@dataclass(kw_only=True)
class Work:
    """What a process needs to compute points: plain enough to be sent to another one."""

    grid: Grid
    model: Any
    data: Any
    seeds: tuple[int, ...]
    imports: tuple[str, ...] = ()
    load: dict[str, Any] = field(default_factory=dict)
    _subjects: dict[tuple, Subject] = field(default_factory=dict, repr=False)

    def portable(self, folder: Path) -> Work:
        """The same work as another process can take it: a live model as a file in `folder`."""
        model = self.model
        if model is not None and not isinstance(model, str | Path):
            model = folder / "model" / f"{model.name}.keras"
            write_atomically(model, lambda path: save_model(self.model, path))
        if not isinstance(self.data, str | Path | Data | tuple | list | None):
            raise SecateurError(
                f"data of {type(self.data).__name__} received, which cannot be sent to another "
                "process, expected a name, a path, arrays or a Data; fix: workers=1, or load_data first"
            )
        return dataclasses.replace(self, model=model, _subjects={})

    def points(self) -> list[Point]:
        """The grid's points, in order."""
        return self.grid.points(self.seeds)

    def subject(self, point: Point) -> Subject:
        """The network and data of a point; the last ones used are kept."""
        key = (point.recipe.model, point.recipe.data, point.seed)
        if key not in self._subjects:
            source = self.data if self.data is not None else point.recipe.data
            if source is None:
                raise SecateurError(
                    f"grid {self.grid.name!r} names no data; give --data digits, or a .npz file"
                )
            loaded = datasets.load(source, seed=point.seed, **self.load)
            self._subjects = {key: Subject.of(point, self.model, loaded)}
        return self._subjects[key]

    def named(self) -> dict[int, str]:
        """Place of each point in the grid -> its fingerprint."""
        found, shared = {}, {}
        for place, point in enumerate(self.points()):
            subject = self.subject(point)
            key = (point.recipe.model, point.recipe.data, point.seed, _prefix(point))
            if key not in shared:
                shared[key] = subject.identity(point)
            found[place] = fingerprint_of(point, shared[key])
        return found

    def groups(self) -> dict[int, list[int]]:
        """Place of each point -> places of those that are computed with it, itself among them."""
        together: dict[Any, list[int]] = {}
        for place, point in enumerate(self.points()):
            key = points.one_shot_key(point, self.subject(point))
            together.setdefault(place if key is None else key, []).append(place)
        return {place: mates for mates in together.values() for place in mates}


def carry_out(
    work: Work,
    store: Store,
    *,
    progress: Progress | None = None,
    say: Say | None = None,
    limit: int | None = None,
) -> None:
    """Compute points until all are finished, here or by other processes on the same store.

    limit: leave after so many points of our own.
    """
    say = say or (lambda text: None)
    every, named = work.points(), work.named()
    read = work.subject(every[-1]).data  # the one that is still held
    if any(store.read(name) is None for name in named.values()):
        for note in read.notes:
            say(f"{read.name}: {note}")
    pending, computed = dict(named), 0
    outlook = Outlook({name: every[place] for place, name in named.items()}, store.read)
    groups = work.groups()
    while pending and (limit is None or computed < limit):
        held = 0
        for place in list(pending):
            if place not in pending:
                continue
            with ExitStack() as claims:
                ours = []
                for mate in [p for p in groups[place] if p in pending]:
                    name = pending[mate]
                    if store.read(name) is None and not claims.enter_context(store.claim(name)):
                        held += 1
                    elif store.read(name) is None:
                        ours.append(mate)
                    else:
                        del pending[mate]
                if ours:
                    _compute(work, store, {named[p]: every[p] for p in ours}, progress, say)
                    computed += len(ours)
                for mate in ours:
                    del pending[mate]
            if limit is not None and computed >= limit:
                break
            if progress is not None:
                tally = outlook.tally()
                progress("points", tally.finished, len(named), str(tally))
        if held:
            time.sleep(WAIT)


def _compute(
    work: Work, store: Store, group: Mapping[str, Point], progress: Progress | None, say: Say
) -> None:
    """Compute points (fingerprint -> point) that belong together, and write their records."""
    name, point = next(iter(group.items()))
    subject = work.subject(point)
    identity = subject.identity(point)
    for each in group:
        store.begin(each)
    try:
        dense = Dense.from_arrays(
            *store.shared(
                identity, lambda: points.train_dense(point, subject, progress).to_arrays()
            )
        )
        records = points.compute_group(
            list(group.values()),
            identity,
            subject,
            dense,
            folder=store.folder(name),
            imports=work.imports,
            progress=progress,
        )
    except Exception as error:  # a point's own failure, whatever it is, ends that point alone
        if _of_the_store(error):
            raise
        if _interrupted(error):
            raise KeyboardInterrupt from error
        records = [unfinished(p, identity, subject, error) for p in group.values()]
    for each, record in zip(group.values(), records, strict=True):
        store.write(record)
        say(f"{each.label}: {_result(record)}")


def _share_out(work: Work, store: Store, workers: int, progress: Progress | None, say: Say) -> None:
    every, named = work.points(), work.named()
    places = {name: place for place, name in named.items()}
    told = {name for name in places if store.read(name) is not None}
    outlook = Outlook({name: every[place] for name, place in places.items()}, store.read)

    def failed(name: str, cause: str) -> None:
        point = every[places[name]]
        subject = work.subject(point)
        error = SecateurError(cause)
        store.write(unfinished(point, subject.identity(point), subject, error))

    def watch(left: int, running: int) -> None:
        for name in [n for n in places if n not in told]:
            record = store.read(name)
            if record is not None:
                told.add(name)
                say(f"{every[places[name]].label}: {_result(record)}")
        if progress is not None:
            tally = outlook.tally(running)
            progress("points", tally.finished, len(named), str(tally))

    task = functools.partial(_part, work.portable(store.path))
    supervise(task, store, list(places), workers=workers, failed=failed, watch=watch)


def _part(work: Work, store: Store, limit: int) -> None:
    """What one worker does."""
    import_modules(work.imports)
    carry_out(work, store, limit=limit)


def _result(record: Mapping[str, Any]) -> str:
    accuracy = (record.get("test") or {}).get("accuracy")
    result = f"{100 * accuracy:.2f} %" if accuracy is not None else record["status"]
    return result + (f" ({record['error']})" if record["error"] else "")


def _of_the_store(error: BaseException) -> bool:
    """Whether the disk is at fault, which every other point would meet too."""
    cause = error.__cause__ if isinstance(error, SecateurError) else error
    return isinstance(cause, OSError)


def _interrupted(error: BaseException | None) -> bool:
    """Whether a Ctrl-C became this error: TensorFlow's scopes complain of how they were left."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _prefix(point: Point) -> str:
    """What of a point's recipe decides its dense network."""
    early = snapshot_for(point.recipe, 0)
    return repr((point.recipe.train, None if early is None else early.epoch))
