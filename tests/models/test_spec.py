"""A model by description: what identifies it, what is refused, and that describing needs no torch."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import yaml
from families import build
from questions import Questions, load, samples

from spatial_eval.config.launchers import Inline, Resources, Slurm
from spatial_eval.core.errors import ConfigError, ModelError
from spatial_eval.core.types import Batching, Places
from spatial_eval.models import hf, loading, spec
from spatial_eval.models.hf import HF
from spatial_eval.sweep.run import verify_files

CONF = Path(__file__).resolve().parents[2] / "conf"
COMMIT = "a272c74b2481d8aff3aa6fc2c4bf891fe57334fb"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llava").save(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("dtype", "float23", "unknown model.dtype 'float23'; did you mean float32?"),
        ("decoding", "sharde", "unknown model.decoding 'sharde'; did you mean shared?"),
        ("selfcheck", "yes", "unknown model.selfcheck 'yes' (valid: first, never, always)"),
        ("attn", "eager", "unknown model.attn 'eager' (valid: sdpa, flash, efficient, math)"),
        ("device", "gpu", "unknown model.device 'gpu'; did you mean cpu?"),
        ("share", "picture", "unknown model.share 'picture' (valid: image, question)"),
        ("graphs", "yes", "unknown model.graphs 'yes' (valid: auto, true, false)"),
        ("workers", 0, "model.workers must be at least 1, got 0"),
        ("batch_size", 0, "model.batch_size must be auto or an integer of at least 1, got 0"),
        ("batch_size", "big", "model.batch_size must be auto or an integer of at least 1, got 'big'"),
        ("device_map", "all", "unknown model.device_map 'all' (valid: null, auto, balanced, sequential)"),
        ("layers", 0, "model.layers must be at least 1, got 0"),
        ("path", "", "model.path is empty"),
    ],
)
def test_wrong_settings(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        HF(**{"path": "x", key: value})


def test_a_device_map_takes_every_device() -> None:
    with pytest.raises(
        ConfigError, match=r"^model.device_map=auto needs model.device=auto: it takes every device that"
    ):
        HF("org/x", device_map="auto", device="cuda:1")
    with pytest.raises(ConfigError, match=r"^model.device_map=balanced needs model.graphs=false: it takes every"):
        HF("org/x", device_map="balanced", graphs=True)


def test_a_device_map_needs_accelerate(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf, "find_spec", lambda name: None)
    HF(str(folder)).check(None, [], [], Places(tmp_path, tmp_path))  # type: ignore[arg-type]
    with pytest.raises(
        ModelError, match=r"^model.device_map=auto needs accelerate: pip install 'spatial-eval\[multi-gpu\]'$"
    ):
        HF(str(folder), device_map="auto").check(None, [], [], Places(tmp_path, tmp_path))  # type: ignore[arg-type]


def test_identity_is_content_not_path(folder: Path, tmp_path: Path) -> None:
    places = Places(tmp_path, tmp_path)
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "README.md").write_text("another copy")
    before = HF(str(folder)).describe(places)
    assert HF(str(copy), name="mine", device="cpu", selfcheck="never", preset="x").describe(places) == before
    assert HF(str(copy), device_map="auto").describe(places) == before
    assert set(before) == {"kind", "files", "dtype", "share"}
    assert HF(str(copy), workers=4, prefetch=1).describe(places) == before
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "changed": 1}))
    assert HF(str(copy)).describe(places) != before


def test_chat_templates_in_their_sub_folder_are_content(folder: Path, tmp_path: Path) -> None:
    """transformers reads them, a file of that name in another folder it does not."""
    places, copy = Places(tmp_path, tmp_path), shutil.copytree(folder, tmp_path / "copy")
    before = HF(str(copy)).describe(places)
    for name, same in (("elsewhere", True), ("additional_chat_templates", False)):
        (copy / name).mkdir()
        (copy / name / "default.jinja").write_text("{{ messages }}")
        assert (HF(str(copy)).describe(places) == before) == same


def test_everything_that_changes_bits_is_described(folder: Path, tmp_path: Path) -> None:
    places = Places(tmp_path, tmp_path)
    changed: dict[str, Any] = {
        "batch_size": "auto",
        "attn": "math",
        "decoding": "per_arm",
        "rms_norm_eps": 1e-6,
        "pad_to": 77,
        "layers": 32,
        "span": True,
        "tf32": True,
        "graphs": True,
    }
    described = HF(str(folder), dtype="float16", **changed).describe(places)
    assert {key: described[key] for key in changed} == changed
    assert described["dtype"] == "float16"
    assert HF(str(folder), dtype="auto", device="cpu").describe(places)["dtype"] == "float32"
    assert HF(str(folder), dtype="auto", device="cuda").describe(places)["dtype"] == "bfloat16"


def test_answers_of_version_0_1_are_those_of_share_question(folder: Path, tmp_path: Path) -> None:
    """Its keys named neither share nor graphs, unless these were set; per_arm shares nothing."""
    places = Places(tmp_path, tmp_path)

    def named(**settings: Any) -> dict[str, Any]:
        told = HF(str(folder), **settings).describe(places)
        return {key: value for key, value in told.items() if key not in ("kind", "files", "dtype", "decoding")}

    assert named(share="question") == named(share="question", graphs=False) == {}
    assert named(share="question", graphs=True) == {"graphs": True}
    assert named(decoding="per_arm") == {}
    assert named() == {"share": "image"}
    assert named(graphs=False) == {"share": "image", "graphs": False}
    assert HF("org/x").batching == Batching(1, by_image=True)
    assert HF("org/x", batch_size="auto").batching == Batching(32, by_image=True)
    assert HF("org/x", batch_size=4, share="question").batching == Batching(4)
    assert HF("org/x", batch_size=4, decoding="per_arm").batching == Batching(4)


def hub_cache(root: Path, commit: str) -> None:
    base = root / "models--org--tiny"
    (base / "snapshots" / commit).mkdir(parents=True)
    (base / "snapshots" / commit / "config.json").write_text("{}")
    (base / "snapshots" / commit / "model.safetensors").write_bytes(b"")
    (base / "refs").mkdir()
    (base / "refs" / "main").write_text(commit)


def test_hub_id_resolves_to_its_commit_offline(tmp_path: Path) -> None:
    """In a process of its own: the hub's client reads its settings when it is imported."""
    commit = "b" * 40
    hub_cache(tmp_path / "hub", commit)
    code = (
        "import sys; from pathlib import Path\n"
        "from spatial_eval.models.hf import HF; from spatial_eval.core.types import Places\n"
        "places = Places(Path('d'), Path('o'))\n"
        "print(HF('org/tiny').describe(places), HF('org/tiny').name)\n"
        f"print(HF('org/absent', revision='{COMMIT}').describe(places)['commit'])\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
        "try: HF('org/absent').describe(places)\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    env = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(CONF.parent), "PATH": "/usr/bin"}
    out = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    lines = out.stdout.splitlines()
    assert f"'hub': 'org/tiny', 'commit': '{commit}'" in lines[0]
    assert lines[0].endswith(" tiny")
    assert lines[1] == COMMIT
    assert lines[2].startswith("MissingModel org/absent is not in the hub cache and the hub cannot be asked")
    assert "prepare model=" in lines[2]


def test_incomplete_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    places = Places(tmp_path, tmp_path)
    with pytest.raises(ModelError, match="neither a folder nor a hub id"):
        HF(str(tmp_path / "absent" / "x")).check(None, [], [], places)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"has no config.json"):
        HF(str(tmp_path)).check(None, [], [], places)  # type: ignore[arg-type]
    shutil.copy(folder / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match=r"has no \*.safetensors file"):
        HF(str(tmp_path)).check(None, [], [], places)  # type: ignore[arg-type]
    HF(str(folder)).check(None, [], [], places)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="cannot load the processor of"):  # a job opens it before the weights
        load(HF(str(tmp_path)), tmp_path)


