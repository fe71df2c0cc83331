"""Check the installation, the machine and the data, and print one line with advice per check. Writes nothing.

Checks that may hang (torch and a driver, the hub, W&B, Slurm's controller) run side by side, for a minute at most.
No model is loaded: its size is counted from the headers of its files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatial_eval.benchmarks.prompts import without_template
from spatial_eval.cli.arguments import CONFIG_DIR, DATA_DIR, OUTPUT_DIR, Commands
from spatial_eval.config import schema
from spatial_eval.core import requirements
from spatial_eval.core.errors import ConfigError, MissingData, ModelError, SpatialEvalError
from spatial_eval.core.types import Benchmark, Model, Places
from spatial_eval.models import weights
from spatial_eval.models.hf import HF
from spatial_eval.prepare.verify import glance_benchmark, list_data_benchmarks
from spatial_eval.tracking import process

if TYPE_CHECKING:
    from spatial_eval.config.compose import Composer


def parameters(model: HF) -> int | None:
    """Count a model's parameters from its files' headers; where these are absent, read them from `7b` in its name.

    None where neither holds the number.
    """
    folder = model.folder()
    if folder is None:
        found = re.search(r"(\d+(?:\.\d+)?)b\b", model.path.lower())
        return int(float(found[1]) * 1e9) if found else None
    try:
        return weights.count_parameters(weights.read_headers(folder, model.path)) or None
    except ModelError:  # reported where weights are looked at
        return None


def available() -> int:
    """Return the bytes of RAM that a new process could take: the free ones, within the limit of its control group."""
    text = Path("/proc/meminfo").read_text() if sys.platform == "linux" else ""
    free = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.M)
    size = int(free[1]) * 1024 if free else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        size = min(size, int(limit.read_text()) - int(used.read_text()))
    return size


OK, FAILS, UNKNOWN = "ok", "would fail", "not checked"
HUB_S, SLURM_S = 3.0, 5.0


@dataclass(frozen=True, slots=True)
class DoctorLine:
    """Hold the outcome of one check; `needed`: whether the model and dataset cannot run here where it fails."""

    thing: str
    state: str
    message: str
    needed: bool = True

    @property
    def stops(self) -> bool:
        return self.needed and self.state == FAILS

    def __str__(self) -> str:
        return f"{self.thing:<17} {self.state:<11} {self.message}"


def make_line(good: bool, thing: str, message: str, advice: str) -> DoctorLine:
    """Return a line in the state OK, or in FAILS with advice."""
    return DoctorLine(thing, OK, message) if good else DoctorLine(thing, FAILS, f"{message}: {advice}")


def check_hub(model: Model) -> DoctorLine:
    if not isinstance(model, HF):
        return DoctorLine("hub", OK, f"model {model.name} needs none")
    try:
        folder = model.folder()
    except SpatialEvalError as error:
        return DoctorLine("hub", FAILS, str(error))
    if folder is not None:
        return DoctorLine("hub", OK, f"{model.path} is here already: {folder}")
    here = f"{model.path} is not in the hub cache"
    fetch = "run `python -m spatial_eval prepare model=...` where there is network"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return DoctorLine("hub", FAILS, f"{here} and HF_HUB_OFFLINE is set: {fetch}, or unset it")
    url = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    answer = _ask_within(
        HUB_S, lambda: _read_status(f"{url}/{model.path}/resolve/{model.revision or 'main'}/config.json")
    )
    if isinstance(answer, int) and answer < 400:
        return DoctorLine("hub", OK, f"{here}, {url} has it: it is fetched at the first run")
    if answer in (401, 403):
        login = "wants a login for it: accept its terms there, then `hf auth login`"
        return DoctorLine("hub", FAILS, f"{here}, {url} {login}")
    why = f"answers with HTTP {answer}" if isinstance(answer, int) else answer
    return DoctorLine("hub", FAILS, f"{here}, {url} {why}: {fetch}, or give model.path=FOLDER")


def _read_status(url: str) -> int | str:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=HUB_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except (OSError, ValueError) as error:
        return f"is out of reach ({error.reason if isinstance(error, urllib.error.URLError) else error})"


def _ask_within(seconds: float, ask: Callable[[], int | str]) -> int | str:
    """Return the answer, or that none came: resolving a name can hang for longer than any time-out of a socket."""
    answers: list[int | str] = []
    thread = threading.Thread(target=lambda: answers.append(ask()), daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else f"did not answer within {seconds:g} s"


def check_wandb() -> DoctorLine:
    try:
        have = metadata.version("wandb")
    except metadata.PackageNotFoundError:
        return DoctorLine("wandb", FAILS, "is not installed: pip install wandb, for tracking=wandb", needed=False)
    accepted, message = process.probe_server()
    if accepted:
        return DoctorLine("wandb", OK, f"{have}, {message}", needed=False)
    message = f"{have} writes offline; uploading (tracking.mode=online) would fail: {message}"
    return DoctorLine("wandb", FAILS, message, needed=False)


def check_slurm_controller() -> DoctorLine:
    absent = [name for name in ("sbatch", "squeue") if shutil.which(name) is None]
    if absent:
        message = f"no {' or '.join(absent)} on PATH: launcher=slurm would fail here"
        return DoctorLine("slurm", UNKNOWN, message, needed=False)
    try:
        command = ["squeue", "-h", "-o", "%i"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SLURM_S)
        why = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
    except (OSError, subprocess.TimeoutExpired):
        why = f"no answer within {SLURM_S:g} s"
    if why:
        message = f"sbatch and squeue are there, the controller does not answer ({why}): launcher=slurm would fail"
        return DoctorLine("slurm", FAILS, message, needed=False)
    message = f"the controller answers, {len(done.stdout.split()):,} jobs in its queue"
    return DoctorLine("slurm", OK, message, needed=False)


TORCH_S = 7.0
WEIGHTS_S = 60.0  # torch, transformers and a model without values, on a busy machine
PACKAGE = Path(__file__).resolve().parents[2]  # where a child process finds this package
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
from spatial_eval.models.loading import load_config, load_processor
from spatial_eval.core.errors import SpatialEvalError
from spatial_eval.models.hf import HF
error = ""
try:
    model = HF(**json.load(sys.stdin))
    model.verify()
    load_processor(model, load_config(model))
except SpatialEvalError as caught:
    error = str(caught)
print(json.dumps(error))
"""


