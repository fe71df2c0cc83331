"""Show a sweep in Weights & Biases, from its files.

Imports report, analysis and below; publisher.py is the only client of wandb, in a process of its own.
Start with runs.py.
"""
