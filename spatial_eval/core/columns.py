"""Name the columns of results.csv, by_relation.csv and passes.csv, and the keys that methods share."""

from __future__ import annotations

HYPERPARAMETERS = ("weight", "weight1", "weight2", "threshold")
SHORT_NAMES = {"weight": "w", "weight1": "w1", "weight2": "w2", "threshold": "t"}  # of HYPERPARAMETERS, in labels
NAMED = (
    *HYPERPARAMETERS,
    "criterion",
)  # fields of a method that have a column of their own; the others share `settings`
IDENTITY = ("dataset", "model", "method", *NAMED, "split", "limit", "max_new_tokens", "settings")
YES_NO = ("precision", "recall", "f1", "yes_rate")  # of yes/no questions
# Kinds of groups beside pair and set (Sample.groups): a group of WHOLE is right when all its questions are, and gives
# the column <kind>_accuracy; macro_accuracy is the mean of the accuracies of the groups `macro`.
WHOLE = ("circular", "flip", "flip_circular", "q", "i", "g")
KINDS = (*WHOLE, "macro")
GROUPED = ("macro_accuracy", *(f"{kind}_accuracy" for kind in WHOLE), "position_bias")
# What a cell gains on base on the questions that both answered.
AGAINST = ("vs_base", "vs_base_low", "vs_base_high", "fixed", "broken", "p", "p_holm")
ROW = (
    *("dataset", "model", "method", *HYPERPARAMETERS, "split", "n", "missing"),
    *("accuracy", "accuracy_low", "accuracy_high", "accuracy_strict"),
    *("pair_accuracy", "set_accuracy", "pair_accuracy_complete", "set_accuracy_complete"),
    *("precision", "recall", "f1", "f1_paper", "share_weight1", "paper", "difference"),
    *("criterion", "limit", "max_new_tokens", "settings"),
    *("scoring", "yes_rate", "unreadable", "chance", "accuracy_adjusted", "framing"),
    *GROUPED,
    *AGAINST,
)
BY_RELATION = (
    *("dataset", "model", "method", *HYPERPARAMETERS, "split", "relation", "n", "missing"),
    *("accuracy", "accuracy_low", "accuracy_high", "accuracy_strict", "criterion", "limit", "max_new_tokens"),
    *("settings", "framing", *YES_NO),
)
# Columns of framings.csv: a cell in one form of a data set, beside the others.
FRAMED = (
    *("dataset", "model", "method", *HYPERPARAMETERS, "split", "framing", "n", "accuracy", "chance"),
    *("accuracy_adjusted", "accuracy_adjusted_low", "accuracy_adjusted_high", "constant_accuracy", "agreement"),
    *("fragile", "image_share", *AGAINST[:3], "criterion", "limit", "max_new_tokens", "settings"),
)
# Columns of passes.csv: what made the answers, several of each where they mix; and how the model was asked to run.
VERSIONS = ("spatial_eval", "torch", "transformers")
ASKED = ("dtype", "batch_size", "preset", "decoding", "revision")
SEVERAL = "; "  # between several in a column
EXPERIMENT_COLUMNS = ("dataset", "model", "max_new_tokens")
