"""What knows nothing of the rest: noise schedule, moments, random keys, devices, files, errors, pictures."""
