"""Commands in processes of their own that are killed at random moments, and what must hold after."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import CI

ROOT = Path(__file__).parent.parent
KILLS = int(os.environ.get("SECATEUR_KILLS", 3 if CI else 25))
# Six points of a seed: some only read, some trained.
GRID = """
name = "small"
model = "lenet-300-100"
data = "digits"
[train]
epochs = 1
[export]
formats = ["h5"]
[[curves]]
name = "dense"
[[curves]]
name = "read"
steps = [{ method = "prune", sparsity = { sweep = [0.5, 0.9] }, train = { epochs = 0 } }]
[[curves]]
name = "tuned"
steps = [{ method = "prune", sparsity = { sweep = [0.5, 0.8, 0.9] }, train = { epochs = 1 } }]
"""
TIMED = {"created", "seconds", "command", "latency", "load_ms"}
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT / "src"),
    "PYTHONUNBUFFERED": "1",
    "COLUMNS": "200",
    # One thread: sums in one order.
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
}


def untimed(record):
    """A record without what differs from one run to the next: times, and when it was made."""
    if isinstance(record, dict):
        return {key: untimed(value) for key, value in record.items() if key not in TIMED}
    return [untimed(value) for value in record] if isinstance(record, list) else record


def contents(folder):
    """Name -> contents of every file in a folder: JSON without times, bytes of all others."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            found[path.relative_to(folder).as_posix()] = (
                untimed(json.loads(data)) if path.suffix == ".json" else data
            )
    return found


def require_whole(folder):
    """Every JSON file can be read, and every file that a manifest names has its hash."""
    for path in folder.rglob("*.json"):
        if not path.name.startswith("."):
            json.loads(path.read_text())
    for manifest in folder.rglob("manifest.json"):
        for entry in json.loads(manifest.read_text())["files"]:
            data = (manifest.parent / entry["path"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == entry["sha256"], entry["path"]


class Command:
    """`secateur WORDS` in `folder`, its lines in a file; ended when the block is left."""

    def __init__(self, folder, words):
        self._lines = (folder / "lines.txt").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "secateur", *map(str, words)],
            cwd=folder, env={**ENVIRONMENT, "TMPDIR": str(folder)},
            stdout=self._lines, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self._lines.close()

    def ends(self, seconds):
        """Whether it ends in that time, and then well."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        self._lines.seek(0)
        assert code == 0, self._lines.read()
        return True


def kill_at_random(folder, words, *, seed, check, same, prepare=lambda out: None):
    """Kill `secateur WORDS` KILLS times in `folder`; "OUT" in them is where it writes.

    check(out, whole): what must hold after each kill. same(out, whole): what must hold where the
    command has come to its end, after however many kills. Returns how many ended so.
    """
    lot, ended = random.Random(seed), 0

    def start(out):
        return Command(folder, [str(word).replace("OUT", str(out)) for word in words])

    whole = folder / "whole"
    prepare(whole)
    begun = time.monotonic()
    with start(whole) as command:
        assert command.ends(600)
    seconds = time.monotonic() - begun
    out = folder / "killed-0"
    prepare(out)
    for _ in range(KILLS):
        with start(out) as command:
            if not command.ends(lot.uniform(0.05, 1.0) * seconds):
                if lot.random() < 0.5:  # its own processes must see that it is gone
                    command.process.kill()
                    command.process.wait()
                    time.sleep(lot.uniform(0, 0.3))
            else:
                same(out, whole)
                ended += 1
                out = folder / f"killed-{ended}"
                prepare(out)
        check(out, whole)
    with start(out) as command:
        assert command.ends(600)
    same(out, whole)
    return ended + 1
