"""Names of sweeps, what commands take for SWEEP, list and cite."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from unreadable import make_unreadable

import spatial_eval
from spatial_eval.analysis.sweep_data import LARGEST_TABLE, find_sweep, read_files
from spatial_eval.cli import sweeps as cli_sweeps
from spatial_eval.cli.main import COMMANDS, GLOSSARY, build_parser, main
from spatial_eval.core.errors import ConfigError, StoreError
from spatial_eval.core.files import write_json
from spatial_eval.core.sweep_names import derive_name, is_name, read_name, write_name
from spatial_eval.core.terminal import warn_once
from spatial_eval.launch.records import list_open_launches
from spatial_eval.report import citation, sources
from spatial_eval.report.citation import cite_sweep
from spatial_eval.sweep.run import launch_sweep


def make_sweeps(output: Path, *sweeps: tuple[str, str]) -> Path:
    """Folders of finished sweeps (id, name), the oldest first."""
    for age, (name, called) in enumerate(sweeps):
        folder = output / "sweeps" / name
        folder.mkdir(parents=True)
        (folder / "results.csv").touch()
        if called:
            write_name(folder, called)
            os.utime(folder / "name.txt", (age, age))
        os.utime(folder / "results.csv", (age, age))
    return output


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("first", True),
        ("a-b_2", True),
        ("abcde", True),
        ("x" * 40, True),
        ("abcdef", False),
        ("0123456789ab", False),
        ("latest", False),
        ("", False),
        ("x" * 41, False),
        ("First", False),
        ("a b", False),
        ("a/b", False),
    ],
)
def test_what_is_a_name(text: str, valid: bool) -> None:
    assert is_name(text) is valid


def test_a_sweep_file_gives_its_name() -> None:
    assert [derive_name(stem) for stem in ("paper_table", "My Grid.v2", "facade", "")] == [
        "paper_table",
        "my-grid-v2",
        None,
        None,
    ]


def test_a_name_an_id_or_latest(tmp_path: Path, caplog) -> None:
    found = make_sweeps(tmp_path, ("aa11", "demo"), ("aa22", "demo"), ("bb33", ""))

    def name(text: str | None) -> str:
        return find_sweep(found, text).name

    assert [name(text) for text in (None, "latest", "bb", "aa1", str(found / "sweeps" / "aa11"))] == [
        "bb33",
        "bb33",
        "bb33",
        "aa11",
        "aa11",
    ]
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert name("demo") == "aa22"
    assert [record.getMessage() for record in caplog.records] == [
        "demo is the name of several sweeps: the newest is aa22; before it aa11"
    ]
    write_name(found / "sweeps" / "aa11", "demo")  # run again
    assert name("demo") == "aa11"
    with pytest.raises(ConfigError, match=r"sweep 'aa' is the beginning of several ids: demo \(aa22\), demo \(aa11\)"):
        name("aa")


def add_launched(output: Path, name: str, called: str, age: int) -> Path:
    """Make the folder of a sweep that was launched at `age` and has no tables."""
    folder = output / "sweeps" / name
    write_json(folder / "jobs" / "request.json", {})
    write_name(folder, called)
    for path in (folder / "jobs" / "request.json", folder / "name.txt"):
        os.utime(path, (age, age))
    return folder


def test_the_newest_finished_sweep_is_meant_and_a_newer_unfinished_one_is_said(tmp_path: Path, caplog) -> None:
    """A launch that runs takes nobody's tables away, and nobody takes another sweep's figures for its own."""
    found = make_sweeps(tmp_path, ("cc11", "demo"), ("cc22", "demo"), ("cc33", "other"))
    add_launched(found, "cc44", "demo", 9)
    add_launched(found, "cc55", "other", 1)  # before cc33 was: abandoned
    said = "a newer sweep, demo (cc44), has no tables yet: this is {}; see `python -m spatial_eval status cc44`"
    for text, name, warnings in (
        ("demo", "cc22", [said.format("cc22")]),
        (None, "cc33", [said.format("cc33")]),
        ("latest", "cc33", [said.format("cc33")]),
        ("other", "cc33", []),
        ("cc11", "cc11", []),
        (str(found / "sweeps" / "cc11"), "cc11", []),
    ):
        warn_once.cache_clear()
        caplog.clear()
        assert find_sweep(found, text).name == name
        assert caplog.messages == warnings
    for name in ("cc44", "cc55"):
        (found / "sweeps" / name / "results.csv").touch()
    caplog.clear()
    assert [find_sweep(found, text).name for text in (None, "cc44")] == ["cc55", "cc44"]
    assert not caplog.messages


def test_a_sweep_without_tables_is_an_error_that_says_so(tmp_path: Path, capsys) -> None:
    """By its name, its id, its folder, and as the only one there is: never another sweep's figures."""
    folder = add_launched(tmp_path, "dd44", "killed2", 9)
    line = (
        "error: sweep killed2 (dd44) has no tables yet: it still runs or waits, or was interrupted or failed; see "
        "`python -m spatial_eval status dd44`, go on with `retry dd44` or the same launch.py command\n"
    )
    out = ["--output-dir", str(tmp_path)]
    assert main(["results", *out]) == 1
    assert capsys.readouterr() == ("", line)
    make_sweeps(tmp_path, ("dd11", "killed"))
    for name in ("killed2", "dd44", "dd4", str(folder)):
        for command in (
            *(["results", name], ["samples", name], ["report", name], ["cite", name], ["select", name]),
            *(["compare", name, "killed"], ["export", name, "--out", str(tmp_path / "x")], ["publish", name]),
            ["attention", name, "--out", str(tmp_path / "x")],
        ):
            assert main([*command, *out]) == 1
            assert capsys.readouterr() == ("", line), command
        with pytest.raises(ConfigError, match="has no tables yet"):
            spatial_eval.load(name, tmp_path)
    assert main(["results", "killd2", *out]) == 1
    assert "did you mean killed2? (newest: killed2 (dd44), killed (dd11))" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"'dd' is the beginning of several ids: killed2 \(dd44\), killed \(dd11\)"):
        find_sweep(tmp_path, "dd")


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EACCES, errno.EIO])
def test_no_folder_beside_a_sweep_stops_its_commands(code: int, tmp_path: Path, monkeypatch, caplog) -> None:
    """Nor is it waited for, nor taken for a newer sweep: what was launched is what holds a regular request.json."""
    found = make_sweeps(tmp_path, ("ee11", "demo"))
    (found / "sweeps" / "ee22" / "jobs").mkdir(parents=True)
    os.mkfifo(found / "sweeps" / "ee22" / "jobs" / "request.json")
    (found / "sweeps" / "ee33" / "jobs" / "request.json").mkdir(parents=True)
    (found / "sweeps" / "ee44").touch()
    (found / "sweeps" / "ee55").symlink_to(found / "nowhere")
    make_unreadable(add_launched(found, "ee66", "demo", 9) / "jobs", code, monkeypatch)
    assert [find_sweep(found, text).name for text in (None, "demo", "ee11")] == ["ee11"] * 3
    assert not caplog.messages


