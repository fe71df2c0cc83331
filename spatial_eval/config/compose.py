"""Compose conf/ and a user's own folder (--config-dir) into trees and typed descriptions.

Hydra needs about 59 ms of CPU for one composition. A Composer therefore composes each distinct choice of groups once;
values of single keys are set on a copy of the composed tree, which takes microseconds.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from spatial_eval.benchmarks import readers
from spatial_eval.benchmarks.framing import apply_framing
from spatial_eval.benchmarks.prompts import apply_system, apply_template
from spatial_eval.benchmarks.protocols import CHANGED, find_protocol, name_protocol
from spatial_eval.config import schema
from spatial_eval.config.defaults import read_yaml
from spatial_eval.config.launchers import LISTED
from spatial_eval.core.errors import ConfigError, cut_text, describe_unknown, first_line
from spatial_eval.core.files import find_entries
from spatial_eval.core.paths import conf_folder, sweeps_folder
from spatial_eval.core.requirements import choose_hydra_base
from spatial_eval.core.types import Benchmark, Model
from spatial_eval.core.validate import format_value
from spatial_eval.models import registry

PROTOCOL = "dataset.protocol"
GROUP_FOLDERS = (*schema.GROUPS, "preset", "template")
# What people call our options elsewhere, for "did you mean".
ALIASES = {
    "dataset": readers.UPSTREAM | dict.fromkeys(("json", "csv", "tsv"), "file"),
    "model": registry.UPSTREAM,
    "method": {"greedy": "base", "baseline": "base", "scaling": "scaling_vis", "scalingvis": "scaling_vis"}
    | {"adapt": "adapt_vis", "adaptvis": "adapt_vis", "attn_scale": "scaling_vis"},
}


class Composer:
    """Compose trees of conf/ and of the user's own folder, and parse command lines against them.

    Args:
        own: the user's folder of options and sweeps (--config-dir), laid out as conf/ with a folder sweeps/.

    Raises:
        ConfigError: `own` is no folder, holds no option, or holds one with the name of a built-in one.
    """

    def __init__(self, own: Path | None = None) -> None:
        self.own = own
        if own is not None:
            _check_own_folder(own)
        self._options: dict[str, list[str]] = {}
        self._trees: dict[tuple[str, ...], DictConfig] = {}
        self._parser = OverridesParser.create(config_loader=cast(Any, self))

    def get_group_options(self, group: str, results_filter: Any = None) -> list[str]:
        """List the names of a group's options, sorted. Hydra's parser calls this method for `glob(*)`."""
        del results_filter  # a group holds files only
        if group not in self._options:
            self._options[group] = sorted({path.stem for path in self.option_files(group)})
        return self._options[group]

    def option_files(self, group: str) -> list[Path]:
        """List the YAML files of a group's options, built-in ones and the user's."""
        folders = [folder / group for folder in (conf_folder(), self.own) if folder is not None]
        return [path for folder in folders for path in find_entries(folder, "*.yaml")]

    def sweep_files(self) -> dict[str, Path]:
        """Map the name of each sweep file, built-in or the user's, to its path."""
        folders = [sweeps_folder(), *([self.own / "sweeps"] if self.own else [])]
        return {path.stem: path for folder in folders for path in find_entries(folder, "*.yaml")}

    def parse(self, override: str) -> tuple[str, list[Any]]:
        """Split one override in Hydra's grammar into its key and its values. Raises ConfigError."""
        try:
            (parsed,) = self._parser.parse_overrides([override])
            values = list(parsed.sweep_iterator()) if parsed.is_sweep_override() else [parsed.value()]
        except (HydraException, ValueError) as error:
            why = self._advise_quotes(override) or f"{first_line(error)}; expected key=value"
            raise ConfigError(f"cannot read {override!r}: {why}") from None
        if parsed.is_add() or parsed.is_delete() or parsed.is_force_add() or parsed.package:
            raise ConfigError(f"cannot use {override!r}: keys are set as key=value, none is added or removed")
        key = parsed.key_or_group
        if len(values) > 1 and (key in LISTED or key.startswith("launcher.extra.")):  # sbatch's own lists
            return key, [override.partition("=")[2]]
        return key, [value.text if isinstance(value, QuotedString) else value for value in values]

    def advise_comma(self, override: str) -> str:
        """Return how a text with a comma is written as one value, `; ...`; "" where the key takes no text."""
        quoted = "" if re.search(r"[\[(]", override) else self._quote_text(override)  # of lists, or a sweep function
        return f"; one value with a comma is written {quoted}" if quoted else ""

    def _advise_quotes(self, override: str) -> str:
        """Return how a text is written that Hydra's grammar cannot read; "" where the key takes no text."""
        quoted = self._quote_text(override)
        several = ", each of several values in its own" if "," in override else ""
        return f"a text with such signs stands in quotes inside the shell's{several}: {quoted}" if quoted else ""

    def _quote_text(self, override: str) -> str:
        """Return an override of a text, or of a list of texts, as it is typed in a shell; "" where it is neither."""
        key, _, value = override.partition("=")
        if schema.takes_list(key) and re.fullmatch(r"\[.*\]", value):
            value = f"[{','.join(_quote_twice(text.strip()) for text in value[1:-1].split(','))}]"
        elif schema.takes_text(key):
            value = _quote_twice(value)
        else:
            return ""
        return shlex.quote(f"{key}={value}")

    def parse_values(self, overrides: Iterable[str]) -> dict[str, Any]:
        """Split overrides of a command that takes one value per key. Raises ConfigError."""
        values: dict[str, Any] = {}
        for override in overrides:
            key, listed = self.parse(override)
            if len(listed) != 1:
                raise ConfigError(f"{override} is a list of values; expected one value{self.advise_comma(override)}")
            values[key] = listed[0]
        return values

    def compose(self, choices: Mapping[str, str]) -> DictConfig:
        """Compose the tree for an option per group; `+group` adds one to a group without a default.

        Raises:
            ConfigError: no such option, or a YAML file that cannot be read.
        """
        overrides = [f"{group}={option}" for group, option in choices.items()]
        if tuple(overrides) not in self._trees:
            self._check_own(choices)
            search = [f"hydra.searchpath=[{_quote(f'file://{self.own}')}]"] if self.own else []
            try:
                with hydra.initialize_config_dir(str(conf_folder()), **choose_hydra_base()):
                    self._trees[tuple(overrides)] = hydra.compose("config", overrides=[*search, *overrides])
            except (HydraException, OmegaConfBaseException) as error:
                raise ConfigError(f"cannot compose {' '.join(overrides)}: {first_line(error)}") from None
            except (YAMLError, OSError, ValueError, RecursionError) as error:  # of a file that another one names
                why = cut_text(" ".join(str(error).split()))
                raise ConfigError(f"cannot compose {' '.join(overrides)}: {why}") from None
        return self._trees[tuple(overrides)]

    def _check_own(self, choices: Mapping[str, str]) -> None:
        """Raise ConfigError where a chosen option is the user's and no mapping in YAML: Hydra would not say where."""
        if self.own is None:
            return
        for group, option in choices.items():
            path = self.own / group.removeprefix("+") / f"{option}.yaml"
            if os.path.lexists(path) and not isinstance(read_yaml(path) or {}, dict):
                raise ConfigError(f"{path}: expected keys with values, such as `kind: hf`")
            if os.path.lexists(path) and re.search(r"^\s*#\s*@package\b", path.read_text("utf8"), re.MULTILINE):
                raise ConfigError(f"{path}: `# @package` puts its keys elsewhere: take this line away")

    def missing_keys(self, group: str, option: str) -> list[str]:
        """List the keys of an option that must be given."""
        return sorted(OmegaConf.missing_keys(self.compose({group: option})[group]))

    def check_option(self, group: str, name: Any, *, hint: str = "") -> None:
        """Raise ConfigError where a group has no option of this name."""
        options = self.get_group_options(group)
        if name not in options:
            aliases = {alias: option for alias, option in ALIASES.get(group, {}).items() if option in options}
            raise ConfigError(describe_unknown(group, format_value(name), options, aliases=aliases, hint=hint))

    def find_dataset(self, name: str) -> str:
        """Return the option of conf/dataset for another program's name: the upstream name, or ours in another case."""
        lower = name.lower()
        return name if name in self.get_group_options("dataset") else readers.UPSTREAM.get(lower, lower)

    def read_benchmark(self, name: str, values: Mapping[str, Any]) -> Benchmark:
        """Build the benchmark of `dataset=name` with `dataset.KEY` values (`build_dataset`). Raises ConfigError."""
        option = self.find_dataset(name)
        self.check_option("dataset", option, hint="your own questions: --dataset file dataset.path=FILE")
        tree = set_values(self.compose({"dataset": option}), values)
        return self.build_dataset(self.apply_protocol(tree, values).dataset)

    def read_model(self, name: str, values: Mapping[str, Any]) -> Model:
        """Build the model of `model=name` with `model.KEY` values. Raises ConfigError."""
        self.check_option("model", name)
        return schema.read_model(set_values(self.compose({"model": name}), values).model)

    def apply_protocol(self, tree: DictConfig, explicit: Mapping[str, Any]) -> DictConfig:
        """Return the tree with the keys that `dataset.protocol` sets, unless the user set them.

        Where a user's key differs, the protocol's label has the suffix protocols.CHANGED. Raises ConfigError where
        the protocol is not known for the dataset.
        """
        node, protocol = tree.dataset, tree.dataset.get("protocol")
        if protocol is None:
            return tree
        if node.get("framing") is not None:
            raise ConfigError(
                f"dataset.protocol={protocol} and dataset.framing={node.framing} both set wording and rule: take one "
                "away; beside a framing dataset.system and model.image_mode set what else is a protocol's"
            )
        benchmark = str(node.get("benchmark", node.get("name", node.kind))).partition("~")[0]
        model = " ".join(str(OmegaConf.select(tree.model, key, throw_on_missing=False)) for key in ("path", "name"))
        own = {
            key if key.startswith("model.") else f"dataset.{key}": value
            for key, value in find_protocol(benchmark, str(protocol), model).items()
        }
        if "image_mode" not in tree.model:  # a model that looks at no picture
            own.pop("model.image_mode", None)
        given = {key: value for key, value in explicit.items() if any(_overlap(key, one) for one in own)}
        asked = set_values(set_values(tree, own), given)
        changed = any(OmegaConf.select(asked, key) != value for key, value in own.items())
        return set_values(asked, {PROTOCOL: f"{protocol}{CHANGED}"}) if changed else asked

    def build_dataset(self, node: DictConfig) -> Benchmark:
        """Build the benchmark of a composed node, with its framing, its template and its system message.

        Raises:
            ConfigError: one of these is not valid.
        """
        benchmark, framing = schema.read_dataset(node), node.get("framing")
        if framing is not None:
            benchmark = apply_framing(benchmark, str(framing))
        protocol, system = node.get("protocol"), node.get("system")
        if protocol is not None:
            benchmark = name_protocol(benchmark, str(protocol))
        benchmark = self.apply_template(benchmark, node.get("template"))
        return benchmark if system is None else apply_system(benchmark, str(system), named=protocol is None)

    def apply_template(self, benchmark: Benchmark, template: Any) -> Benchmark:
        """Put the questions of a benchmark through `dataset.template`.

        Args:
            template: null, a text with {question}, or the name of an option of conf/template.

        Raises:
            ConfigError: `template` is none of these.
        """
        if template is None:
            return benchmark
        names = self.get_group_options("template")
        if template in names:
            text = self.compose({"+template": template}).template.get("text")
            return apply_template(benchmark, str(text), template)
        if not isinstance(template, str) or "{" not in template:
            hint = "or give a text: 'dataset.template=\"Look closely. {question}\"'"
            raise ConfigError(describe_unknown("dataset.template", format_value(template), names, hint=hint))
        return apply_template(benchmark, template)


