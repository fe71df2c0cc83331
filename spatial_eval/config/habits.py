"""Reject arguments in the form of Hydra, argparse or other evaluation tools, with one line that gives the right form.

docs/hydra.md lists the differences from plain Hydra, with reasons.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from spatial_eval.config.compose import ALIASES, Composer
from spatial_eval.config.defaults import read_yaml
from spatial_eval.config.schema import GROUPS, ONCE, PARTS, REWORDED
from spatial_eval.core.columns import HYPERPARAMETERS
from spatial_eval.core.errors import ConfigError

DOCS = "docs/hydra.md"
GONE = "leave it away"
LAUNCHERS_ELSEWHERE = {
    **dict.fromkeys(("submitit_slurm", "slurm"), "slurm"),
    **dict.fromkeys(("submitit_local", "joblib", "local", "ray", "dask", "rq", "loky"), "local"),
    "basic": "inline",
}
# Keys of Hydra's launcher plug-ins -> ours.
LAUNCHER_KEYS: Mapping[str, str] = {
    "timeout_min": "launcher.time={value}",
    "mem_gb": "launcher.memory={value}G",
    "mem": "launcher.memory={value}",
    "cpus_per_task": "launcher.cpus={value}",
    "gpus_per_node": "launcher.gpus={value}",
    "gpus_per_task": "launcher.gpus={value}",
    "gres": "launcher.gpus=N, or launcher.extra.gres={value}",
    "n_jobs": "launcher.slots={value} with launcher=local",
    "additional_parameters": "launcher.extra.NAME=VALUE",
    "setup": "launcher.setup={value}",
    "max_num_timeout": "launcher.retries={value}",
    "signal_delay_s": "launcher.signal={value}",
    **{
        name: f"launcher.{name}={{value}}"
        for name in ("partition", "account", "qos", "constraint", "array_parallelism", "python")
    },
}
# A key as it is typed, without a leading + -> what to write; {value} is what was given.
KEYS: tuple[tuple[str, str], ...] = (
    (
        r"hydra/sweeper",
        "write -m KEY=V1,V2 (grids are cheap, nothing is searched), then `python -m spatial_eval select`",
    ),
    (r"hydra\.sweeper\..*", "write a sweep file, sweep=FILE.yaml: its axes are what Hydra calls params"),
    (r"hydra\.(run|sweep)\.(dir|subdir)", "write output_dir=FOLDER: a sweep's own folder in it is sweeps/ID"),
    (r"hydra\.job\.name", "write name={value}: what the sweep may be called afterwards"),
    (r"hydra\.mode", "write -m for a grid, nothing for one cell"),
    (r"hydra\.job\.chdir|hydra\.output_subdir", f"{GONE}: the working folder never changes"),
    (r"hydra\.searchpath", "write --config-dir DIR: your own options and sweeps beside ours"),
    (
        r"hydra[/.](job_logging|hydra_logging|verbose).*",
        f"{GONE}: logs go to stderr, those of jobs into the sweep's jobs/",
    ),
    (r"hydra[/.].*", f"{GONE}: Hydra composes options here and runs nothing ({DOCS})"),
    (r"experiments?|exp", "write sweep={value}: a file of sweeps/ is what Hydra's users call an experiment"),
    (r"seed", f"{GONE}: decoding is greedy, nothing is drawn"),
    (r"(config|config_name|cfg)", "write sweep=FILE.yaml"),
    (r"(run_name|job_name|tag|exp_name|wandb\.name)", "write name={value}"),
    (r"(out|output|out_dir|save_dir|log_dir|results_dir)", "write output_dir={value}"),
    (r"(data|data_root|dataset_dir|data_path)", "write data_dir={value}"),
    (r"wandb(\..*)?", "write tracking=wandb; its keys are tracking.KEY=VALUE"),
    (r"(num_samples|n_samples|max_samples|n)", "write limit={value}"),
    (r"dry_run|dryrun", "write action=plan"),
    (r"resume|overwrite", f"{GONE}: what is stored is never computed twice; `store rm` puts answers aside"),
)
OPTIONS: Mapping[str, str] = {
    "--config-name": "write sweep=FILE.yaml for a grid in a file; --config-dir DIR adds your own options",
    "--experimental-rerun": "run the same command again: it goes on from what is stored",
    "--hydra-help": f"write --help; what differs from plain Hydra: {DOCS}",
    "--info": "write --cfg job, or action=plan",
    "-i": "write --cfg job, or action=plan",
    "--multi-run": "write -m",
    "--dry-run": "write action=plan",
    "--plan": "write action=plan",
}

# Methods of papers that are not here, and why; docs/methods.md lists those that are.
ABSENT_METHODS: Mapping[str, str] = {
    "opera": "it decodes by beam search; answers here are greedy, and so would its baseline be",
    "pai-full": "write method=pai_full",
}


def reject_options(unknown: Sequence[str], overrides: Sequence[str]) -> None:
    """Raise ConfigError on the first option that the command line does not know."""
    for option in unknown:
        name, equals, value = option.partition("=")
        key = name.lstrip("-").replace("-", "_")
        given = value if equals else next((text for text in overrides if "=" not in text), "VALUE")
        advice = OPTIONS.get(name) or _advise_key(key, given) or f"write {key}={given}: keys have no dashes"
        raise ConfigError(f"cannot use {option}: {advice}")


def reject_habits(composer: Composer, arguments: Sequence[str]) -> None:
    """Raise ConfigError on the first argument in the form of another tool."""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        key = name.lstrip("+~")
        advice = _advise_value(key, value.strip("'\"")) if equals else _advise_word(composer, argument)
        advice = advice or _advise_key(key, value)
        if not advice and equals and "." not in key and key not in (*GROUPS, *_ROOT, "sweep"):
            owner = next((group for group in GROUPS if key in _list_keys(composer, group)), None)
            advice = f"write {owner}.{key}={value}: it is a key of the {owner}" if owner else ""
        if advice:
            raise ConfigError(f"cannot use {argument!r}: {advice}")


_ROOT = (*HYPERPARAMETERS, *PARTS, *ONCE)


def _advise_key(key: str, value: str) -> str:
    if key == "hydra/launcher":
        return f"write launcher={LAUNCHERS_ELSEWHERE.get(value, 'inline, local or slurm')}: it is built in"
    if key.startswith("hydra.launcher."):
        ours = LAUNCHER_KEYS.get(key.removeprefix("hydra.launcher."))
        return f"write {ours.format(value=value)}" if ours else f"{GONE}, or write launcher.extra.NAME=VALUE for sbatch"
    return next((advice.format(value=value) for pattern, advice in KEYS if re.fullmatch(pattern, key)), "")


def _advise_value(key: str, value: str) -> str:
    """Return what to write for a value that only another tool takes; "" where there is nothing to say."""
    listed = re.fullmatch(r"\[(.*)\]", value)
    if listed and key in (*GROUPS, *_ROOT, "sweep"):
        return f"write -m {key}={','.join(part.strip() for part in listed[1].split(','))}: brackets are one value"
    several = "sweep=paper_table for the paper's seven, or -m dataset=NAME,NAME; -m 'dataset=glob(scenes_*)' by pattern"
    if key in GROUPS and value in ("*", "all"):
        every = {"dataset": several, "model": "-m model=NAME,NAME", "method": "-m 'method=glob(*)'"}
        return f"write {every.get(key, f'one {key}')}"
    if key == "model" and "/" in value and value.lower() not in ALIASES["model"]:
        return f"write model=hf model.path={value}"
    if key == "dataset" and value.endswith((".jsonl", ".json", ".csv", ".tsv")):
        return f"write dataset=file dataset.path={value} split=all"
    if key == "method" and value.lower() in ABSENT_METHODS:
        return ABSENT_METHODS[value.lower()]
    if key == "dataset" and "/" in value:
        return f"write dataset=hub dataset.repo={value}"
    if key in HYPERPARAMETERS and (steps := re.fullmatch(r"([\d.]+):([\d.]+):([\d.]+)", value)):
        start, stop, step = steps.groups()
        return f"write -m '{key}=range({start},{stop},{step})', the end excluded"
    return ""


def _advise_word(composer: Composer, word: str) -> str:
    """Return what to write for a word without `=`."""
    if word in composer.sweep_files():
        return f"write sweep={word}"
    groups = [group for group in GROUPS if word in composer.get_group_options(group)]
    if groups:
        return f"write {groups[0]}={word}"
    if word.endswith((".yaml", ".yml")):
        return f"write sweep={word}"
    return (
        f"write {word}=VALUE"
        if word in (*GROUPS, *_ROOT)
        else "expected key=value, or `python -m spatial_eval COMMAND`"
    )


def _list_keys(composer: Composer, group: str) -> set[str]:
    """List the keys of all options of a group."""
    keys = set(REWORDED) if group == "dataset" else set()
    for path in composer.option_files(group):
        try:
            tree = read_yaml(path)
        except ConfigError:  # said where it is chosen
            continue
        keys |= set(map(str, tree)) if isinstance(tree, dict) else set()
    return keys - {"kind", "defaults"}
