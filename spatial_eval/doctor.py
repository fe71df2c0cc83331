"""What would fail here, before it does: a line a thing, and what to do about it. Loads no model, writes nothing.

Whatever may hang (torch and a driver, the hub, W&B, Slurm's controller) is asked at once and for a minute at most.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from . import config, outside, prepare, requirements, weights
from .errors import ConfigError, MissingData, ModelError, SpatialEvalError, unknown
from .hf import HF
from .outside import FAILS, OK, UNKNOWN, Line
from .sizes import available, parameters
from .types import Benchmark, Model, Places

TORCH_S = 7.0
WEIGHTS_S = 60.0  # torch, transformers and a model without values, on a busy machine
PACKAGE = Path(__file__).resolve().parents[1]  # where a child process finds this package
GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SPARE = 1.2  # of the weights: activations and the cache of a batch
TORCH = """
import json, torch
gpus = []
if torch.cuda.is_available():
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        gpus.append([torch.cuda.get_device_name(i), free, total, torch.cuda.is_bf16_supported()])
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "gpus": gpus}))
"""
WEIGHTS = """
import json, sys
from spatial_eval.checkpoints import load_config, load_processor
from spatial_eval.errors import SpatialEvalError
from spatial_eval.hf import HF
error = ""
try:
    model = HF(**json.load(sys.stdin))
    model.verify()
    load_processor(model, load_config(model))
except SpatialEvalError as caught:
    error = str(caught)
print(json.dumps(error))
"""


def examine(model: Model, dataset: Benchmark, data: Path, output: Path) -> Iterator[Line]:
    """Every line, in a fixed order."""
    with ThreadPoolExecutor() as pool:
        torch, hub = pool.submit(_torch), pool.submit(outside.hub, model)
        files = pool.submit(_weights, model)
        wandb, slurm = pool.submit(outside.wandb), pool.submit(outside.slurm)
        held = pool.submit(lambda: list(_data(model, dataset, data)))
        yield from versions()
        found = torch.result()
        yield _device(model, found)
        yield from _memory(model, found)
        yield _graphs(model, found)
        yield hub.result()
        yield from files.result()
        yield _disk(output)
        yield from held.result()
        yield wandb.result()
        yield slurm.result()


def versions() -> Iterator[Line]:
    """Python and each required package against what pyproject.toml allows."""
    python = requirements.read_python()
    good = python.contains(platform.python_version(), prereleases=True)
    said = f"{platform.python_version()}, required {python}"
    yield Line("python", OK, said) if good else Line("python", FAILS, f"{said}: make an environment with such a one")
    wrong: list[str] = []
    right: list[str] = []
    for one in requirements.read_packages():
        have = requirements.find_version(one.name)
        if not have:
            wrong.append(f"{one.name} is not installed")
        elif one.specifier.contains(have, prereleases=True):
            right.append(f"{one.name} {have}")
        elif not requirements.is_newer(one, have):
            wrong.append(f"{one.name} {have} (required {one.specifier})")
    newer = requirements.list_newer()
    if wrong:
        yield Line("packages", FAILS, f"{'; '.join(wrong)}: pip install -e . in the checkout")
    else:
        yield Line("packages", OK, ", ".join(right))
    if newer:
        yield Line("packages", UNKNOWN, "; ".join(newer))


def _torch() -> Mapping[str, Any]:
    """What torch sees, asked in a process of its own: a driver may hang. {"error": ...} where it does not answer."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", TORCH], capture_output=True, text=True, check=False, timeout=TORCH_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return {"slow": f"torch did not answer within {TORCH_S:g} s: try `python -c 'import torch'`"}
    if done.returncode:
        return {"error": f"torch cannot be imported: {(done.stderr.strip().splitlines() or ['?'])[-1]}"}
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def _device(model: Model, torch: Mapping[str, Any]) -> Line:
    if not isinstance(model, HF):
        return Line("device", OK, f"model {model.name} answers from files: none is needed")
    wanted = model.run_device()
    if "slow" in torch:
        return Line("device", UNKNOWN, torch["slow"])
    if "error" in torch:
        return Line("device", FAILS, torch["error"])
    names = ", ".join(gpu[0] for gpu in torch["gpus"]) or "no GPU"
    said = f"torch {torch['version']} (CUDA {torch['cuda'] or 'none'}) sees {names}; {model.name} runs on {wanted}"
    if wanted.startswith("cuda") and not torch["gpus"]:
        return Line("device", FAILS, f"{said}: install torch for CUDA, or set model.device=cpu")
    slow = wanted == "cpu" and (parameters(model) or 0) > 1e9
    return Line("device", OK, said + ("; expect minutes a question without a GPU" if slow else ""))


