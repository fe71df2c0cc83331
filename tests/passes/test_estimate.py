"""action=plan: questions, passes and device time, before the data and before the model are there."""

from __future__ import annotations

import copy
import csv
import json
import re
from pathlib import Path
from typing import Any

import families
import pytest
import transformers
from doubles import Drill, Hashed
from PIL import Image

from spatial_eval.benchmarks.question_files import QuestionFile
from spatial_eval.config.compose import Composer
from spatial_eval.config.grid import format_config
from spatial_eval.config.schema import check_root_value
from spatial_eval.core.arms import Arm, Vcd
from spatial_eval.core.errors import ConfigError
from spatial_eval.core.types import Experiment, Part, Pass, Places
from spatial_eval.models import devices
from spatial_eval.models.hf import HF
from spatial_eval.passes import estimate
from spatial_eval.passes.pass_state import inspect_pass, run_pass
from spatial_eval.store.generations import Store

SEVEN = (330, 327, 1798, 352, 928, 233, 978)


def test_a_plan_lists_some_of_many_arms(launch, tmp_path: Path) -> None:
    weights = ",".join(f"{0.1 * i:.1f}" for i in range(11, 41))
    done = launch("-m", "method=scaling_vis", f"weight={weights}", "action=plan", f"output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert " x 30 arms (scaling_vis w=1.1, 1.2, 1.3, " in done.stdout
    assert " 3.3, 3.4 and 6 more); " in done.stdout


def test_the_papers_table_is_planned_without_data_images_model_or_network(launch, tmp_path: Path) -> None:
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "CUDA_VISIBLE_DEVICES": ""}
    before = sorted(tmp_path.rglob("*"))
    done = launch("sweep=paper_table", "action=plan", "data_dir=/nowhere", env=env)
    assert done.returncode == 0, done.stderr
    assert sorted(tmp_path.rglob("*")) == before
    lines = done.stdout.splitlines()
    assert lines[0] == "21 cells, 21 distinct, 7 passes"
    assert [int(n.replace(",", "")) for n in re.findall(r"x llava15_7b: ([\d,]+) questions", done.stdout)] == [*SEVEN]
    assert "330 questions x 4 arms (base; scaling_vis w=0.5, 0.8, 1.5); at most 1,320 answers to compute" in lines[1]
    assert "counted from the YAML's rows" in lines[2]
    assert "no prompts/Controlled_Images_A_with_answer_four_options.jsonl under data_dir=/nowhere" in lines[2]
    assert f"prefills: {sum(SEVEN):,} now, against {3 * sum(SEVEN):,} with one generate" in done.stdout
    assert "forward passes: 390 batches of prompts, and at most 100 decode steps after each" in done.stdout
    assert "GPU hours" in done.stdout
    assert "h200 (no GPU is seen here)" in done.stdout
    assert "576 image and 40 other tokens per prompt" in done.stdout
    assert re.search(r"estimate: [\d.]+ to [\d.]+ GPU hours", done.stdout)
    assert "arithmetic is no measurement" in done.stdout


def test_a_model_whose_commit_is_unknown_is_planned_and_a_wrong_one_refused(launch, tmp_path: Path) -> None:
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = launch("action=plan", "model=hf", "model.path=org/absent", "dataset=vsr", "data_dir=/nowhere", env=env)
    assert done.returncode == 0, done.stderr
    assert "978 questions x 1 arms (base); at most 978 answers" in done.stdout
    assert "org/absent is not in the hub cache and the hub cannot be asked" in done.stdout
    done = launch("action=plan", "model=hf", "model.path=/nowhere", "dataset=vsr", "data_dir=/nowhere", env=env)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_without_rows_to_count_the_missing_file_is_the_answer(launch) -> None:
    done = launch("action=plan", "dataset=jsonl", "dataset.path=/nowhere.jsonl")
    assert (done.returncode, done.stdout) == (1, "")


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path, tmp_path / "out")


def work(dataset: Drill, *weights: float) -> Pass:
    return Pass(Experiment(dataset, Hashed()), ((Part("all"), tuple(Arm(w) for w in weights)),))


