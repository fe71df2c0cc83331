"""A loaded model: what fails costs only itself, what cannot be trusted stops the run."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import SUPPORTED
from PIL import Image
from questions import ARMS, Questions, ask, cut, eight, load, saved

from spatial_eval.benchmarks.scenes.rendered import Scenes
from spatial_eval.core.arms import AnswerYes, Arm, Icd, SecondPrompt, Sid, Vcd
from spatial_eval.core.errors import ModelError
from spatial_eval.core.types import Experiment, Failure, Generation, Part, Pass, Places, Sample
from spatial_eval.engine import decode as engine
from spatial_eval.models import batches as models_batches
from spatial_eval.models import spec, vlm
from spatial_eval.models.hf import HF
from spatial_eval.passes.pass_state import inspect_pass, run_pass

STARTS = {
    "llava": "<image>\nUSER: ",
    "llava_next": "USER: ",
    "gemma3": "<bos><start_of_turn>user\n<start_of_image>",
}


def tokens(records: dict[tuple[str, float], Any]) -> dict[tuple[str, float], tuple[int, ...]]:
    return {key: record.tokens for key, record in records.items()}


@pytest.mark.parametrize("name", SUPPORTED)
def test_from_folder_to_records(name: str, tmp_path: Path) -> None:
    path = saved(name)
    expected = ask(load(HF(path, decoding="per_arm"), tmp_path), eight())
    assert all(isinstance(record, Generation) for record in expected.values())
    for size in (1, 4):
        ours = ask(load(HF(path, batch_size=size), tmp_path), eight())
        assert tokens(ours) == tokens(expected)
        for key, record in ours.items():
            assert record.confidence == pytest.approx(expected[key].confidence, abs=1e-5)
            assert 0 <= record.margin <= record.confidence <= 1
            assert 0 < record.entropy < 8
            assert set(record.option_probs) == {"on", "under"}
            assert sum(record.option_probs.values()) == pytest.approx(1, abs=1e-5)
            assert record.device == "cpu"
            assert record.batch <= size
    question = ours["q2", 1.0].prompt
    assert "Where?" in question
    assert question.startswith(STARTS.get(name, "<|im_start|>"))


def test_prompt_mode_and_distortion(tmp_path: Path) -> None:
    model = HF(saved("llava"))
    auto = ask(load(model, tmp_path), eight()[:2], ARMS[:1])
    chat = ask(load(model, tmp_path, dataset=Questions("chat")), eight()[:2], ARMS[:1])
    assert chat["q0", 0.0].prompt == "USER: <image>\nWhere is the cup? ASSISTANT:"
    assert auto["q0", 0.0].prompt == eight()[0].question
    stretched = ask(load(model, tmp_path, dataset=Questions(distort=True)), eight()[6:7], (Arm(),))
    assert stretched["q6", 1.0].logit != ask(load(model, tmp_path), eight()[6:7], (Arm(),))["q6", 1.0].logit


SECONDS = (
    Arm(contrast=Icd(disturbance="Look away.")),
    Arm(contrast=Icd(place="text", disturbance="Look away.")),
    Arm(contrast=AnswerYes()),
    Arm(contrast=Sid(rank=3)),
)


@pytest.mark.parametrize(
    ("name", "system"),
    [("llava", "Look away. <image>\nUSER: "), ("qwen25_vl", "<|im_start|>system\nLook away.<|im_end|>")],
)
def test_second_prompts(name: str, system: str, tmp_path: Path) -> None:
    """From the question to the answer; each beside the question's own prompt, and compared at the start."""
    arms = SECONDS if name == "qwen25_vl" else SECONDS[:3]  # the other prompt begins with its image
    vlm = load(HF(saved(name), pad_to=90), tmp_path, tokens=3)
    encoded = vlm._encoder.encode_picture([eight()[0]], [arm.contrast.second for arm in SECONDS[:3]])  # type: ignore
    first, second, third = (one.prompt for one in encoded[0].seconds.values())
    assert first.startswith(system)
    assert "Look away. Where is the cup?" in second
    assert "Where is the cup? Answer yes whenever possible." in third
    own = {record.arm: record for batch in vlm.answer(cut([(eight()[0], arms)], vlm)) for record in batch}
    assert [own[arm].prompt for arm in arms] == [*[encoded[0].prompt] * 2, third, encoded[0].prompt][: len(arms)]  # type: ignore
    per_arm = load(HF(saved(name), decoding="per_arm"), tmp_path, tokens=3)
    plain = [record for batch in per_arm.answer(cut([(eight()[0], arms)], per_arm)) for record in batch]
    assert {record.arm: record.tokens for record in plain} == {arm: own[arm].tokens for arm in arms}  # type: ignore


