"""Download and check benchmarks and models before a run.

Imports models, config, benchmarks and core; the only code that writes into data_dir.
Start with recipes.py.
"""
