"""The time that a sweep says it still takes: right for points that cost by their epochs."""

import pytest

from secateur.grids import Grid
from secateur.outlook import Outlook, Tally

GRID = Grid.from_toml("""
model = "lenet-300-100"
seeds = [0, 1]
[train]
epochs = 4
[[curves]]
name = "read"
steps = [{ method = "prune", sparsity = { sweep = [0.1, 0.2, 0.3, 0.4] }, train = { epochs = 0 } }]
[[curves]]
name = "tuned"
steps = [{ method = "prune", sparsity = { sweep = [0.5, 0.6, 0.7, 0.8] }, train = { epochs = 10 } }]
""")
READ, EPOCH = 0.5, 2.0  # seconds


def cost(point):
    return READ + EPOCH * point.recipe.steps[0].train.epochs


@pytest.mark.parametrize("finished", [5, 8, 12, 15])
def test_the_estimate_counts_epochs_not_points(finished):
    points = {f"{i:02}": point for i, point in enumerate(GRID.points())}
    now, records = [100.0], {}
    outlook = Outlook(points, records.get, clock=lambda: now[0])
    truth, seeds = 0.0, set()
    for place, (name, point) in enumerate(points.items()):
        took = cost(point) + (0 if point.seed in seeds else 4 * EPOCH)
        seeds.add(point.seed)
        if place < finished:
            now[0] += took
            records[name] = {"status": "done", "seconds": {"wall": took}}
            wall = EPOCH * point.recipe.steps[0].train.epochs
            records[name]["seconds"]["wall"] = wall
        else:
            truth += took
    found = outlook.tally()
    assert found.seconds == pytest.approx(truth, rel=0.1)
    assert (found.done, found.running, found.left) == (finished, 1, 15 - finished)


def test_nothing_finished_gives_no_estimate_and_other_states_are_told():
    points = {f"{i:02}": point for i, point in enumerate(GRID.points())}
    records = {"00": {"status": "impossible"}, "01": {"status": "failed"}}
    outlook = Outlook(points, records.get)
    tally = outlook.tally(running=2)
    assert tally.seconds is None
    assert str(tally) == ("0 done, 1 impossible, 1 failed, 2 running, 12 left, time left unknown")
    records.update({name: {"status": "done"} for name in points if name not in records})
    assert str(outlook.tally()) == "14 done, 1 impossible, 1 failed, 0 running, 0 left"
    assert str(Tally(done=1, running=1, seconds=7500.0)).endswith("about 2 h 5 min")
