"""A small classifier of a data set's own labels, whose features score samples where Inception cannot be had."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

from core.errors import UserError
from core.files import read_npz, write_npz
from models.layers import conv3x3, dense
from models.weights import digest

FEATURES = 64
BATCH_SIZE = 128
TRAINING_IMAGES = 400_000  # seen in training, however few the data set has

Labelled = tuple[np.ndarray, np.ndarray]  # uint8 images [N, H, W, C] and their labels, int [N]


class Network(nnx.Module):
    """Three convolutions, two of them strided, and a layer of FEATURES under the logits."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, rngs: nnx.Rngs):
        height, width, channels = image_shape
        self.conv1 = conv3x3(channels, 32, rngs=rngs)
        self.conv2 = conv3x3(32, 64, strides=2, rngs=rngs)
        self.conv3 = conv3x3(64, 64, strides=2, rngs=rngs)
        self.dropout = nnx.Dropout(0.3)
        self.dense = dense(-(-height // 4) * -(-width // 4) * 64, FEATURES, rngs=rngs)
        self.logits = dense(FEATURES, num_classes, rngs=rngs)

    def features(self, images: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """[B, FEATURES] for uint8 images [B, H, W, C]."""
        x = images.astype(jnp.float32) / 127.5 - 1
        for conv in (self.conv1, self.conv2, self.conv3):
            x = jax.nn.swish(conv(x))
        x = self.dropout(x.reshape(len(x), -1), deterministic=rngs is None, rngs=rngs)
        return jax.nn.swish(self.dense(x))


class Classifier(NamedTuple):
    network: Network
    accuracy: float  # share of held-out images labelled right
    num_held_out: int
    digest: str  # SHA-256 of the weights


def train(train_set: Labelled, test_set: Labelled, seed: int) -> Classifier:
    """Trains with Adam and a cosine decay, then measures the accuracy on the held-out split."""
    images, labels = train_set
    steps = TRAINING_IMAGES // BATCH_SIZE
    network = Network(images.shape[1:], int(labels.max()) + 1, nnx.Rngs(seed))
    optimizer = nnx.Optimizer(network, optax.adam(optax.cosine_decay_schedule(2e-3, steps)), wrt=nnx.Param)

    @nnx.jit
    def step(network, optimizer, images, labels, key):
        def loss_fn(network):
            features = network.features(images, nnx.Rngs(dropout=key))
            return optax.softmax_cross_entropy_with_integer_labels(network.logits(features), labels).mean()

        optimizer.update(network, nnx.grad(loss_fn)(network))

    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    for i in tqdm(range(steps), desc="train classifier", unit="step"):
        chosen = rng.integers(len(images), size=BATCH_SIZE)
        step(network, optimizer, images[chosen], labels[chosen], jax.random.fold_in(key, i))
    return Classifier(network, _accuracy(network, test_set), len(test_set[0]), digest(nnx.state(network, nnx.Param)))


@nnx.jit
def predict(network: Network, images: jax.Array) -> jax.Array:
    """The classes [B] of uint8 images [B, H, W, C]."""
    return jnp.argmax(network.logits(network.features(images)), axis=-1)


def _accuracy(network: Network, test_set: Labelled) -> float:
    images, labels = test_set
    batches = np.array_split(images, -(-len(images) // 500))
    return float(np.mean(np.concatenate([predict(network, batch) for batch in batches]) == labels))


def save(path: Path, classifier: Classifier, image_shape: tuple[int, int, int]) -> None:
    weights = {"/".join(key): np.asarray(value[...]) for key, value in _variables(classifier.network)}
    facts = {"accuracy": classifier.accuracy, "num_held_out": classifier.num_held_out, "image_shape": image_shape}
    write_npz(path, weights | {name: np.asarray(value) for name, value in facts.items()})


def load(path: Path, image_shape: tuple[int, int, int]) -> Classifier:
    """Raises UserError if the file is broken, or for images of another shape."""
    facts = read_npz(path, required={"accuracy", "num_held_out", "image_shape", "logits/bias"})
    shape = tuple(int(size) for size in facts["image_shape"])
    if shape != image_shape:
        raise UserError(f"{path}: a classifier of images of shape {list(shape)}, not {list(image_shape)}")
    network = nnx.eval_shape(lambda: Network(shape, len(facts["logits/bias"]), nnx.Rngs(0)))
    weights = read_npz(path, required={"/".join(key) for key, _ in _variables(network)})
    for key, variable in _variables(network):
        variable.set_value(jnp.asarray(weights["/".join(key)]))
    return Classifier(
        network, float(facts["accuracy"]), int(facts["num_held_out"]), digest(nnx.state(network, nnx.Param))
    )


def _variables(network: Network) -> list[tuple[tuple[str, ...], nnx.Variable]]:
    """The parameters with their paths, in an order that is always the same."""
    return [(key, variable) for key, variable in nnx.iter_graph(network) if isinstance(variable, nnx.Param)]
