"""A sweep on a Ray cluster: points travel to the nodes, records and files come back to one store.

The driver holds the store and the claims. A network travels as its file, data as arrays, once for
each seed; a node needs nothing but this package. Ray runs lost tasks again when a node goes away.
"""

from __future__ import annotations

import logging
import socket
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras

from secateur import points
from secateur.artifact import write_atomically
from secateur.datasets import Data
from secateur.errors import SecateurError
from secateur.grids import Point
from secateur.outlook import Outlook
from secateur.point_records import unfinished
from secateur.points import Dense
from secateur.runtimes.keras import import_modules, save_model
from secateur.store import Store
from secateur.subjects import Subject

RETRIES = 5  # times that Ray runs a task again whose node or process died
AHEAD = 2  # tasks submitted for each core, so that none waits for the driver
LOOK = 5.0  # seconds between looks at points that other drivers hold


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """What a node needs for a point beside its data: the network as a file, or its built-in name."""

    model: bytes | str | None = field(repr=False)
    name: str
    imports: tuple[str, ...] = ()

    @classmethod
    def of(cls, subject: Subject, imports: tuple[str, ...]) -> Parcel:
        """The network of a subject, packed."""
        if subject.untrained:
            return cls(model=subject.name, name=subject.name, imports=imports)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{subject.name}.keras"
            save_model(subject.model, path)
            return cls(model=path.read_bytes(), name=subject.name, imports=imports)

    def subject(self, point: Point, data: Data) -> Subject:
        """The network and data, on the node."""
        import_modules(self.imports)
        if not isinstance(self.model, bytes):
            return Subject.of(point, self.model, data)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{self.name}.keras"
            path.write_bytes(self.model)
            return Subject.of(point, path, data)


def carry_out(
    work: Any, store: Store, address: str, *, progress: Any = None, say: Any = None
) -> None:
    """Compute a sweep's points on the cluster at `address` ("ray://host:10001", "auto", "local").

    Raises SecateurError where Ray is missing or the cluster cannot be reached.
    """
    ray = _connected(address)
    try:
        _Driver(ray, work, store).drive(progress, say or (lambda text: None))
    finally:
        ray.shutdown()


