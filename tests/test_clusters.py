"""A sweep on a real Ray cluster of two nodes, of which one goes away in the middle."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from tests.documents import ROOT

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


@pytest.mark.skipif(find_spec("ray") is None, reason="pip install 'secateur[ray]'")
def test_a_cluster_that_is_not_there_is_said_in_one_line(tmp_path):
    with pytest.raises(SecateurError, match=r"no Ray cluster at 'nowhere:1'.*--workers") as told:
        sweep(GRID, out=tmp_path, cluster="nowhere:1")
    assert "\n" not in str(told.value)


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SecateurError, match=r"pip install 'secateur\[ray\]'"):
        sweep(GRID, out=tmp_path, cluster="auto")