def test_a_plan_launches_nothing(tmp_path: Path, experiment, caplog, capsys) -> None:
    out = f"output_dir={tmp_path}"
    sweep = spatial_eval.run(["method=base", "name=first", out, *experiment])
    assert launch_sweep(["method=base,scaling_vis", "name=first", "action=plan", out, *experiment], multirun=True) == 0
    assert spatial_eval.load("first", tmp_path).id == spatial_eval.load(None, tmp_path).id == sweep.id
    assert not caplog.messages


def test_an_error_lists_the_newest_five(tmp_path: Path) -> None:
    found = make_sweeps(tmp_path, *((f"{i:012x}", "smoke" * (i == 3)) for i in range(33)))
    with pytest.raises(ConfigError, match="did you mean smoke") as caught:
        find_sweep(found, "smok")
    assert len(re.findall(r"\b[0-9a-f]{12}\b", str(caught.value))) == 5
    assert f"newest: {32:012x}, {31:012x}" in str(caught.value)


def test_what_is_no_name_in_a_folder_is_none(tmp_path: Path) -> None:
    folder = make_sweeps(tmp_path, ("aa11", "demo")) / "sweeps" / "aa11"
    (folder / "name.txt").write_bytes(b"\xff two\nlines")
    assert read_name(folder) == ""


