"""A small image classifier, trained on the labels of the data set. Its features can replace Inception's in the FID."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Integer, UInt8
from tqdm import tqdm

from core.arithmetic import ceil_div
from core.errors import UserError
from core.files import read_npz, write_npz
from core.shapes import HostPixels, ImageShape, Pixels
from models.layers import conv3x3, dense
from models.weights import digest

FEATURES = 64  # dimension of the features
BATCH_SIZE = 128
TRAINING_IMAGES = 400_000  # default of `train`: images over all steps, repetitions included
TEST_BATCH_SIZE = 500  # the most images in a batch

Labelled = tuple[UInt8[np.ndarray, "_ height width channels"], Integer[np.ndarray, "_"]]
"""Images, and one label per image. Their number is "_", because the training and the test set have different sizes."""


class Network(nnx.Module):
    """Three convolutions, two of them strided, then dropout, a layer of FEATURES units, and the logits."""

    def __init__(self, image_shape: ImageShape, num_classes: int, rngs: nnx.Rngs):
        height, width, channels = image_shape
        self.conv1 = conv3x3(channels, 32, rngs=rngs)
        self.conv2 = conv3x3(32, 64, strides=2, rngs=rngs)
        self.conv3 = conv3x3(64, 64, strides=2, rngs=rngs)
        self.dropout = nnx.Dropout(0.3)
        self.dense = dense(ceil_div(height, 4) * ceil_div(width, 4) * 64, FEATURES, rngs=rngs)
        self.logits = dense(FEATURES, num_classes, rngs=rngs)

    def features(self, images: Pixels | HostPixels, rngs: nnx.Rngs | None = None) -> Float[Array, "batch features"]:
        """Returns the input of the layer `logits`. Dropout is applied if `rngs` is given."""
        x = images.astype(jnp.float32) / 127.5 - 1
        for conv in (self.conv1, self.conv2, self.conv3):
            x = jax.nn.swish(conv(x))
        x = self.dropout(x.reshape(len(x), -1), deterministic=rngs is None, rngs=rngs)
        return jax.nn.swish(self.dense(x))


class Classifier(NamedTuple):
    """A trained network and its quality.

    Attributes:
      network: the network.
      accuracy: fraction of held-out images that are classified correctly, 0 to 1.
      num_held_out: number of held-out images.
      digest: SHA-256 of the weights.
    """

    network: Network
    accuracy: float
    num_held_out: int
    digest: str


def train(train_set: Labelled, test_set: Labelled, seed: int, num_images: int = TRAINING_IMAGES) -> Classifier:
    """Trains a classifier with Adam and a cosine decay, and measures its accuracy on `test_set`.

    num_images: total number of images over all training steps.
    """
    images, labels = train_set
    steps = num_images // BATCH_SIZE
    network = Network(images.shape[1:], int(labels.max()) + 1, nnx.Rngs(seed))
    optimizer = nnx.Optimizer(network, optax.adam(optax.cosine_decay_schedule(2e-3, steps)), wrt=nnx.Param)

    @nnx.jit
    def step(network, optimizer, images, labels, key):
        def loss_fn(network):
            features = network.features(images, nnx.Rngs(dropout=key))
            return optax.softmax_cross_entropy_with_integer_labels(network.logits(features), labels).mean()

        optimizer.update(network, nnx.grad(loss_fn)(network))

    rng = np.random.default_rng(seed)
    key = jax.random.key(seed)
    for i in tqdm(range(steps), desc="train classifier", unit="step"):
        chosen = rng.integers(len(images), size=BATCH_SIZE)
        step(network, optimizer, images[chosen], labels[chosen], jax.random.fold_in(key, i))
    return Classifier(
        network,
        accuracy=_accuracy(network, test_set),
        num_held_out=len(test_set[0]),
        digest=digest(nnx.state(network, nnx.Param)),
    )


@nnx.jit
def predict(network: Network, images: Pixels | HostPixels) -> Int[Array, "batch"]:
    """Returns the most likely class of each image."""
    return jnp.argmax(network.logits(network.features(images)), axis=-1)


def predict_all(network: Network, images: HostPixels) -> Integer[np.ndarray, "batch"]:
    """Applies `predict` in batches, for any number of images."""
    batches = np.array_split(images, ceil_div(len(images), TEST_BATCH_SIZE))
    return np.concatenate([predict(network, batch) for batch in batches])


def _accuracy(network: Network, test_set: Labelled) -> float:
    images, labels = test_set
    return float(np.mean(predict_all(network, images) == labels))


def save(path: Path, classifier: Classifier, image_shape: ImageShape) -> None:
    """Writes the classifier and the shape of its images to an .npz file."""
    weights = {"/".join(key): np.asarray(value[...]) for key, value in _variables(classifier.network)}
    facts = {"accuracy": classifier.accuracy, "num_held_out": classifier.num_held_out, "image_shape": image_shape}
    write_npz(path, weights | {name: np.asarray(value) for name, value in facts.items()})


def load(path: Path, image_shape: ImageShape) -> Classifier:
    """Reads a classifier that `save` wrote.

    Raises UserError if the file is damaged, or if the classifier is for images of another shape.
    """
    facts = read_npz(path, required={"accuracy", "num_held_out", "image_shape", "logits/bias"})
    shape = tuple(int(size) for size in facts["image_shape"])
    if shape != image_shape:
        raise UserError(f"{path}: the classifier is for images of shape {list(shape)}, not {list(image_shape)}")
    network = nnx.eval_shape(lambda: Network(shape, len(facts["logits/bias"]), nnx.Rngs(0)))
    weights = read_npz(path, required={"/".join(key) for key, _ in _variables(network)})
    for key, variable in _variables(network):
        variable.set_value(jnp.asarray(weights["/".join(key)]))
    return Classifier(
        network,
        accuracy=float(facts["accuracy"]),
        num_held_out=int(facts["num_held_out"]),
        digest=digest(nnx.state(network, nnx.Param)),
    )


def _variables(network: Network) -> list[tuple[tuple[str, ...], nnx.Variable]]:
    """Lists the parameters with their paths, in a fixed order."""
    return [(key, variable) for key, variable in nnx.iter_graph(network) if isinstance(variable, nnx.Param)]
