"""A process that takes too long or too much is ended, and what a process took is told."""

import os
import sys
import time

import pytest

from secateur.apart import Cost, Limits, run_apart
from secateur.errors import SecateurError

BIG = "x = bytearray(200 << 20)\nfor k in range(0, len(x), 4096): x[k] = 1\n"


def run(code, **limits):
    return run_apart([sys.executable, "-c", code], os.environ, Limits(**limits), "the converter")


def test_the_output_and_the_cost_of_a_process_are_told():
    done, cost = run(f"import sys, time\n{BIG}time.sleep(0.3)\nprint('out'); sys.exit('bad')")
    assert (done.returncode, done.stdout, done.stderr) == (1, "out\n", "bad\n")
    assert 0.3 <= cost.seconds < 60
    if sys.platform == "linux":
        assert cost.peak_mib is not None and 200 < cost.peak_mib < 400


def test_much_output_blocks_nobody():
    done, _ = run("print('x' * 2_000_000)")
    assert len(done.stdout) == 2_000_001


def test_a_process_that_takes_too_long_is_ended():
    begun = time.monotonic()
    with pytest.raises(SecateurError, match=r"still at work after 0.5 s .*fix: raise the limit"):
        run("import time; time.sleep(60)", seconds=0.5)
    assert time.monotonic() - begun < 20


@pytest.mark.skipif(sys.platform != "linux", reason="nothing else tells what a process holds")
def test_a_process_that_holds_too_much_is_ended():
    with pytest.raises(SecateurError, match=r"held \d+ MiB of memory, expected at most 100; fix"):
        run(f"import time\n{BIG}time.sleep(60)", memory=100 << 20)


def test_ctrl_c_ends_the_process_too(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("secateur.apart._held", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(f"import time; time.sleep(1); open({str(tmp_path / 'went on')!r}, 'w')")
    time.sleep(1.5)
    assert list(tmp_path.iterdir()) == []


def test_limits_come_from_the_environment(monkeypatch):
    assert Limits.of_environment() == Limits(seconds=3600.0, memory=None)
    monkeypatch.setenv("SECATEUR_MAX_SECONDS", "90")
    monkeypatch.setenv("SECATEUR_MAX_MEMORY", "2 GiB")
    assert Limits.of_environment() == Limits(seconds=90.0, memory=float(2 << 30))
    for wrong in ("soon", "0", "-1", "nan", "inf"):
        monkeypatch.setenv("SECATEUR_MAX_SECONDS", wrong)
        with pytest.raises(SecateurError, match=f"SECONDS='{wrong}' received, expected a number"):
            Limits.of_environment()


def test_a_cost_in_words():
    assert str(Cost(seconds=2.04, peak_mib=None)) == "2.0 s"
