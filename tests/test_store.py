"""The store of a sweep: whole records or none, claims that die with their process, one line for trouble."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from secateur.errors import SecateurError
from secateur.store import FORMAT_VERSION, Store

ROOT = Path(__file__).parent.parent
NAME, OTHER = "a" * 64, "b" * 64


POINT = {"kind": "point", "curve": "w", "seed": 0, "status": "done", "sparsity": {"asked": 0.5}}


def record(name=NAME, **found):
    return {"format_version": FORMAT_VERSION, "fingerprint": name, **POINT, **found}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs", create=True)


def process(code, *arguments):
    """A real process that has `store` and prints lines."""
    begin = "import sys; from secateur.store import Store; store = Store(sys.argv[1])\n"
    return subprocess.Popen(
        [sys.executable, "-u", "-c", begin + code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# --- records --------------------------------------------------------------------------------------


def test_records_are_read_back_and_listed_in_a_fixed_order(store):
    for name in (OTHER, NAME):
        store.write(record(name, curve="w", seed=0, settings={"k": 0.5}))
    again = Store(store.path)
    assert again.read(NAME) == record(curve="w", seed=0, settings={"k": 0.5})
    assert [r["fingerprint"] for r in again.records()] == [NAME, OTHER]
    assert again.read("c" * 64) is None
    assert again.read("a" * 16 + "c" * 48) is None  # another point of the same short name


def test_the_index_is_a_cache_that_comes_back(store):
    store.write(record(curve="w", seed=3, settings={}))
    first = store.index()
    (store.path / "index.json").unlink()
    assert store.index() == first == json.loads((store.path / "index.json").read_text())
    assert first == {NAME: {"status": "done", "curve": "w", "seed": 3, "settings": {}}}
    (store.path / "index.json").write_text("{damaged")
    assert Store(store.path).read(NAME) is not None  # nothing reads it


EDITED = json.dumps(record(history={"dense": {"loss": "low"}}))


@pytest.mark.filterwarnings("ignore:.*is damaged")
@pytest.mark.parametrize(
    "content",
    ["", '{"fingerprint": "aaaa', "[]", "\x00\x01", "null", '{"a":' + "[" * 100_000, EDITED],
)
def test_a_damaged_record_counts_as_none(store, content):
    store.write(record())
    store.write(record(OTHER))
    (store.folder(NAME) / "record.json").write_text(content)
    assert store.read(NAME) is None
    assert [r["fingerprint"] for r in store.records()] == [OTHER]
    store.write(record(test={"n": 1}))
    assert store.read(NAME)["test"] == {"n": 1}


def test_the_damage_is_named(store):
    store.write(record())
    (store.folder(NAME) / "record.json").write_text(EDITED)
    with pytest.warns(
        UserWarning, match=r"record\.json is damaged \('history\.dense\.loss' is 'low',"
    ):
        assert store.read(NAME) is None


def test_the_folder_of_a_point_may_vanish(store):
    store.write(record())
    shutil.rmtree(store.path / "points")
    assert store.read(NAME) is None and store.records() == []
    store.write(record())
    assert store.read(NAME) == record()


def test_a_record_appears_whole_or_not_at_all(store, monkeypatch):
    """The process ends between the bytes and the name: what was there before stays."""
    store.write(record(attempt=1))

    def stop(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        store.write(record(attempt=2))
    monkeypatch.undo()
    assert store.read(NAME)["attempt"] == 1
    assert [p.name for p in store.folder(NAME).iterdir()] == ["record.json"]


def test_beginning_again_removes_what_a_killed_process_left(store):
    store.begin(NAME)
    (store.folder(NAME) / ".pruned-float32.4711.tflite").write_bytes(b"half")
    assert store.begun(NAME) == os.getpid()
    store.begin(NAME)
    assert [p.name for p in store.folder(NAME).iterdir()] == ["begun.json"]
    store.write(record())
    assert store.begun(NAME) is None and store.read(NAME) is not None


def test_forgetting_drops_the_point_and_its_files_but_not_one_that_is_claimed(store):
    store.write(record())
    with store.claim(NAME) as ours:
        assert ours
        store.forget(NAME)
        assert store.read(NAME) is not None
    store.forget(NAME)
    assert not store.folder(NAME).exists()


# --- what is shared -------------------------------------------------------------------------------


def test_a_shared_prefix_is_computed_once_and_again_when_damaged(store):
    calls = []

    def compute():
        calls.append(1)
        return [np.arange(3.0), np.zeros((0, 2))], {"epochs": 2}

    assert store.kept(NAME) is None
    for _ in range(2):
        arrays, about = store.shared(NAME, compute)
        assert [a.tolist() for a in arrays] == [[0.0, 1.0, 2.0], []] and about["epochs"] == 2
    assert len(calls) == 1
    file = store.path / "dense" / NAME[:16] / "weights.npz"
    whole = file.read_bytes()
    for damage in (whole[:-40], b"", whole[:60] + b"xxxx" + whole[64:]):
        file.write_bytes(damage)
        store.shared(NAME, compute)
    assert len(calls) == 4 and file.read_bytes() == whole


def test_twelve_arrays_keep_their_order(store):
    arrays = [np.full(2, i) for i in range(12)]
    store.shared(NAME, lambda: (arrays, {}))
    assert [int(a[0]) for a in Store(store.path).shared(NAME, list)[0]] == list(range(12))


# --- whose folder ---------------------------------------------------------------------------------


def one_line(told, call, *arguments, **keys):
    with pytest.raises(SecateurError, match=told) as caught:
        call(*arguments, **keys)
    assert "\n" not in str(caught.value)


def test_folders_that_hold_something_else_are_refused(tmp_path):
    one_line("holds no sweep, expected sweep.json", Store, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    one_line("holds a run", Store, tmp_path / "run", create=True)
    (tmp_path / "file").write_text("text")
    one_line("could not be written", Store, tmp_path / "file", create=True)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "sweep.json").write_text('{"format_')
    one_line("is damaged.*finished points are kept", Store, tmp_path / "damaged", create=True)


def test_another_version_is_one_clear_line_and_nothing_is_lost(store):
    store.write(record())
    text = json.dumps(record(OTHER, format_version=FORMAT_VERSION + 1))
    store.folder(OTHER).mkdir()
    (store.folder(OTHER) / "record.json").write_text(text)
    one_line("holds a point of version 2, this secateur reads version 1", store.read, OTHER)
    assert (store.folder(OTHER) / "record.json").read_text() == text
    about = json.loads((store.path / "sweep.json").read_text())
    (store.path / "sweep.json").write_text(json.dumps({**about, "format_version": 9}))
    one_line("a store of version 9, this secateur reads version 1", Store, store.path, create=True)
    assert (store.folder(NAME) / "record.json").exists()


# --- claims ---------------------------------------------------------------------------------------


def test_a_claim_is_one_process_s_and_free_at_once_when_that_is_killed(store):
    code = """
