"""Read a site's or a user's defaults: config.yaml in the folder of --config-dir, else of $SPATIAL_EVAL_CONFIG_DIR.

They set where and how sweeps run, never what is computed, so that a command gives the same result everywhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from spatial_eval.core.errors import ConfigError, describe_unknown
from spatial_eval.core.files import read_regular_file

VARIABLE = "SPATIAL_EVAL_CONFIG_DIR"
FOLDERS = ("output_dir", "data_dir")
_DEEP = re.compile(rb"(?:[\[{]\s*){200}")
OWNED = ("launcher", "tracking")  # groups whose option and keys may have defaults


def read_yaml(path: Path, loader: Any = None) -> Any:
    """Parse a YAML file of another hand; `loader`: of yaml, default SafeLoader.

    Raises:
        ConfigError: it cannot be read, is no regular file, not UTF-8, not YAML, or nested too deeply.
    """
    import yaml

    try:
        content = read_regular_file(path)
        if _DEEP.search(content):  # yaml would take minutes to find that
            raise RecursionError
        return yaml.load(content.decode(), loader or yaml.SafeLoader)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 (byte 0x{error.object[error.start]:02x}): save it as UTF-8") from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply; expected keys with values") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())[:300]}") from None


def find_folder(given: Path | None) -> Path | None:
    """Return the folder of a user's own options: the given one, else that of $SPATIAL_EVAL_CONFIG_DIR."""
    named = os.environ.get(VARIABLE)
    return given if given is not None or not named else Path(named).expanduser().absolute()


def find_defaults(own: Path | None) -> Path | None:
    """Return config.yaml of a user's folder; None where there is none."""
    path = own / "config.yaml" if own else None
    return path if path and path.is_file() else None


def read_defaults(path: Path) -> Mapping[str, Any]:
    """Read defaults as keys of the command line (`launcher.partition: gpu`).

    data_dir is left out where $SPATIAL_EVAL_DATA is set: a variable of the shell goes before a file.

    Raises:
        ConfigError: the file holds no mapping, or a key that changes what is computed, or an unknown key.
    """
    tree = read_yaml(path) or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys with values, such as `launcher.partition: gpu`")
    for key, value in tree.items():
        group, dot, name = str(key).partition(".")
        if key in OWNED and isinstance(value, dict):
            first = next(iter(value), "KEY")
            raise ConfigError(f"{path}: {key}: expected the name of an option; its keys as `{key}.{first}: VALUE`")
        if dot and group in OWNED:
            known = _list_fields(group)
            if name.partition(".")[0] not in known:
                raise ConfigError(f"{path}: {describe_unknown('key', key, [f'{group}.{one}' for one in known])}")
        elif key not in (*FOLDERS, *OWNED):
            valid = (*FOLDERS, *OWNED, *(f"{group}.KEY" for group in OWNED))
            hint = "it sets where and how sweeps run; what is computed stands in a sweep file or on the command line"
            raise ConfigError(f"{path}: {describe_unknown('key', key, valid, hint=hint)}")
    return {key: value for key, value in tree.items() if key != "data_dir" or not os.environ.get("SPATIAL_EVAL_DATA")}


def default_folder(key: str, own: Path | None) -> str | None:
    """Return the output_dir or data_dir of the defaults, None where they have none. Raises ConfigError."""
    path = find_defaults(own)
    value = read_defaults(path).get(key) if path else None
    return None if value is None else str(value)


def _list_fields(group: str) -> list[str]:
    from spatial_eval.config.launchers import LAUNCHERS
    from spatial_eval.config.tracking import TRACKERS

    table: Mapping[str, Any] = LAUNCHERS if group == "launcher" else TRACKERS
    return sorted({field.name for kind in table for field in fields(table[kind])})
