"""Random command lines, damaged files and rows against every command: `make fuzz`, or

    python tests/fuzz.py [--tries 300] [--seed 0] [--kind files|commands|rows|pictures|calls ...]

Each try must end with exit code 0 to 3, without a traceback, within LIMIT_S; and no figure changes without a word: the
run's results.csv and captured attention are what they were, or its exit code is not 0. No control character reaches a
terminal, and no file outside a sweep's wandb folder is removed by its ledger. Of kind `calls`, calls of the file system
fail, as a full disk or a file server makes them; afterwards the same command ends with the undisturbed figures.
Everything runs in this process. Exits 1 with a line per failure, which names its try: `--seed 0 --only 17` repeats it.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import csv
import dataclasses
import errno
import io
import json
import logging
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]  # the doubles are found as another package's plugins

from PIL import Image  # noqa: E402

from spatial_eval.benchmarks.image_files import ORIENTATIONS, digest_images, open_rgb  # noqa: E402
from spatial_eval.cli.main import main as run_command  # noqa: E402
from spatial_eval.config.compose import Composer  # noqa: E402
from spatial_eval.config.descriptions import describe_value  # noqa: E402
from spatial_eval.config.launchers import LAUNCHERS, Slurm  # noqa: E402
from spatial_eval.core.errors import DataError  # noqa: E402
from spatial_eval.core.files import is_regular_file, read_json, read_regular_file  # noqa: E402
from spatial_eval.core.hashing import hash_text  # noqa: E402
from spatial_eval.core.types import Places  # noqa: E402
from spatial_eval.report.figures import fit_picture  # noqa: E402
from spatial_eval.tracking.publications import PublishLedger, Written  # noqa: E402

LIMIT_S = 60
GRID = ["method=base,scaling_vis,adapt_vis", "weight=0.5,1.5", "threshold=0.3,0.6"]
FIGURES = ("*/results.csv", "*/samples.parquet", "*/attention/*.npz")
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 5, 10**400, 1e308, float("nan"), float("inf"), "", " ", "\0", "a\nb", "\ud800", "é" * 300),
    *([], {}, [[]], {"a": {}}, [1, "x"], "NaN", "../../x", "/dev/zero", "=1+1", "\x1b[31m", "x" * 12_000),
)
DEEP = b"[" * 100_000 + b"]" * 100_000


class Trial:
    """A folder with two finished sweeps, which each try damages a copy of: of a recording, and one with captures."""

    def __init__(self, folder: Path) -> None:
        self.clean, self.folder = folder / "clean", folder / "work"
        self.clean.mkdir()
        chance = random.Random(1)
        words = ("left", "right", "above", "below")
        rows, recorded = [], []
        for i in range(12):
            Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(self.clean / f"{i}.png")
            gold = words[i % 4]
            rows.append({"id": i, "question": f"Where is it, {i}?", "answer": gold, "options": list(words)})
            rows[-1] |= {"image_path": f"{i}.png", "relation": gold, "pair": f"p{i // 2}"}
            texts = {str(weight): chance.choice(words) for weight in (0.5, 1.0, 1.5)}
            recorded.append(
                {"dataset": "q", "row": i, "gold": gold, "generation": texts, "confidence": chance.random()}
            )
        write_rows(self.clean / "q.jsonl", rows)
        for name, mark in (("q.csv", ","), ("q.tsv", "\t")):
            with (self.clean / name).open("w", newline="") as file:
                table = csv.DictWriter(file, list(rows[0]), delimiter=mark)
                table.writeheader()
                table.writerows({**row, "options": json.dumps(row["options"])} for row in rows)
        write_rows(self.clean / "recorded.jsonl", recorded)
        (self.clean / "own" / "model").mkdir(parents=True)
        (self.clean / "own" / "model" / "gazing.yaml").write_text("kind: gazing\n")
        self.reset()
        for command in (self.launch(), self.capture()):
            code, said = self.run(command)
            if code:
                raise SystemExit(f"the sweep to be damaged was not made: {said}")
        self.figures = self.read_figures()
        for sweep in Path("outputs/sweeps").iterdir():
            add_cluster_files(sweep)
            add_ledger(sweep)
        shutil.copytree(self.folder / "outputs", self.clean / "outputs")

    def launch(self, *more: str, questions: str = "q.jsonl") -> list[str]:
        data = [f"dataset={'jsonl' if questions.endswith('l') else 'file'}", f"dataset.path={questions}", "split=all"]
        return ["run", "-m", *data, "model=recorded", "model.path=recorded.jsonl", *GRID, *more]

    def capture(self, *more: str) -> list[str]:
        data = ["dataset=jsonl", "dataset.path=q.jsonl", "split=all"]
        return ["run", "--config-dir", "own", "-m", *data, "model=gazing", "capture=map", *GRID, *more]

    def reset(self) -> None:
        os.chdir("/")
        remove(self.folder)
        shutil.copytree(self.clean, self.folder)
        os.chdir(self.folder)

    def read_figures(self) -> dict[str, bytes]:
        """Tables and arrays of both sweeps by path."""
        found = [path for name in FIGURES for path in Path("outputs/sweeps").glob(name)]
        return {str(path): path.read_bytes() for path in found if is_regular_file(path)}

    def run(self, arguments: Sequence[str]) -> tuple[int, str]:
        """Run one command here; returns its exit code (-1 for an exception) and what it printed."""
        out, err = Screen(), io.StringIO()
        root = logging.getLogger()
        for handler in root.handlers[:]:
            root.removeHandler(handler)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), alarm():
            try:
                code = run_command(arguments)
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 2
            except BaseException:  # noqa: BLE001  the very thing that is looked for
                traceback.print_exc()
                code = -1
        return code, out.getvalue() + err.getvalue()


class NotDone(BaseException):
    """Took too long. No OSError, as TimeoutError is: what reads leniently would pass over it."""


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


def add_cluster_files(sweep: Path) -> None:
    """Make a sweep's launch one that went through Slurm, of a driver that died."""
    (launch,) = sweep.glob("jobs/*/launch.json")
    tree = json.loads(launch.read_text())
    tree["request"]["launcher"] = describe_value(LAUNCHERS, Slurm())
    launch.write_text(json.dumps(tree))
    job = next(iter(tree["jobs"]))
    launch.with_name("array-0.json").write_text(json.dumps({"name": "n-1", "jobs": [job], "id": "17"}))
    launch.with_name("closed").unlink()


