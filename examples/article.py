"""The article in two parts: quantize a trained CNN; prune it, then quantize it. With the claims measured.

    python examples/article.py                  # MNIST
    python examples/article.py --data digits    # in seconds

A recipe does here what examples/lab.py does by hand: baseline, pruning, dense control, files, table.
"""

import argparse

import secateur as sc

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", default="mnist", help="mnist, fashion-mnist, digits, or a .npz file")
parser.add_argument("--epochs", type=int, default=2, help="of pruning")
parser.add_argument("--limit", type=int, help="use that many images only")
parser.add_argument("--out", default="article-out")
arguments = parser.parse_args()

# Trained for one epoch, then two in which the zeros grow from 50 to 80 %. The schedule is a share of
# the training, so that it ends where the training does, whatever the batch size.
recipe = sc.Recipe(
    name="article",
    train=sc.Train(epochs=1, batch_size=32),
    steps=[
        sc.Step(
            method=sc.Prune(sparsity=0.8, schedule=sc.Schedule(initial=0.5)),
            train=sc.Train(epochs=arguments.epochs, batch_size=128),
        )
    ],
    export=sc.Export(formats=["h5", "keras", "float32", "dynamic"]),
)
data = sc.load_data(arguments.data, limit=arguments.limit)
run = sc.run("lab-cnn", recipe, data, arguments.out, overwrite=True)

# --- before and after: the same weights, most of them zero --------------------------------------------

for stage in ("baseline", "pruned"):
    found = sc.inspect(run.path / f"{stage}-keras.keras")
    print(f"\n{stage}: {found.parameters:,} parameters, {found.nonzero:,} of them not zero")
    for weight in found.weights:
        first = " ".join(f"{value:6.2f}" for value in weight["first"][:6])
        print(f"  {weight['path']:15}{weight['zeros']:7,} of {weight['size']:6,} zero  {first} ...")

# --- part 1, quantized; part 2, pruned and quantized ----------------------------------------------------

rows = {row["row"]: row for row in run.rows}
print(
    f"\n{'file':18}{'bytes':>10}{'gzip':>10}{'accuracy':>10}{'load, ms':>10}{'one image, us':>15}"
)
for name, row in rows.items():
    print(
        f"{name:18}{row['bytes']:10,.0f}{row['gzip_bytes']:10,.0f}{row['accuracy']:10.2%}"
        f"{row['load_ms']:10.2f}{row['latency_us']:15.1f}"
    )

dense, both = rows["baseline-float32"], rows["pruned-dynamic"]
print(
    f"""
Smaller? {dense["gzip_bytes"] / both["gzip_bytes"]:.1f} times gzipped, {dense["bytes"] / both["bytes"]:.1f} times raw, against the float32 file.
As accurate? {both["accuracy"]:.2%}; the dense network, trained as long, {rows["control-keras"]["accuracy"]:.2%}.
Faster? Zeros alone do not do it: {rows["baseline-float32"]["latency_us"]:.1f} us dense, {rows["pruned-float32"]["latency_us"]:.1f} us with 80 % zeros, on this
machine. What int8 changes stands in the rows above.
"""
)
print(run.headline)
print("The page:", run.report())
