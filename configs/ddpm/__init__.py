"""One config per data set."""