def test_remote_code_is_never_run(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "evil.py").write_text("raise SystemExit('ran')")
    new = {
        **config,
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.C", "AutoModelForImageTextToText": "evil.M"},
    }
    (copy / "config.json").write_text(json.dumps(new))
    with pytest.raises(ModelError, match=r"^cannot load "):
        load(HF(str(copy)), tmp_path)


def test_fingerprint_is_the_image(tmp_path: Path) -> None:
    work = samples(tmp_path)
    places = Places(tmp_path, tmp_path / "out")
    model = HF("org/x")
    before = model.fingerprint(Questions(), work, places)  # type: ignore[arg-type]
    assert len(set(before)) == len(work)
    (tmp_path / "0.png").write_bytes((tmp_path / "1.png").read_bytes())
    after = model.fingerprint(Questions(), work, places)  # type: ignore[arg-type]
    assert after[0] == before[1]
    assert after[1:] == before[1:]


def test_rms_norm_eps_replaces_the_checkpoints(folder: Path) -> None:
    assert loading.load_model(HF(str(folder))).config.text_config.rms_norm_eps == 1e-5
    model = loading.load_model(HF(str(folder), rms_norm_eps=1e-6))
    assert model.model.language_model.norm.variance_epsilon == 1e-6


FILES = sorted({path.stem for path in (CONF / "model").glob("*.yaml")} - {"recorded", "imported", "tiny"})