def test_a_recorded_error_is_no_stored_answer(launch, experiment: list[str]) -> None:
    """It was counted as one: 4 of 4 answers stored, nothing to compute, and the same command ends with exit code 3."""
    path = Path(next(word for word in experiment if word.startswith("model.path=")).partition("=")[2])
    lines = path.read_text("utf8").splitlines()
    path.write_text("\n".join(lines[:36]) + "\n", "utf8")  # of 40 questions four were not recorded
    given = [*experiment, "split=all"]
    assert launch(*given).returncode == 3
    planned = launch(*given, "action=plan").stdout
    assert "36 of 40 answers stored, 4 recorded errors left alone, 0 questions to compute" in planned
    again = launch(*given, "action=plan", "retry=true").stdout
    assert "36 of 40 answers stored, 4 questions to compute" in again


def test_recorded_rates_are_of_the_same_dataset_else_of_the_same_model(places: Places) -> None:
    first, other = work(Drill("drill"), 0.5, 1.0), work(Drill("other"), 1.0)
    (before,) = estimate.estimate_passes([first], places)
    assert (before.rate, len(before.todo), before.pairs) == (None, 12, 24)
    run_pass(inspect_pass(first, places), places)
    again, elsewhere = estimate.estimate_passes([work(Drill("drill"), 0.5, 2.0), other], places)
    assert (again.answers, again.stored, again.pairs) == (24, 12, 12)
    assert again.rate is not None
    assert elsewhere.rate is not None
    assert again.rate.source.startswith("recorded of drill: 12 questions in ")
    assert elsewhere.rate == again.rate
    assert elsewhere.seconds == pytest.approx((12 * again.rate.low, 12 * again.rate.high))
    assert again.rate.low < again.rate.high
    assert again.rate.measured
    (other_device,) = estimate.estimate_passes([first], places, device="a100")
    assert other_device.rate is None  # what was recorded here says nothing of an A100, and a double has no shape
    stranger = Pass(Experiment(Drill(), Hashed("stranger")), first.needs)
    assert estimate.estimate_passes([stranger], places)[0].rate is None


def test_a_recorded_rate_is_scaled_to_the_arms_that_are_missing(places: Places) -> None:
    """What is stored has two weights of one reading of the image; more weights cost little, noised images a reading."""
    dataset = Drill("drill")
    run_pass(inspect_pass(work(dataset, 0.5, 1.0), places), places)
    store = Store(places.paths.generations)
    (effort,) = (effort for _, key in store.list_experiments() for effort in store.list_efforts(key))
    assert (effort.questions, effort.arms) == (12, {Arm(0.5), Arm(1.0)})

    def scales(*arms: Arm) -> tuple[float, ...]:
        asked = Pass(Experiment(dataset, Hashed()), ((Part("all"), (Arm(0.5), *arms)),))
        (found,) = estimate.estimate_passes([asked], places)
        assert found.arms == set(arms)
        assert found.rate is not None
        return tuple(round(rate * 12 / effort.seconds, 3) for rate in (found.rate.low, found.rate.high))

    assert scales(Arm(2.0), Arm(3.0)) == (0.75, 1.5)
    assert scales(*(Arm(weight) for weight in range(2, 22))) == (round(0.75 * 1.2 / 1.02, 3), round(1.5 * 4 / 1.3, 3))
    noised = [Arm(contrast=Vcd(noise=noise)) for noise in (100, 200, 300)]
    assert scales(*noised) == (round(0.75 * 4.45 / 1.3, 3), round(1.5 * 4.03 / 1.02, 3))
    assert scales(Arm(2.0)) == (round(0.75 * 1.15 / 1.3, 3), round(1.5 * 1.01 / 1.02, 3))
    (whole,) = estimate.estimate_passes([work(dataset, 0.5, 1.0)], places)
    assert (whole.arms, whole.seconds) == (frozenset(), (0, 0))


def estimate_hub_model(places: Places, path: str = "llava-hf/llava-1.5-7b-hf", **how: Any) -> estimate.Rate:
    device = how.pop("device", "h200")
    model = HF(path, revision=40 * "a", **how)
    asked = Pass(Experiment(Drill(), model), ((Part("all"), (Arm(), Arm(2.0))),))
    (found,) = estimate.estimate_passes([asked], places, device=device)
    assert found.rate is not None
    return found.rate


