"""Command line, YAML and sweep files to distinct, typed cells; launchers and tracking by description.

Imports models, methods, benchmarks and core; the home of omegaconf.
Start with grid.py.
"""
