"""A model runs with the checkpoint's weights or not at all: files by their headers, names and shapes, values."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from conftest import command, ordered
from families import FAMILIES
from questions import ask, eight, load, saved
from safetensors.torch import load_file, save_file

from spatial_eval.benchmarks.scenes.rendered import Scenes
from spatial_eval.cli import doctor, main
from spatial_eval.cli.doctor import FAILS
from spatial_eval.core.errors import ModelError
from spatial_eval.core.types import Cell, Experiment, Model, Part, Places
from spatial_eval.methods.routing import Base
from spatial_eval.models import loading, weights
from spatial_eval.models.hf import HF
from spatial_eval.sweep import run

TINY = Path(weights.__file__).parents[1] / "tiny"
Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]


def changed(folder: Path, change: Change, source: str | Path = TINY) -> HF:
    """A copy of a checkpoint whose tensors went through `change`."""
    copy = Path(shutil.copytree(source, folder / "model"))
    tensors = load_file(copy / "model.safetensors")
    save_file(change(tensors) or tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return HF(str(copy))


def cut(folder: Path, parts: int = 3) -> HF:
    """A copy of the embedded model in `parts` shards with an index, as large checkpoints come."""
    copy = Path(shutil.copytree(TINY, folder / "shards"))
    tensors = sorted(load_file(copy / "model.safetensors").items())
    (copy / "model.safetensors").unlink()
    places: dict[str, str] = {}
    for part in range(parts):
        name = f"model-{part + 1:05d}-of-{parts:05d}.safetensors"
        save_file(dict(tensors[part::parts]), copy / name, metadata={"format": "pt"})
        places |= {key: name for key, _ in tensors[part::parts]}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return HF(str(copy))


def rename(old: str, new: str) -> Change:
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


def said(act: Callable[[], object]) -> str:
    """The one line of the ModelError that `act` raises."""
    with pytest.raises(ModelError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", [*FAMILIES, "tiny"])
def test_a_family_as_it_is_published_is_not_refused(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model = HF("package:tiny" if name == "tiny" else saved(name))
    with caplog.at_level(logging.INFO):
        model.verify()
    assert caplog.messages == []  # compared by name: a version that cannot says so


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tensor_under_another_name_is_refused_in_every_family(name: str, tmp_path: Path) -> None:
    text = said(changed(tmp_path, rename("k_proj", "key"), saved(name)).verify)
    assert ".self_attn.k_proj." in text
    assert ".self_attn.key." in text


def test_the_embedded_model_in_shards_answers_as_in_one_file(tmp_path: Path) -> None:
    model = cut(tmp_path)
    assert weights.count_parameters(weights.read_headers(model.local(), "")) == 1_219_392
    one, three = (loading.load_model(each).state_dict() for each in (HF("package:tiny"), model))
    assert all(torch.equal(one[name], three[name]) for name in one)


def half(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if name.endswith("layers.1.mlp.up_proj.weight"))
    tensors[name] = tensors[name][: len(tensors[name]) // 2].clone()


def without_last_norm(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["language_model.model.norm.weight"]


def without_vision(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if "vision" not in name}


BROKEN = [
    (rename("self_attn.q_proj", "self_attn.query"), r"its files lack 10 tensors of the model .*q_proj.* and 7 more\)"),
    (half, r"1 tensor of another shape \(.*up_proj.weight; .* is \[\d+, \d+\], the model's is \[\d+, \d+\]\)"),
    (without_last_norm, r"its files lack 1 tensor of the model \(.*norm.weight\): config.json and the files do not"),
    (without_vision, r"its files lack \d+ tensors of the model \(.*vision"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN, ids=["renamed", "shape", "one", "part"])
def test_what_would_be_filled_at_random_is_refused(
    change: Change, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the headers, and by the loader's own account where the headers could not be compared."""
    model = changed(tmp_path, change)
    with pytest.raises(ModelError, match=message) as before:
        model.verify()
    monkeypatch.setattr(loading, "verify_weights", lambda model: None)
    assert said(lambda: loading.load_model(model)) == str(before.value)


