"""A frozen MobileNet pruned to 40 %: what it loses, what BatchNorm gives back, what fine-tuning does.

    python benchmarks/seedlings_mobilenet.py --tune 10      # chooses, on validation data only
    python benchmarks/seedlings_mobilenet.py                # reports, on the test set
    python benchmarks/seedlings_mobilenet.py --quick --out DIR

The exercise of W3: MobileNet (alpha 0.25, 96x96) under a head of two Dense layers, here trained from
scratch on the plant seedlings, then frozen, and its head trained: the dense model that everything
starts from. From there, each beside a dense control with the same extra training:

- `frozen, keep`: everything pruned 0 -> 40 % while only the head trains, as the old toolkit does;
- `frozen, re-estimate`: the same, BatchNorm's statistics taken anew at the end (the default);
- `frozen, head after`: pruned at once, statistics taken anew, then the head trained on;
- `unfrozen, keep` and `unfrozen, re-estimate`: pruned 0 -> 40 % while everything trains.

The controls are shown with new statistics as well: what those alone give is not pruning's.

The seed that chooses (10) is not one of those that report.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import keras
import numpy as np
from recording import RECORDS, load, result, save, zeros

from secateur import (
    FineTune,
    KeepZeros,
    Prune,
    Recipe,
    Schedule,
    Select,
    Step,
    Train,
    datasets,
    zoo,
)
from secateur.compression import copy_model, run_step, settle_batchnorm
from secateur.training import reestimate_batchnorm, train

CLASSES = 12
# What is pruned, and how the zeros are divided. "large": the depthwise kernels (9 weights a channel)
# and the first convolution left out
_LARGE = ("*conv_dw_*", "*conv1")
SELECTIONS = {
    "all": ((), "uniform"),
    "large": (_LARGE, "uniform"),
    "large, lamp": (_LARGE, "lamp"),
}
BUDGET = {
    "scratch": {"epochs": 30, "rate": 0.003},
    "head": {"epochs": 3, "rate": 0.001},
    "frozen": {"epochs": 4, "rate": 0.001},
    "unfrozen": {"epochs": 8, "rate": 0.001},
    "end": 0.4,
    "sparsity": 0.4,
    "batch": 16,
    "alpha": 0.25,
}
CHOSEN = {"after": "large, lamp", "unfrozen": "large", "rate": 0.003}
RATES = (0.001, 0.003)
FROZEN = ("frozen, keep", "frozen, re-estimate", "frozen, head after")
UNFROZEN = ("unfrozen, keep", "unfrozen, re-estimate")
# What is tried on validation data: way, what is pruned, rate
TRIED = (
    ("dense", "", None),
    ("control, frozen", "", 0.001),
    *(("frozen, head after", select, 0.001) for select in ("large", "large, lamp")),
    *(("control, unfrozen", "", rate) for rate in RATES),
    *(
        (way, select, rate)
        for select in ("large", "large, lamp")
        for rate in RATES
        for way in UNFROZEN
    ),
)
# What is reported: what is done, and what is pruned
WAYS = (
    ("control, frozen", ""),
    ("control, frozen, re-estimate", ""),
    ("frozen, keep", "all"),
    ("frozen, re-estimate", "all"),
    ("frozen, keep", "large"),
    ("frozen, re-estimate", "large"),
    ("frozen, head after", CHOSEN["after"]),
    ("control, unfrozen", ""),
    ("control, unfrozen, re-estimate", ""),
    *((way, CHOSEN["unfrozen"]) for way in UNFROZEN),
)


def network(seed: int) -> keras.Model:
    """The zoo's network behind flips: seen from above, a seedling has no right way up."""
    keras.utils.set_random_seed(seed)
    model = zoo.mobilenet_head(classes=CLASSES, alpha=BUDGET["alpha"], frozen=False)
    flips = keras.layers.RandomFlip("horizontal_and_vertical", name="flips")
    return without_xla(
        keras.Sequential([keras.Input((96, 96, 3)), flips, *model.layers], name=model.name)
    )


def without_xla(model: keras.Model) -> keras.Model:
    """XLA's depthwise convolutions on a CPU take eight times as long."""
    model.layers[0].supports_jit = False
    return model


def freeze(model: keras.Model, frozen: bool) -> keras.Model:
    """Keep the base out of the training, or let it train."""
    model.get_layer("mobilenet").trainable = not frozen
    return model


