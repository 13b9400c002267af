"""Image files in: folders, arrays, TFDS, decoded splits, and images generated elsewhere."""