import time
with store.claim(sys.argv[2]) as ours:
    print(ours)
    time.sleep(60)
"""
    holder = process(code, store.path, NAME)
    try:
        assert holder.stdout.readline() == "True\n"
        with store.claim(NAME) as ours:
            assert not ours
        with store.claim(OTHER) as ours:
            assert ours
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        begun = time.perf_counter()
        with store.claim(NAME) as ours:
            assert ours
        assert time.perf_counter() - begun < 1
    finally:
        holder.kill()
        holder.communicate()


def test_whoever_waits_for_a_shared_prefix_takes_over_when_its_process_is_killed(store):
    code = """
import time, numpy as np
def compute():
    print("computing")
    time.sleep(60)
store.shared(sys.argv[2], compute)
"""
    first = process(code, store.path, NAME)
    assert first.stdout.readline() == "computing\n"
    code = """
import numpy as np
print("waiting")
arrays, _ = store.shared(sys.argv[2], lambda: ([np.ones(2)], {}))
print(arrays[0].sum())
"""
    second = process(code, store.path, NAME)
    try:
        assert second.stdout.readline() == "waiting\n"
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(1)
        first.send_signal(signal.SIGKILL)
        assert second.communicate(timeout=20)[0] == "2.0\n"
        assert store.kept(NAME) is not None
    finally:
        for one in (first, second):
            one.kill()
            one.communicate()


# --- a full disk ----------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 256 KiB; without the right to mount one, the test is skipped."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no right to mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_loses_nothing(small_disk):
    store = Store(small_disk / "runs", create=True)
    store.write(record())
    filler = small_disk / "filler"
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        filler.write_bytes(bytes(1 << 20))
    big = record(history=list(range(100_000)))
    one_line("could not be written \\(No space left", store.write, {**big, "fingerprint": OTHER})
    one_line("No space left", store.write, big)  # in place of what is there
    one_line("No space left", store.shared, NAME, lambda: ([np.ones(100_000)], {}))
    assert store.read(NAME) == record() and store.read(OTHER) is None and store.kept(NAME) is None
    assert not [p for p in store.path.rglob(".*") if p.is_file()]  # no half files either
    filler.unlink()
    store.write(record(OTHER))
    assert len(store.records()) == 2


def test_a_limit_on_the_size_of_files_is_a_full_disk_too(store):
    """Where no file system can be mounted: the kernel refuses the bytes (EFBIG) all the same."""
    code = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from secateur.errors import SecateurError
import json
record = json.loads(sys.argv[3])
store.write(record)
try:
    store.write({**record, "notes": list(range(10_000))})
except SecateurError as error:
    print(error)
"""
    out, err = process(code, store.path, NAME, json.dumps(record())).communicate(timeout=60)
    assert "could not be written" in out and out.count("\n") == 1 and not err
    assert store.read(NAME)["status"] == "done"


def test_a_place_where_nothing_can_be_locked_is_named(store, monkeypatch):
    def refuse(self, *arguments, **keys):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("secateur.artifact.FileLock.acquire", refuse)
    with pytest.raises(SecateurError, match="cannot be locked \\(No locks available\\)") as caught:
        with store.claim(NAME):
            pass
    assert isinstance(caught.value.__cause__, OSError)  # by which a sweep knows to stop
