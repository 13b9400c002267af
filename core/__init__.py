"""Modules that import no other part of this project: noise schedules, moments, keys, devices, files, errors, plots."""