def test_arithmetic_is_of_the_device_the_model_and_how_it_runs(places: Places) -> None:
    """At best, on an H200: 2 x 7.1e9 FLOP per row at 60 % of 989 TFLOP/s, and steps that read 14.2 GB at 4.8 TB/s."""
    found = estimate_hub_model(places, dtype="bfloat16", batch_size=16)
    questions = [one.question for one in Drill().read(places)]
    text = 25 + sum(map(len, questions)) / len(questions) / 4
    rows = 576 + text + 2
    assert found.low == pytest.approx(2 * 7.1e9 * rows / 0.6 / 989e12 + 2 * max(14.2e9 / 4.8e12, 0.004) / 16)
    assert found.high == pytest.approx(2 * 7.1e9 * rows / 0.15 / 989e12 + 10 * 0.03 / 16)
    assert (found.measured, found.device) == (False, "h200")
    assert "576 image and" in found.source
    for slower in (
        {"dtype": "float32", "batch_size": 16},
        {"dtype": "bfloat16", "batch_size": 1},
        {"dtype": "bfloat16", "batch_size": 16, "device": "a100"},
        {"dtype": "bfloat16", "batch_size": 16, "decoding": "per_arm"},
        {"dtype": "bfloat16", "batch_size": 16, "path": "llava-hf/llava-v1.6-vicuna-7b-hf"},
    ):
        assert estimate_hub_model(places, **slower).low > found.low
    unlisted = estimate_hub_model(places, "org/model", dtype="bfloat16", batch_size=16)
    assert (unlisted.low, unlisted.high) == (found.low, found.high)
    assert "model as if it were LLaVA-1.5-7B" in unlisted.source


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("Tesla T4", "t4"),
        ("cpu", "cpu"),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_a_device_is_known_by_the_name_that_torch_gives_it(name: str, key: str | None) -> None:
    assert devices.match_device(name) == key


PICTURES = [(480, 640), (640, 480), (640, 640), (720, 1280), (960, 1280)]  # height, width
CROP = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
EDGE = {"shortest_edge": 3136, "longest_edge": 12845056}  # pixels that Qwen's processors allow


@pytest.mark.parametrize(
    ("path", "family", "images", "fields"),
    [
        (
            "llava-hf/llava-v1.6-vicuna-7b-hf",
            "llava_next",
            lambda: transformers.LlavaNextImageProcessorPil(
                **CROP, image_grid_pinpoints=transformers.LlavaNextConfig().image_grid_pinpoints
            ),
            {"patch_size": 14},
        ),
        (
            "llava-hf/llava-onevision-qwen2-7b-ov-hf",
            "llava_onevision",
            lambda: transformers.LlavaOnevisionImageProcessorPil(
                image_grid_pinpoints=transformers.LlavaOnevisionConfig().image_grid_pinpoints
            ),
            {"num_image_tokens": 729, "vision_aspect_ratio": "anyres_max_9"},
        ),
        ("Qwen/Qwen2-VL-7B-Instruct", "qwen2_vl", lambda: transformers.Qwen2VLImageProcessorPil(size=EDGE), {}),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "qwen25_vl", lambda: transformers.Qwen2VLImageProcessorPil(size=EDGE), {}),
        (
            "Qwen/Qwen3-VL-8B-Instruct",
            "qwen3_vl",
            lambda: transformers.Qwen2VLImageProcessorPil(patch_size=16, size=EDGE),
            {},
        ),
        ("google/gemma-3-4b-it", "gemma3", transformers.Gemma3ImageProcessorPil, {"image_seq_length": 256}),
        ("google/paligemma-3b-mix-224", "paligemma", transformers.SiglipImageProcessorPil, {"image_seq_length": 256}),
    ],
)
def test_image_tokens_are_those_that_transformers_counts(path: str, family: str, images: Any, fields: Any) -> None:
    processor = copy.copy(families.build(family).processor)
    processor.image_processor = images()
    for name, value in fields.items():
        assert name in vars(processor)
        setattr(processor, name, value)
    counts = processor._get_num_multimodal_tokens(image_sizes=PICTURES)["num_image_tokens"]
    shape = devices.find_shape(path)
    assert shape is not None
    assert shape.tokens == (min(counts), max(counts))


@pytest.mark.parametrize(
    ("path", "images", "tokens"),
    [
        ("OpenGVLab/InternVL3-8B-hf", lambda: transformers.GotOcr2ImageProcessorPil(crop_to_patches=True), 256),
        (
            "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
            lambda: transformers.Idefics3ImageProcessorPil(
                size={"longest_edge": 1536}, max_image_size={"longest_edge": 384}
            ),
            81,
        ),
    ],
)
def test_image_tokens_are_those_of_the_tiles(path: str, images: Any, tokens: int) -> None:
    found = [images().get_number_of_image_patches(*size, {}) for size in PICTURES]
    tiles = [one if isinstance(one, int) else one[0] for one in found]  # Idefics: with rows and columns
    shape = devices.find_shape(path)
    assert shape is not None
    assert shape.tokens == (tokens * min(tiles), tokens * max(tiles))


