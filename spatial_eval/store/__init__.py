"""Store generations and captured attention on disk: append-only, one file per writer, no locks.

Imports core and benchmarks.
Start with generations.py: it owns the format of a record.
"""
