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
from pathlib import Path
from typing import Any

from spatial_eval.benchmarks.prompts import without_template
from spatial_eval.cli.arguments import CONFIG_DIR, DATA_DIR, OUTPUT_DIR, Commands
from spatial_eval.config import schema
from spatial_eval.config.compose import Composer, set_values
from spatial_eval.core import requirements
from spatial_eval.core.errors import COMPLETE, INCOMPLETE, ConfigError, MissingData, ModelError, SpatialEvalError
from spatial_eval.core.paths import python_path
from spatial_eval.core.types import Benchmark, Model, Places
from spatial_eval.models import weights
from spatial_eval.models.hf import HF
from spatial_eval.prepare.verify import glance_benchmark, list_data_benchmarks
from spatial_eval.tracking import process

OK, FAILS, UNKNOWN = "ok", "would fail", "not checked"
Outcome = tuple[str, str]  # one of these states, and a message
HUB_S, SLURM_S = 3.0, 5.0
TORCH_S = 7.0
WEIGHTS_S = 60.0  # torch, transformers and a model without values, on a busy machine
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


def estimate_parameters(model: HF) -> int | None:
    """Count a model's parameters from its files' headers; where these are absent, read them from `7b` in its name.

    None where neither holds the number.
    """
    folder = model.folder()
    if folder is None:
        named = re.search(r"(\d+(?:\.\d+)?)b\b", model.path.lower())
        return int(float(named[1]) * 1e9) if named else None
    try:
        return weights.count_parameters(weights.read_headers(folder, model.path)) or None
    except ModelError:  # reported where weights are looked at
        return None


def free_memory() -> int:
    """Return the bytes of RAM that a new process could take: the free ones, within the limit of its control group."""
    text = Path("/proc/meminfo").read_text() if sys.platform == "linux" else ""
    free = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.M)
    size = int(free[1]) * 1024 if free else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        size = min(size, int(limit.read_text()) - int(used.read_text()))
    return size


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


def check_hub(model: Model) -> Outcome:
    """Check whether the model's files are here, or on a hub that serves them."""
    if not isinstance(model, HF):
        return OK, f"model {model.name} needs none"
    try:
        folder = model.folder()
    except SpatialEvalError as error:
        return FAILS, str(error)
    if folder is not None:
        return OK, f"{model.path} is here already: {folder}"
    here = f"{model.path} is not in the hub cache"
    fetch = "run `python -m spatial_eval prepare model=...` where there is network"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return FAILS, f"{here} and HF_HUB_OFFLINE is set: {fetch}, or unset it"
    url = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    config = f"{url}/{model.path}/resolve/{model.revision or 'main'}/config.json"
    answer = _ask_within(HUB_S, lambda: _read_status(config))
    if isinstance(answer, int) and answer < 400:
        return OK, f"{here}, {url} has it: it is fetched at the first run"
    if answer in (401, 403):
        return FAILS, f"{here}, {url} wants a login for it: accept its terms there, then `hf auth login`"
    why = f"answers with HTTP {answer}" if isinstance(answer, int) else answer
    return FAILS, f"{here}, {url} {why}: {fetch}, or give model.path=FOLDER"


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


def check_wandb() -> Outcome:
    """Check whether W&B's client is installed and its server accepts the user's key."""
    version = requirements.find_version("wandb")
    if not version:
        return FAILS, "is not installed: pip install wandb, for tracking=wandb"
    accepted, message = process.probe_server()
    if accepted:
        return OK, f"{version}, {message}"
    return FAILS, f"{version} writes offline; uploading (tracking.mode=online) would fail: {message}"


def check_slurm_controller() -> Outcome:
    """Check whether jobs can be submitted to Slurm from here."""
    absent = [name for name in ("sbatch", "squeue") if shutil.which(name) is None]
    if absent:
        return UNKNOWN, f"no {' or '.join(absent)} on PATH: launcher=slurm would fail here"
    command = ["squeue", "-h", "-o", "%i"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SLURM_S)
        why = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
    except (OSError, subprocess.TimeoutExpired):
        why = f"no answer within {SLURM_S:g} s"
    if why:
        return FAILS, f"sbatch and squeue are there, the controller does not answer ({why}): launcher=slurm would fail"
    return OK, f"the controller answers, {len(done.stdout.split()):,} jobs in its queue"


def examine(
    model: Model, dataset: Benchmark, data: Path, output: Path, known: Sequence[tuple[str, Benchmark]]
) -> Iterator[DoctorLine]:
    """Run every check and yield its line, in a fixed order. `known`: the benchmarks in a data_dir, by name."""
    with ThreadPoolExecutor() as pool:
        torch, hub = pool.submit(_ask_torch), pool.submit(check_hub, model)
        files, wandb = pool.submit(_check_weights, model), pool.submit(check_wandb)
        slurm = pool.submit(check_slurm_controller)
        benchmarks = pool.submit(lambda: list(_check_data(model, dataset, data, known)))
        yield from _check_versions()
        seen = torch.result()
        yield DoctorLine("device", *_check_device(model, seen))
        yield from _check_memory(model, seen)
        yield _check_graphs(model, seen)
        yield DoctorLine("hub", *hub.result())
        compared = files.result()
        if compared is not None:
            yield DoctorLine("weights", *compared)
        yield DoctorLine("disk", *_check_disk(output))
        yield from benchmarks.result()
        yield DoctorLine("wandb", *wandb.result(), needed=False)
        yield DoctorLine("slurm", *slurm.result(), needed=False)


