"""Benchmarks and models made ready before a run: downloads, checksums, checks.

Imports models, config, benchmarks and core; the only code that writes into data_dir.
Start with recipes.py.
"""