def add_ledger(sweep: Path) -> None:
    """Give a sweep two runs in its W&B ledger."""
    root = sweep.absolute() / "wandb"
    rows: list[dict[str, Any]] = []
    for i in range(2):
        (root / f"offline-{i}").mkdir(parents=True)
        (root / f"offline-{i}" / f"run-r{i}.wandb").write_bytes(b"x")
        (root / f"t{i}.json").write_bytes(b"{}")
        entry = Written(f"r{i}", "d", str(root), f"offline-{i}", (f"t{i}.json",), ("cells",), "p", None, i)
        rows += [dataclasses.asdict(entry), {"id": f"r{i}", "digest": "d", "synced": "http://server", "time": i}]
    rows.append(rows[0] | {"run": "offline-2", "time": 9})
    (root / "ledger").mkdir()
    write_rows(root / "ledger" / "host-1-abc.jsonl", rows)
    (sweep / "publish.json").write_text(json.dumps({"urls": {"sweep": "http://server/runs/1"}}))


def read_ledger(sweep: Path) -> Iterator[str]:
    """Do with a damaged ledger what the publisher does; yields what is wrong."""
    outside = sorted(path for path in Path("outputs").rglob("*") if "wandb" not in path.parts)
    try:
        with alarm():
            ledger = PublishLedger(sweep)
            ledger.list_synced("http://server")
            for entry in ledger.list_written().values():
                ledger.explain_damage(entry)
            ledger.remove_leftovers()
    except BaseException:  # noqa: BLE001  the very thing that is looked for
        yield f"ledger: {traceback.format_exc()[-1800:]}"
    if not (sweep / "wandb").is_dir() or not all(map(os.path.lexists, outside)):
        yield "ledger: files outside the wandb folder were removed"


