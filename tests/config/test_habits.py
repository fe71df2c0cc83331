"""What users of Hydra, argparse and other tools type: one line that says what to write. Nothing is launched."""

from __future__ import annotations

import pytest
import yaml
from hydra_front import COMPOSER, make_grid

from spatial_eval.cli.run import launch
from spatial_eval.config import habits
from spatial_eval.config.grid import format_config
from spatial_eval.config.launchers import Slurm
from spatial_eval.core.errors import ConfigError

# Arguments, and what the line must say.
KEYS = [
    ("hydra/launcher=submitit_slurm", "write launcher=slurm"),
    ("hydra/launcher=submitit_local", "write launcher=local"),
    ("hydra/launcher=joblib", "write launcher=local"),
    ("hydra/launcher=basic", "write launcher=inline"),
    ("hydra/launcher=mine", "write launcher=inline, local or slurm"),
    ("hydra.launcher.partition=gpu", "write launcher.partition=gpu"),
    ("hydra.launcher.timeout_min=60", "write launcher.time=60"),
    ("hydra.launcher.mem_gb=32", "write launcher.memory=32G"),
    ("hydra.launcher.cpus_per_task=8", "write launcher.cpus=8"),
    ("hydra.launcher.gpus_per_node=2", "write launcher.gpus=2"),
    ("hydra.launcher.n_jobs=4", "write launcher.slots=4 with launcher=local"),
    ("hydra.launcher.comment=x", "launcher.extra.NAME=VALUE"),
    ("hydra.run.dir=runs/x", "write output_dir=FOLDER"),
    ("hydra.sweep.dir=runs", "write output_dir=FOLDER"),
    ("hydra.sweep.subdir=${hydra.job.num}", "write output_dir=FOLDER"),
    ("hydra.job.name=first", "write name=first"),
    ("hydra.job.chdir=true", "leave it away: the working folder"),
    ("+hydra.job.chdir=true", "leave it away: the working folder"),
    ("hydra/sweeper=basic", "write -m KEY=V1,V2"),
    ("hydra/sweeper=optuna", "python -m spatial_eval select"),
    ("hydra.sweeper.params.weight=0.5,0.8", "write a sweep file"),
    ("hydra.sweeper.n_trials=20", "write a sweep file"),
    ("hydra.mode=MULTIRUN", "write -m"),
    ("hydra.searchpath=[file:///x]", "write --config-dir DIR"),
    ("hydra/job_logging=none", "logs go to stderr"),
    ("hydra.verbose=true", "logs go to stderr"),
    ("hydra.callbacks.x=1", "docs/hydra.md"),
    ("experiment=demo", "write sweep=demo"),
    ("+experiment=demo", "write sweep=demo"),
    ("preset=paper", "write model.preset=paper"),
    ("template=brief", "write dataset.template=brief"),
    ("dataset=all", "write sweep=paper_table"),
    ("dataset=*", "-m dataset=NAME,NAME"),
    ("method=*", "write -m 'method=glob(*)'"),
    ("method=all", "write -m 'method=glob(*)'"),
    ("method=opera", "it decodes by beam search"),
    ("dataset=own.csv", "write dataset=file dataset.path=own.csv"),
    ("model=*", "write -m model=NAME,NAME"),
    ("method=[base,vcd]", "write -m method=base,vcd"),
    ("weight=[0.5, 0.8]", "write -m weight=0.5,0.8"),
    ("weight=0.5:1.5:0.1", "write -m 'weight=range(0.5,1.5,0.1)'"),
    ("model=org/name", "write model=hf model.path=org/name"),
    ("model=./checkpoint", "write model=hf model.path=./checkpoint"),
    ("model=llava-hf/llava-1.5-7b-hf", "did you mean llava15_7b"),
    ("dataset=questions.jsonl", "write dataset=file dataset.path=questions.jsonl split=all"),
    ("dataset=org/questions", "write dataset=hub dataset.repo=org/questions"),
    ("device=cpu", "write model.device=cpu"),
    ("batch_size=8", "write model.batch_size=8"),
    ("alpha=0.5", "write method.alpha=0.5"),
    ("partition=gpu", "write launcher.partition=gpu"),
    ("project=x", "write tracking.project=x"),
    ("seed=0", "nothing is drawn"),
    ("wandb=true", "write tracking=wandb"),
    ("out_dir=x", "write output_dir=x"),
    ("dry_run=true", "write action=plan"),
    ("num_samples=50", "write limit=50"),
    ("run_name=first", "write name=first"),
    ("weigth=1", "did you mean weight"),
    ("w1=0.5", "did you mean weight1"),
    ("+weight=1", "none is added or removed"),
    ("~method", "expected key=value"),
    ("base", "write method=base"),
    ("demo", "write sweep=demo"),
    ("my.yaml", "write sweep=my.yaml"),
    ("weight", "write weight=VALUE"),
    ("results", "python -m spatial_eval COMMAND"),
    ("name=0a1b2c", "name=0a1b2c is not valid"),
    ("name=latest", "name=latest is not valid"),
    ("name=My Run", "name=My Run is not valid"),
]
OPTIONS = [
    ("--method=base", "write method=base"),
    ("--method base", "write method=base"),
    ("--max-new-tokens 5", "write max_new_tokens=5"),
    ("--experiment=demo", "write sweep=demo"),
    ("--config-path=/x", "--config-dir DIR"),
    ("--config-name x", "write sweep=FILE.yaml"),
    ("-cn x", "write sweep=FILE.yaml"),
    ("--info config", "write --cfg job"),
    ("--hydra-help", "docs/hydra.md"),
    ("--experimental-rerun x.pickle", "run the same command again"),
    ("--cfg hydra", "choose from"),
    ("--cfg", "expected one argument"),
    ("--package method", "go with --cfg job"),
    ("--config-dir /nowhere/at/all", "there is no such folder"),
]


