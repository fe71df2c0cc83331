"""Weights and processors from disk: safetensors only, no remote code, images through PIL."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers.utils.logging import disable_progress_bar

from . import views
from .batches import Inputs, pad_prompt
from .captures import View
from .decoding import image_token_id
from .errors import ModelError
from .image_files import open_rgb, shown_size
from .prompts import write_prompt
from .types import Sample

if TYPE_CHECKING:
    from .hf import HF

log = logging.getLogger(__name__)

DISTORTED = (2300, 4096)  # width, height of VSR's images in the reference (SCIENCE.md section 2)


def load_model(model: HF) -> Any:
    """The model in eval mode on its device. Raises ModelError with one line where it cannot be loaded."""
    device = torch.device(model.run_device())
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"model.device={device} but this torch sees no GPU: use model.device=cpu")
    dtype = getattr(torch, model.run_dtype())
    if device.type == "cuda" and dtype == torch.float32:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = model.tf32
    source = _source(model)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    vlm: Any
    try:
        config = transformers.AutoConfig.from_pretrained(**source, trust_remote_code=False)
        if model.rms_norm_eps is not None:
            _set_rms_norm_eps(config.get_text_config(), model.rms_norm_eps)
        vlm = transformers.AutoModelForImageTextToText.from_pretrained(
            **source,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            device_map=model.device_map,
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ModelError(f"cannot load {model.path}: {_line(error)}") from error
    for name in ("temperature", "top_p", "top_k"):
        setattr(vlm.generation_config, name, None)  # sampling settings: answers here are greedy
    if model.device_map is None:
        vlm = vlm.to(device)
    else:
        log.info("%s: %s", model.name, _spread(vlm))
    return vlm.eval()


def count_layers(model: HF) -> int:
    """Decoder layers, from config.json alone. Raises ModelError where there is none that transformers knows."""
    try:
        config = transformers.AutoConfig.from_pretrained(**_source(model), trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ModelError(f"cannot load {model.path}: {_line(error)}") from error
    return int(config.get_text_config().num_hidden_layers)


_kept: dict[HF, Any] = {}


def keep_model(model: HF) -> Any:
    """As load_model; the passes of a model that follow each other in a process share it. Only the last is kept."""
    if model not in _kept:
        _kept.clear()  # first: two may not fit into memory
        _kept[model] = load_model(model)
    return _kept[model]


def load_processor(model: HF, config: Any) -> Any:
    """The checkpoint's own processor; without its video half, which would need torchvision."""
    source = _source(model)
    stock: Any = transformers.PROCESSOR_MAPPING.get(type(config), None)
    video = stock is not None and "video_processor" in stock.get_attributes()
    kind: Any = image_only(stock) if video else transformers.AutoProcessor
    try:
        processor = kind.from_pretrained(**source, backend="pil", trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise ModelError(f"cannot load the processor of {model.path}: {_line(error)}") from error
    _complete(processor, config)
    return processor


def _complete(processor: Any, config: Any) -> None:
    """Early LLaVA checkpoints, the published runs' revision among them, have the patch size in config.json alone."""
    if getattr(processor, "patch_size", 0) is None:
        processor.patch_size = config.vision_config.patch_size
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy
    strategy = getattr(processor, "vision_feature_select_strategy", None)
    if strategy == "default" and config.vision_config.model_type == "clip_vision_model":
        processor.num_additional_image_tokens = 1  # the class token, which "default" then drops


def image_only(stock: Any) -> Any:
    """A subclass of a processor class that knows images and text alone."""

    def build(cls: Any, args: Any, settings: dict[str, Any], /, **more: Any) -> Any:
        return stock.from_args_and_dict.__func__(cls, args, {**settings, "video_processor": None}, **more)

    body = {
        "get_attributes": classmethod(lambda cls: ["image_processor", "tokenizer"]),
        "from_args_and_dict": classmethod(build),  # some constructors want the argument, if only to be None
        "video_processor": SimpleNamespace(num_frames=1, fps=1),
    }
    return type(stock.__name__, (stock,), body)


class Encoder:
    """From a sample to tensors and from tokens to text. Safe to call from several threads."""

    def __init__(self, model: HF, config: Any, *, prompt: str, distort: bool, orientation: str = "upright") -> None:
        self._processor = load_processor(model, config)
        self._tokenizer = self._processor.tokenizer
        self._config, self._image_token = config, image_token_id(config)
        token = getattr(self._processor, "image_token", None)  # Gemma 3's prompts hold another than its inputs
        self._placeholder = str(token or self._tokenizer.convert_ids_to_tokens(self._image_token))
        self._prompt, self._distort, self._pad_to = prompt, distort, model.pad_to
        self._orientation = orientation
        self._llava15 = config.model_type == "llava"
        pad = self._tokenizer.pad_token_id
        self.pad_id: int = 0 if pad is None else pad  # padded positions are masked, any id will do

    def encode(self, sample: Sample) -> tuple[str, Inputs]:
        """The prompt sent, and its tensors. Raises whatever is wrong with this one question."""
        prompt = write_prompt(
            sample.question,
            mode=self._prompt,
            llava15=self._llava15,
            image_token=self._placeholder,
            chat=self._chat if self._processor.chat_template else None,
        )
        if sample.image is None:
            raise ValueError("the question has no image")
        image = open_rgb(sample.image, self._orientation)
        if self._distort:
            image = image.resize(DISTORTED)
        started = self._tokenizer.bos_token is not None and prompt.startswith(self._tokenizer.bos_token)
        out = self._processor(images=[image], text=[prompt], return_tensors="pt", add_special_tokens=not started)
        inputs = {name: value for name, value in out.items() if isinstance(value, torch.Tensor)}
        if self._pad_to is not None:
            inputs = pad_prompt(inputs, pad_to=self._pad_to, image_token=self._image_token, pad_id=self.pad_id)
        return prompt, inputs

    def view(self, sample: Sample, inputs: Inputs) -> View | None:
        """Where the question's image tokens lie on its picture."""
        if sample.image is None:
            return None
        size = DISTORTED if self._distort else shown_size(sample.image, self._orientation)
        return views.of(self._config, self._processor.image_processor, size, inputs, self._image_token)

    def option_tokens(self, options: Sequence[str]) -> dict[str, int]:
        """Each option's first token, capitalised as the benchmarks' answers are."""
        ids = {one: self._tokenizer.encode(one.capitalize(), add_special_tokens=False) for one in options}
        return {one: tokens[0] for one, tokens in ids.items() if tokens}

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    def _chat(self, question: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        return str(self._processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def _source(model: HF) -> dict[str, Any]:
    return {"pretrained_model_name_or_path": model.folder() or model.fetch()}


def _set_rms_norm_eps(config: Any, value: float) -> None:
    if not hasattr(config, "rms_norm_eps"):
        raise ModelError(f"model.rms_norm_eps: {config.model_type} has no RMS norm")
    config.rms_norm_eps = value


def _spread(vlm: Any) -> str:
    """How many modules accelerate put where; a CPU or disk among GPUs is slow."""
    chosen = getattr(vlm, "hf_device_map", None) or {"": vlm.device}  # none is noted where all fit on one device
    places = Counter(str(place) for place in chosen.values())
    return ", ".join(f"{count} modules on {place}" for place, count in sorted(places.items()))


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
