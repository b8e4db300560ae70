"""The lab: train a small CNN, quantize it, prune it to 80 % zeros, do both, and measure every file.

    python examples/lab.py                      # MNIST, one epoch and two of pruning
    python examples/lab.py --data digits        # in seconds

Quantized here means after training (int8 weights). Training with quantization in mind comes later.
"""

import argparse

import keras

import secateur as sc

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", default="mnist", help="mnist, fashion-mnist, digits, or a .npz file")
parser.add_argument("--epochs", type=int, default=2, help="of pruning, and of the dense control")
parser.add_argument("--limit", type=int, help="use that many images only")
parser.add_argument("--out", default="lab-out")
arguments = parser.parse_args()

keras.utils.set_random_seed(0)
data = sc.load_data(arguments.data, limit=arguments.limit)
height, width = data.train.x.shape[1:3]

# --- the network and its baseline ----------------------------------------------------------------

model = keras.Sequential(
    [
        keras.Input((height, width)),
        keras.layers.Reshape((height, width, 1)),
        keras.layers.Conv2D(12, 3, activation="relu", name="conv2d"),
        keras.layers.MaxPooling2D(),
        keras.layers.Flatten(),
        keras.layers.Dense(data.classes, name="dense"),
    ]
)


def train(model, epochs, batch_size, callbacks=()):
    """An ordinary fit; pruning is one more callback."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    model.fit(
        data.train.x,
        data.train.y,
        epochs=epochs,
        batch_size=batch_size,
        validation_data=(data.validation.x, data.validation.y),
        callbacks=list(callbacks),
        verbose=2,
    )


train(model, epochs=1, batch_size=32)
baseline = keras.models.clone_model(model)
baseline.set_weights(model.get_weights())

# --- prune the trained network; train a dense one as long, or pruning gets the credit for training --

prune = sc.Prune(sparsity=0.8, schedule=sc.Schedule(initial=0.5))
callback = prune.callback()
train(model, arguments.epochs, batch_size=128, callbacks=[callback])

control = keras.models.clone_model(baseline)
control.set_weights(baseline.get_weights())
train(control, arguments.epochs, batch_size=128)

for when, network in (("before", baseline), ("after", model)):
    first = network.get_layer("conv2d").get_weights()[0].ravel()[:8]
    print(f"first weights {when} pruning:", " ".join(f"{value:.2f}" for value in first))

# --- write every file, measure each in its own runtime -----------------------------------------------

files = []
for stage, network, promises in (
    ("baseline", baseline, ()),
    ("pruned", model, callback.promises),  # their zeros are looked for in every file
    ("control", control, ()),
):
    formats = ["h5", "float32", "dynamic"]
    files += sc.export(network, formats, arguments.out, stage=stage, promises=promises)

print(f"\n{'file':26}{'bytes':>10}{'gzip':>10}{'accuracy':>10}{'parameters':>12}{'non-zero':>10}")
found = {}
for file in files:
    row = found[file.path.name] = sc.measure(file.path, data.test, latency=False)
    print(
        f"{file.path.name:26}{row.bytes:10,}{row.gzip_bytes:10,}{row.accuracy:10.2%}"
        f"{row.parameters:12,}{row.nonzero:10,}"
    )

large, small = found["baseline-float32.tflite"], found["pruned-dynamic.tflite"]
pruned, control = found["pruned-h5.h5"], found["control-h5.h5"]
counts = sc.inspect(model)
print(
    f"""
Parameters: total {counts.parameters:,}, trainable {counts.trainable:,}, non-zero {counts.nonzero:,}. The total is that of the dense network,
for a zero is a parameter too.
Size: pruned and quantized {large.gzip_bytes / small.gzip_bytes:.1f} times smaller than the baseline's .tflite, gzip against gzip
({large.bytes / small.bytes:.1f} times raw against raw, which quantization alone gives).
Accuracy: pruning cost {100 * (control.accuracy - pruned.accuracy):.2f} points. The dense network with the same extra training has {control.accuracy:.2%}.
Test set: {len(data.test):,} images, read by nothing but this table."""
)
