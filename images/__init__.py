"""Image input: picture folders, array files, TFDS, the cache of decoded splits, and images made by other software."""