@pytest.mark.parametrize("decoding", ["shared", "per_arm"])
def test_a_second_prompt_that_cannot_be_written_costs_its_own_arms_alone(decoding: str, tmp_path: Path) -> None:
    arms = (Arm(0.5), *SECONDS[1:3], Arm())
    late = replace(eight()[0], question="USER: Where is the cup? <image>\nASSISTANT:")
    asked = [late, *eight()[1:3]]
    found = {
        (record.sample_id, record.arm): record
        for vlm in [load(HF(saved("llava"), decoding=decoding), tmp_path, tokens=3)]
        for batch in vlm.answer(cut([(sample, arms) for sample in asked], vlm))
        for record in batch
    }
    assert len(found) == len(asked) * len(arms)
    failed = {key: record.error for key, record in found.items() if isinstance(record, Failure)}
    assert failed == {(late.id, arm): "ValueError: <image> stands in the midst of the question" for arm in SECONDS[1:3]}
    alone = ask(load(HF(saved("llava"), decoding=decoding), tmp_path, tokens=3), [late], (arms[0], arms[-1]))
    assert all(found[late.id, arm].tokens == alone[late.id, arm.weight].tokens for arm in (arms[0], arms[-1]))  # type: ignore


def test_a_question_that_ends_with_its_image_costs_itself_alone(tmp_path: Path) -> None:
    last = replace(eight()[1], question="USER: Where is the cup? <image>")
    found = ask(load(HF(saved("llava")), tmp_path, tokens=2), [eight()[0], last, eight()[2]], ARMS[:2])
    failed = {key[0]: record.error for key, record in found.items() if isinstance(record, Failure)}
    assert failed.keys() == {last.id}
    assert "the prompt ends with its image" in failed[last.id]


@pytest.mark.parametrize("decoding", ["shared", "per_arm"])
def test_nothing_is_pruned_where_no_text_stands_before_the_image(decoding: str, tmp_path: Path) -> None:
    vlm = load(HF(saved("llava"), decoding=decoding), tmp_path)
    with pytest.raises(ModelError, match="sid: no token stands before the image"):
        list(vlm.answer(cut([(eight()[0], SECONDS[3:])], vlm)))


def test_a_template_without_system_messages(tmp_path: Path) -> None:
    vlm = load(HF(saved("llava")), tmp_path, dataset=Questions("chat"))
    vlm._encoder._processor.chat_template = "USER: <image>\n{{ messages[-1]['content'][1]['text'] }}"  # type: ignore
    (encoded,) = vlm._encoder.encode_picture([eight()[0]], [SecondPrompt("system", "Look away.")])  # type: ignore
    (error,) = encoded.seconds.values()
    says = str(error.__cause__)
    assert says.startswith("method.place=system: the chat template of ")
    assert says.endswith("has no place for a system message: take method.place=text, or dataset.prompt=raw")


def test_padding_changes_rounding_only(tmp_path: Path) -> None:
    path = saved("llava")
    plain = ask(load(HF(path), tmp_path), eight()[:3])
    padded = ask(load(HF(path, pad_to=200), tmp_path), eight()[:3])
    assert tokens(padded) == tokens(plain)