def _memory(model: Model, torch: Mapping[str, Any]) -> Iterator[Line]:
    if not isinstance(model, HF):
        return
    count, exact = parameters(model), model.folder() is not None
    have = available()
    if count is None:
        yield Line(
            "memory", UNKNOWN, f"the size of {model.path} is not known here; {have / GIB:.0f} GiB of RAM are free"
        )
        return
    size = count * BYTES[model.run_dtype()]
    what = f"{count / 1e9:.3g} G parameters{'' if exact else ' (by its name)'} in {model.run_dtype()}"
    need = size * (SPARE if model.run_device() == "cpu" else 1)
    yield _fits("memory", f"{what} take", need, have, "RAM", "take a machine with more, or a smaller model")
    if model.run_device().startswith("cuda") and torch.get("gpus"):
        name, free, *_ = torch["gpus"][0]
        advice = "take a larger GPU, model.dtype=bfloat16, or model.device_map=auto over several"
        yield _fits("GPU memory", f"{what} with a batch take", size * SPARE, free, name, advice)


def _fits(thing: str, what: str, need: float, have: float, where: str, advice: str) -> Line:
    said = f"{what} {need / GIB:.2g} GiB, {have / GIB:.0f} GiB are free ({where})"
    return Line(thing, OK, said) if need <= have else Line(thing, FAILS, f"{said}: {advice}")


def _weights(model: Model) -> list[Line]:
    """Whether the model's files hold what its config.json wants, asked in a process of its own: it imports torch."""
    try:
        folder = model.folder() if isinstance(model, HF) else None
    except ModelError:  # said where the hub is
        folder = None
    if not isinstance(model, HF) or folder is None:
        return []
    try:
        weights.check(folder, model.path)  # at once, without torch
    except ModelError as error:
        return [Line("weights", FAILS, str(error))]
    found, count = "", parameters(model)
    try:
        done = subprocess.run(
            [sys.executable, "-c", WEIGHTS],
            input=json.dumps(asdict(model)),
            capture_output=True,
            text=True,
            timeout=WEIGHTS_S,
            check=False,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(PACKAGE), os.environ.get("PYTHONPATH", "")])},
        )
        found = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        said = f"the files of {model.path} were not compared with its config.json within {WEIGHTS_S:g} s"
        return [Line("weights", UNKNOWN, f"{said}: loading compares them")]
    except (OSError, ValueError, IndexError):
        return [Line("weights", UNKNOWN, f"the files of {model.path} could not be compared with its config.json")]
    if found:
        return [Line("weights", FAILS, found)]
    return [Line("weights", OK, f"{count or 0:,} parameters in the files of {model.path}, as its config.json has them")]


def _graphs(model: Model, torch: Mapping[str, Any]) -> Line:
    if "gpus" not in torch:
        return Line("CUDA graphs, bf16", UNKNOWN, "torch gave no answer", needed=False)
    if not torch["gpus"]:
        return Line("CUDA graphs, bf16", UNKNOWN, "no GPU is seen; model.graphs=true replays nothing on a CPU", False)
    name, _, _, half = torch["gpus"][0]
    said = f"{name}: graphs can be captured, bfloat16 is {'native' if half else 'emulated: take float16 or float32'}"
    fails = not half and isinstance(model, HF) and model.run_dtype() == "bfloat16"
    return Line("CUDA graphs, bf16", FAILS if fails else OK, said)


