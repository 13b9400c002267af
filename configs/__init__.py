"""Config defaults, the rules that a config must meet, the runs of a sweep, and one file per data set."""
