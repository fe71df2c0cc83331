"""Read question files, build prompts from templates, score texts.

Imports core.
Start with readers.py; scoring.py holds the scoring rules.
"""
