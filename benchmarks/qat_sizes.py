"""How small the lab's CNN gets without a limit on epochs, and 4 bits beside 8, on MNIST.

    python benchmarks/qat_sizes.py                       # three seeds
    python benchmarks/qat_sizes.py --tune                # the sparsities, on validation data, seed 10
    python benchmarks/qat_sizes.py --quick --out FILE    # digits, one seed: a smoke test

Small files: trained in float, pruned gradually, then trained through the grids of the file; gzip of the
stripped `.tflite` counts. Bits: one epoch in float and one aware, with 8 and with 4 bits a weight.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from recording import Record, load, save

RECORDS = Path(__file__).resolve().parent / "records"
MNIST = "mnist"
# Bits and share of zeros of the Dense kernel: chosen with --tune. The convolution keeps its 108 weights.
SMALL = {"at most 3,300 B": (4, 0.92), "at most 4,800 B": (4, 0.83)}
TRIED = tuple((4, sparsity) for sparsity in (0.82, 0.83, 0.86, 0.9, 0.92))
NETWORKS = ("lab-cnn", "lenet-300-100")
KEPT = ("row", "format", "bytes", "gzip_bytes", "stripped_bytes", "stripped_gzip_bytes", "accuracy",
        "zeros", "parity")  # fmt: skip


def small(bits: int, sparsity: float, quick: bool) -> Record:
    """The recipe of a small file."""
    epochs = (1, 1, 1) if quick else (3, 12, 6)
    dense = {"include": ["dense"]}
    cosine = {"batch_size": 128, "decay": "cosine"}
    prune = {"method": "prune", "schedule": {"initial": 0.5, "end": 0.6, "every": 20}}
    return {
        "model": "lenet-300-100" if quick else "lab-cnn",
        "train": {"epochs": epochs[0], "batch_size": 32},
        "steps": [
            {
                **prune,
                "sparsity": sparsity,
                "select": dense,
                "train": {**cosine, "learning_rate": 0.005, "epochs": epochs[1]},
            },
            {
                "method": "quantize",
                "bits": bits,
                "otherwise": 8,
                "select": dense,
                "aware": True,
                "train": {**cosine, "learning_rate": 0.003, "epochs": epochs[2]},
            },
        ],
    }


def widths(network: str, bits: int) -> Record:
    """The recipe of one epoch in float and one aware."""
    step = {"method": "quantize", "bits": bits, "aware": True}
    train = {"epochs": 1, "batch_size": 32, "decay": "cosine"}
    return {
        "model": network,
        "train": {"epochs": 1, "batch_size": 32},
        "steps": [{**step, "train": train}],
    }


def measured(recipe: Record, name: str, seed: int, data: str, test: bool = True) -> Record:
    """The last file's row; test: False to read the validation part alone."""
    import dataclasses

    from secateur import datasets
    from secateur.pipeline import run
    from secateur.recipe import Recipe

    loaded = datasets.load(data, seed=seed)
    if not test:
        loaded = dataclasses.replace(loaded, test=loaded.validation)
    recipe = {
        **recipe,
        "name": name,
        "data": data,
        "seed": seed,
        "control": False,
        "export": {"formats": ["keras", "int8"]},
    }
    with tempfile.TemporaryDirectory() as out:
        found = run(recipe=Recipe.from_dict(recipe), data=loaded, out=out, say=print).record
    (row,) = [r for r in found["rows"] if r["row"].endswith("quantized-int8")]
    kept = {key: row.get(key) for key in KEPT}
    print(f"{name}, seed {seed}: {kept['accuracy']}, {kept['stripped_gzip_bytes']} B", flush=True)
    return {"recipe": name, "seed": seed, **kept}


def _todo(quick: bool, tune: bool) -> dict[str, Any]:
    if tune:
        return {f"{bits} bits, {part:g}": small(bits, part, quick) for bits, part in TRIED}
    found = {name: small(*chosen, quick) for name, chosen in SMALL.items()}
    networks = ("lenet-300-100",) if quick else NETWORKS
    return found | {f"{n}, {bits} bits": widths(n, bits) for n in networks for bits in (8, 4)}


def main() -> None:
    """Read the command line, measure, write the record after every run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--tune", action="store_true", help="on validation data")
    parser.add_argument("--only", help="recipes whose name holds this")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    kind = "qat-sizes-tuning" if given.tune else "qat-sizes"
    seeds = given.seeds or ([0] if given.quick else [10] if given.tune else [0, 1, 2])
    with tempfile.TemporaryDirectory() as folder:
        out = given.out or (Path(folder) if given.quick else RECORDS) / f"{kind}.json"
        record = load(out, {"kind": kind, "quick": given.quick})
        done = {(run["recipe"], run["seed"]) for run in record["runs"]}
        for name, recipe in _todo(given.quick, given.tune).items():
            for seed in seeds:
                if (name, seed) in done or (given.only and given.only not in name):
                    continue
                data = "digits" if given.quick else MNIST
                run = measured(recipe, name, seed, data, test=not given.tune)
                record["runs"].append(run)
                save(out, record)


if __name__ == "__main__":
    main()