def make_tries_cheap() -> None:
    """Let every run use what an earlier one composed of conf/, which no try changes, and wait for no disk."""
    os.fsync = lambda _file: None
    made: Callable[..., None] = Composer.__init__
    trees: dict[Path | None, Any] = {}

    def make(composer: Composer, *given: Any) -> None:
        made(composer, *given)
        composer._trees = trees.setdefault(composer.own, composer._trees)

    Composer.__init__ = make  # type: ignore[method-assign]


@contextlib.contextmanager
def alarm() -> Iterator[None]:
    """Interrupt what takes longer than LIMIT_S: a FIFO that is read waits for ever."""

    def interrupt(_number: int, _frame: object) -> None:
        raise NotDone(f"not done within {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S, 5)  # again and again, until somebody lets it through
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def write_rows(path: Path, rows: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.is_symlink() or path.exists():
        path.unlink()


# --- damage to one file


def truncate(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size + 1)])


def flip_bits(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes() or b" ")
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def replace_bytes(path: Path, chance: random.Random) -> None:
    data = path.read_bytes()
    others = [b"", b"\0" * 4096, DEEP, b"PK\3\4" + chance.randbytes(200), b"null", b"7", b'"x"', b"[]", b"{}", b"[{}]"]
    others += [b"\xff\xfe" + data[:999].decode("latin1").encode("utf-16-le"), data + chance.randbytes(50), data * 2]
    others += [data + DEEP, b"\n" + DEEP + b"\n" + data, b"9" * 5000, data.replace(b",", b"\t"), chance.randbytes(300)]
    path.write_bytes(chance.choice(others))


def change_value(path: Path, chance: random.Random) -> None:
    """Give one value of a JSON file, or of one of its lines, another type."""
    try:
        text = path.read_text("utf8")
        lines = text.split("\n") if path.suffix == ".jsonl" else [text]
        place = chance.randrange(len(lines))
        tree = json.loads(lines[place])
    except ValueError:
        return flip_bits(path, chance)
    node, spots = tree, list(_spots(tree))
    if spots:
        node, key = chance.choice(spots)
        if chance.random() < 0.3 and isinstance(node, dict):
            del node[key]
        else:
            node[key] = chance.choice(ODD)
    lines[place] = json.dumps(tree)
    path.write_text("\n".join(lines), "utf8")
    return None


