"""What a model is sent, for each kind of question, model and mode."""

from __future__ import annotations

import pytest
from questions import BARE, VSR, WHATSUP

from spatial_eval.benchmarks.prompts import add_text, strip_wrapper, write_prompt
from spatial_eval.core.arms import PLACES, SecondPrompt


@pytest.mark.parametrize(
    ("question", "bare"),
    [
        (WHATSUP, BARE),
        (VSR, "Determine whether it is true. Answer with yes or no: the cup is on the dog."),
        (BARE, BARE),
        ("<image>\nUSER: \nASSISTANT:", ""),
    ],
)
def test_unwrap(question: str, bare: str) -> None:
    assert strip_wrapper(question) == bare


def chat(question: str) -> str:
    return f"[chat]{question}"


@pytest.mark.parametrize(
    ("mode", "llava15", "question", "prompt"),
    [
        ("auto", True, WHATSUP, WHATSUP),
        ("auto", True, BARE, f"[chat]{BARE}"),
        ("auto", False, WHATSUP, f"[chat]{BARE}"),
        ("chat", True, WHATSUP, f"[chat]{BARE}"),
        ("raw", False, WHATSUP, WHATSUP.replace("<image>", "<|image_pad|>")),
        ("raw", False, "<|image_pad|>What?", "<|image_pad|>What?"),
    ],
)
def test_write_prompt(mode: str, llava15: bool, question: str, prompt: str) -> None:
    token = "<image>" if llava15 else "<|image_pad|>"
    assert write_prompt(question, mode=mode, llava15=llava15, image_token=token, chat=chat) == prompt


def test_without_a_chat_template() -> None:
    assert write_prompt(BARE, mode="auto", llava15=True, image_token="<image>", chat=None) == WHATSUP
    assert write_prompt(BARE, mode="auto", llava15=False, image_token="<i>", chat=None) == f"<i>{BARE}"
    with pytest.raises(ValueError, match=r"no chat template: use dataset.prompt=raw"):
        write_prompt(BARE, mode="chat", llava15=False, image_token="<i>", chat=None)


def test_second_prompts() -> None:
    question = "<image>\nUSER: Where?\nASSISTANT:"
    texts = {place: add_text(question, SecondPrompt(place, "Do {this}.")) for place in PLACES}
    assert texts["system"] == question
    assert texts["text"] == "<image>\nUSER: Do {this}. Where?\nASSISTANT:"
    assert texts["end"] == "<image>\nUSER: Where? Do {this}.\nASSISTANT:"
    told = write_prompt(question, mode="raw", llava15=True, image_token="<image>", chat=None, system="Do this.")
    assert told == f"Do this. {question}"
    with pytest.raises(ValueError, match="in the midst of the question"):
        add_text("Where is it in <image>?", SecondPrompt("end", "Well?"))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="the question is empty"):
        write_prompt("<image>\nUSER:  ASSISTANT:", mode="auto", llava15=True, image_token="<image>", chat=chat)
    with pytest.raises(ValueError, match=r"dataset.prompt=raw needs <image>"):
        write_prompt(BARE, mode="raw", llava15=True, image_token="<image>", chat=chat)