class Bench:
    """One seed: the network from scratch, its base frozen, its head trained; variants from there."""

    def __init__(
        self, seed: int, *, aside: float, limit: int | None = None, cache: Path | None = None
    ):
        self.seed = seed
        self.limit = limit
        self.data = datasets.load("plant-leaves", seed=seed, validation_split=aside, limit=limit)
        self.model = network(seed)
        self._last: tuple = (None, None)  # what was run last, and its model
        held = None if cache is None else cache / f"seedlings-{seed}-{aside:g}.npz"
        if held is not None and held.exists():
            with np.load(held) as found:
                count = len(self.model.weights)
                self.seconds = float(found["seconds"])
                self.model.set_weights([found[f"scratch {i}"] for i in range(count)])
                self.scratch = copy_model(self.model)
                self.model.set_weights([found[f"dense {i}"] for i in range(count)])
            freeze(self.model, True)
            return
        begun = time.perf_counter()
        train(self.model, self.data, self._train("scratch"), seed=1000 * seed)
        self.scratch = copy_model(self.model)
        freeze(self.model, True)
        train(self.model, self.data, self._train("head"), seed=1000 * seed + 1)
        self.seconds = round(time.perf_counter() - begun, 1)
        if held is not None:
            # by the table's order, which `trainable` does not change; scratch is all trainable
            freeze(self.model, False)
            weights = {f"scratch {i}": w for i, w in enumerate(self.scratch.get_weights())}
            weights |= {f"dense {i}": w for i, w in enumerate(self.model.get_weights())}
            np.savez(held, seconds=self.seconds, **weights)
            freeze(self.model, True)

    def run(self, way: str, select: str, rate: float | None = None) -> tuple[keras.Model, dict]:
        """The model that comes out of one way, and how it was made."""
        begun = time.perf_counter()
        frozen = "unfrozen" not in way
        settings = self._train(
            "frozen" if frozen else "unfrozen",
            rate,
            batchnorm="keep" if way.endswith("keep") else "re-estimate",
        )
        recipe = Recipe(steps=self._steps(way, select, settings), seed=self.seed)
        made_of = (way.removesuffix(", keep").removesuffix(", re-estimate"), select)
        again = way.endswith("re-estimate") and made_of == self._last[0]
        if again:  # the model from just before, of which only the statistics are to be others
            model = self._last[1]
            settle_batchnorm(model, recipe, settings, self.data)
        else:
            model = without_xla(freeze(copy_model(self.model), frozen))
            stage = None
            for number, name in enumerate(recipe.stage_names()):
                stage = run_step(model, recipe, number, self.data, name=name, before=stage)
        if way.startswith("control") and way.endswith("re-estimate"):
            reestimate_batchnorm(model, self.data.train.x)  # no step of a control would
        self._last = (made_of, model)
        made = {"way": way, "select": select, "rate": settings.learning_rate}
        return model, {**made, "seconds": round(time.perf_counter() - begun, 1)}

    def _steps(self, way: str, select: str, settings: Train) -> list[Step]:
        if way.startswith("control"):
            return [Step(method=FineTune(), train=settings)]
        once = way.endswith("after")
        exclude, allocation = SELECTIONS[select]
        prune = Prune(
            sparsity=BUDGET["sparsity"],
            schedule=Schedule(shape="one-shot") if once else Schedule(end=BUDGET["end"]),
            allocation=allocation,
            select=Select(frozen=True, exclude=exclude),
        )
        if not once:
            return [Step(method=prune, train=settings)]
        at_once = Train(batch_size=BUDGET["batch"], epochs=0)
        return [Step(method=prune, train=at_once), Step(method=KeepZeros(), train=settings)]

    def _train(self, phase: str, rate: float | None = None, **more: str) -> Train:
        epochs = BUDGET[phase]["epochs"] if self.limit is None else 1
        return Train(
            batch_size=BUDGET["batch"],
            epochs=epochs,
            learning_rate=rate or BUDGET[phase]["rate"],
            decay="cosine",
            **more,
        )


def report(seed: int, file: Path, quick: bool, cache: Path | None) -> None:
    """Every way on the test set."""
    chosen = {"budget": BUDGET, "chosen": CHOSEN, "seed": seed, "quick": quick}
    record = load(file, chosen)
    known = {(run["way"], run["select"]) for run in record["runs"]}
    if known >= {("scratch", ""), ("dense", ""), *WAYS}:
        return
    bench = Bench(seed, aside=0.1, limit=64 if quick else None, cache=cache)
    test = bench.data.test
    record["n"] = len(test)
    record["trained on"] = len(bench.data.train)
    for name, model in (("scratch", bench.scratch), ("dense", bench.model)):
        if (name, "") not in known:
            found = {"way": name, "select": "", "rate": None, "seconds": bench.seconds}
            record["runs"].append({**found, **zeros(model), **result(model, test)})
    for way, select in WAYS:
        if (way, select) not in known:
            rate = CHOSEN["rate"] if "unfrozen" in way else None
            model, made = bench.run(way, select, rate)
            record["runs"].append({**made, **zeros(model), **result(model, test)})
            save(file, record)
            print(seed, way, select, record["runs"][-1]["accuracy"], made["seconds"], flush=True)


def tune(seed: int, file: Path, quick: bool, cache: Path | None) -> None:
    """What TRIED names, on a fifth of the training part, held out."""
    record = load(file, {"seed": seed, "quick": quick})
    epochs = BUDGET["scratch"]["epochs"]
    known = {(r["way"], r["select"], r["rate"]) for r in record["runs"] if r["epochs"] == epochs}
    missing = [wanted for wanted in TRIED if wanted not in known]
    if not missing:
        return
    bench = Bench(seed, aside=0.2, limit=64 if quick else None, cache=cache)
    split = bench.data.validation
    record["n"] = len(split)
    for way, select, rate in missing:
        made = {"way": way, "select": select, "rate": rate, "seconds": bench.seconds}
        model = bench.model
        if way != "dense":
            model, made = bench.run(way, select, rate)
        after = (
            0 if way == "dense" else BUDGET["unfrozen" if "unfrozen" in way else "frozen"]["epochs"]
        )
        run = {"epochs": epochs, "after": after, **made, **zeros(model), **result(model, split)}
        record["runs"].append(run)
        save(file, record)
        print(seed, way, select, rate, run["accuracy"], run["seconds"], flush=True)


def main() -> None:
    """Tune or report; skip what a record already holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--tune", type=int, nargs="*", default=[], metavar="SEED")
    parser.add_argument("--out", type=Path, default=RECORDS)
    parser.add_argument("--cache", type=Path, help="a folder that keeps the dense networks")
    parser.add_argument("--quick", action="store_true", help="64 images, one epoch each")
    given = parser.parse_args()
    if given.quick and given.out == RECORDS:
        parser.error("--quick needs --out: its figures mean nothing")
    for seed in given.tune or given.seeds:
        name = f"seedlings-{'tuning' if given.tune else 'seed'}-{seed}.json"
        (tune if given.tune else report)(seed, given.out / name, given.quick, given.cache)


if __name__ == "__main__":
    main()
