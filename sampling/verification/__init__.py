"""Tests of any sampler, ours or foreign, on data whose probability flow is known exactly."""
