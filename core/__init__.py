"""Modules that import no other package: noise schedules, moments, random keys, devices, files, errors, plots."""
