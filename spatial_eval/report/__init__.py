"""report.html, figures, charts and tables for terminals, Markdown and LaTeX.

Imports analysis and below.
Start with page.py; sections.py computes what the page shows, figures.py its figures, tables.py every table as text.
"""
