"""Tests any sampler, of this project or another, on data whose probability flow is known exactly."""
