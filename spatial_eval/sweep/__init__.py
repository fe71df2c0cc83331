"""The whole program: cells in, computed answers and files out.

Imports everything below.
Start with run.py.
"""