@pytest.mark.parametrize(("argument", "says"), KEYS)
def test_a_habit_is_one_line_that_says_what_to_write(argument: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_grid([argument])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("line", "says"), OPTIONS)
def test_an_option_of_other_tools_is_one_line(line: str, says: str, capsys) -> None:
    assert launch(line.split()) == (1 if "nowhere" in line else 2)
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert says in shown.err


def test_every_key_that_is_advised_exists() -> None:
    """`hydra.launcher.X` names a key of launcher=slurm or launcher=local."""
    known = {*Slurm.__dataclass_fields__, "slots"}
    for advice in habits.LAUNCHER_KEYS.values():
        assert advice.removeprefix("launcher.").split("=")[0] in {*known, "extra.NAME"}, advice


def test_a_list_of_partitions_is_one_value() -> None:
    given = ["launcher=slurm", "launcher.partition=main,high", "launcher.extra.nodelist=a1,a2"]
    launcher = make_grid(given).settings.launcher
    assert isinstance(launcher, Slurm)
    assert (launcher.partition, launcher.extra) == ("main,high", {"nodelist": "a1,a2"})


def test_cfg_job_shows_a_grid_with_its_lists() -> None:
    shown = yaml.safe_load(format_config(COMPOSER, ["weight=0.5,0.8", "method=scaling_vis"]).partition("\n")[2])
    assert (shown["weight"], shown["method"]["weight"]) == ([0.5, 0.8], "${weight}")
    assert format_config(COMPOSER, ["method=base,vcd"], package="method.kind") == (
        "# method=base\nbase\n---\n# method=vcd\nvcd\n"
    )
    assert "# method=adapt_vis" in format_config(COMPOSER, ["sweep=smoke"])


@pytest.mark.parametrize("arguments", [["weigth=1"], ["sweep=nope"], ["method=nope"], ["threshold=2"]])
def test_cfg_job_rejects_what_a_run_rejects(arguments: list[str]) -> None:
    with pytest.raises(ConfigError):
        format_config(COMPOSER, arguments)


@pytest.mark.parametrize(
    ("line", "words"),
    [("python launch.py sweep=pap", "sweep=paper_adapt_vis sweep=paper_contrasts"), ("x launch.py swe", "sweep=demo")],
)
def test_sweep_completes_by_tab(line: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    assert launch(["-sc", "query=bash"]) == 0
    assert capsys.readouterr().out.startswith(words)
