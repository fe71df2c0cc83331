"""Turn command lines, YAML and sweep files into distinct, typed cells; describe launchers and trackers.

Imports models, methods, benchmarks and core; the home of omegaconf.
Start with grid.py.
"""