def test_tied_tensors_may_be_absent_and_their_source_may_not(tmp_path: Path) -> None:
    source = Path(saved("paligemma"))  # its output layer is its embedding
    names = set(load_file(source / "model.safetensors"))
    assert not any("lm_head" in name for name in names)
    HF(str(source)).verify()
    model = changed(tmp_path, lambda t: {name: v for name, v in t.items() if "embed_tokens" not in name}, source)
    assert "embed_tokens" in said(model.verify)


def test_a_tensor_too_many_is_one_line_and_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = changed(tmp_path, lambda tensors: tensors | {"extra.weight": torch.ones(3), "extra.bias": torch.ones(3)})
    with caplog.at_level(logging.INFO):
        answers = ask(load(model, tmp_path), eight()[:1])
    lines = [line for line in caplog.messages if "no place" in line]
    assert lines == ["model: its files hold 2 tensors that the model has no place for: extra.bias, extra.weight"]
    assert not any("LOAD REPORT" in record.getMessage() for record in caplog.records)
    plain = ask(load(HF("package:tiny"), tmp_path), eight()[:1])
    assert [one.tokens for one in answers.values()] == [one.tokens for one in plain.values()]  # type: ignore[union-attr]


def write(folder: Path, **config: Any) -> HF:
    """The embedded model's files under another config.json."""
    copy = Path(shutil.copytree(TINY, folder / "model"))
    (copy / "config.json").write_text(json.dumps(config))
    return HF(str(copy))


