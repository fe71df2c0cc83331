"""Models by description, loading of checkpoints, from a sample to tensors and back to text.

Imports engine, store, benchmarks and core.
Start with spec.py; vlm.py answers questions.
"""
