"""Transfer learning with MobileNet: 40 % zeros, without losing the accuracy to a mistake.

    python examples/transfer_mobilenet.py photos/        # photos/train/<class>/*, photos/test/<class>/*
    python examples/transfer_mobilenet.py plant-leaves --weights none

Two things cost the published exercise four points: a frozen base was pruned, which cannot recover, and
BatchNorm kept the statistics of the network as it was. Here the base trains while it is pruned, and the
statistics are taken again at the end.
"""

import argparse

import keras

import secateur as sc
from secateur.zoo import mobilenet_head

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("data", help="a folder of images, a class each folder; or plant-leaves")
parser.add_argument("--weights", default="imagenet", help="imagenet (downloaded), a file, or none")
parser.add_argument("--image-size", type=int, default=96)
parser.add_argument("--epochs", type=int, default=4, help="of each training")
parser.add_argument("--limit", type=int, help="use that many images only")
parser.add_argument("--out", default="mobilenet-out")
arguments = parser.parse_args()

keras.utils.set_random_seed(0)
size = arguments.image_size
data = sc.load_data(arguments.data, image_size=(size, size), limit=arguments.limit)
weights = None if arguments.weights == "none" else arguments.weights


def network():
    """MobileNet without its top, pooling, Dense 128, dropout, and an output for each class."""
    frozen = weights is not None  # a base of random weights has to be trained
    return mobilenet_head((size, size, 3), data.classes, weights=weights, frozen=frozen)


def train(model, learning_rate, callbacks=()):
    """An ordinary fit; pruning is one more callback."""
    optimizer = keras.optimizers.Adam(learning_rate)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(
        data.train.x,
        data.train.y,
        epochs=arguments.epochs,
        validation_data=(data.validation.x, data.validation.y),
        callbacks=list(callbacks),
        verbose=2,
    )


def accuracy(model):
    """The share of right answers on the test part."""
    return sc.measure(model, data.test, latency=False).accuracy


baseline = network()
train(baseline, 1e-3)

# --- prune with the base thawed; a dense control with the same further training ---------------------

pruned, control = network(), network()
for model in (pruned, control):
    model.set_weights(baseline.get_weights())
    model.trainable = True

# Depthwise kernels are few and each is all that its channel has: leave them dense.
prune = sc.Prune(sparsity=0.4, select=sc.Select(exclude=("conv_dw_*",)))
train(pruned, 1e-4, callbacks=[prune.callback()])
train(control, 1e-4)

before = accuracy(pruned)
layers = sc.reestimate_batchnorm(pruned, data.train.x)
print(f"\n{layers} BatchNorm layers: accuracy {before:.2%} before, {accuracy(pruned):.2%} after")
sc.reestimate_batchnorm(control, data.train.x)  # what one gets, the other gets too

# --- every file in its own runtime -------------------------------------------------------------------

print(f"\n{'file':28}{'bytes':>12}{'gzip':>12}{'accuracy':>10}{'parameters':>12}{'non-zero':>10}")
found = {}
for stage, model in (("baseline", baseline), ("pruned", pruned), ("control", control)):
    for file in sc.export(model, ["h5", "float32", "dynamic"], arguments.out, stage=stage):
        row = found[file.path.name] = sc.measure(file.path, data.test, latency=False)
        print(
            f"{file.path.name:28}{row.bytes:12,}{row.gzip_bytes:12,}{row.accuracy:10.2%}"
            f"{row.parameters:12,}{row.nonzero:10,}"
        )

dense, small, control = (found[f"{stage}-h5.h5"] for stage in ("baseline", "pruned", "control"))
print(
    f"""
The .h5, gzipped: {dense.gzip_bytes:,} -> {small.gzip_bytes:,} bytes ({small.gzip_bytes / dense.gzip_bytes:.2f} of it).
Accuracy: {dense.accuracy:.2%} -> {small.accuracy:.2%}; dense and trained as long: {control.accuracy:.2%}, loss {small.loss:.3f} and {control.loss:.3f}.
Parameters: {dense.parameters:,} -> {small.parameters:,}, of which {small.nonzero:,} are not zero."""
)