def examine(
    model: Model, dataset: Benchmark, data: Path, output: Path, known: Sequence[tuple[str, Benchmark]]
) -> Iterator[DoctorLine]:
    """Run every check and yield its line, in a fixed order. `known`: the benchmarks in a data_dir, by name."""
    with ThreadPoolExecutor() as pool:
        torch, hub, files, wandb, slurm, held = (
            pool.submit(_ask_torch),
            pool.submit(check_hub, model),
            pool.submit(_check_weights, model),
            pool.submit(check_wandb),
            pool.submit(check_slurm_controller),
            pool.submit(lambda: list(_check_data(model, dataset, data, known))),
        )
        yield from versions()
        seen = torch.result()
        yield from (_device(model, seen), *_memory(model, seen), _graphs(model, seen), hub.result())
        yield from files.result()
        yield _disk(output)
        yield from (*held.result(), wandb.result(), slurm.result())


def versions() -> Iterator[DoctorLine]:
    """Compare the versions of Python and of each required package with pyproject.toml."""
    python, version = requirements.read_python(), platform.python_version()
    good = python.contains(version, prereleases=True)
    yield make_line(good, "python", f"{version}, required {python}", "make an environment with such a one")
    wrong, right, newer = [], [], requirements.list_newer()
    for package in requirements.read_packages():
        have = requirements.find_version(package.name)
        if not have:
            wrong.append(f"{package.name} is not installed")
        elif package.specifier.contains(have, prereleases=True):
            right.append(f"{package.name} {have}")
        elif not requirements.is_newer(package, have):
            wrong.append(f"{package.name} {have} (required {package.specifier})")
    yield make_line(not wrong, "packages", "; ".join(wrong) or ", ".join(right), "pip install -e . in the checkout")
    if newer:
        yield DoctorLine("packages", UNKNOWN, "; ".join(newer))


