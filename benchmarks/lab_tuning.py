"""How the recipe `lab` got its schedule and learning rate: validation accuracy, on seeds of its own.

    python benchmarks/lab_tuning.py        # about ten minutes; needs MNIST

The seeds (10, 11, 12) are not those reported and the test set is not read: what chooses never reports.
Writes records/lab-tuning.json, from which `make results` makes a table.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import keras

from secateur import Prune, Recipe, Schedule, Step, Train, datasets, zoo
from secateur.compression import copy_model, run_step
from secateur.conversion import to_litert
from secateur.runtimes.keras import KerasSession
from secateur.scoring import accuracy
from secateur.training import train

RECORD = Path(__file__).parent / "records" / "lab-tuning.json"
SEEDS = (10, 11, 12)
ENDS, RATES = (0.5, 0.7), (0.005, 0.008, 0.012)


def main() -> None:
    """Try every pair of schedule end and learning rate on every seed."""
    runs = []
    for seed in SEEDS:
        data = datasets.load("mnist", seed=seed)
        keras.utils.set_random_seed(seed)
        base = zoo.build("lab-cnn")
        train(base, data, Train(), seed=1000 * seed)
        for end in ENDS:
            for rate in RATES:
                method = Prune(sparsity=0.8, schedule=Schedule(initial=0.5, end=end, every=10))
                settings = Train(batch_size=128, epochs=2, learning_rate=rate, decay="cosine")
                step = Step(method=method, train=settings)
                model = copy_model(base)
                run_step(model, step, Recipe(steps=[step], seed=seed), data, name="p", number=0)
                outputs = KerasSession(model).predict(data.validation.x)
                blob = to_litert(model, ("dynamic",))["dynamic"]
                found = {
                    "seed": seed,
                    "end": end,
                    "learning_rate": rate,
                    "accuracy": round(accuracy(outputs, data.validation.y), 4),
                    "gzip_bytes": len(gzip.compress(blob, 9, mtime=0)),
                }
                print(found, flush=True)
                runs.append(found)
    record = {"n": len(data.validation), "runs": runs}
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