def test_bad_questions_cost_only_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved("llava")
    torn = tmp_path / "torn.png"
    torn.write_bytes((eight()[3].image or Path()).read_bytes()[:900])
    huge = tmp_path / "huge.png"
    Image.new("1", (20000, 10000)).save(huge)
    bad = [
        *eight()[:1],
        replace(eight()[1], image=torn),
        replace(eight()[2], image=huge),
        replace(eight()[3], question="<image>\nUSER: \nASSISTANT:"),
        *eight()[4:5],
        replace(eight()[5], image=tmp_path / "absent.png"),
        replace(eight()[6], image=None),
        *eight()[7:],
    ]
    found = ask(load(HF(path, batch_size=4), tmp_path), bad, ARMS[:2])
    good = ask(load(HF(path, batch_size=4), tmp_path), eight(), ARMS[:2])
    errors = {key[0]: record.error for key, record in found.items() if isinstance(record, Failure)}
    assert set(errors) == {"q1", "q2", "q3", "q5", "q6"}
    assert "truncated" in errors["q1"]
    assert "200000000 pixels" in errors["q2"]
    assert errors["q3"] == "ValueError: the question is empty"
    assert errors["q5"].endswith("absent.png is no file")
    assert errors["q6"] == "ValueError: the question has no image"
    for key in found:
        if key[0] not in errors:
            assert found[key].tokens == good[key].tokens


def about_one_picture(counts: Mapping[int, int]) -> list[Sample]:
    """`counts`: questions by picture, in a file order that has those on one picture apart."""
    pairs = [(index, number) for index, count in counts.items() for number in range(count)]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
    made = []
    for row, (index, number) in enumerate(pairs[i] for i in order):
        question = eight()[(index + number) % 8].question
        made.append(replace(eight()[index], id=f"p{index}q{number}", row=row, question=question))
    return made


COUNTS = {0: 1, 3: 2, 6: 5}


@pytest.mark.parametrize("name", SUPPORTED)
def test_questions_on_one_picture_share_it(name: str, tmp_path: Path) -> None:
    """Shared, each with a prefill of its own, and one plain generate per arm: the same answers."""
    path, work = saved(name), about_one_picture(COUNTS)
    expected = ask(load(HF(path, decoding="per_arm"), tmp_path), work, ARMS[1:4])
    for more in ({"batch_size": 8}, {"batch_size": 4}, {"batch_size": 8, "share": "question"}):
        ours = ask(load(HF(path, **more), tmp_path), work, ARMS[1:4])  # type: ignore[arg-type]
        assert tokens(ours) == tokens(expected)
        for key, record in ours.items():
            assert record.confidence == pytest.approx(expected[key].confidence, abs=1e-5)


def images_read(monkeypatch: pytest.MonkeyPatch, path: str) -> list[int]:
    """How many images each prefill reads, filled while a model runs."""
    read: list[int] = []
    decode = engine.decode_arms

    def noted(model: Any, inputs: Any, **kwargs: Any) -> Any:
        read.append(len(set(kwargs["image"])))
        return decode(model, inputs, **kwargs)

    monkeypatch.setattr(engine, "decode_arms", noted)
    monkeypatch.setattr(models_batches, "WASTE", 1.0)  # one bucket
    return read


def test_pictures_shown_otherwise_are_read_again(tmp_path: Path) -> None:
    """What a pass over the same file left in memory serves only who shows it alike."""
    turned = Image.Exif()
    turned[0x0112] = 6  # Orientation: a quarter turn
    with Image.open(eight()[1].image or "") as picture:
        picture.save(tmp_path / "turned.png", exif=turned)
    work, model = [replace(eight()[1], image=tmp_path / "turned.png")], HF(saved("llava"), selfcheck="never")
    fresh, after = {}, {}
    for orientation in ("upright", "stored"):
        dataset = Questions()
        dataset.orientation = orientation  # type: ignore[attr-defined]
        after[orientation] = ask(load(model, tmp_path, dataset=dataset), work)
        one: Any = load(model, tmp_path, dataset=dataset)
        one._memory = None
        fresh[orientation] = ask(one, work)
    assert after == fresh
    logits = [{key: record.logit for key, record in one.items()} for one in fresh.values()]  # type: ignore[union-attr]
    assert logits[0] != logits[1]


