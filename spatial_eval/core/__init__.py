"""Types, errors and plain helpers that every other package stands on.

Imports nothing of spatial_eval and no heavy library.
Start with types.py: Sample, Arm, Generation, Experiment, Cell, Pass.
"""
