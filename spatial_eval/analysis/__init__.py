"""Grade, summarize, select and compare stored answers; reads a finished sweep's folder.

Imports methods, benchmarks and core; never a model, data or the store.
Start with sweep_data.py (the reader) and selection.py (what decides the best cell).
"""
