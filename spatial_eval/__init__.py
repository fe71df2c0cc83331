"""Sweeps of training-free attention interventions on spatial benchmarks."""

__version__ = "0.1.0"
