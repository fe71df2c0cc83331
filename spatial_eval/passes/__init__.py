"""Compare a pass with data and store, compute its missing answers, and write a sweep's files.

Imports analysis, models, store and below.
Start with pass_state.py.
"""
