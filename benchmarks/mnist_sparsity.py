"""Which way of pruning wins where: LeNet-300-100 and LeNet-5 on MNIST at 90 to 98 % zeros.

    python benchmarks/mnist_sparsity.py --tune 10 11        # chooses, on validation data only
    python benchmarks/mnist_sparsity.py --seeds 0 1 2       # reports, on the test set
    python benchmarks/mnist_sparsity.py --quick --out DIR   # a smoke test

One dense training a seed, of which an early point is kept; from there every way of pruning, and the
dense control, train for equally many epochs with the same seed and batches. Rewinding prunes in
rounds and goes back to the early point each time; its rounds add up to the same epochs. Budgets
count the dense training. Adam with cosine decay throughout. The seeds that choose (10, 11) are not
those that report; what was chosen stands in CHOSEN, what it was chosen from in the tuning record.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import keras
from recording import RECORDS, correct, load, result, save, zeros

from secateur import FineTune, Prune, Recipe, Rewind, Schedule, Step, Train, datasets, zoo
from secateur.compression import Stage, copy_model, run_step
from secateur.training import Snapshot, train


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Epochs of the dense training and of what follows; what is compared."""

    dense: int
    extra: int
    dense_rate: float
    sparsities: tuple[float, ...]
    ways: tuple[str, ...]
    allocations: tuple[str, ...]
    batch: int = 128


BUDGETS = {
    "lenet-300-100": Budget(
        dense=5,
        extra=10,
        dense_rate=0.002,
        sparsities=(0.9, 0.95, 0.98),
        ways=("one-shot", "gradual", "rewinding"),
        allocations=("uniform", "erk", "lamp"),
    ),
    "lenet-5": Budget(
        dense=2,
        extra=4,
        dense_rate=0.002,
        sparsities=(0.95, 0.98),
        ways=("gradual",),
        allocations=("lamp",),
    ),
}
# way -> what the tuning record was best with at 98 % zeros
CHOSEN = {
    "lenet-300-100": {
        "control": {"rate": 0.002},
        "one-shot": {"rate": 0.008},
        "gradual": {"rate": 0.004, "end": 0.5},
        "rewinding": {"rate": 0.016, "rounds": 5, "to": 1},
    },
    "lenet-5": {"control": {"rate": 0.001}, "gradual": {"rate": 0.004, "end": 0.5}},
}
RATES = (0.001, 0.002, 0.004, 0.008)
TRIED = {
    "lenet-300-100": {
        "control": [{"rate": rate} for rate in RATES[:3]],
        "one-shot": [{"rate": rate} for rate in RATES],
        "gradual": [
            *({"rate": rate, "end": end} for rate in RATES[:3] for end in (0.5, 0.8)),
            {"rate": 0.004, "end": 0.3},
            *({"rate": 0.008, "end": end} for end in (0.3, 0.5)),
        ],
        "rewinding": [
            *(
                {"rate": rate, "rounds": rounds, "to": to}
                for rate in RATES
                for rounds, to in ((2, 0), (5, 1))
            ),
            *({"rate": rate, "rounds": 5, "to": 1} for rate in (0.016, 0.032)),
        ],
    },
    "lenet-5": {
        "control": [{"rate": rate} for rate in (0.001, 0.002)],
        "gradual": [{"rate": rate, "end": 0.5} for rate in (0.002, 0.004)],
    },
}
TUNED = {"lenet-300-100": (("erk",), 0.98), "lenet-5": (("erk", "lamp"), 0.98)}