def _judge(good: bool, message: str, advice: str) -> Outcome:
    """Return the message in the state OK, or in FAILS with advice."""
    return (OK, message) if good else (FAILS, f"{message}: {advice}")


def _check_versions() -> Iterator[DoctorLine]:
    """Compare the versions of Python and of each required package with pyproject.toml."""
    python, version = requirements.read_python(), platform.python_version()
    good = python.contains(version, prereleases=True)
    yield DoctorLine("python", *_judge(good, f"{version}, required {python}", "make an environment with such a one"))
    wrong, right, newer = [], [], requirements.list_newer()
    for package in requirements.read_packages():
        installed = requirements.find_version(package.name)
        if not installed:
            wrong.append(f"{package.name} is not installed")
        elif package.specifier.contains(installed, prereleases=True):
            right.append(f"{package.name} {installed}")
        elif not requirements.is_newer(package, installed):
            wrong.append(f"{package.name} {installed} (required {package.specifier})")
    message = "; ".join(wrong) or ", ".join(right)
    yield DoctorLine("packages", *_judge(not wrong, message, "pip install -e . in the checkout"))
    if newer:
        yield DoctorLine("packages", UNKNOWN, "; ".join(newer))


def _run_python(code: str, seconds: float, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own: it imports torch, and a driver may hang. Raises OSError, TimeoutExpired."""
    return subprocess.run(
        [sys.executable, "-c", code],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
        env=os.environ | {"PYTHONPATH": python_path()},
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


def _check_device(model: Model, torch: Mapping[str, Any]) -> Outcome:
    if not isinstance(model, HF):
        return OK, f"model {model.name} answers from files: none is needed"
    wanted = model.run_device()
    if "slow" in torch:
        return UNKNOWN, torch["slow"]
    if "error" in torch:
        return FAILS, torch["error"]
    names = ", ".join(gpu[0] for gpu in torch["gpus"]) or "no GPU"
    message = f"torch {torch['version']} (CUDA {torch['cuda'] or 'none'}) sees {names}; {model.name} runs on {wanted}"
    if wanted == "cpu" and (estimate_parameters(model) or 0) > 1e9:
        message += "; expect minutes per question without a GPU"
    good = bool(torch["gpus"]) or not wanted.startswith("cuda")
    return _judge(good, message, "install torch for CUDA, or set model.device=cpu")


def _check_memory(model: Model, torch: Mapping[str, Any]) -> Iterator[DoctorLine]:
    """Compare the size of the weights with the free RAM, and with the free memory of the first GPU."""
    if not isinstance(model, HF):
        return
    count, free_ram = estimate_parameters(model), free_memory()
    if count is None:
        message = f"the size of {model.path} is not known here; {free_ram / GIB:.0f} GiB of RAM are free"
        yield DoctorLine("memory", UNKNOWN, message)
        return
    size, source = count * BYTES[model.run_dtype()], "" if model.folder() else " (by its name)"
    weight = f"{count / 1e9:.3g} G parameters{source} in {model.run_dtype()}"
    need = size * SPARE if model.run_device() == "cpu" else size
    advice = "take a machine with more, or a smaller model"
    yield DoctorLine("memory", *_compare_memory(f"{weight} take", need, free_ram, "RAM", advice))
    if model.run_device().startswith("cuda") and torch.get("gpus"):
        name, free, *_ = torch["gpus"][0]
        advice = "take a larger GPU, model.dtype=bfloat16, or model.device_map=auto over several"
        yield DoctorLine(
            "GPU memory", *_compare_memory(f"{weight} with a batch take", size * SPARE, free, name, advice)
        )


def _compare_memory(what: str, need: float, free: float, kind: str, advice: str) -> Outcome:
    return _judge(need <= free, f"{what} {need / GIB:.2g} GiB, {free / GIB:.0f} GiB are free ({kind})", advice)


def _check_weights(model: Model) -> Outcome | None:
    """Check whether the model's files hold what its config.json wants; None where they are not here."""
    try:
        folder = model.folder() if isinstance(model, HF) else None
    except ModelError:  # reported where the hub is
        return None
    if not isinstance(model, HF) or folder is None:
        return None
    try:
        weights.check_files(folder, model.path)  # at once, without torch
        error = json.loads(_run_python(WEIGHTS, WEIGHTS_S, json.dumps(asdict(model))).stdout.splitlines()[-1])
    except ModelError as cut_off:
        return FAILS, str(cut_off)
    except subprocess.TimeoutExpired:
        late = f"the files of {model.path} were not compared with its config.json within {WEIGHTS_S:g} s"
        return UNKNOWN, f"{late}: loading compares them"
    except (OSError, ValueError, IndexError):
        return UNKNOWN, f"the files of {model.path} could not be compared with its config.json"
    count = estimate_parameters(model) or 0
    good = f"{count:,} parameters in the files of {model.path}, as its config.json has them"
    return (FAILS, error) if error else (OK, good)


def _check_graphs(model: Model, torch: Mapping[str, Any]) -> DoctorLine:
    thing = "CUDA graphs, bf16"
    if not torch.get("gpus"):
        idle = "no GPU is seen; model.graphs=true replays nothing on a CPU"
        return DoctorLine(thing, UNKNOWN, idle if "gpus" in torch else "torch gave no answer", needed=False)
    name, _, _, half = torch["gpus"][0]
    message = f"{name}: graphs can be captured, bfloat16 is {'native' if half else 'emulated: take float16 or float32'}"
    fails = not half and isinstance(model, HF) and model.run_dtype() == "bfloat16"
    return DoctorLine(thing, FAILS if fails else OK, message)


def _check_disk(output: Path) -> Outcome:
    existing = next(folder for folder in (output, *output.parents) if folder.is_dir())
    if not os.access(existing, os.W_OK):
        return FAILS, f"{existing} cannot be written: set output_dir="
    free = shutil.disk_usage(existing).free
    return _judge(free > GIB, f"{free / GIB:.0f} GiB free at {output}", "free some, or set output_dir=")


def _check_data(
    model: Model, dataset: Benchmark, data: Path, known: Sequence[tuple[str, Benchmark]]
) -> Iterator[DoctorLine]:
    """Yield one line per benchmark in data_dir; the chosen one is needed, its images where a model looks at them."""
    uses_images, listed, plain = isinstance(model, HF), set(), without_template(dataset)
    for name, benchmark in known:
        state = glance_benchmark(name, benchmark, data)
        listed.add(state.name)
        counts, problem = f"{state.questions:,} questions, {state.images:,} images", state.problem.partition("; ")[0]
        outcome = OK, counts
        if problem and state.questions and not uses_images:
            outcome = OK, f"{counts} ({model.name} looks at none)"
        elif problem:
            lacking = f"{counts}: {problem}" if state.questions else problem
            outcome = FAILS, f"{lacking}; run `python -m spatial_eval prepare dataset={state.name}`"
        yield DoctorLine(f"data {state.name}", *outcome, needed=state.name == plain.name)
    places = Places(data, data, remember=False)
    try:
        samples = dataset.read(places)
        if plain.name not in listed:
            yield DoctorLine(f"data {plain.name}", OK, f"{len(samples):,} questions")
        if isinstance(model, HF):
            model.check_prompts(dataset, samples)
        else:
            model.check(dataset, samples, (), places)
            yield DoctorLine("recordings", OK, f"{model.name} holds some of {dataset.name}")
    except SpatialEvalError as error:
        if plain.name not in listed or not isinstance(error, MissingData):
            thing = "prompts" if uses_images else "recordings"
            yield DoctorLine(thing if plain.name in listed else f"data {plain.name}", FAILS, str(error))


def add_doctor(commands: Commands) -> None:
    """Add `doctor` to the subparsers of the command line."""
    about = "Say what would fail here for a model and a dataset, and what to do; needs some seconds, at most a minute."
    command = commands["doctor"](parents=[DATA_DIR, OUTPUT_DIR, CONFIG_DIR], description=about)
    command.add_argument(
        "what",
        nargs="*",
        metavar="model=NAME dataset=NAME",
        help="default: those of conf/config.yaml; GROUP.KEY=VALUE too",
    )
    command.set_defaults(run=run_doctor)


def run_doctor(parsed: argparse.Namespace) -> int:
    """Print the lines; return exit code 3 where the model and dataset could not run here."""
    composer = Composer(parsed.config_dir)
    model, dataset = _build_chosen(composer, parsed.what)
    known = list_data_benchmarks(composer, "all", {})
    stops = 0
    for line in examine(model, dataset, parsed.data_dir, parsed.output_dir.absolute(), known):
        stops += line.stops
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    verdict = f"cannot run here: {stops} of the lines above" if stops else "could run here"
    sys.stdout.write(f"{dataset.name} x {model.name} {verdict}\n")
    return INCOMPLETE if stops else COMPLETE


def _build_chosen(composer: Composer, what: Sequence[str]) -> tuple[Model, Benchmark]:
    """Build the model and the dataset that the command line names, the defaults without. Raises ConfigError."""
    values = composer.parse_values(what)
    if any(key.split(".")[0] not in ("model", "dataset") or value == "" for key, value in values.items()):
        raise ConfigError(f"cannot examine {' '.join(what)}: expected model=NAME, dataset=NAME and their KEY=VALUEs")
    choices = {key: value for key, value in values.items() if "." not in key}
    for group, name in choices.items():
        composer.check_option(group, name)
    tree = set_values(composer.compose(choices), {key: value for key, value in values.items() if key not in choices})
    tree = composer.apply_protocol(tree, values)
    return schema.read_model(tree.model), composer.build_dataset(tree.dataset)
