"""Make report.html, figures, charts, and tables for terminals, Markdown and LaTeX.

Imports analysis and below.
Start with page.py; sections.py and samples.py compute what the page shows, figures.py its figures, tables.py text
(in the form of sheets.py).
"""
