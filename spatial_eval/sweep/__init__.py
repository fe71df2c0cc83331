"""Run a whole sweep: cells in, computed answers and files out.

Imports everything below.
Start with run.py.
"""
