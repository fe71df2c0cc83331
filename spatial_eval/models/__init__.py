"""Describe models, load checkpoints, and convert samples to tensors and tokens to text.

Imports engine, store, benchmarks and core.
Start with spec.py; vlm.py answers questions.
"""
