"""A sweep on a real Ray cluster of two nodes, of which one goes away in the middle."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from tests.documents import ROOT

from secateur import clusters
from secateur.errors import SecateurError
from secateur.sweeps import sweep

GRID = {
    "name": "small",
    "model": "lenet-300-100",
    "data": "digits",
    "train": {"epochs": 2},
    "files": "none",
    "curves": [
        {"name": "dense"},
        {
            "name": "weights",
            "steps": [
                {
                    "method": "prune",
                    "sparsity": {"sweep": [0.5, 0.8, 0.9, 0.95]},
                    "train": {"epochs": 1},
                }
            ],
        },
        {
            "name": "broken",
            "steps": [
                {"method": "prune", "sparsity": 0.5, "train": {"learning_rate": 1e30, "epochs": 1}}
            ],
        },
    ],
}
ONE_SHOT = {
    "name": "one-shot",
    "model": "lenet-300-100",
    "data": "digits",
    "train": {"epochs": 1},
    "files": "none",
    "curves": [
        {"name": "dense"},
        *(
            {
                "name": name,
                "steps": [
                    {"sparsity": {"sweep": [0.5, 0.9, 0.999]}, "train": {"epochs": 0}, **step}
                ],
            }
            for name, step in (
                ("weights", {"method": "prune"}),
                ("units", {"method": "units", "score": "activation"}),
            )
        ),
        {
            "name": "tuned",
            "steps": [{"method": "prune", "sparsity": 0.8, "train": {"epochs": 1}}],
        },
    ],
}
SCRIPT = f"""
import sys
from ray.cluster_utils import Cluster
from secateur.sweeps import sweep

cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 1}})
node = cluster.add_node(num_cpus=1)
told = []

def say(text):
    print(text, flush=True)
    told.append(text)
    if len(told) == 3:
        cluster.remove_node(node, allow_graceful=False)
        print("NODE GONE", flush=True)

sweep({GRID!r}, seeds=2, out=sys.argv[1], cluster=cluster.address, say=say)
cluster.shutdown()
"""


def table(out):
    """What the store says, without times."""
    found = {}
    for file in out.glob("points/*/record.json"):
        record = json.loads(file.read_text())
        found[record["fingerprint"]] = {
            k: v for k, v in record.items() if k not in ("created", "seconds")
        }
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:training stopped before")  # of the point that is made to fail
@pytest.mark.skipif(find_spec("ray") is None, reason="pip install 'secateur[ray]'")
def test_a_node_that_goes_away_takes_nothing_with_it(tmp_path):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path / "cluster"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    gone = done.stdout.splitlines().index("NODE GONE")
    assert gone < len(done.stdout.splitlines()) - 3  # in the middle, not at the end
    alone = sweep(GRID, seeds=2, out=tmp_path / "alone")
    assert table(tmp_path / "cluster") == table(tmp_path / "alone")
    statuses = [record["status"] for record in alone.records]
    assert (statuses.count("done"), statuses.count("failed")) == (10, 2)


class Here:
    """Ray's calls that a sweep makes, answered in this process; tasks: what was submitted."""

    class exceptions:
        class RayError(Exception):
            pass

    def __init__(self, fail=()):
        self.tasks, self.fail = [], fail

    def remote(self, **settings):
        def remote_function(function):
            def submit(*arguments):
                self.tasks.append((function.__name__, arguments[0]))
                if len(self.tasks) in self.fail:
                    return Lost(self.exceptions.RayError("the node died 6 times"))
                return Answer(function(*[getattr(a, "value", a) for a in arguments]))

            return type("Remote", (), {"remote": staticmethod(submit)})

        return remote_function

    def put(self, value):
        return Answer(value)

    def get(self, reference):
        if isinstance(reference, Lost):
            raise reference.error
        return reference.value

    def wait(self, references, timeout):
        return references[:1], references[1:]

    def cluster_resources(self):
        return {"CPU": 1.0}

    def shutdown(self):
        pass


class Answer:
    def __init__(self, value):
        self.value = value


class Lost:
    def __init__(self, error):
        self.error = error


def test_points_that_are_computed_together_are_one_task(tmp_path, monkeypatch):
    ray, shown = Here(), []
    monkeypatch.setattr(clusters, "_connected", lambda address: ray)
    found = sweep(
        ONE_SHOT,
        out=tmp_path / "cluster",
        cluster="here",
        progress=lambda *told: shown.append(told),
    )
    sizes = [len(group) for name, group in ray.tasks if name == "_trial"]
    assert sizes == [1, 3, 3, 1]  # dense, weights, units, tuned
    assert [name for name, _ in ray.tasks].count("_train") == 1
    alone = sweep(ONE_SHOT, out=tmp_path / "alone")
    assert table(tmp_path / "cluster") == table(tmp_path / "alone") and len(found) == 8
    statuses = found.column("status")
    assert statuses.count("done") == 7 and statuses.count("impossible") == 1
    # What is told beside the bar is what a sweep on one machine tells.
    assert shown[-1] == ("points", 8, 8, "7 done, 1 impossible, 0 running, 0 left")
    assert any(text.startswith("0 done, ") or "about" in text for _, _, _, text in shown)
    again = Here()
    monkeypatch.setattr(clusters, "_connected", lambda address: again)
    sweep(ONE_SHOT, out=tmp_path / "cluster", cluster="here")
    assert again.tasks == [] and alone.path != found.path


def test_a_group_that_is_lost_again_and_again_fails_point_by_point(tmp_path, monkeypatch):
    ray = Here(fail=(3,))  # after the dense training and the dense point: the weights
    monkeypatch.setattr(clusters, "_connected", lambda address: ray)
    found = sweep(ONE_SHOT, out=tmp_path, cluster="here")
    failed = [row for row in found if row["status"] == "failed"]
    assert [row["asked"] for row in failed] == [0.5, 0.9, 0.999]
    assert all("the node died 6 times" in row["error"] for row in failed)
    assert found.column("status").count("done") == 4


@pytest.mark.skipif(find_spec("ray") is None, reason="pip install 'secateur[ray]'")
def test_a_cluster_that_is_not_there_is_said_in_one_line(tmp_path):
    with pytest.raises(SecateurError, match=r"no Ray cluster at 'nowhere:1'.*--workers") as told:
        sweep(GRID, out=tmp_path, cluster="nowhere:1")
    assert "\n" not in str(told.value)


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SecateurError, match=r"pip install 'secateur\[ray\]'"):
        sweep(GRID, out=tmp_path, cluster="auto")
