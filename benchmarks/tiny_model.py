"""The tiny model before it has learnt anything: tokenizer, processor, and a stock LLaVA of 1.2 million parameters."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import torch
from tiny_lessons import CAPTION, EYE, GRID, NAMES, prompt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from spatial_eval.benchmarks.scenes.generator import FORMS

VISION_WIDTH, TEXT_WIDTH, TEXT_LAYERS = 96, 128, 4
PAD, BOS, EOS = 0, 1, 2


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE in which every name and every answer word is one token, learnt from the questions' own words."""
    corpus = [prompt(form, name, NAMES[-1]) for form in FORMS for name in NAMES]
    corpus += [f" {name}" for name in NAMES for _ in range(40)]
    corpus += [f" {word.capitalize()}" for form in FORMS.values() for word in form.relations for _ in range(40)]
    corpus += [f" {name} {x} {y}," for name in NAMES for x, y in itertools.product(range(GRID), repeat=2)]
    corpus += [CAPTION] * 40
    corpus = [text.replace("<image>", "") for text in corpus]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<pad>", "<s>", "</s>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(corpus, trainer)
    learner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=learner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        extra_special_tokens={"image_token": "<image>"},
    )


def processor(words: PreTrainedTokenizerFast) -> LlavaProcessor:
    side = {"height": EYE, "width": EYE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=side, crop_size=side),
        tokenizer=words,
        patch_size=EYE // GRID,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def model(words: PreTrainedTokenizerFast, seed: int) -> LlavaForConditionalGeneration:
    """Weights as `seed` gives them: the library's own scale (0.02) is far too small at these widths."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=3 * VISION_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=EYE,
        patch_size=EYE // GRID,
        projection_dim=VISION_WIDTH,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=TEXT_WIDTH,
        intermediate_size=352,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=GRID**2,
        tie_word_embeddings=True,
    )
    net = LlavaForConditionalGeneration(config)
    for name in ("bos", "eos", "pad"):
        setattr(net.generation_config, f"{name}_token_id", getattr(text, f"{name}_token_id"))
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if "embed_tokens" in name:
                weight.normal_(0, 0.05)
            elif weight.ndim == 2 and "embed" not in name and "lm_head" not in name:
                weight.normal_(0, weight.shape[1] ** -0.5)
                if any(part in name for part in ("o_proj", "down_proj", "out_proj", "fc2")):
                    weight.mul_((2 * TEXT_LAYERS) ** -0.5)
        net.model.vision_tower.embeddings.position_embedding.weight[1:] = 0.5 * _waves()
    return net


def save(net: LlavaForConditionalGeneration, words: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes a folder like a hub model's: bfloat16 on disk for half the size, float32 when loaded as configured."""
    net.eval().to(torch.bfloat16).save_pretrained(folder)
    processor(words).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(path.read_text("utf8").replace('"dtype": "bfloat16"', '"dtype": "float32"'), "utf8")
    (folder / "model.safetensors").chmod(0o644)


def _waves() -> torch.Tensor:
    """(GRID * GRID, VISION_WIDTH): sines and cosines of column and row, a head start for the learnt positions."""
    rate = math.pi / GRID * GRID ** (torch.arange(VISION_WIDTH // 4) / (VISION_WIDTH // 4))
    y, x = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    angles = [axis.reshape(-1, 1) * rate for axis in (x, y)]
    return torch.cat([turn(angle) for angle in angles for turn in (torch.sin, torch.cos)], 1)
