"""Transfer learning with VGG16: prune the head that was trained, and count the parameters.

    python examples/transfer_vgg16.py photos/            # photos/train/<class>/*, photos/test/<class>/*
    python examples/transfer_vgg16.py plant-leaves --weights none --image-size 96

The base stays frozen, so it is not pruned: nothing could train its loss away. Why did the old toolkit
show 55,128,112 parameters while it pruned? docs/concepts.md; here the count never changes.
"""

import argparse

import keras

import secateur as sc
from secateur.zoo import vgg16_head

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("data", help="a folder of images, a class each folder; or plant-leaves")
parser.add_argument("--weights", default="imagenet", help="imagenet (downloaded), a file, or none")
parser.add_argument("--image-size", type=int, default=224)
parser.add_argument("--epochs", type=int, default=5, help="of training the head, and of pruning it")
parser.add_argument("--limit", type=int, help="use that many images only")
parser.add_argument("--out", default="vgg16-out")
arguments = parser.parse_args()

keras.utils.set_random_seed(0)
size = arguments.image_size
data = sc.load_data(arguments.data, image_size=(size, size), limit=arguments.limit)
weights = None if arguments.weights == "none" else arguments.weights
model = vgg16_head((size, size, 3), data.classes, weights=weights)

model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(
    data.train.x,
    data.train.y,
    epochs=arguments.epochs,
    validation_data=(data.validation.x, data.validation.y),
    verbose=2,
)

# From 50 to 75 % zeros over the whole training; the dense control is trained as long.
recipe = sc.Recipe(
    name="transfer-vgg16",
    steps=[sc.Prune(sparsity=0.75, schedule=sc.Schedule(initial=0.5))],
    train=sc.Train(epochs=arguments.epochs),
    export=sc.Export(formats=["keras", "float32", "dynamic"]),
)
plan = recipe.plan(model)
for change in plan:
    if change.changed:
        print(f"{change.path:18}{change.size:12,} weights: {change.how}")
print(f"left alone: {sum(change.reason == 'frozen' for change in plan)} frozen kernels")

# A base of random weights leaves the head little to see: without trained ones, chance is no mistake.
run = sc.run(model, recipe, data, arguments.out, overwrite=True, allow_chance=weights is None)

print(f"\n{'file':18}{'MB':>9}{'MiB':>9}{'gzip, MB':>10}{'accuracy':>10}")
for row in run.rows:
    print(
        f"{row['row']:18}{row['bytes'] / 1e6:9.2f}{row['bytes'] / 2**20:9.2f}"
        f"{row['gzip_bytes'] / 1e6:10.2f}{row['accuracy']:10.2%}"
    )

print(f"\n{'parameters':18}{'total':>12}{'trainable':>12}{'non-zero':>12}")
for name, network in (("given", model), ("pruned", run.model)):
    found = sc.inspect(network)
    print(f"{name:18}{found.parameters:12,}{found.trainable:12,}{found.nonzero:12,}")
print()
print(run.headline)
