"""Features, distances, statistics, results and their comparison."""