def _disk(output: Path) -> Line:
    there = next(folder for folder in (output, *output.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    said = f"{free / GIB:.0f} GiB free at {output}"
    if not os.access(there, os.W_OK):
        return Line("disk", FAILS, f"{there} cannot be written: set output_dir=")
    return Line("disk", OK, said) if free > GIB else Line("disk", FAILS, f"{said}: free some, or set output_dir=")


def _data(model: Model, dataset: Benchmark, data: Path) -> Iterator[Line]:
    """One line a benchmark that lies in data_dir; the chosen one is needed, its images where a model looks at them."""
    looks, seen = isinstance(model, HF), set()
    for one in prepare.findings(data):
        seen.add(one.name)
        said, problem = f"{one.questions:,} questions, {one.images:,} images", one.problem.partition("; ")[0]
        if problem and one.questions and not looks:
            said, problem = f"{said} ({model.name} looks at none)", ""
        state, said = (
            (FAILS, f"{said}: {problem}; run `python -m spatial_eval prepare dataset={one.name}`")
            if problem
            else (OK, said)
        )
        yield Line(f"data {one.name}", state, said, needed=one.name == dataset.name)
    places = Places(data, data, remember=False)
    try:
        samples = dataset.read(places)
        if dataset.name not in seen:
            yield Line(f"data {dataset.name}", OK, f"{len(samples):,} questions")
        if not looks:
            model.check(dataset, samples, (), places)
            yield Line("recordings", OK, f"{model.name} holds some of {dataset.name}")
    except SpatialEvalError as error:
        if dataset.name not in seen or not isinstance(error, MissingData):
            yield Line("recordings" if dataset.name in seen else f"data {dataset.name}", FAILS, str(error))


def add(commands: Any) -> None:
    """The command, for the command line's parser."""
    said = "say what would fail here for a model and a dataset, and what to do"
    about = f"{said.capitalize()}; needs some seconds, at most a minute."
    command = commands.add_parser("doctor", help=said, description=about)
    command.add_argument(
        "what",
        nargs="*",
        metavar="model=NAME dataset=NAME",
        help="default: those of conf/config.yaml; GROUP.KEY=VALUE too",
    )
    command.add_argument(
        "--data-dir",
        type=Path,
        default=Path(os.environ.get("SPATIAL_EVAL_DATA") or "data"),
        help="as launch.py's data_dir",
    )
    command.add_argument(
        "--output-dir", type=Path, default=Path("outputs"), help="as launch.py's output_dir (default: outputs)"
    )
    command.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Prints the lines; exit code 3 where the model and dataset could not run here."""
    model, dataset = _chosen(parsed.what)
    stops = 0
    for line in examine(model, dataset, parsed.data_dir.expanduser().absolute(), parsed.output_dir.absolute()):
        stops += line.stops
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    verdict = f"cannot run here: {stops} of the lines above" if stops else "could run here"
    sys.stdout.write(f"{dataset.name} x {model.name} {verdict}\n")
    return 3 if stops else 0


def _chosen(what: list[str]) -> tuple[Model, Benchmark]:
    """Raises ConfigError."""
    given = dict(item.partition("=")[::2] for item in what)
    odd = [key for key in given if key.split(".")[0] not in ("model", "dataset")]
    if odd or "" in given.values():
        raise ConfigError(f"cannot examine {' '.join(what)}: expected model=NAME, dataset=NAME and their KEY=VALUEs")
    choices = {key: value for key, value in given.items() if "." not in key}
    for group, name in choices.items():
        options = sorted(path.stem for path in (prepare.CONF / group).glob("*.yaml"))
        if name not in options:
            raise ConfigError(unknown(group, name, options))
    tree = prepare.compose(choices)
    for key, value in given.items():
        group, _, name = key.partition(".")
        if name:
            tree[group][name] = yaml.safe_load(value)
    return config.model(tree.model), config.dataset(tree.dataset)