class Bench:
    """One seed and network: trained once, then pruned in many ways from there."""

    def __init__(self, network: str, seed: int, budget: Budget, limit: int | None = None):
        self.network, self.seed, self.budget = network, seed, budget
        self.data = datasets.load("mnist", seed=seed, limit=limit)
        keras.utils.set_random_seed(seed)
        self.dense = self._quick(zoo.build(network))
        self.points = {to: Snapshot(to) for to in (0, 1)}
        self.dense_train = self._settings(budget.dense, budget.dense_rate)
        history = train(
            self.dense,
            self.data,
            self.dense_train,
            seed=1000 * seed,
            callbacks=list(self.points.values()),
        )
        self.dense_seconds = history.seconds

    def run(self, way: str, allocation: str, sparsity: float, choice: dict) -> tuple[object, dict]:
        """The model that comes out, and how it was made."""
        method = self._method(way, allocation, sparsity, choice)
        epochs = self.budget.extra
        if way == "rewinding":  # rounds * (epochs - to) are the extra epochs
            epochs = epochs // choice["rounds"] + choice["to"]
        step = Step(method=method, train=self._settings(epochs, choice["rate"]))
        recipe = Recipe(
            steps=[Step(method=FineTune(), train=self.dense_train), step], seed=self.seed
        )
        assert recipe.epochs_of(recipe.steps[1]) == self.budget.extra
        before = Stage(
            name="dense",
            method="fine-tune",
            model=self.dense,
            early=self.points[choice.get("to", 0)],
        )
        model = self._quick(copy_model(self.dense))
        begun = time.perf_counter()
        run_step(model, recipe, 1, self.data, name=way, before=before)
        made = {
            "network": self.network,
            "way": way,
            "allocation": allocation,
            "sparsity": sparsity,
            "choice": choice,
            "seconds": round(time.perf_counter() - begun, 1),
        }
        return model, made

    def _quick(self, model):
        if self.network == "lenet-5":
            model.layers[0].supports_jit = False  # XLA's convolutions on a CPU take twice as long
        return model

    def _settings(self, epochs: int, rate: float) -> Train:
        batch = self.budget.batch
        return Train(batch_size=batch, epochs=epochs, learning_rate=rate, decay="cosine")

    def _method(self, way: str, allocation: str, sparsity: float, choice: dict):
        if way == "control":
            return FineTune()
        shape = {
            "one-shot": {"schedule": Schedule(shape="one-shot")},
            "gradual": {"schedule": Schedule(end=choice.get("end", 1.0))},
            "rewinding": {"rewind": Rewind(rounds=choice.get("rounds", 5), to=choice.get("to", 1))},
        }[way]
        return Prune(sparsity=sparsity, allocation=allocation, **shape)


def variants(network: str, budget: Budget) -> list[tuple[str, str, float, dict]]:
    """What is reported of a network, the control first."""
    chosen = CHOSEN[network]
    return [("control", "", 0.0, chosen["control"])] + [
        (way, allocation, sparsity, chosen[way])
        for sparsity in budget.sparsities
        for way in budget.ways
        for allocation in budget.allocations
    ]


def tried(network: str) -> list[tuple[str, str, float, dict]]:
    """What is tried of a network on validation data."""
    allocations, sparsity = TUNED[network]
    return [
        (way, "", 0.0, choice) if way == "control" else (way, allocation, sparsity, choice)
        for way, choices in TRIED[network].items()
        for allocation in (allocations if way != "control" else ("",))
        for choice in choices
    ]


def key(run: dict) -> tuple:
    """What tells two runs of one record apart."""
    names = ("network", "way", "allocation", "sparsity")
    return (*(run[name] for name in names), tuple(sorted(run["choice"].items())))


def main() -> None:
    """Tune or report; skip what the record already holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--tune", type=int, nargs="*", default=[], metavar="SEED")
    parser.add_argument("--networks", nargs="*", default=list(BUDGETS), choices=list(BUDGETS))
    parser.add_argument("--out", type=Path, default=RECORDS)
    parser.add_argument("--quick", action="store_true", help="300 images, least epochs")
    given = parser.parse_args()
    if given.quick and given.out == RECORDS:
        parser.error("--quick needs --out: its figures mean nothing")
    limit = 300 if given.quick else None
    for seed in given.tune or given.seeds:
        kind = "tuning-" if given.tune else "seed-"
        file = given.out / f"mnist-sparsity-{kind}{seed}.json"
        budgets = {name: asdict(budget) for name, budget in BUDGETS.items()}
        record = load(file, {"seed": seed, "quick": given.quick, "budgets": budgets})
        for network in given.networks:
            wanted = tried(network) if given.tune else variants(network, BUDGETS[network])
            work(file, record, network, seed, wanted, limit, tune=bool(given.tune))


def work(
    file: Path,
    record: dict,
    network: str,
    seed: int,
    wanted: list,
    limit: int | None,
    *,
    tune: bool,
) -> None:
    """Run what the record lacks of a network."""
    known = {key(run) for run in record["runs"]}
    names = ("network", "way", "allocation", "sparsity", "choice")
    missing = [w for w in wanted if key(dict(zip(names, (network, *w), strict=True))) not in known]
    if not missing:
        return
    bench = Bench(network, seed, BUDGETS[network], limit)
    split = bench.data.validation if tune else bench.data.test
    record["n"] = len(split)
    if not tune and ("dense", network) not in {(r["way"], r["network"]) for r in record["runs"]}:
        made = {"network": network, "way": "dense", "allocation": "", "sparsity": 0.0, "choice": {}}
        made["seconds"] = round(bench.dense_seconds, 1)
        record["runs"].append({**made, **zeros(bench.dense), **result(bench.dense, split)})
    for variant in missing:
        model, made = bench.run(*variant)
        if tune:
            found = {"accuracy": round(float(correct(model, split).mean()), 6)}
        else:
            found = result(model, split)
        record["runs"].append({**made, **zeros(model), **found})
        save(file, record)
        print(seed, *key(made), f"{found['accuracy']:.4f}", f"{made['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
