"""Decode with scaled attention: one prefill for every arm of a batch, and the plain reference implementation.

Imports core; the home of torch and transformers' attention.
Start with decode.py: it reads prefixes (prefix.py) and prompts (prefill.py), takes steps (state.py) and chooses tokens.
"""