def set_values(tree: DictConfig, values: Mapping[str, Any]) -> DictConfig:
    """Return a copy of the tree with `group.key` and root keys set; their names are checked where they are read.

    Raises:
        ConfigError: a parent of the key is no mapping.
    """
    if not values:
        return tree
    tree = tree.copy()
    for key, value in values.items():
        if key in tree:  # a root key, whose name may hold a dot
            tree[key] = value
            continue
        try:
            OmegaConf.update(tree, key, value, force_add=True)  # mappings take new keys; types are checked later
        except (OmegaConfBaseException, ValueError) as error:  # a list has no key of this name
            raise ConfigError(f"{key}={format_value(value)}: {first_line(error)}") from None
    return tree


def _overlap(a: str, b: str) -> bool:
    """Return whether one of two dotted keys is the other, or within it."""
    return f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}.")


def _check_own_folder(own: Path) -> None:
    """Reject a user's folder without options, or with an option of the name of ours. Raises ConfigError.

    Hydra would take the first of two files of one name without a word.
    """
    if not own.is_dir():
        raise ConfigError(f"--config-dir {own}: there is no such folder")
    folders = {own / group: conf_folder() / group for group in GROUP_FOLDERS} | {own / "sweeps": sweeps_folder()}
    files = {path: ours / path.name for folder, ours in folders.items() for path in find_entries(folder, "*.yaml")}
    if not files and not (own / "config.yaml").is_file():
        listed = ", ".join(folder.name for folder in folders)
        raise ConfigError(f"--config-dir {own} holds no config.yaml, and no YAML in any of its folders {listed}")
    for path, ours in files.items():
        if ours.exists():
            raise ConfigError(f"{path}: {path.parent.name} {path.stem} is one of spatial_eval's own: rename the file")


def _quote_twice(text: str) -> str:
    """Quote a text for Hydra's grammar in the quotes that a shell's single ones may hold, where it has none itself."""
    return f'"{text}"' if not re.search(r'"|\\$', text) else _quote(text)


def _quote(text: str) -> str:
    """Quote a text for Hydra's grammar, where a backslash is special before a quote only."""
    escaped = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text)
    return f"'{escaped}'"
