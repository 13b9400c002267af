"""Defines a TFDS data set of generated images, so that tests need no download."""

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8

COUNTS = {"train": 30, "test": 7}
"""Images per split."""


def image(split: str, i: int) -> UInt8[np.ndarray, "20 16 3"]:
    """Returns image i of a split, which has random pixels."""
    return np.random.default_rng([len(split), i]).integers(0, 256, (20, 16, 3), np.uint8)


class Generated(tfds.core.GeneratorBasedBuilder):
    """The builder. Image i has the label i % 4."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(20, 16, 3)),
            "label": tfds.features.ClassLabel(num_classes=4),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split):
        for i in range(COUNTS[split]):
            yield i, {"image": image(split, i), "label": i % 4}
