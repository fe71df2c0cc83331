"""Weights & Biases as a projection of a sweep's files.

Imports report, analysis and below; publisher.py is the only client of wandb, in a process of its own.
Start with runs.py.
"""
