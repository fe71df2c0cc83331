"""Tests and intervals of statsmodels, to compare ours with; imported once, without its warnings."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what other libraries' imports deprecate is not ours
    from statsmodels.stats.contingency_tables import mcnemar
    from statsmodels.stats.multitest import multipletests
    from statsmodels.stats.proportion import proportion_confint

__all__ = ["mcnemar", "multipletests", "proportion_confint"]
