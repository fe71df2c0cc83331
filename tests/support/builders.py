"""One function a family: its real config classes, tiny and random, and its real processor, built offline.

Images of 56 pixels make 4 to 16 tokens a tile. Not initialised yet: see families.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import transformers as hf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from spatial_eval.models.loading import image_only, offer_pil

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
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
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


def _tokenizer(
    special: list[str], *, bos: str = "<s>", eos: str = "</s>", pad: str = "<pad>", named: dict[str, str] | None = None
) -> Any:
    """Byte-level, without merges: about one token a character. `named` are special tokens with an attribute each."""
    special = [*special, *(named or {}).values()]
    vocabulary = dict.fromkeys([bos, eos, pad, "<unk>", *special, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    tokens = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(vocabulary)}, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens.decoder = decoders.ByteLevel()
    if named is None and "<image>" in special:
        named = {"image_token": "<image>"}
    made = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        unk_token="<unk>",
        padding_side="left",
        model_max_length=4096,
        extra_special_tokens=named,
    )
    made.add_tokens([AddedToken(token, special=True, normalized=False) for token in special], special_tokens=True)
    return made


def _text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("pad", "bos", "eos")}
    return {**TEXT, **ids, "vocab_size": (len(tokenizer) + 63) // 64 * 64, **more}


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


def _qwen(model: Any, config: Any, processor: Any, vision: dict[str, Any], **text: Any) -> tuple[Any, Any]:
    special = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = _tokenizer(special, eos="<|im_end|>", pad="<|endoftext|>")
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in special}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3], **text.pop("rope", {})}
    made = config(
        text_config=_text(tokenizer, rope_parameters=rope, **text),
        vision_config={"depth": 2, "num_heads": 2, "spatial_merge_size": 2, "temporal_patch_size": 2, **vision},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    patch = vision["patch_size"]
    images = hf.Qwen2VLImageProcessorPil(
        patch_size=patch,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": (4 * patch) ** 2, "longest_edge": (8 * patch) ** 2},
    )
    chat = TURN_CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    return model(made), image_only(processor)(images, tokenizer, chat_template=chat)


def qwen2_vl() -> tuple[Any, Any]:
    vision = {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2, "patch_size": 14}
    return _qwen(hf.Qwen2VLForConditionalGeneration, hf.Qwen2VLConfig, hf.Qwen2VLProcessor, vision)


def qwen25_vl() -> tuple[Any, Any]:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": 64,
        "patch_size": 14,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    return _qwen(hf.Qwen2_5_VLForConditionalGeneration, hf.Qwen2_5_VLConfig, hf.Qwen2_5_VLProcessor, vision)


def qwen3_vl() -> tuple[Any, Any]:
    """Deepstack: features of early vision layers are added to the image's rows in the first two decoder layers."""
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": 64,
        "patch_size": 16,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    text = {"head_dim": 16, "rope": {"mrope_interleaved": True}}
    return _qwen(hf.Qwen3VLForConditionalGeneration, hf.Qwen3VLConfig, hf.Qwen3VLProcessor, vision, **text)


def internvl() -> tuple[Any, Any]:
    """Up to four tiles and a thumbnail, one after the other without separators."""
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = _tokenizer(["<|im_start|>", "<|im_end|>"], eos="<|im_end|>", pad="<|endoftext|>", named=named)
    config = hf.InternVLConfig(
        text_config=hf.Qwen2Config(**_text(tokenizer)),
        vision_config={**VISION, "image_size": [56, 56], "patch_size": [14, 14]},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    images = hf.GotOcr2ImageProcessorPil(size={"height": 56, "width": 56}, max_patches=4)
    chat = TURN_CHAT.replace("IMAGE", "<IMG_CONTEXT>\n")
    processor = image_only(hf.InternVLProcessor)(images, tokenizer, image_seq_length=4, chat_template=chat)
    return hf.InternVLForConditionalGeneration(config), processor


def llava_onevision() -> tuple[Any, Any]:
    """Tiles whose rows end in a learned newline, which stands at a position with the image token's id."""
    special = ["<|im_start|>", "<|im_end|>", "<image>", "<video>"]
    tokenizer = _tokenizer(special, eos="<|im_end|>", pad="<|endoftext|>")
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**SIGLIP, vision_use_head=False),
        text_config=hf.Qwen2Config(**_text(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=GRID,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    images = hf.LlavaOnevisionImageProcessorPil(size={"height": 56, "width": 56}, image_grid_pinpoints=GRID)
    processor = image_only(hf.LlavaOnevisionProcessor)(
        images,
        tokenizer,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=TURN_CHAT.replace("IMAGE", "<image>"),
    )
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


def _idefics3(model: Any, config: Any, processor: Any) -> tuple[Any, Any]:
    """Rows of tiles with text between them, so that the image's span holds more than image tokens."""
    places = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    special = ["<|im_start|>", "<|im_end|>", "<image>", "<fake_token_around_image>", "<end_of_utterance>"]
    tokenizer = _tokenizer([*special, "<global-img>", *places], eos="<end_of_utterance>", pad="<|endoftext|>")
    made = config(
        text_config=hf.LlamaConfig(**_text(tokenizer)),
        vision_config={**VISION, "image_size": 56, "patch_size": 14},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    tiles = offer_pil(config)(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    chat = TURN_CHAT.replace("IMAGE", "<image>")
    return model(made), processor(tiles, tokenizer, image_seq_len=4, chat_template=chat)


def idefics3() -> tuple[Any, Any]:
    return _idefics3(hf.Idefics3ForConditionalGeneration, hf.Idefics3Config, hf.Idefics3Processor)


def smolvlm2() -> tuple[Any, Any]:
    processor = partial(image_only(hf.SmolVLMProcessor), video_processor=None)
    return _idefics3(hf.SmolVLMForConditionalGeneration, hf.SmolVLMConfig, processor)


def gemma3(window: int = 512) -> tuple[Any, Any]:
    """Three layers of four see `window` positions back; an image's tokens see each other in both directions."""
    named = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = _tokenizer(["<start_of_turn>", "<end_of_turn>"], bos="<bos>", eos="<eos>", named=named)
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    text = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": window, "layer_types": kinds}
    config = hf.Gemma3Config(
        text_config=_text(tokenizer, **text),
        vision_config={**VISION, "image_size": 56, "patch_size": 14, "vision_use_head": False},
        mm_tokens_per_image=16,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    images = hf.Gemma3ImageProcessorPil(size={"height": 56, "width": 56})
    chat = "<bos>" + TURN_CHAT.replace("IMAGE", "<start_of_image>").replace(
        "<|im_start|>assistant", "<|im_start|>model"
    )
    chat = chat.replace("<|im_start|>", "<start_of_turn>").replace("<|im_end|>", "<end_of_turn>")
    processor = hf.Gemma3Processor(images, tokenizer, image_seq_length=16, chat_template=chat)
    return hf.Gemma3ForConditionalGeneration(config), processor


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
