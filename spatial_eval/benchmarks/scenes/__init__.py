"""Render scenes with known answers, in the forms of the real benchmarks.

Imports core and benchmarks.
Start with generator.py; rendered.py is the reader.
"""
