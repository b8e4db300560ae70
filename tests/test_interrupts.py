"""Ctrl-C and SIGTERM at any moment: one line, the exit code, and nothing that goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.conftest import CI

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}
SECONDS = 4.0 if CI else 2.0  # CI shares its cores with other tests


def start(folder, words):
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end(process, number=signal.SIGINT, *, group=False, seconds=SECONDS):
    """Send the signal; the exit code and the lines on standard error. It must end in `seconds`."""
    (os.killpg if group else os.kill)(process.pid, number)
    try:
        _, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return process.returncode, err.strip().splitlines()


def script(folder, body):
    """A command that says "here" and then does `body`."""
    text = f"""
import hashlib, os, sys, time, weakref
from secateur import interrupts, __main__
import secateur.cli
def command():
{"".join(f"    {line}" for line in body.strip().splitlines(keepends=True))}
secateur.cli.main = command
__main__.main()
"""
    process = start(folder, ["-c", text])
    assert process.stdout.readline() == "here\n", process.communicate()
    return process


SWALLOWED = """
while True:
    try:
        print("here")
        time.sleep(60)
    except BaseException:
        pass
"""
IN_A_CALLBACK = """
class Thing: pass
def callback(_):
    print("here")
    time.sleep(60)
thing = Thing()
reference = weakref.ref(thing, callback)
del thing
time.sleep(60)
"""
NATIVE = """
print("here")
hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""
MODULE = """
try:
    print("here")
    __import__("time").sleep(60)
except BaseException:
    raise ImportError("no such package")
"""
IMPORTING = """
sys.path.insert(0, "")
try:
    import slow
except ImportError:
    time.sleep(60)
"""
AFTERWARDS = """
import atexit
atexit.register(time.sleep, 60)
atexit.register(print, "here")
"""


@pytest.mark.parametrize("body", [SWALLOWED, IN_A_CALLBACK, NATIVE, IMPORTING, AFTERWARDS])
def test_ctrl_c_is_one_line_and_an_exit_code_whatever_becomes_of_the_exception(body, tmp_path):
    (tmp_path / "slow.py").write_text(MODULE)
    assert end(script(tmp_path, body)) == (130, ["error: interrupted"])


def test_a_command_that_is_done_is_no_failure(tmp_path):
    """The interpreter takes its handlers off before it ends."""
    body = """
class Last:
    def __del__(self, write=os.write, sleep=time.sleep):
        write(1, b"here\\n")
        sleep(1)
sys.last = Last()
"""
    assert end(script(tmp_path, body)) == (0, [])


def test_sigterm_has_its_own_word_and_code(tmp_path):
    code, lines = end(script(tmp_path, SWALLOWED), signal.SIGTERM)
    assert (code, lines) == (143, ["error: terminated"])


def test_a_second_ctrl_c_ends_native_code_that_holds_pythons_lock(tmp_path):
    process = script(tmp_path, 'print("here")\nsum(range(10**11))')
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.2)
    code, _ = end(process, seconds=0.5)
    assert code == -signal.SIGINT


def test_an_ignored_ctrl_c_stays_ignored(tmp_path):
    process = subprocess.Popen(
        ["sh", "-c", f"trap '' INT; exec {sys.executable} -c 'import time; from secateur import "
         "interrupts; interrupts.listen(); print(1); time.sleep(1); interrupts.finish()'"],
        env=ENVIRONMENT, cwd=tmp_path, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "1\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 0


def test_processes_that_the_command_started_end_with_it(tmp_path):
    body = (
        """
import subprocess
inner = "import subprocess; subprocess.Popen(['sleep', '61']).wait()"
child = subprocess.Popen([sys.executable, "-c", inner])
while not (own := interrupts._children(child.pid)):
    time.sleep(0.01)
print("here")
print(child.pid, *own)
"""
        + SWALLOWED
    )
    process = script(tmp_path, body)
    pids = list(map(int, process.stdout.readline().split()))
    assert len(pids) == 2
    assert end(process)[0] == 130
    limit = time.monotonic() + 2
    while any(map(stat, pids)) and time.monotonic() < limit:
        time.sleep(0.01)
    assert not any(map(stat, pids))


def stat(pid):
    """State and process group of a process; a dead one that nobody has waited for is none."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if words[0] == "Z" else (words[0], int(words[2]))


def members(group):
    every = (stat(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal())
    return [found for found in every if found is not None and found[1] == group]


def secateur(folder, *words):
    return start(folder, ["-m", "secateur", *map(str, words)])


@pytest.mark.parametrize("moment", [0.4, 2.5])
def test_ctrl_c_while_a_run_starts_up(moment, tmp_path):
    process = secateur(tmp_path, "run", "demo", "--limit", 200, "--out", "out")
    time.sleep(moment)
    code, lines = end(process)
    assert (code, len(lines)) == (130, 1), lines
    assert "the same command carries on" in lines[0]
    assert not (tmp_path / "out" / "run.json").exists()


MOMENTS = (0.2, 1, 2, 3, 4, 6, 8, 12) if not CI else (0.2, 1, 4, 8)
COMMANDS = {
    "run": ["run", "demo", "--limit", 400, "--out", "out"],
    "sweep": ["sweep", "ladder", "--model", "lenet-300-100", "--data", "digits", "--limit", 400],
    "workers": ["sweep", "ladder", "--model", "lenet-300-100", "--data", "digits", "--workers", 2],
    "export": ["export", "model.keras", "--formats", "float32,dynamic,int8,onnx", "--data", "digits",
               "--calibration", "digits"],
    "measure": ["measure", "model.keras", "--data", "digits"],
    "report": ["report", "ran", "--html", "page.html", "--notebook", "page.ipynb"],
    "targets": ["targets", "model.keras", "--data", "digits"],
}  # fmt: skip


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """A folder with a model and a Run to report."""
    folder = tmp_path_factory.mktemp("things")
    process = secateur(folder, "run", "demo", "--limit", 200, "--out", "ran")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    (folder / "model.keras").write_bytes((folder / "ran" / "baseline-keras.keras").read_bytes())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("group", [False, True], ids=["alone", "group"])
@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_at_every_moment(name, group, things):
    """As from a terminal, to the whole group, and as from `kill`, to the command alone."""
    for moment in MOMENTS[group::2]:
        process = secateur(things, *COMMANDS[name])
        try:
            process.communicate(timeout=moment)
            continue  # it had come to its end before
        except subprocess.TimeoutExpired:
            code, lines = end(process, group=group)
        said = [line for line in lines if line.startswith("error: ")]
        assert (code, len(said)) == (130, 1), (moment, lines)
        assert "interrupted" in said[0] and "Traceback" not in "".join(lines), (moment, lines)
        limit = time.monotonic() + 1
        while members(process.pid) and time.monotonic() < limit:
            time.sleep(0.05)
        assert not members(process.pid), (moment, "a process of the command goes on")