ORIGINAL = [
    {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"], "hidden_size": 64, "mm_hidden_size": 1024},
    {"model_type": "llava", "hidden_size": 64, "mm_vision_tower": "openai/clip-vit-large-patch14-336"},
    {"model_type": "llava_mistral", "architectures": ["LlavaMistralForCausalLM"]},
    {"model_type": "llava_qwen", "architectures": ["LlavaQwenForCausalLM"]},
]


@pytest.mark.parametrize("config", ORIGINAL, ids=lambda config: f"{config['model_type']}-{len(config)}")
def test_the_original_llava_layout_is_refused_by_name(config: dict[str, Any], tmp_path: Path) -> None:
    model = write(tmp_path, **config)
    text = said(lambda: model.check(None, [], [], Places(tmp_path, tmp_path)))  # type: ignore[arg-type]
    assert "original LLaVA layout" in text
    assert "llava-hf/llava-1.5-7b-hf" in text
    assert said(model.verify) == said(lambda: loading.load_model(model)) == text
    assert not weights.is_original_llava(json.loads((TINY / "config.json").read_text()))


def test_a_model_of_another_size_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((TINY / "config.json").read_text())
    config["text_config"] = {"model_type": "llama"}  # of default size: 6.7 G parameters

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(loading, "_AUTO", SimpleNamespace(
        from_config=transformers.AutoModelForImageTextToText.from_config, from_pretrained=refuse
    ))  # fmt: skip
    model = write(tmp_path, **config)
    assert "of another shape" in said(lambda: loading.load_model(model))
    monkeypatch.setattr(loading, "_load_headers", lambda empty, headers: None)  # a later transformers, say
    found = said(lambda: loading.load_model(model))
    assert "config.json describes 6," in found
    assert "parameters, its files hold 1,219,392" in found


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3", "paligemma", "internvl"])
def test_totals_refuse_nobody_who_is_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_load_headers", lambda empty, headers: None)
    HF(saved(name)).verify()


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb\nsize 123\n"
SHARD = "model-00002-of-00003.safetensors"


def truncate(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "absent": (SHARD, Path.unlink, r"is not there, and model.safetensors.index.json lists it: copy or fetch"),
    "dangling": (SHARD, lambda p: (p.unlink(), p.symlink_to("nowhere")), r"is not there \(its link leads nowhere\)"),
    "pointer": (SHARD, lambda p: p.write_text(POINTER), r"is a git LFS pointer, .* run `git lfs pull` in "),
    "truncated": (SHARD, lambda p: truncate(p, 100_000), r"is cut off: 100,000 of [\d,]+ bytes are there; copy or"),
    "one byte": (SHARD, lambda p: truncate(p, p.stat().st_size - 1), r"is cut off: [\d,]+ of [\d,]+ bytes are there"),
    "in its header": (SHARD, lambda p: truncate(p, 99), r"\(99 bytes\) is cut off or no safetensors file"),
    "empty": (SHARD, lambda p: truncate(p, 0), r"\(0 bytes\) is cut off or no safetensors file"),
    "a page": (SHARD, lambda p: p.write_text("<!DOCTYPE html>" * 9), r"is cut off or no safetensors file"),
    "too long": (SHARD, append, r"is damaged: it has [\d,]+ bytes, its header describes"),
    "index": ("model.safetensors.index.json", lambda p: p.write_text("{"), r"cannot be read \(it is not JSON\)"),
    "no index": ("model.safetensors.index.json", Path.unlink, r"has neither model.safetensors nor"),
    "empty index": ("model.safetensors.index.json", lambda p: p.write_text("{}"), r"lists no file of weights"),
    "tokenizer": ("tokenizer.json", lambda p: p.write_text(POINTER), r"tokenizer.json is a git LFS pointer"),
    "config": ("config.json", lambda p: p.write_text(POINTER), r"config.json is a git LFS pointer"),
    "config text": ("config.json", lambda p: p.write_text("[1]"), r"config.json holds no JSON object"),
}


@pytest.mark.parametrize(("name", "damage", "message"), FILES.values(), ids=FILES)
def test_a_damaged_file_is_named(name: str, damage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    model = cut(tmp_path)
    damage(model.local() / name)
    with pytest.raises(ModelError, match=message) as caught:
        model.check(None, [], [], Places(tmp_path, tmp_path))  # type: ignore[arg-type]
    assert str(model.local()) in str(caught.value)
    assert said(model.verify) == said(lambda: loading.load_model(model)) == str(caught.value)
    # at once: its child process would need torch
    assert doctor._check_weights(model) == (FAILS, str(caught.value))


def test_absent_shards_are_counted(tmp_path: Path) -> None:
    model = cut(tmp_path)
    for path in model.local().glob("model-0000[13]*"):
        path.unlink()
    assert "model-00001-of-00003.safetensors is not there" in said(model.verify)
    assert "lists it and 1 more of 3" in said(model.verify)


def test_files_that_are_not_loaded_are_not_looked_at(tmp_path: Path) -> None:
    model = HF(str(shutil.copytree(TINY, tmp_path / "model")))
    (model.local() / "consolidated.safetensors").write_text(POINTER)
    (model.local() / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "absent"}}))
    model.verify()  # model.safetensors comes first
    assert doctor.estimate_parameters(model) == 1_219_392


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_refused_with_its_file(value: float, tmp_path: Path) -> None:
    model = cut(tmp_path)
    path = model.local() / SHARD
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("proj.weight"))
    tensors[name][1, 2] = value
    save_file(tensors, path, metadata={"format": "pt"})
    model.verify()  # headers do not tell
    text = said(lambda: loading.load_model(model))
    assert f"{path} holds values that are not finite, in {name}: it is damaged" in text


def test_a_weight_that_the_dtype_cannot_hold(tmp_path: Path) -> None:
    def enlarge(tensors: dict[str, torch.Tensor]) -> None:
        tensors["language_model.model.norm.weight"][:] = 3e38  # their sum is beyond float32, none of them is

    model = changed(tmp_path, enlarge)
    loading.load_model(model)
    text = said(lambda: loading.load_model(HF(model.path, dtype="float16")))
    assert "norm.weight are finite in its files and not in float16: use model.dtype=bfloat16 or float32" in text