def _run_python(code: str, seconds: float, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own: it imports torch, and a driver may hang. Raises OSError, TimeoutExpired."""
    path = os.pathsep.join([str(PACKAGE), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
        env=os.environ | {"PYTHONPATH": path},
    )


def _ask_torch() -> Mapping[str, Any]:
    """Return what torch sees; {"slow": ...} or {"error": ...} where it does not answer."""
    try:
        done = _run_python(TORCH, TORCH_S)
    except (OSError, subprocess.TimeoutExpired):
        return {"slow": f"torch did not answer within {TORCH_S:g} s: try `python -c 'import torch'`"}
    if done.returncode:
        return {"error": f"torch cannot be imported: {(done.stderr.strip().splitlines() or ['?'])[-1]}"}
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def _device(model: Model, torch: Mapping[str, Any]) -> DoctorLine:
    if not isinstance(model, HF):
        return DoctorLine("device", OK, f"model {model.name} answers from files: none is needed")
    wanted = model.run_device()
    if "slow" in torch:
        return DoctorLine("device", UNKNOWN, torch["slow"])
    if "error" in torch:
        return DoctorLine("device", FAILS, torch["error"])
    names = ", ".join(gpu[0] for gpu in torch["gpus"]) or "no GPU"
    message = f"torch {torch['version']} (CUDA {torch['cuda'] or 'none'}) sees {names}; {model.name} runs on {wanted}"
    if wanted == "cpu" and (parameters(model) or 0) > 1e9:
        message += "; expect minutes per question without a GPU"
    good = bool(torch["gpus"]) or not wanted.startswith("cuda")
    return make_line(good, "device", message, "install torch for CUDA, or set model.device=cpu")


def _memory(model: Model, torch: Mapping[str, Any]) -> Iterator[DoctorLine]:
    if not isinstance(model, HF):
        return
    count, exact, have = parameters(model), model.folder() is not None, available()
    if count is None:
        message = f"the size of {model.path} is not known here; {have / GIB:.0f} GiB of RAM are free"
        yield DoctorLine("memory", UNKNOWN, message)
        return
    size = count * BYTES[model.run_dtype()]
    what = f"{count / 1e9:.3g} G parameters{'' if exact else ' (by its name)'} in {model.run_dtype()}"
    need = size * (SPARE if model.run_device() == "cpu" else 1)
    yield _fits("memory", f"{what} take", need, have, "RAM", "take a machine with more, or a smaller model")
    if model.run_device().startswith("cuda") and torch.get("gpus"):
        name, free, *_ = torch["gpus"][0]
        advice = "take a larger GPU, model.dtype=bfloat16, or model.device_map=auto over several"
        yield _fits("GPU memory", f"{what} with a batch take", size * SPARE, free, name, advice)


def _fits(thing: str, what: str, need: float, have: float, where: str, advice: str) -> DoctorLine:
    message = f"{what} {need / GIB:.2g} GiB, {have / GIB:.0f} GiB are free ({where})"
    return make_line(need <= have, thing, message, advice)


def _check_weights(model: Model) -> list[DoctorLine]:
    """Check whether the model's files hold what its config.json wants."""
    try:
        folder = model.folder() if isinstance(model, HF) else None
    except ModelError:  # reported where the hub is
        folder = None
    if not isinstance(model, HF) or folder is None:
        return []
    state, message = UNKNOWN, f"the files of {model.path} could not be compared with its config.json"
    try:
        weights.check_files(folder, model.path)  # at once, without torch
        count = parameters(model) or 0
        error = json.loads(_run_python(WEIGHTS, WEIGHTS_S, json.dumps(asdict(model))).stdout.splitlines()[-1])
        good = f"{count:,} parameters in the files of {model.path}, as its config.json has them"
        state, message = (FAILS, error) if error else (OK, good)
    except ModelError as error:
        state, message = FAILS, str(error)
    except subprocess.TimeoutExpired:
        message = f"the files of {model.path} were not compared with its config.json within {WEIGHTS_S:g} s"
        message += ": loading compares them"
    except (OSError, ValueError, IndexError):
        pass
    return [DoctorLine("weights", state, message)]


def _graphs(model: Model, torch: Mapping[str, Any]) -> DoctorLine:
    thing = "CUDA graphs, bf16"
    if not torch.get("gpus"):
        message = (
            "no GPU is seen; model.graphs=true replays nothing on a CPU" if "gpus" in torch else "torch gave no answer"
        )
        return DoctorLine(thing, UNKNOWN, message, needed=False)
    name, _, _, half = torch["gpus"][0]
    message = f"{name}: graphs can be captured, bfloat16 is {'native' if half else 'emulated: take float16 or float32'}"
    fails = not half and isinstance(model, HF) and model.run_dtype() == "bfloat16"
    return DoctorLine(thing, FAILS if fails else OK, message)


def _disk(output: Path) -> DoctorLine:
    there = next(folder for folder in (output, *output.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    message = f"{free / GIB:.0f} GiB free at {output}"
    if not os.access(there, os.W_OK):
        return DoctorLine("disk", FAILS, f"{there} cannot be written: set output_dir=")
    return make_line(free > GIB, "disk", message, "free some, or set output_dir=")


def _check_data(
    model: Model, dataset: Benchmark, data: Path, known: Sequence[tuple[str, Benchmark]]
) -> Iterator[DoctorLine]:
    """Yield one line per benchmark in data_dir; the chosen one is needed, its images where a model looks at them."""
    looks, seen, plain = isinstance(model, HF), set(), without_template(dataset)
    for one in (glance_benchmark(*named, data) for named in known):
        seen.add(one.name)
        counted, problem = f"{one.questions:,} questions, {one.images:,} images", one.problem.partition("; ")[0]
        if problem and one.questions and not looks:
            counted, problem = f"{counted} ({model.name} looks at none)", ""
        state, text = OK, counted
        if problem:
            lacking = f"{counted}: {problem}" if one.questions else problem
            state, text = FAILS, f"{lacking}; run `python -m spatial_eval prepare dataset={one.name}`"
        yield DoctorLine(f"data {one.name}", state, text, needed=one.name == plain.name)
    places = Places(data, data, remember=False)
    try:
        samples = dataset.read(places)
        if plain.name not in seen:
            yield DoctorLine(f"data {plain.name}", OK, f"{len(samples):,} questions")
        if isinstance(model, HF):
            model.check_prompts(dataset, samples)
        else:
            model.check(dataset, samples, (), places)
            yield DoctorLine("recordings", OK, f"{model.name} holds some of {dataset.name}")
    except SpatialEvalError as error:
        if plain.name not in seen or not isinstance(error, MissingData):
            thing = "prompts" if looks else "recordings"
            yield DoctorLine(thing if plain.name in seen else f"data {plain.name}", FAILS, str(error))


def add_doctor(commands: Commands) -> None:
    """Add `doctor` to the subparsers of the command line."""
    about = "Say what would fail here for a model and a dataset, and what to do; needs some seconds, at most a minute."
    command = commands.add_parser("doctor", parents=[DATA_DIR, OUTPUT_DIR, CONFIG_DIR], description=about)
    command.add_argument(
        "what",
        nargs="*",
        metavar="model=NAME dataset=NAME",
        help="default: those of conf/config.yaml; GROUP.KEY=VALUE too",
    )
    command.set_defaults(run=run_doctor)


def run_doctor(parsed: argparse.Namespace) -> int:
    """Print the lines; return exit code 3 where the model and dataset could not run here."""
    from spatial_eval.config.compose import Composer  # Hydra costs start-up time

    composer = Composer(parsed.config_dir)
    model, dataset = _chosen(composer, parsed.what)
    known = list_data_benchmarks(composer, "all", {})
    stops = 0
    for line in examine(model, dataset, parsed.data_dir, parsed.output_dir.absolute(), known):
        stops += line.stops
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    verdict = f"cannot run here: {stops} of the lines above" if stops else "could run here"
    sys.stdout.write(f"{dataset.name} x {model.name} {verdict}\n")
    return 3 if stops else 0


def _chosen(composer: Composer, what: Sequence[str]) -> tuple[Model, Benchmark]:
    """Build the model and the dataset that the command line names, the defaults without. Raises ConfigError."""
    from spatial_eval.config.compose import set_values

    values = composer.parse_values(what)
    if any(key.split(".")[0] not in ("model", "dataset") or value == "" for key, value in values.items()):
        raise ConfigError(f"cannot examine {' '.join(what)}: expected model=NAME, dataset=NAME and their KEY=VALUEs")
    choices = {key: value for key, value in values.items() if "." not in key}
    for group, name in choices.items():
        composer.check_option(group, name)
    tree = set_values(composer.compose(choices), {key: value for key, value in values.items() if key not in choices})
    tree = composer.apply_protocol(tree, values)
    return schema.read_model(tree.model), composer.build_dataset(tree.dataset)