def test_a_run_names_its_sweep(tmp_path: Path, experiment, capsys, caplog) -> None:
    """The name is in no id; the same grid keeps it; another grid takes it over, which is said."""
    out = f"output_dir={tmp_path / 'out'}"
    plain = spatial_eval.run(["method=base", out, *experiment])
    with caplog.at_level(logging.INFO, logger="spatial_eval"):
        named = spatial_eval.run(["method=base", "name=first", out, *experiment])
        assert f"sweep first ({named.id})" in caplog.messages
        spatial_eval.run(["method=base", out, *experiment])
        other = spatial_eval.run(["method=scaling_vis", "name=first", out, *experiment])
    assert named.id == plain.id != other.id
    assert f"first now means sweep {other.id}; before, {plain.id} had that name" in caplog.messages
    assert [read_files(one.files.folder).about.get("name") for one in (plain, named, other)] == ["first"] * 3
    assert spatial_eval.load("first", tmp_path / "out").id == other.id
    capsys.readouterr()
    assert main(["list", "--output-dir", str(tmp_path / "out"), "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["name"], row["id"], row["cells"], row["complete"]) for row in rows] == [
        ("first", other.id, "2", "yes"),
        ("first", plain.id, "1", "yes"),
    ]
    assert float(rows[0]["vs_base"]) == pytest.approx(other.cells["vs_base"].max())


def test_list_shows_what_it_can(tmp_path: Path, capsys, monkeypatch) -> None:
    """A sweep without tables, or of another version, costs its own line's figures and nothing else."""
    found = make_sweeps(tmp_path, ("aa11", "demo"), ("bb22", ""))
    assert main(["list", "--output-dir", str(found)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"demo +aa11 .*not written", shown)
    assert "GPU h" not in shown
    monkeypatch.setattr(cli_sweeps, "terminal_width", lambda: 40)
    assert main(["list", "--output-dir", str(found)]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 40
    assert main(["list", "--output-dir", str(tmp_path / "none")]) == 0
    assert "no sweep under" in capsys.readouterr().out


def test_a_private_sweep_beside_ours_is_one_line_of_every_command(tmp_path, monkeypatch, caplog, capsys) -> None:
    """Neither an error of our commands nor a sweep that is silently not there."""
    output = make_sweeps(tmp_path, ("aa11", "demo"), ("bb22", "demo"))
    launched = output / "sweeps" / "bb22" / "jobs" / "20260101T000000-abcdef" / "launch.json"
    write_json(launched, {})
    write_json(launched.parents[1] / "request.json", {})
    assert [launch.folder for launch in list_open_launches(output)] == [launched.parent]
    make_unreadable(output / "sweeps" / "bb22", errno.EACCES, monkeypatch)
    assert main(["list", "--output-dir", str(output)]) == 0
    shown = capsys.readouterr()
    assert "aa11" in shown.out
    assert "bb22" not in shown.out
    assert spatial_eval.sweeps(output) == ["aa11"]
    assert find_sweep(output, "demo").name == "aa11"
    assert list(list_open_launches(output)) == []
    assert list(write_name(output / "sweeps" / "aa11", "demo")) == []
    said = f"{output}/sweeps/bb22 is passed over: it cannot be read (Permission denied); make it readable"
    assert caplog.messages == [said]


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EACCES])
def test_sweeps_that_cannot_be_listed_are_no_empty_list(code: int, tmp_path: Path, monkeypatch, capsys) -> None:
    output = make_sweeps(tmp_path, ("aa11", "demo"))
    make_unreadable(output / "sweeps", code, monkeypatch)
    with pytest.raises(StoreError, match=os.strerror(code)):
        spatial_eval.sweeps(output)
    assert main(["list", "--output-dir", str(output)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {output}/sweeps: {os.strerror(code)}; ")


def test_tables_of_another_hand_are_a_line(swept: Path, tmp_path: Path, capsys) -> None:
    """Whole by its digests, or without any, as folders of 0.1 are."""
    copy = tmp_path / "sweeps" / swept.name
    shutil.copytree(swept, copy)
    for name, content in (
        ("results.csv", b"missing,vs_base\n0,x\n"),
        ("results.csv", b"n\n1\n"),
        ("results.csv", b"a,b\n1," + b"x" * 200_000 + b"\n"),
        ("results.csv", b"missing\n\0\n"),
        ("passes.csv", b"a\n1\n"),
        ("passes.csv", b"device,seconds\nGPU,x\n"),
        ("sweep.json", b"[]"),
        ("sweep.json", b'{"cells": 7, "trunks": 7, "version": "1"}'),
    ):
        shutil.copytree(swept, copy, dirs_exist_ok=True)
        about = json.loads((copy / "sweep.json").read_text())
        (copy / "sweep.json").write_text(json.dumps({key: about[key] for key in about if key != "digests"}))
        (copy / name).write_bytes(content)
        assert main(["list", "--output-dir", str(tmp_path)]) == 0
        assert swept.name in capsys.readouterr().out
        for command in (["cite"], ["results"], ["results", "--format", "csv"]):
            done = main([*command, "--output-dir", str(tmp_path)])
            err = capsys.readouterr().err
            assert (done, err.count("\n")) in ((1, 1), (0, 0)), (name, content[:40], command, err)
            assert done == 0 or "is not a whole sweep" in err
    with (copy / "results.csv").open("wb") as file:
        file.truncate(LARGEST_TABLE + 1)  # sparse: it takes no room
    assert main(["results", "--output-dir", str(tmp_path)]) == 1
    assert "at most 4,294,967,296 are read" in capsys.readouterr().err


def test_what_was_typed_is_quoted_without_control_characters(capsys) -> None:
    for command in (["\x1b[31m"], ["results", "--format", "\x1b]0;x\x07"], ["status", "a", "\x1b[2J"]):
        with contextlib.suppress(SystemExit):  # argparse's way out
            assert main(command) == 2
        err = capsys.readouterr().err
        assert "\\x1b" in err
        assert "\x1b" not in err


def test_a_command_that_is_none_and_a_bare_name_are_a_line_with_what_was_meant(capsys) -> None:
    for command, code, line in (
        (["reslts"], 2, "error: unknown command 'reslts'; did you mean results? (valid: run, list, "),
        (["prepare", "vsr"], 1, "error: cannot prepare 'vsr': write dataset=vsr, or model=vsr for a model"),
    ):
        assert main(command) == code
        err = capsys.readouterr().err
        assert err.startswith(line)
        assert err.count("\n") == 1


class Full(io.StringIO):
    """A stream on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("command", ["list", "cite", "results", "samples", "status", "store size", "store verify"])
def test_what_is_asked_for_and_not_printed_is_an_error(command: str, swept: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "stdout", Full())
    assert main([*command.split(), "--output-dir", str(swept.parents[1])]) == 1
    assert "error: the output is not whole" in capsys.readouterr().err


def test_cite_names_what_was_used(swept: Path, capsys) -> None:
    assert main(["cite", swept.name[:6], "--output-dir", str(swept.parents[1])]) == 0
    text = capsys.readouterr().out
    n = {row["n"] for row in csv.DictReader((swept / "results.csv").read_text().splitlines()) if row["split"] == "test"}
    assert f"{n.pop()} questions of test" in text
    assert "adapt_vis [chen2025spatial]: weight1 0.5, 0.8; weight2 1.2, 1.5, 2.0; threshold" in text
    assert "eprint = {2503.01773}" in text
    assert "commit" in text
    assert text.count("@misc{chen2025spatial,") == 1
    keys = set(re.findall(r"^@misc\{(\w+),", text, re.M))
    cited = {key for group in re.findall(r"\[([\w, ]+)\]", text) for key in group.split(", ")}
    assert keys == cited  # every entry is cited, everything cited has an entry
    assert text.count("{") == text.count("}")


def test_cite_says_each_setting_of_a_method() -> None:
    def say(name: str, *settings: str) -> str:
        return citation._describe_method(name, [{"settings": one} for one in settings], {})

    assert say("vcd", "") == "vcd [leng2024vcd]: settings default."
    assert say("vcd", "", "noise=999") == "vcd [leng2024vcd]: settings default, noise=999."
    routed = say("route", "low=0.5 high=vcd,alpha=1,cutoff=0.1,noise=500")
    assert routed.startswith("route [chen2025spatial, leng2024vcd]: settings low=0.5")


def test_cite_knows_benchmarks_models_and_gpu_hours(swept: Path) -> None:
    """The facts of a real run, put into the files of a made-up one."""
    files = read_files(swept)
    trunk = files.about["trunks"][0]
    dataset = {**trunk["dataset"], "kind": "WhatsUp"}
    model = {**trunk["model"], "kind": "HF", "path": "llava-hf/llava-1.5-7b-hf", "revision": "a272c74b"}
    passes = list(csv.DictReader(io.StringIO(files.tables["passes.csv"].decode())))
    passes[0] |= {"device": "NVIDIA A100", "seconds": "7200", "dtype": "bfloat16", "revision": "a272c74b"}
    sheet = io.StringIO()
    writer = csv.DictWriter(sheet, list(passes[0]))
    writer.writeheader()
    writer.writerows(passes)
    changed = type(files)(
        {**files.about, "trunks": [{**trunk, "dataset": dataset, "model": model}]},
        {**files.tables, "passes.csv": sheet.getvalue().encode()},
    )
    text = cite_sweep(changed)
    assert "[liu2024improved, llava_hf_llava_1_5_7b_hf]: llava-hf/llava-1.5-7b-hf, revision a272c74b, bfloat16" in text
    assert "Hugging Face hub, revision a272c74b" in text
    assert "2 GPU hours (NVIDIA A100)" in text
    assert "[kamath2023whatsup]" in text
    assert "MIT (https://github.com/amitakamath/whatsup_vlms" in text
    assert "Llama 2 Community License (https://huggingface.co/llava-hf/llava-1.5-7b-hf)" in text


def test_a_licence_nobody_looked_up_is_said_to_be_unknown(swept: Path) -> None:
    files = read_files(swept)
    trunk = files.about["trunks"][0]
    own = {**trunk["dataset"], "kind": "QuestionFile", "name": "mine"}
    model = {**trunk["model"], "kind": "HF", "path": "someone/model", "name": "theirs"}
    text = cite_sweep(type(files)({**files.about, "trunks": [{"dataset": own, "model": model}]}, files.tables))
    assert "mine not known here; theirs not known here." in text


def test_every_dataset_and_model_that_has_a_licence_is_named_as_the_yaml_files_name_it() -> None:
    texts = [path.read_text("utf8") for path in (ROOT / "conf").glob("*/*.yaml")]
    given = {
        line.split()[1].strip('"')
        for text in texts
        for line in text.splitlines()
        if re.match(r"(repo|path|benchmark): \S", line)
    }
    kinds = {"WhatsUp", "Vsr", "Scenes"}
    assert {*sources.DATASET_LICENCES, *sources.DATASET_SOURCES, *sources.MODEL_LICENCES} <= given | kinds
    assert all(licence.source for licence in (*sources.DATASET_LICENCES.values(), *sources.MODEL_LICENCES.values()))


def test_help_is_light_and_explains_five_words() -> None:
    """--help in 0.5 s of CPU: no library outside the standard one is imported for it."""
    code = (
        "import resource, sys\nfrom spatial_eval.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(used.ru_utime + used.ru_stime)\nprint(*{'numpy', 'pandas', 'hydra', 'yaml', 'httpx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    *shown, seconds, heavy = done.stdout.split("\n")[:-1]
    assert heavy == ""
    assert float(seconds) < 0.5
    assert "five words:" in shown
    readme = " ".join((ROOT / "README.md").read_text("utf8").split())
    assert all(f"*{word}*: {meaning}" in readme for word, meaning in GLOSSARY.items())


def test_a_command_is_parsed_by_its_own_module_alone() -> None:
    names = [name for helps in COMMANDS.values() for name in helps]
    assert len(names) == len(set(names))
    for name in names:
        assert build_parser(name).format_help() == build_parser().format_help()


def test_a_folder_with_a_nul_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["select", "q", "--output-dir", "\0"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
