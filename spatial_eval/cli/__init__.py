"""Parse and run the commands of python -m spatial_eval, one module per group of commands.

Imports everything below; nothing imports it.
Start with main.py.
"""