@pytest.mark.parametrize("name", FILES)
def test_every_model_file_describes_a_model(name: str) -> None:
    values = yaml.safe_load((CONF / "model" / "hf.yaml").read_text())
    assert set(values) == {"kind", "resources", *(field.name for field in fields(HF))}
    own = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())
    assert own.pop("defaults", ["hf", "_self_"]) == ["hf", "_self_"]
    assert set(own) <= set(values)
    values |= own
    assert values.pop("kind") == "hf"
    need = Resources(**values.pop("resources"))  # where it runs is no part of a model
    assert name == "hf" or (need.gpus == 1 and need.memory is not None)
    values["path"] = values["path"].replace("???", "org/x")
    model = HF(**values)
    assert model.name == ("x" if name == "hf" else name)
    if name == "hf":
        assert model == HF("org/x")
    else:
        unpinned = not model.revision and "(not pinned: " in (CONF / "model" / f"{name}.yaml").read_text()
        assert unpinned or re.fullmatch(r"[0-9a-f]{40}", model.revision)
    assert (model.decoding == "per_arm") == (name == "paligemma_3b")
    if name == "llava15_7b":
        assert model.revision == COMMIT


def test_paper_preset() -> None:
    preset = yaml.safe_load((CONF / "preset" / "paper.yaml").read_text())
    paper = HF("org/x", dtype="float32", share="question", rms_norm_eps=1e-6, pad_to=77, layers=32, span=True)
    assert HF("org/x", **preset["model"]) == paper
    assert preset["dataset"] == {"distort": True, "orientation": "stored"}


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Really asked: whichever HTTP client the hub's library stands on, its errors are not ours to leak."""
    closed = partial(huggingface_hub.HfApi, endpoint="http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub, "HfApi", closed)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    says = r"some/model is not in the hub cache and the hub cannot be asked \(ConnectE"
    with pytest.raises(ModelError, match=says):
        HF("some/model").identity(Places(tmp_path, tmp_path))
    # A pinned commit needs no answer for its key: that nothing is there shows before a job starts, and at once.
    pinned = HF("some/model", revision="0" * 40)
    for missing in (lambda: verify_files(pinned, Inline()), pinned.fetch):
        with pytest.raises(ModelError, match=says):
            missing()
    verify_files(pinned, Slurm())  # what its jobs reach, only they know


def test_a_hub_that_never_answers_costs_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is being resolved knows no time-out."""
    over = threading.Event()
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: over.wait() and SimpleNamespace(sha="0"))
    monkeypatch.setattr(spec, "HUB_S", 0.05)
    with pytest.raises(ModelError, match=r"cannot be asked \(TimeoutError\)"):
        HF("some/model").ask_hub()
    over.set()
