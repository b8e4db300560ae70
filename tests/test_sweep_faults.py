"""A sweep that is killed again and again, and one that two processes share: the same table, nothing twice."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from tests import killing
from tests.killing import ENVIRONMENT, untimed

KILLS, POINTS = 20, 12
GRID = 'seeds = [0, 1]\nfiles = "first-seed"\n' + killing.GRID
STARTED = []  # ended when a test is, however it ends
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ["KERAS_BACKEND"] != "tensorflow", reason="processes on files: no backend's own"
    ),
]


class Sweeping:
    """A real `secateur sweep` in a process of its own, its lines in a file."""

    def __init__(self, folder, out, name):
        self.lines = folder / f"{name}.txt"
        self._file = self.lines.open("w")
        words = [sys.executable, "-m", "secateur", "sweep", "grid.toml", "--out", out]
        self.process = subprocess.Popen(
            [*words, "--limit", "400"],
            cwd=folder, env=ENVIRONMENT, stdout=self._file, stderr=subprocess.STDOUT,
        )  # fmt: skip

        STARTED.append(self)

    def computed(self):
        """Labels of the points that this process said it had computed."""
        return re.findall(r"^(.*, seed \d+): \d+\.\d+ %$", self.lines.read_text(), re.MULTILINE)

    def working(self):
        return "points are finished already" in self.lines.read_text()

    def end(self):
        """Wait for it; its lines."""
        code = self.process.wait(timeout=900)
        self._file.close()
        text = self.lines.read_text()
        assert code == 0, text
        return text

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._file.close()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "grid.toml").write_text(GRID)
    yield tmp_path
    for running in STARTED:
        running.kill()
    STARTED.clear()


def finished(out):
    return {path: path.stat().st_mtime_ns for path in out.glob("points/*/record.json")}


def made(out):
    """When each point was computed; the end of a sweep only adds the latency of its shape."""
    files = out.glob("points/*/record.json")
    return {path: json.loads(path.read_text())["created"] for path in files}


def table(out):
    """Every record but for times and when it was made; the test part's every image is in it."""
    records = [json.loads(path.read_text()) for path in out.glob("points/*/record.json")]
    return {record["fingerprint"]: untimed(record) for record in records}


def wait_for(condition, seconds, process):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.01)


def test_a_sweep_killed_at_twenty_random_moments_ends_as_one_that_was_left_alone(folder):
    whole = Sweeping(folder, "whole", "whole")
    lot, out = random.Random(0), folder / "killed"
    landed, stamps, kept = [], {}, {}
    for number in range(KILLS):
        running = Sweeping(folder, "killed", f"kill-{number}")
        before = len(stamps)
        spare = POINTS - 1 - before  # points that may still be finished before the last kill
        if not before:
            wait_for(lambda: finished(out), 600, running.process)
        else:
            wait_for(running.working, 600, running.process)
            if spare * 2 > KILLS - number:  # until a point ends, and into the next one
                wait_for(lambda n=before: len(finished(out)) > n, 300, running.process)
                time.sleep(lot.uniform(0, 0.4))
            else:
                time.sleep(lot.uniform(0, 0.3 if spare > 1 else 0.02))
        running.kill()
        now = finished(out)
        assert 0 < len(now) < POINTS, f"kill {number} landed with {len(now)} of {POINTS} finished"
        assert now.items() >= stamps.items(), "a finished point was written again"
        stamps, kept = now, made(out)
        landed.append(len(now))
    last = Sweeping(folder, "killed", "last")
    text = last.end()
    assert f"{landed[-1]} of {POINTS} points are finished already" in text
    assert len(last.computed()) == POINTS - landed[-1]
    whole.end()
    assert made(out).items() >= kept.items(), "a finished point was computed again"
    assert table(out) == table(folder / "whole") and len(table(out)) == POINTS
    assert all(record["status"] == "done" for record in table(out).values())
    strange = [p for p in out.rglob("*") if p.is_file() and p.name.startswith(".")]
    assert strange == [], "a killed process left half a file"
    assert len(set(landed)) > 3, landed  # the kills met the sweep in many states


def test_two_processes_on_one_folder_share_the_work_and_do_nothing_twice(folder):
    both = [Sweeping(folder, "shared", name) for name in ("one", "two")]
    for process in both:
        process.end()
    one, two = (set(process.computed()) for process in both)
    assert not one & two and len(one | two) == POINTS
    assert [len(process.computed()) for process in both] == [len(one), len(two)]
    assert one and two, "one did all the work"
    assert len(list((folder / "shared" / "dense").iterdir())) == 2  # a seed's is trained once
    assert len(table(folder / "shared")) == POINTS


def test_a_worker_that_vanishes_is_replaced_and_nothing_is_lost(folder):
    """`--workers 2`: the children are killed one after another, the sweep goes on."""
    words = [sys.executable, "-m", "secateur", "sweep", "grid.toml", "--out", "shared"]
    running = subprocess.Popen(
        [*words, "--limit", "400", "--workers", "2"],
        cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    out = folder / "shared"
    wait_for(lambda: finished(out), 600, running)
    begun = [json.loads(p.read_text())["pid"] for p in out.glob("points/*/begun.json")]
    killed = next(pid for pid in begun if pid != running.pid)
    os.kill(killed, signal.SIGKILL)
    text, _ = running.communicate(timeout=900)
    assert running.returncode == 0, text
    records = table(out).values()
    assert len(records) == POINTS and {r["status"] for r in records} == {"done"}, text