class _Driver:
    """The sweep's side: which points are left, which are sent, what has come back."""

    def __init__(self, ray: Any, work: Any, store: Store):
        self.ray, self.work, self.store = ray, work, store
        every, self.named = work.points(), work.named()
        self.every = {name: every[place] for place, name in self.named.items()}
        self.pending = {p: name for p, name in self.named.items() if store.read(name) is None}
        self.groups = work.groups()
        self.outlook = Outlook(self.every, store.read)
        self.running: dict[Any, tuple[dict[str, Point], Subject, ExitStack]] = {}
        self.sent: dict[tuple, tuple[Any, Any, Subject]] = {}
        self.dense: dict[str, Any] = {}
        self.train = ray.remote(max_retries=RETRIES)(_train)
        self.trial = ray.remote(max_retries=RETRIES)(_trial)

    def drive(self, progress: Any, say: Any) -> None:
        """Send and receive until every point has a record."""
        try:
            while self.pending or self.running:
                held = self._send()
                ready = self.ray.wait(list(self.running), timeout=1.0)[0] if self.running else []
                for reference in ready:
                    for point, record in self._receive(reference):
                        say(f"{point.label}: {record['error'] or record['status']}")
                if progress is not None:
                    out = sum(len(group) for group, _, _ in self.running.values())
                    tally = self.outlook.tally(out)
                    progress("points", tally.finished, len(self.every), str(tally))
                if held and not self.running:
                    time.sleep(LOOK)
        finally:
            for _, _, claims in self.running.values():
                claims.close()

    def _send(self) -> int:
        """Submit groups of points while there is room; how many points others hold."""
        cores = int(self.ray.cluster_resources().get("CPU", 1))
        held = 0
        for place in list(self.pending):
            if len(self.running) >= AHEAD * max(1, cores):
                break
            if place not in self.pending:  # went with one before it
                continue
            with ExitStack() as claims:
                group: dict[str, Point] = {}
                for mate in [p for p in self.groups[place] if p in self.pending]:
                    name = self.pending[mate]
                    if not claims.enter_context(self.store.claim(name)):
                        held += 1
                        continue
                    del self.pending[mate]
                    if self.store.read(name) is None:
                        group[name] = self.every[name]
                if group:
                    reference, subject = self._submit(list(group.values()))
                    self.running[reference] = group, subject, claims.pop_all()
        return held

    def _submit(self, group: list[Point]) -> tuple[Any, Subject]:
        """One task for points that are computed together."""
        parcel, data, subject = self._parcel(group[0])
        identity = subject.identity(group[0])
        dense = self._dense(identity, group[0], parcel, data)
        return self.trial.remote(group, identity, parcel, data, dense), subject

    def _parcel(self, point: Point) -> tuple[Any, Any, Subject]:
        key = (point.recipe.model, point.recipe.data, point.seed)
        if key not in self.sent:
            subject = self.work.subject(point)
            parcel = self.ray.put(Parcel.of(subject, self.work.imports))
            self.sent[key] = parcel, self.ray.put(subject.data), subject
        return self.sent[key]

    def _dense(self, identity: str, point: Point, parcel: Any, data: Any) -> Any:
        """The dense network: from the store, or a task that the points after it wait for."""
        if identity not in self.dense:
            kept = self.store.kept(identity)
            found = self.train.remote(point, parcel, data) if kept is None else self.ray.put(kept)
            self.dense[identity] = found
        return self.dense[identity]

    def _receive(self, reference: Any) -> list[tuple[Point, dict[str, Any]]]:
        group, subject, claims = self.running.pop(reference)
        listed = list(group.values())
        with claims:
            identity = subject.identity(listed[0])
            try:
                records, files = self.ray.get(reference)
            except self.ray.exceptions.RayError as error:  # a node lost again and again, no memory
                records, files = [unfinished(p, identity, subject, error) for p in listed], {}
            if self.store.kept(identity) is None and any(r["status"] == "done" for r in records):
                self.store.shared(identity, lambda: self.ray.get(self.dense[identity]))
            for file, content in files.items():  # of a point that stands alone
                write_atomically(self.store.folder(next(iter(group))) / file, content)
            for record in records:
                self.store.write(record)
        return list(zip(listed, records, strict=True))


def _train(point: Point, parcel: Parcel, data: Data) -> Any:
    """On a node: the dense network, as arrays and a record."""
    return points.train_dense(point, parcel.subject(point, data)).to_arrays()


def _trial(
    group: list[Point], identity: str, parcel: Parcel, data: Data, dense: Any
) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """On a node: the records of points that are computed together, and the files of one by name."""
    subject = parcel.subject(group[0], data)
    with tempfile.TemporaryDirectory() as folder:
        try:
            records = points.compute_group(
                group,
                identity,
                subject,
                Dense.from_arrays(*dense),
                folder=Path(folder),
                imports=parcel.imports,
            )
        except Exception as error:  # a point's own failure ends that point alone
            return [unfinished(p, identity, subject, error) for p in group], {}
        files = {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.is_file()}
    return records, files


def _connected(address: str) -> Any:
    try:
        import ray
    except ImportError as error:
        raise SecateurError(
            "Ray is not installed, expected it for --cluster; fix: pip install 'secateur[ray]'"
        ) from error
    _require_answer(address)
    variables = {"KERAS_BACKEND": keras.backend.backend(), "TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        ray.init(
            address=None if address == "local" else address,
            runtime_env={"env_vars": variables},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _absent(address, error) from error
    return ray


def _require_answer(address: str) -> None:
    """Raise where nobody listens: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise _absent(address, error) from error


def _absent(address: str, error: Exception) -> SecateurError:
    told = " ".join(str(error).split())[:200]
    return SecateurError(
        f"no Ray cluster at {address!r} ({told}), expected one that runs; fix: `ray start --head` "
        "there, or --workers 2 on this machine"
    )