def test_a_hub_cache_that_lacks_a_shard_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cut(tmp_path).local()
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(folder / "config.json"))
    assert HF("org/tiny").folder() == folder
    (folder / SHARD).unlink()
    assert HF("org/tiny").folder() is None


def test_a_run_stops_before_anything_is_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And so do doctor and prepare, with the same line."""
    model = changed(tmp_path, rename("self_attn.q_proj", "self_attn.query"))
    chosen, out = ["model=hf", f"model.path={model.path}"], tmp_path / "out"
    done = command("launch.py")(*chosen, "dataset=scenes_a", "limit=2", f"output_dir={out}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: cannot load {model.path}: its files lack 10 tensors of the model (")
    assert done.stderr.count("\n") == 1
    assert not (out / "generations").exists()
    assert main.main(["prepare", *chosen]) == 1
    assert capsys.readouterr() == ("", done.stderr)
    outcome = doctor._check_weights(model)
    assert outcome is not None
    assert (outcome[0], f"error: {outcome[1]}\n") == (FAILS, done.stderr)
    assert doctor._check_weights(HF("org/absent")) is None


def infinite(folder: Path) -> HF:
    """A model that only loading shows to be wrong."""
    return changed(folder, lambda tensors: {name: tensor + float("inf") for name, tensor in tensors.items()})


def cells(*models: Model) -> list[Cell]:
    found = [Experiment(Scenes(form, form), model, 20) for model in models for form in ("scenes_a", "scenes_b")]
    return [Cell(trunk, Base(), Part("test", 2)) for trunk in found]


def test_a_model_that_cannot_load_is_one_error_and_nothing_is_stored(tmp_path: Path) -> None:
    model = infinite(tmp_path)
    text = said(lambda: run.run_request(*ordered(cells(model), tmp_path / "out")))
    assert text.startswith(f"scenes_a x model: cannot load {model.path}: {model.path}/model.safetensors holds values")
    assert text.endswith(", and 1 more such")
    assert not list((tmp_path / "out").glob("generations/*/*.jsonl"))


def test_what_other_models_answered_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    found = cells(infinite(tmp_path), HF("package:tiny", name="tiny", selfcheck="never"))
    assert run.run_request(*ordered(found, tmp_path / "out")) == run.USER_ERROR
    shown = [line.split()[:5] for line in capsys.readouterr().out.splitlines()]
    assert ["scenes_b", "tiny", "base", "test", "2"] in shown
    (failed,) = [line for line in caplog.messages if line.startswith("failed: ")]
    assert "holds values that are not finite" in failed
    assert "incomplete: 4 answers are missing; fix what failed, then run the same command" in caplog.messages


def test_where_torch_cannot_be_imported_the_jobs_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(model: HF) -> None:
        raise ImportError("libtorch.so: cannot allocate memory")

    monkeypatch.setattr(HF, "verify", fail)
    assert run.run_request(*ordered(cells(HF("package:tiny")), tmp_path / "out")) == run.COMPLETE
    assert "tiny: its files are compared where it is loaded, not here: libtorch.so: cannot allocate" in caplog.text


@pytest.mark.long
def test_jobs_that_cannot_load_say_so_once(tmp_path: Path) -> None:
    model = infinite(tmp_path)
    chosen = ["model=hf", f"model.path={model.path}", "dataset=scenes_a,scenes_b", "limit=2"]
    pool = ["launcher=local", "launcher.slots=2", "launcher.shards=2"]
    done = command("launch.py")("-m", *chosen, *pool, f"output_dir={tmp_path / 'out'}")
    assert (done.returncode, done.stdout) == (1, "")
    (error,) = [line for line in done.stderr.splitlines() if "not finite" in line]
    assert error.startswith(f"error: scenes_a x model: cannot load {model.path}: {model.path}/model.safetensors holds ")
    assert error.endswith(", and 3 more such")
    assert "starting it again" not in done.stderr
    assert not list((tmp_path / "out").glob("generations/*/*.jsonl"))