def test_a_shape_is_that_of_the_checkpoints_own_files() -> None:
    """LLaVA-1.5-7B's language model has 6.74e9 parameters; its vision tower and projector 0.32e9."""
    llama = transformers.LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32064
    )
    assert devices.measure_shape(llama, 576).billions == pytest.approx(7.06, rel=0.06)


def test_an_unknown_device_is_a_line_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"unknown estimate\.device 'h300'; did you mean h200\? \(valid: b200, h200"):
        check_root_value("estimate.device", "h300")
    assert check_root_value("estimate.device", None) is None
    assert check_root_value("estimate.device", "H100") == "h100"


def test_the_device_is_one_key_of_the_configuration() -> None:
    shown = format_config(Composer(), ["estimate.device=a100"])
    assert re.findall(r"^estimate.*", shown, re.M) == ["estimate.device: a100"]


QUESTIONS = [
    {"id": row, "question": f"Where is {row}?", "answer": "left", "image_path": f"{picture}.png"}
    for row, picture in enumerate([0, 1, 2, 0, 1, 2, 0, 0, 3, 3])
]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Ten questions on four pictures, those on one of them apart."""
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    for picture in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{picture}.png")
    return path


@pytest.mark.parametrize(
    ("settings", "images", "batches"),
    [
        ({"batch_size": 8}, 4, 2),
        ({"batch_size": 4}, 4, 3),
        ({"batch_size": 3}, 5, 4),
        ({"batch_size": 1}, 4, 10),
        ({"batch_size": 8, "share": "question"}, 10, 2),
        ({"batch_size": 8, "decoding": "per_arm"}, 10, 2),
    ],
)
def test_how_many_images_are_read(settings: dict[str, Any], images: int, batches: int, questions: Path) -> None:
    model, places = HF("org/model", revision=40 * "a", **settings), Places(questions.parent, questions.parent / "out")
    asked = Pass(Experiment(QuestionFile(questions), model), ((Part("all"), (Arm(), Arm(2.0))),))
    (found,) = estimate.estimate_passes([asked], places)
    assert (found.images, found.batches, found.note) == (images, batches, "")
    assert found.prompts == (20 if "decoding" in settings else images)
    for picture in range(4):
        (questions.parent / f"{picture}.png").unlink()
    (absent,) = estimate.estimate_passes([asked], places)  # the pictures are known by name all the same
    assert (absent.images, absent.batches) == (images, batches)
    assert "has no image" in absent.note


def test_a_plan_says_what_sharing_saves(launch, questions: Path) -> None:
    given = ["dataset=jsonl", f"dataset.path={questions}", "split=all", "model=hf", "model.path=org/model"]
    given += ["action=plan", f"model.revision={40 * 'a'}", "model.batch_size=8"]
    done = launch(*given)
    assert done.returncode == 0, done.stderr
    line = "    10 questions take 4 prefills of an image (2.50 questions per image), 57 % of the prompts' tokens less\n"
    assert line in done.stdout
    assert "prefills: 4 now, against 10 with one generate for each question and cell" in done.stdout
    alone = launch(*given, "model.share=question")
    assert "prefills of an image" not in alone.stdout
    assert "prefills: 10 now, against 10" in alone.stdout


def test_the_papers_columns_come_back_from_the_recordings(launch, cli, data: Path, tmp_path: Path) -> None:
    """Real LLaVA-1.5-7B generations: the published numbers within 0.1."""
    given = ["sweep=paper_table", "model=recorded", f"model.path={data / 'recorded'}", f"data_dir={data}"]
    done = launch(*given, "dataset=controlled_a,vg_one_obj")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split()[-2:] == ["paper", "diff"]
    with Path(done.stdout.splitlines()[-1]).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["paper"]) for row in rows] == [60.3, 64.5, 84.9, 35.9, 42.7, 42.7]
    assert all(abs(float(row["difference"])) <= 0.1 for row in rows)
    shown = cli("results").stdout
    assert re.search(r"adapt_vis, paper +84.9 +42.7\n", shown)
    assert re.search(r"adapt_vis, difference +-0.05 +-0.03\n", shown)
