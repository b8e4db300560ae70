"""What every test shares: one backend per process, seeds, tools that CI must have, a time budget."""

import os
from pathlib import Path

# Before anything imports Keras: it reads these once, and never again.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# JAX compiles every new model's step anew, for seconds, be it the same model: what has been compiled
# once is read from disk, by every later test, worker and child. Cleared by `make clean`.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# One thread: those of several processes on shared cores spin while they wait for each other. A step of
# a small network on PyTorch took twenty times as long with two.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

if os.environ["KERAS_BACKEND"] == "torch":
    import torch  # noqa: F401 - first: loaded after another framework, its OpenMP runtime can clash

import itertools
import random
import shutil
import sys
import time

import hypothesis
import numpy as np
import pytest

CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}

# No deadline: the first example of a process pays for imports and compilation.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if CI else "local")


# Longest first, so that no worker is left alone with one of these at the end.
LONG = (
    "test_docs", "test_cli", "test_pipeline", "test_sweeps", "test_cli_sweep", "test_readme",
    "test_layers", "test_project", "test_exporting", "test_targets", "test_quantized_networks",
    "test_training_kinds", "test_onnx_export", "test_substitute", "test_resume",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    rank = {f"{name}.py": number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONG)))


def pytest_addoption(parser):
    """`make slow BUDGET=300`: a part of every file's tests, another part at every commit."""
    group = parser.getgroup("budget")
    group.addoption("--budget", type=float, help="Seconds; a file's tests start within its share.")
    group.addoption("--turn", type=int, default=0, help="Which test of each file comes first.")


def pytest_configure(config):
    """Keep to the budget, where there is one."""
    if config.getoption("--budget"):
        config.pluginmanager.register(
            Budget(config.getoption("--budget"), config.getoption("--turn"))
        )


class Budget:
    """Runs at least one test of each file, and more while the file's share of the time lasts."""

    def __init__(self, seconds: float, turn: int):
        self.seconds, self.turn = seconds, turn
        self.begun = time.monotonic()
        self.deadlines: dict[str, float] = {}
        self.started: set[str] = set()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        """Turn each file's tests, so that those left out this time come first another time."""
        files = [list(tests) for _, tests in itertools.groupby(items, lambda item: str(item.path))]
        items[:] = [test for tests in files for test in itertools.chain(*_turned(tests, self.turn))]
        self.begun = time.monotonic()
        for number, tests in enumerate(files, 1):
            self.deadlines[str(tests[0].path)] = self.seconds * number / len(files)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item):
        """Skip a test whose file has used its share; what earlier files left is the next one's."""
        path = str(item.path)
        if path in self.started and time.monotonic() - self.begun > self.deadlines[path]:
            pytest.skip(f"left for another turn: budget of {self.seconds:.0f} s, turn {self.turn}")
        self.started.add(path)


def _turned(tests, turn):
    first = turn % len(tests)
    return tests[first:], tests[:first]


@pytest.fixture(autouse=True)
def _seeded():
    """Seeds whatever is loaded; a test of pure arrays does not pay for an import of Keras."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - Keras itself draws from it
    if "keras" in sys.modules:
        import keras

        keras.utils.set_random_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _warm_converter():
    """On other backends each conversion would import TensorFlow first, for seconds."""
    if os.environ["KERAS_BACKEND"] == "tensorflow" or sys.platform != "linux":
        yield
        return
    from tests.warm_converter import warm_converter

    with warm_converter():
        yield


@pytest.fixture(scope="session")
def backend() -> str:
    """The name of the Keras backend that this process tests."""
    return os.environ["KERAS_BACKEND"]


def system_tool(*names: str, package: str) -> str:
    """The path of the first program found; missing: a skip that names it, in CI a failure."""
    for name in names:
        if path := shutil.which(name):
            return path
    message = f"{names[0]} not found; install the system package {package}"
    if CI:
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium that can run headless."""
    return system_tool("chromium", "chromium-browser", "google-chrome", package="chromium")


@pytest.fixture
def secateur(monkeypatch, capsys, tmp_path):
    """Runs a command in this process; returns exit code, standard output and error output."""
    from secateur import cli

    monkeypatch.chdir(tmp_path)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["secateur", *map(str, words)])
        for console in (cli._out, cli._err):
            monkeypatch.setattr(console, "_width", 200)
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call
