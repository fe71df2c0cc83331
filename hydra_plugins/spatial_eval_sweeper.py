"""Hands the whole grid to spatial_eval at once: Hydra's own sweepers compose every cell twice, 59 ms each.

Hydra loads sweepers from this namespace only, and imports the module at every start: nothing heavy here.
"""

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError


class GridSweeper(Sweeper):
    """The task function receives this object in place of a cell's config (spatial_eval.grid.Front)."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader = hydra_context.config_loader
        self.task_function: Any = task_function
        self.config: Any = config
        self.arguments: list[str] = []
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def sweep(self, arguments: list[str]) -> None:
        self.arguments = arguments  # launch.py keeps the overrides from Hydra and puts them here
        self.task_function(self)

    def options(self, group: str) -> list[str]:
        """The choices of a config group, the user's own --config-dir included."""
        return list(self.loader.get_group_options(group, results_filter=ObjectType.CONFIG))

    def parse(self, override: str) -> tuple[str, list[Any]]:
        """(key, values) of one override in Hydra's grammar. Raises ConfigError."""
        from spatial_eval.errors import ConfigError

        try:
            (found,) = OverridesParser.create(config_loader=self.loader).parse_overrides([override])
            values = list(found.sweep_iterator()) if found.is_sweep_override() else [found.value()]
        except (HydraException, ValueError) as error:
            raise ConfigError(f"cannot read {override!r}: {str(error).splitlines()[0]}; expected key=value") from None
        if found.is_add() or found.is_delete() or found.is_force_add() or found.package:
            raise ConfigError(f"cannot use {override!r}: keys are set as key=value, none is added or removed")
        return found.key_or_group, [v.text if isinstance(v, QuotedString) else v for v in values]

    def compose(self, choices: dict[str, str]) -> DictConfig:
        """The YAML tree for a choice of groups. Raises ConfigError."""
        from spatial_eval.errors import ConfigError

        overrides = [f"{group}={option}" for group, option in choices.items()]
        if tuple(overrides) not in self._composed:
            try:
                config = self.loader.load_sweep_config(self.config, overrides)
            except (HydraException, OmegaConfBaseException) as error:
                raise ConfigError(f"cannot compose {' '.join(overrides)}: {str(error).splitlines()[0]}") from None
            except YAMLError as error:
                raise ConfigError(f"cannot compose {' '.join(overrides)}: {' '.join(str(error).split())}") from None
            with read_write(config), open_dict(config):
                del config["hydra"]
            self._composed[tuple(overrides)] = config
        return self._composed[tuple(overrides)]


@dataclass
class GridSweeperConf:
    """What hydra/sweeper=grid stands for."""

    _target_: str = "hydra_plugins.spatial_eval_sweeper.GridSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GridSweeperConf, provider="spatial_eval")
