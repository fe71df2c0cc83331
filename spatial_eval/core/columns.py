"""Name the columns of results.csv, by_relation.csv and passes.csv, and the keys that methods share."""

from __future__ import annotations

KNOBS = ("weight", "weight1", "weight2", "threshold")
SHORT_NAMES = {"weight": "w", "weight1": "w1", "weight2": "w2", "threshold": "t"}  # of KNOBS, in labels
NAMED = (*KNOBS, "criterion")  # fields of a method that have a column of their own; the others share `settings`
IDENTITY = ("dataset", "model", "method", *NAMED, "split", "limit", "max_new_tokens", "settings")
# What a cell gains on base on the questions that both answered.
AGAINST = ("vs_base", "vs_base_low", "vs_base_high", "fixed", "broken", "p", "p_holm")
ROW = (
    *("dataset", "model", "method", *KNOBS, "split", "n", "missing"),
    *("accuracy", "accuracy_low", "accuracy_high", "accuracy_strict"),
    *("pair_accuracy", "set_accuracy", "pair_accuracy_complete", "set_accuracy_complete"),
    *("precision", "recall", "f1", "f1_paper", "share_weight1", "paper", "difference"),
    *("criterion", "limit", "max_new_tokens", "settings"),
    *("scoring", "yes_rate", "unreadable", "chance", "accuracy_adjusted", "framing"),
    *AGAINST,
)
BY_RELATION = (
    *("dataset", "model", "method", *KNOBS, "split", "relation", "n", "missing"),
    *("accuracy", "accuracy_low", "accuracy_high", "accuracy_strict", "criterion", "limit", "max_new_tokens"),
    *("settings", "framing"),
)
# Columns of passes.csv: what made the answers, several of each where they mix; and how the model was asked to run.
VERSIONS = ("spatial_eval", "torch", "transformers")
ASKED = ("dtype", "batch_size", "preset", "decoding", "revision")
SEVERAL = "; "  # between several in a column
TRUNK = ("dataset", "model", "max_new_tokens")
