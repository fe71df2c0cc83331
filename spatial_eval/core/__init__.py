"""Define the types, errors and helpers that every other package uses.

Imports nothing of spatial_eval and no heavy library.
Start with types.py: Sample, Arm, Generation, Experiment, Cell, Pass.
"""
