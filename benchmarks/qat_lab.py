"""Quantization-aware training of the lab's CNN on MNIST, alone and after pruning, seed by seed.

    python benchmarks/qat_lab.py                       # three seeds, some minutes
    python benchmarks/qat_lab.py --quick --out FILE    # digits, one seed: a smoke test

The built-in recipes `lab-qat` and `lab-pruned-qat`. One epoch in float at batch 32; then either one
aware epoch at batch 32, or the lab's two epochs of pruning to 80 % and one aware epoch at batch 128.
The files are `int8` with integer inputs and outputs, measured in LiteRT on the 10,000 test images; the
dense control trains as long in float.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from recording import about, save

RECORD = Path(__file__).resolve().parent / "records" / "qat-lab.json"
# What a run is called in the record -> the built-in recipe that it is.
RECIPES = {"qat": "lab-qat", "prune, then qat": "lab-pruned-qat"}
KEPT = ("row", "format", "stage", "bytes", "gzip_bytes", "stripped_bytes", "stripped_gzip_bytes",
        "accuracy", "loss", "zeros", "parameters", "parity")  # fmt: skip


def measured(name: str, seed: int, data: str, model: str) -> dict[str, Any]:
    """The rows of one recipe and seed."""
    from secateur.pipeline import run
    from secateur.recipe import Recipe

    recipe = replace(Recipe.load(RECIPES[name]), model=model, data=data, seed=seed)
    with tempfile.TemporaryDirectory() as out:
        found = run(recipe=recipe, out=out, say=print).record
    rows = [{key: row.get(key) for key in KEPT} for row in found["rows"]]
    promises = [p for stage in found["stages"] for p in stage["promises"] if p["kind"] == "zeros"]
    return {"recipe": name, "seed": seed, "rows": rows, "zeros_promised": len(promises)}


def main() -> None:
    """Read the command line, measure, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    data, model = ("digits", "lenet-300-100") if given.quick else ("mnist", "lab-cnn")
    runs = [
        measured(name, seed, data, model)
        for seed in range(1 if given.quick else given.seeds)
        for name in RECIPES
    ]
    record = {"kind": "qat-lab", **about(), "quick": given.quick, "runs": runs}
    out = given.out if given.out or given.quick else RECORD
    if out:
        save(out, record)
        print(f"wrote {out.name}")


if __name__ == "__main__":
    main()
