"""One pass against data and store: what is stored, what is to compute; the files of a sweep.

Imports analysis, models, store and below.
Start with pass_state.py.
"""
