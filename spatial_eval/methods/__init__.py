"""Define decoding rules: which arms a method needs and whose answer it takes; published numbers and settings.

Imports core and benchmarks.
Start with routing.py; registry.py adds those of installed packages.
"""