@pytest.mark.parametrize(
    ("settings", "read"),
    [
        ({"batch_size": 8}, [3]),
        ({"batch_size": 5}, [1, 2]),
        ({"batch_size": 4}, [1, 3]),  # five questions on one picture stand in two blocks
        ({"batch_size": 1}, [1] * 8),
        ({"batch_size": 8, "share": "question"}, [8]),
    ],
)
def test_how_many_prefills_pictures_take(
    settings: dict[str, Any], read: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = images_read(monkeypatch, saved("llava"))
    ask(load(HF(saved("llava"), selfcheck="never", **settings), tmp_path), about_one_picture(COUNTS), ARMS[:1])
    assert sorted(found) == sorted(read)


def test_a_resumed_run_batches_what_is_left_of_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, work = load(HF(saved("llava"), batch_size=4, selfcheck="never"), tmp_path), about_one_picture(COUNTS)
    whole = [[(r.sample_id, r.batch) for r in batch] for batch in one.answer(cut([(s, ARMS[:1]) for s in work], one))]
    blocks = cut([(s, ARMS[:1]) for s in work], one)
    rest = [[(r.sample_id, r.batch) for r in batch] for batch in one.answer(blocks[1:])]
    assert rest == whole[-len(rest) :]


@pytest.mark.parametrize("name", ["llava", "qwen25_vl", "idefics3", "internvl", "llava_onevision", "gemma3"])
def test_a_picture_is_opened_and_processed_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And every prompt about it is what its own processing would give."""
    encoder = load(HF(saved(name)), tmp_path, tokens=1)._encoder  # type: ignore[attr-defined]
    work = about_one_picture(COUNTS)
    alone = {sample.id: encoder.encode(sample) for sample in work}
    kind, calls, opened, opener = type(encoder._images._stock), [], [], Image.open
    process = kind.__call__
    monkeypatch.setattr(kind, "__call__", lambda *args, **kwargs: calls.append(1) or process(*args, **kwargs))
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or opener(path))
    for index in COUNTS:
        group = [sample for sample in work if sample.image == eight()[index].image]
        for sample, (prompt, inputs, _) in zip(group, encoder.encode_picture(group), strict=True):
            assert prompt == alone[sample.id][0]
            assert inputs.keys() == alone[sample.id][1].keys()
            assert all(torch.equal(tensor, alone[sample.id][1][key]) for key, tensor in inputs.items())
    assert (len(calls), len(opened)) == (3, 3)


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")


def scarce(monkeypatch: pytest.MonkeyPatch, *, images: int, together: int) -> list[tuple[int, tuple[int, ...]]]:
    """Memory for so many images in a batch, and so many prompts that decode together; what was tried."""
    tried: list[tuple[int, tuple[int, ...]]] = []
    decode = engine.decode_arms

    def small(model: Any, inputs: Any, **kwargs: Any) -> Any:
        tried.append((len(set(kwargs["image"])), tuple(kwargs["chunks"])))
        if tried[-1][0] > images or max(tried[-1][1]) > together:
            raise OUT_OF_MEMORY
        return decode(model, inputs, **kwargs)

    monkeypatch.setattr(engine, "decode_arms", small)
    monkeypatch.setattr(models_batches, "WASTE", 1.0)  # one bucket
    return tried


def test_out_of_memory_halves_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved("llava")
    good = ask(load(HF(path), tmp_path), eight(), ARMS[:2])
    tried = scarce(monkeypatch, images=3, together=99)
    with caplog.at_level(logging.WARNING):
        found = ask(load(HF(path, batch_size="auto", selfcheck="never"), tmp_path), eight(), ARMS[:2])
    assert tokens(found) == tokens(good)
    assert [images for images, _ in tried] == [8, 4, 2, 2, 2, 2]
    assert {record.batch for record in found.values()} == {2}
    assert "out of memory with 8 questions on 8 images in a batch; going on with 4 images" in caplog.text
    assert "out of memory with 4 questions on 4 images in a batch; going on with 2 images" in caplog.text


def test_out_of_memory_goes_by_images_then_by_questions_over_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, work = saved("llava"), about_one_picture({0: 1, 3: 6, 6: 5})
    good = ask(load(HF(path, batch_size=12), tmp_path), work, ARMS[:2])
    tried = scarce(monkeypatch, images=2, together=2)
    with caplog.at_level(logging.WARNING):
        found = ask(load(HF(path, batch_size=12, selfcheck="never"), tmp_path), work, ARMS[:2])
    assert tokens(found) == tokens(good)
    assert [images for images, _ in tried[:3]] == [3, 2, 1]
    assert {images for images, chunks in tried if max(chunks) <= 2} == {1}
    assert tried[-1][1] in ((2, 2, 1), (2, 2, 2))  # over one image, which is read once
    assert "questions on one image; decoding 2 at a time" in caplog.text


def test_a_question_that_does_not_fit_alone_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scarce(monkeypatch, images=1, together=0)
    found = ask(load(HF(saved("llava"), batch_size=4), tmp_path), about_one_picture({3: 2}), ARMS[:1])
    assert {record.error for record in found.values()} == {"out of memory"}  # type: ignore[union-attr]


def test_auto_grows_while_memory_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whole blocks, and no more once a batch did not fit."""
    path = saved("llava")
    work = [replace(eight()[row % 8], id=f"q{row}", row=row) for row in range(40)]
    expected = ask(load(HF(path, batch_size=4, share="question"), tmp_path, tokens=2), work, ARMS[:2])
    monkeypatch.setattr(spec, "AUTO_ROWS", 4)
    monkeypatch.setattr(vlm, "_memory_share", lambda device: 0.1)
    tried = scarce(monkeypatch, images=99, together=99)
    found = ask(
        load(HF(path, batch_size="auto", share="question", selfcheck="never"), tmp_path, tokens=2), work, ARMS[:2]
    )
    assert tokens(found) == tokens(expected)
    assert [sum(chunks) for _, chunks in tried] == [4, 8, 16, 12]
    tried = scarce(monkeypatch, images=9, together=99)
    found = ask(
        load(HF(path, batch_size="auto", share="question", selfcheck="never"), tmp_path, tokens=2), work, ARMS[:2]
    )
    assert tokens(found) == tokens(expected)
    assert [sum(chunks) for _, chunks in tried][::2][:2] == [4, 16]
    assert max(sum(chunks) for _, chunks in tried[-3:]) == 4
    monkeypatch.setattr(vlm, "_memory_share", lambda device: 0.5)
    tried = scarce(monkeypatch, images=99, together=99)
    ask(load(HF(path, batch_size="auto", share="question", selfcheck="never"), tmp_path, tokens=2), work, ARMS[:2])
    assert [sum(chunks) for _, chunks in tried] == [4] * 10


def test_noise_is_the_pictures(tmp_path: Path) -> None:
    """So that questions share the noised image too; with share=question it is the question's, as it was."""
    arms = (Arm(contrast=Vcd(alpha=1.0, cutoff=0.1, noise=500)),)
    path, work = saved("llava"), about_one_picture({3: 3})
    same = [replace(sample, id=f"r{i}", question=work[0].question, row=i) for i, sample in enumerate(work)]

    def logits(**settings: Any) -> set[float]:
        found = ask(load(HF(path, batch_size=4, **settings), tmp_path, tokens=1), same, arms)
        return {round(record.margin, 5) for record in found.values()}  # type: ignore[union-attr, arg-type]

    assert len(logits()) == 1
    assert len(logits(share="question")) == 3
    copy = tmp_path / "copy.png"
    copy.write_bytes((same[0].image or Path()).read_bytes())
    known = logits()
    same = [replace(sample, image=copy) for sample in same]
    assert logits() == known, "the same content at another place"


def test_a_question_that_fails_alone_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = engine.decode_arms

    def picky(model: Any, inputs: Any, **kwargs: Any) -> Any:
        if longest in inputs["attention_mask"].sum(dim=1):
            raise RuntimeError("no such kernel\nlong explanation")
        return decode(model, inputs, **kwargs)

    one = load(HF(saved("llava"), batch_size=4), tmp_path)
    longest = max(one._encoder.encode(sample)[1]["input_ids"].shape[1] for sample in eight()[4:])  # type: ignore[attr-defined]
    monkeypatch.setattr(engine, "decode_arms", picky)
    found = ask(one, eight(), ARMS[:2])
    errors = {key[0]: record.error for key, record in found.items() if isinstance(record, Failure)}
    assert errors == {"q5": "RuntimeError: no such kernel"}


@pytest.mark.parametrize("error", [ModelError("a guard"), RuntimeError("CUDA error: device-side assert triggered")])
def test_what_is_no_questions_fault_stops_the_run(
    error: Exception,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    one = load(HF(saved("llava")), tmp_path)
    monkeypatch.setattr(engine, "decode_arms", fail)
    with pytest.raises(type(error), match=str(error)):
        ask(one, eight()[:1])


def always(error: Callable[[int], Exception], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every decoding of one question alone fails, of several too; -> the sizes that were tried."""
    sizes: list[int] = []

    def fail(model: Any, inputs: Any, **kwargs: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        raise error(len(sizes))

    monkeypatch.setattr(engine, "decode_arms", fail)
    return sizes


def many(count: int) -> list[Sample]:
    """As the eight samples over and over."""
    return [replace(eight()[i % 8], id=f"q{i}", row=i) for i in range(count)]


@pytest.mark.parametrize("share", ["image", "question"])
@pytest.mark.parametrize(("size", "count"), [(1, 20), (3, 20), (32, 20), (1, 2), (4, 3), ("auto", 8)])
def test_one_error_in_all_questions_stops_the_run(
    size: int | str, count: int, share: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers in its text may differ: lengths, shapes, addresses."""
    one = load(HF(saved("llava"), name="llava", batch_size=size, share=share), tmp_path)
    always(lambda number: TypeError(f"forward() got an unexpected argument at 0x{number}\nmore"), monkeypatch)
    records = one.answer(cut([(sample, ARMS[:2]) for sample in many(count)], one))
    with pytest.raises(ModelError) as caught:
        next(records)  # nothing was yielded, so nothing is stored
    failed = r"llava: all of the first (\d+) questions failed with one error, so it is no question's fault: "
    match = re.match(failed + r"TypeError: forward\(\) got an unexpected argument at 0x\d+; ", str(caught.value))
    assert match is not None
    assert "model.decoding=per_arm may still do" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert min(count, 8) <= int(match[1]) <= count
    assert size != 1 or share == "image" or int(match[1]) == min(count, 8)


def test_one_question_is_no_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    always(lambda number: RuntimeError("no such kernel"), monkeypatch)
    found = ask(load(HF(saved("llava")), tmp_path), eight()[:1], ARMS[:2])
    assert [one.error for one in found.values() if isinstance(one, Failure)] == ["RuntimeError: no such kernel"] * 2


@pytest.mark.parametrize("size", [1, 4, 32])
def test_one_picture_is_no_evidence_however_many_ask_about_it(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its questions stand together, here at the start: they fail, and the rest is answered."""
    work = [replace(eight()[0 if row < 12 else row - 11], id=f"q{row}", row=row) for row in range(16)]
    one: Any = load(HF(saved("llava"), batch_size=size), tmp_path)
    process = one._encoder._process

    def failing(prompt: str, images: Any) -> Any:
        if images[0].size == (64, 64):
            raise RuntimeError("no such kernel")
        return process(prompt, images)

    monkeypatch.setattr(one._encoder, "_process", failing)
    found = ask(one, work, ARMS[:1])
    assert {record.sample_id for record in found.values() if isinstance(record, Failure)} == {
        f"q{row}" for row in range(12)
    }
    assert len(found) == 16


def test_several_errors_are_the_questions_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = (RuntimeError("no such kernel"), ValueError("no such kernel"))
    always(lambda number: kinds[number > 5], monkeypatch)
    found = ask(load(HF(saved("llava")), tmp_path), many(12), ARMS[:2])
    assert len(found) == 24
    assert all(isinstance(one, Failure) for one in found.values())


@pytest.mark.parametrize("good", [3, 7])
def test_failures_before_the_first_answer_are_kept(good: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, calls = engine.decode_arms, [0]

    def late(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] <= good or calls[0] > good + 1:
            raise RuntimeError("no such kernel")
        return decode(*args, **kwargs)

    one = load(HF(saved("llava"), selfcheck="never", share="question"), tmp_path)
    monkeypatch.setattr(engine, "decode_arms", late)
    batches = list(one.answer(cut([(sample, ARMS[:1]) for sample in many(20)], one)))
    assert all(batches)
    records = [record for batch in batches for record in batch]
    assert sorted(record.sample_id for record in records) == sorted(sample.id for sample in many(20))
    assert [record.sample_id for record in records if isinstance(record, Generation)] == [f"q{good}"]
    assert len(batches[0]) == good + 1


def test_bad_pictures_never_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many and however alike: absent, torn, none, or a question without words."""
    torn = tmp_path / "torn.png"
    torn.write_bytes((eight()[3].image or Path()).read_bytes()[:900])
    for change in (
        {"image": tmp_path / "absent.png"},
        {"image": torn},
        {"image": None},
        {"question": "<image>\nUSER: \nASSISTANT:"},
    ):
        found = ask(load(HF(saved("llava")), tmp_path), [replace(one, **change) for one in many(12)], ARMS[:1])
        assert len(found) == 12
        assert all(isinstance(one, Failure) for one in found.values())


def test_bad_pictures_do_not_hide_a_broken_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = [replace(one, image=None) if one.row % 2 else one for one in many(20)]
    one = load(HF(saved("llava")), tmp_path)
    always(lambda number: RuntimeError("no such kernel"), monkeypatch)
    got: list[Any] = []

    def go_on() -> None:
        for records in one.answer(cut([(sample, ARMS[:1]) for sample in work], one)):
            got.extend(records)

    with pytest.raises(ModelError, match=r"all of the first \d+ questions failed with one error"):
        go_on()
    assert {record.error for record in got if isinstance(record, Failure)} == {"ValueError: the question has no image"}


def test_out_of_memory_everywhere_is_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    always(lambda number: torch.OutOfMemoryError("CUDA out of memory"), monkeypatch)
    found = ask(load(HF(saved("llava")), tmp_path), many(12), ARMS[:1])
    assert {one.error for one in found.values() if isinstance(one, Failure)} == {"out of memory"}
    assert len(found) == 12


def test_a_processor_that_fails_on_all_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one: Any = load(HF(saved("llava"), name="llava"), tmp_path)

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise TypeError("unexpected keyword 'text'")

    monkeypatch.setattr(one._encoder, "_processor", fail, raising=False)
    fail.chat_template = None  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match=r"all of the first 1\d questions failed with one error, so it is no"):
        ask(one, many(12), ARMS[:1])


def test_nothing_of_a_broken_model_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = Experiment(Scenes("scenes_a", "scenes_a"), HF("package:tiny", name="tiny", batch_size=4), 4)
    work = Pass(trunk, ((Part("test", 12), (Arm(),)),))
    places = Places(tmp_path, tmp_path)
    with monkeypatch.context() as patch:
        always(lambda number: TypeError("no past_key_values"), patch)
        with pytest.raises(ModelError, match=r"tiny: all of the first \d+ questions failed with one error"):
            run_pass(inspect_pass(work, places), places)
    again = inspect_pass(work, places)
    assert (len(again.stored.failures), len(again.todo)) == (0, 12)
    run_pass(again, places)
    assert len(inspect_pass(work, places).stored.generations) == 12


def test_arms_may_differ_between_questions(tmp_path: Path) -> None:
    one = load(HF(saved("llava"), batch_size=4), tmp_path)
    mixed = [(sample, ARMS[: 2 + sample.row % 2]) for sample in eight()]
    found = {(r.sample_id, r.arm.weight): r for batch in one.answer(cut(mixed, one)) for r in batch}
    assert len(found) == sum(len(arms) for _, arms in mixed)
    whole = ask(one, eight())
    assert all(record.tokens == whole[key].tokens for key, record in found.items())


@pytest.mark.parametrize(("name", "reason"), [("paligemma", "prefix LM"), ("softcap", "softcap")])
def test_refused_models_take_the_slow_way_with_one_warning(
    name: str,
    reason: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = saved(name)
    with caplog.at_level(logging.WARNING, logger="spatial_eval"):
        ours = ask(load(HF(path), tmp_path, tokens=3), eight()[:2])
    warnings = [record for record in caplog.records if record.name.startswith("spatial_eval")]
    assert len(warnings) == 1
    assert reason in warnings[0].getMessage()
    assert tokens(ours) == tokens(ask(load(HF(path, decoding="per_arm"), tmp_path, tokens=3), eight()[:2]))


def test_steps_of_one_shape(tmp_path: Path) -> None:
    path = saved("llava")
    plain, fixed = (ask(load(HF(path, batch_size=4, graphs=graphs), tmp_path), eight()) for graphs in (False, True))
    assert tokens(plain) == tokens(fixed)


def test_kernel_of_the_prefix(tmp_path: Path) -> None:
    path = saved("llava")
    plain, other = (ask(load(HF(path, attn=attn), tmp_path), eight()[:2]) for attn in ("sdpa", "math"))
    assert tokens(plain) == tokens(other)
