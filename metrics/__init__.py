"""Features, distances between feature distributions, statistics files, and results of runs and their comparison."""
