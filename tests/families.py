"""Tiny random vision-language models of each family, with their real processors, built offline in 0.1 s.

A default initialisation (std 0.02) makes attention flat, so that no weight changes anything and every error
hides: here matrices have std 1.6 / sqrt(fan_in) and embeddings std 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from spatial_eval.checkpoints import image_only

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
CLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
    "projection_dim": 32,
}
SIGLIP = {name: value for name, value in CLIP.items() if name != "projection_dim"}
GRID = [[56, 112], [112, 56], [112, 112]]
CROP = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
LLAVA_CHAT = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %} {% endfor %}ASSISTANT:"
)
TURN_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


@dataclass(frozen=True, slots=True)
class Family:
    model: Any
    processor: Any

    def save(self, folder: Path) -> Path:
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        return folder


@cache
def build(name: str) -> Family:
    """The family of this name in FAMILIES; the same object every time, in eval mode and float32."""
    torch.manual_seed(0)
    model, processor = FAMILIES[name]()
    _scale_up(model)
    return Family(model.eval(), processor)


def picture(index: int, size: tuple[int, int]) -> Image.Image:
    """A picture of `size` (width, height) in noisy colours, another for each index."""
    generator = torch.Generator().manual_seed(index)
    pixels = torch.randint(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).resize(size)


def _tokenizer(special: list[str], *, bos: str = "<s>", eos: str = "</s>", pad: str = "<pad>") -> Any:
    """Byte-level, without merges: about one token a character."""
    vocabulary = dict.fromkeys([bos, eos, pad, "<unk>", *special, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    tokens = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(vocabulary)}, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens.decoder = decoders.ByteLevel()
    named = {"image_token": "<image>"} if "<image>" in special else {}
    made = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        unk_token="<unk>",
        padding_side="left",
        model_max_length=4096,
        extra_special_tokens=named or None,
    )
    made.add_tokens([AddedToken(token, special=True, normalized=False) for token in special], special_tokens=True)
    return made


def _text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("pad", "bos", "eos")}
    return {**TEXT, **ids, "vocab_size": (len(tokenizer) + 63) // 64 * 64, **more}


def _scale_up(model: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim >= 2:
                fan_in = tensor[0].numel()
                tensor.copy_(noise * (1.0 if "embed_tokens" in name else 1.6 / fan_in**0.5))
            elif "norm" in name and name.endswith("weight"):
                tensor.copy_(1 + 0.1 * noise)
            elif "class_embedding" in name:
                tensor.copy_(noise)
            elif name.endswith("bias"):
                tensor.copy_(0.1 * noise)


def llava(text: Callable[..., Any] = hf.LlamaConfig, **more: Any) -> tuple[Any, Any]:
    tokenizer = _tokenizer(["<image>"])
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**CLIP),
        text_config=text(**_text(tokenizer, **more)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessorPil(**CROP),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_CHAT,
    )
    return hf.LlavaForConditionalGeneration(config), processor


def llava_next() -> tuple[Any, Any]:
    tokenizer = _tokenizer(["<image>"])
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**CLIP),
        text_config=hf.MistralConfig(**_text(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=GRID,
        image_seq_length=16,
    )
    processor = hf.LlavaNextProcessor(
        hf.LlavaNextImageProcessorPil(**CROP, image_grid_pinpoints=GRID),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_CHAT,
    )
    return hf.LlavaNextForConditionalGeneration(config), processor


def qwen25_vl() -> tuple[Any, Any]:
    special = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = _tokenizer(special, eos="<|im_end|>", pad="<|endoftext|>")
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in special}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    config = hf.Qwen2_5_VLConfig(
        text_config=_text(tokenizer, rope_parameters=rope),
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 64,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    images = hf.Qwen2VLImageProcessorPil(
        patch_size=14, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 56**2, "longest_edge": 112**2}
    )
    chat = TURN_CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    processor = image_only(hf.Qwen2_5_VLProcessor)(images, tokenizer, None, chat_template=chat)
    return hf.Qwen2_5_VLForConditionalGeneration(config), processor


def idefics3() -> tuple[Any, Any]:
    places = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    special = [
        "<|im_start|>",
        "<|im_end|>",
        "<image>",
        "<fake_token_around_image>",
        "<end_of_utterance>",
        "<global-img>",
    ]
    tokenizer = _tokenizer([*special, *places], eos="<end_of_utterance>", pad="<|endoftext|>")
    vision = {**SIGLIP, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = hf.Idefics3Config(
        text_config=hf.LlamaConfig(**_text(tokenizer)),
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    images = hf.Idefics3ImageProcessorPil(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    processor = hf.Idefics3Processor(
        images, tokenizer, image_seq_len=4, chat_template=TURN_CHAT.replace("IMAGE", "<image>")
    )
    return hf.Idefics3ForConditionalGeneration(config), processor


def paligemma() -> tuple[Any, Any]:
    """A prefix LM: its prompt attends in both directions."""
    tokenizer = _tokenizer(["<image>"], bos="<bos>", eos="<eos>")
    images = hf.SiglipImageProcessorPil(size={"height": 56, "width": 56})
    images.image_seq_length = 16
    config = hf.PaliGemmaConfig(
        text_config=hf.GemmaConfig(**_text(tokenizer, head_dim=16)),
        vision_config=hf.SiglipVisionConfig(**SIGLIP, vision_use_head=False),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=64,
        hidden_size=64,
    )
    return hf.PaliGemmaForConditionalGeneration(config), hf.PaliGemmaProcessor(images, tokenizer)


def softcap() -> tuple[Any, Any]:
    """LLaVA on Gemma 2: capped attention logits, sliding windows in every other layer."""
    return llava(hf.Gemma2Config, head_dim=16, query_pre_attn_scalar=16, attn_logit_softcapping=5.0)


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava": llava,
    "llava_next": llava_next,
    "qwen25_vl": qwen25_vl,
    "idefics3": idefics3,
    "paligemma": paligemma,
    "softcap": softcap,
}
SUPPORTED = ("llava", "llava_next", "qwen25_vl", "idefics3")