def _spots(tree: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield tree, key
        yield from _spots(value)


def make_other(path: Path, chance: random.Random) -> None:
    """Put something that is no regular file in a file's place."""
    remove(path)
    kind = chance.choice(["folder", "fifo", "loop", "device", "dangling", "absent"])
    if kind == "folder":
        (path / "inner").mkdir(parents=True)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind != "absent":
        path.symlink_to({"loop": path.name, "device": "/dev/zero", "dangling": "nowhere"}[kind])


def add_stray(path: Path, chance: random.Random) -> None:
    """Put a foreign file beside it, under a name that is like its own."""
    name = chance.choice(["x" * (255 - len(path.suffix)), "\udcff", ".hidden", "a b", f"{path.stem}-2", "-"])
    stray = path.with_name(name + path.suffix)
    if stray.exists():
        return
    stray.write_bytes(chance.choice([b"", path.read_bytes(), chance.randbytes(99), b"{}", b"[]\n"]))
    if chance.random() < 0.5:
        make_other(stray, chance)


def reseal(path: Path) -> None:
    """Make sweep.json describe a table as it is now: a folder of another hand is whole."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        about = read_json(path.parent / "sweep.json")
        about["digests"][path.name] = hash_text(read_regular_file(path, 2**24))
        (path.parent / "sweep.json").write_text(json.dumps(about))


def change_cell(path: Path, chance: random.Random) -> None:
    """Give one cell of a table another text, or take a column's name away."""
    try:
        lines = path.read_text("utf8").splitlines()
        place = chance.randrange(len(lines))
        cells = lines[place].split(",")
        cells[chance.randrange(len(cells))] = str(chance.choice(ODD))
        lines[place] = ",".join(cells)
        path.write_text("\n".join(lines) + "\n", "utf8", "surrogatepass")
    except ValueError:
        flip_bits(path, chance)


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (
    *(truncate, flip_bits, replace_bytes, change_value, change_value, make_other, add_stray),
)
OF_SWEEP = (
    *(["results"], ["results", "--cells"], ["results", "--by", "relation"], ["results", "--format", "json"]),
    *(["results", "--format", "csv"], ["results", "--rule", "words"], ["samples"], ["samples", "--wrong"], ["cite"]),
    *(["status"], ["status"], ["cancel"], ["report"], ["select", "--on", "all", "--report", "all"]),
    *(["samples", "--format", "csv"], ["attention", "--examples", "1", "--out", "pictures"]),
)
OF_ALL = (
    *(["list"], ["list"], ["list", "--format", "json"], ["store", "verify"], ["store", "size"]),
    *(["export", "--out", "shared"], ["compare", "method=base", "method=scaling_vis,weight=0.5"]),
)


def damage_files(trial: Trial, chance: random.Random) -> Iterator[str]:
    """Damage a file or two under outputs/ and run some commands; yields what is wrong."""
    files = sorted(path for path in Path("outputs").rglob("*") if path.is_file())
    done = []
    launch = chance.choice([trial.launch, trial.capture])
    for path in chance.sample(files, chance.choice([1, 1, 1, 2])):
        damage = chance.choice([change_cell if path.suffix == ".csv" else change_value, *DAMAGES])
        with contextlib.suppress(FileExistsError):
            damage(path, chance)
        if path.suffix in (".csv", ".parquet") and chance.random() < 0.7:
            reseal(path)
        done.append(f"{damage.__name__} {path}")
        if path.parts[1] == "captures" or "attention" in path.parts:
            launch = trial.capture
    what = ", ".join(done)
    of_sweep = [[name, *path.parts[2:3] * (path.parts[1] == "sweeps"), *rest] for name, *rest in OF_SWEEP]
    for command in [*chance.sample(of_sweep, 2), chance.choice(OF_ALL)]:
        yield from check(trial, command, what)
    if "wandb" in path.parts:
        yield from read_ledger(Path(*path.parts[:3]))
    before = trial.read_figures()
    code = yield from check(trial, launch(*(["action=plan"] * (chance.random() < 0.2))), what)
    for name, content in trial.read_figures().items():
        if code == 0 and content not in (before.get(name), trial.figures.get(name)):
            yield f"{what}: {name} is another one, and nobody said so"


def check(trial: Trial, command: Sequence[str], what: str) -> Generator[str, None, int]:
    """Run a command and yield what is wrong; returns its exit code."""
    code, said = trial.run(command)
    if code not in range(4) or "Traceback" in said:
        yield f"{what}: {' '.join(command)[:300]}: exit code {code}\n{said[-1800:]}"
    if CONTROL.search(said):
        yield f"{what}: {' '.join(command)[:300]}: a control character reaches the terminal: {said[-500:]!r}"
    return code


KEYS = ("weight", "weight1", "threshold", "split", "limit", "max_new_tokens", "action", "capture", "retry", "dataset")
KEYS += ("model", "method", "launcher", "tracking", "sweep", "output_dir", "data_dir", "dataset.path", "dataset.name")
KEYS += ("dataset.template", "dataset.scoring", "method.layers", "method.scaling", "model.path", "model.name", "nokey")
VALUES = ("0.5", "-1", "1e999", "nan", "", "null", "true", "all", "val", "test", "base", "adapt_vis", "recorded", "0-3")
VALUES += ("recorded.jsonl", "0.png", ".", "/dev/zero", "[", "{a:1}", "'", "a,b", "range(0,3)", "1,1,1", "{question}")
VALUES += ("jsonl", "tiny", "plan", "run", "mass", "none", "demo", "paper_table", "x" * 300, "\x1b[31m", "a=b", "$(x)")
VALUES += ("q.jsonl", "é")
WORDS = ("results", "compare", "select", "report", "publish", "store", "status", "retry", "cancel", "export", "import")
WORDS += ("verify", "size", "rm", "--yes", "--out", "shared", "--format", "csv", "json", "--output-dir", "outputs", "")
WORDS += (
    "--on",
    "method=base",
    "q.jsonl",
    "recorded.jsonl",
    "--dataset",
    "jsonl",
    "--method",
    "base",
    "--name",
    "n",
    "\0",
)


def random_commands(trial: Trial, chance: random.Random) -> Iterator[str]:
    """Run a random command line; a run is a plan, so that nothing is fetched or started."""
    if chance.random() < 0.6:
        given = [f"{chance.choice(KEYS)}={chance.choice(VALUES)}" for _ in range(chance.randint(1, 4))]
        command = [*trial.launch(), *given, "action=plan"]
        if chance.random() < 0.4:
            command = ["run", "-m", "model=recorded", "model.path=recorded.jsonl", *given, "action=plan"]
    else:
        command = [chance.choice(WORDS[:11]), *(chance.choice(WORDS) for _ in range(chance.randint(0, 5)))]
    yield from check(trial, command, "command")


def random_rows(trial: Trial, chance: random.Random) -> Iterator[str]:
    """Damage questions, recordings or pictures and run the sweep on them."""
    names = ["q.jsonl", "q.jsonl", "q.csv", "q.tsv", "recorded.jsonl", "recorded.jsonl", "0.png"]
    path = Path(chance.choice(names))
    damage = chance.choice([change_cell, *DAMAGES[:-1]] if path.suffix == ".csv" else DAMAGES[:-1])
    damage(path, chance)
    what = f"{damage.__name__} {path}"
    remove(Path("outputs")) if chance.random() < 0.5 else None
    yield from check(trial, trial.launch(questions=path.name if path.stem == "q" else "q.jsonl"), what)
    yield from check(trial, chance.choice([["report"], ["samples"], ["results"], ["list"]]), what)


def random_pictures(trial: Trial, chance: random.Random) -> Iterator[str]:
    """Give a model that looks at pictures damaged ones of several formats."""
    del trial
    name = chance.choice(["a.png", "a.jpg", "a.gif", "a.bmp", "a.webp", "a.tif", "a.ppm"])
    path = Path(name)
    remove(path)
    mode = chance.choice(["RGB", "RGB", "L", "P", "1", "RGBA", "CMYK", "I;16", "F", "LA"])
    with contextlib.suppress(OSError, ValueError, KeyError):  # formats that have no such pictures
        Image.new(mode, (chance.randint(1, 60), chance.randint(1, 60))).save(path)
    if not path.exists():
        Image.new("RGB", (9, 9)).save(path)
    damage = chance.choice([truncate, flip_bits, flip_bits, replace_bytes, make_other])
    damage(path, chance)
    what = f"{damage.__name__} {name}"
    try:
        with alarm(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's, on large pictures
            orientation = chance.choice(ORIENTATIONS)
            digest_images([path], orientation, Places(Path(), Path("outputs")))
            with contextlib.suppress(DataError):
                fit_picture(path, orientation=orientation)
            with contextlib.suppress(Exception):  # a recorded error of its question (models.encoder)
                picture = open_rgb(path, orientation)
                if picture.mode != "RGB":
                    yield f"{what}: a picture of mode {picture.mode}"
    except BaseException:  # noqa: BLE001  the very thing that is looked for
        yield f"{what}: {traceback.format_exc()[-1800:]}"


# --- calls of the file system that fail

ERRORS = (errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
CALLS: tuple[tuple[Any, str], ...] = (
    *((os, name) for name in ("stat", "scandir", "mkdir", "replace", "rename", "unlink", "utime")),
    *((os, name) for name in ("open", "write", "fsync")),
    (io, "open"),
)


class FailingCalls:
    """Let calls about files under outputs/ fail: the one after `spared` others, or all from that on (`lasting`)."""

    def __init__(self, chosen: Sequence[tuple[Any, str]], error: int, *, spared: int, lasting: bool) -> None:
        self.chosen, self.error, self.spared, self.lasting = chosen, error, spared, lasting
        self.root, self.failed = str(Path.cwd() / "outputs"), 0

    def __enter__(self) -> FailingCalls:
        self._before = [(module, name, module.__dict__[name]) for module, name in self.chosen]
        for module, name, call in self._before:
            for place in (module, builtins) if module is io else (module,):
                setattr(place, name, self._wrap(name, call))
        return self

    def __exit__(self, *_: object) -> None:
        for module, name, call in self._before:
            for place in (module, builtins) if module is io else (module,):
                setattr(place, name, call)

    def _wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            if name in ("write", "fsync"):
                concerned = str(Path(f"/proc/self/fd/{given[0]}").readlink()).startswith(self.root)
            else:
                concerned = isinstance(given[0], str | Path) and str(Path.cwd() / given[0]).startswith(self.root)
            if concerned:
                self.spared -= 1
            if not concerned or self.spared >= 0 or (self.spared < -1 and not self.lasting):
                return call(*given, **named)
            self.failed += 1
            if name == "write":  # a part of it
                call(given[0], given[1][: len(given[1]) // 2])
            raise OSError(self.error, os.strerror(self.error), None if name in ("write", "fsync") else str(given[0]))

        return run


def failing_calls(trial: Trial, chance: random.Random) -> Iterator[str]:
    """Run commands while calls of the file system fail, and the launch once more without; yields what is wrong."""
    launch, lasting, error = chance.choice([trial.launch, trial.capture]), chance.random() < 0.5, chance.choice(ERRORS)
    chosen = chance.choice([CALLS, chance.sample(CALLS, 1), chance.sample(CALLS, 1)])
    command = launch() if chance.random() < 0.7 else list(chance.choice([*OF_SWEEP, *OF_ALL]))
    if command[0] == "run" and chance.random() < 0.7:  # everything is to be computed
        remove(Path("outputs"))
    spared = int(chance.expovariate(1 / chance.choice([10, 100, 300])))
    names = "all" if chosen is CALLS else chosen[0][1]
    what = f"{errno.errorcode[error]} of {names} after {spared}{' and on' * lasting}"
    with FailingCalls(chosen, error, spared=spared, lasting=lasting) as calls:
        code = yield from check(trial, command, what)
    if code == 0 and command[0] == "run":
        yield from compare_figures(trial, f"{what}, exit code 0")
    code = yield from check(trial, [*launch(), "retry=true"], f"after {what}")
    if code != 0:
        yield f"after {what} ({calls.failed} failed in {command[0]}): exit code {code}"
    yield from compare_figures(trial, f"after {what}")


def compare_figures(trial: Trial, what: str) -> Iterator[str]:
    for name, content in trial.read_figures().items():
        if content != trial.figures.get(name):
            yield f"{what}: {name} is another one"


KINDS: dict[str, Callable[[Trial, random.Random], Iterator[str]]] = {
    "files": damage_files,
    "commands": random_commands,
    "rows": random_rows,
    "pictures": random_pictures,
    "calls": failing_calls,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=300, help="of all kinds together (default: 300)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="default: the time")
    parser.add_argument("--kind", nargs="+", choices=[*KINDS], default=[*KINDS], help="default: all")
    parser.add_argument("--only", type=int, help="the number of one try")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    make_tries_cheap()
    failures = 0
    with tempfile.TemporaryDirectory() as made:
        trial = Trial(Path(made))
        start = time.monotonic()
        numbers = range(given.tries) if given.only is None else [given.only]
        for number in numbers:
            kind = given.kind[number % len(given.kind)]
            if kind != "pictures":  # those are made anew
                trial.reset()
            for problem in KINDS[kind](trial, random.Random(f"{given.seed} {number} {kind}")):
                failures += 1
                print(f"--seed {given.seed} --only {number} --kind {' '.join(given.kind)}: {problem}", flush=True)
            if time.monotonic() - start > 60:
                print(f"  {number + 1} of {given.tries} tries", flush=True)
                start = time.monotonic()
        os.chdir("/")
    print(f"{len(numbers)} tries, {failures} failures", flush=True)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
