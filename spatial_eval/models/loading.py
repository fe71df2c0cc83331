"""Load weights and processors from disk: safetensors only, no remote code, images through PIL."""

from __future__ import annotations

import importlib
import logging
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers.models.auto.auto_mappings import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.configuration_auto import model_type_to_module_name
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils.logging import disable_progress_bar

from spatial_eval.core.errors import ModelError, first_line
from spatial_eval.engine.request import ConfigFields
from spatial_eval.models import weights

if TYPE_CHECKING:
    from spatial_eval.models.spec import CheckpointSpec

log = logging.getLogger(__name__)

_AUTO: Any = transformers.AutoModelForImageTextToText
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What reading a config, a processor or weights raises where the files are to blame.
UNREADABLE = (OSError, ValueError, ImportError, KeyError, TypeError, SafetensorError)


@dataclass(frozen=True, slots=True)
class WeightsDifference:
    """Describe how the tensors in a checkpoint's files differ from those of the model that config.json describes.

    Attributes:
        missing: tensors of the model that the files lack and no other tensor is tied to. mismatched: name -> shape in
            the files, shape in the model. unexpected: tensors of the files that the model does not have.
    """

    missing: frozenset[str] = frozenset()
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    unexpected: frozenset[str] = frozenset()

    @classmethod
    def read(cls, missing: Iterable[str], mismatched: Iterable[Any], unexpected: Iterable[str]) -> WeightsDifference:
        """Read transformers' report after loading: mismatched as (name, shape in the files, shape in the model)."""
        shapes = {name: (tuple(there), tuple(wanted)) for name, there, wanted in mismatched}
        return cls(frozenset(missing) - frozenset(shapes), shapes, frozenset(unexpected))


def load_model(model: CheckpointSpec) -> Any:
    """Load the model in eval mode on its device; every weight comes from the checkpoint and is finite.

    Raises ModelError where that is not possible.
    """
    device = torch.device(model.run_device())
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"model.device={device} but this torch sees no GPU: use model.device=cpu")
    dtype = _DTYPES[model.run_dtype()]
    if device.type == "cuda" and dtype == torch.float32:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = model.tf32
    folder = _find_folder(model)
    verify_weights(model)
    try:
        with _quiet_loading():
            vlm, loaded = _AUTO.from_pretrained(
                folder,
                config=load_config(model),
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                device_map=model.device_map,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # else its error would name none of them
            )
    except UNREADABLE as error:
        raise ModelError(f"cannot load {model.path}: {first_line(error)}") from error
    except RuntimeError as error:
        if "automatic conversion" not in str(error):
            raise  # out of memory, a device that is lost
        raise ModelError(f"cannot load {model.path}: tensors of its files cannot be converted") from error
    difference = WeightsDifference.read(loaded["missing_keys"], loaded["mismatched_keys"], loaded["unexpected_keys"])
    _reject_difference(model, difference)
    if extra := difference.unexpected:
        count, names = _count_tensors(extra), weights.shorten(extra)
        log.info("%s: its files hold %s that the model has no place for: %s", model.name, count, names)
    for name in ("temperature", "top_p", "top_k"):
        setattr(vlm.generation_config, name, None)  # sampling settings: answers here are greedy
    if model.device_map is None:
        vlm = vlm.to(device)
    else:
        log.info("%s: %s", model.name, _describe_placement(vlm))
    _reject_not_finite(model, vlm)
    return vlm.eval()


def verify_weights(model: CheckpointSpec) -> None:
    """Compare names and shapes of the tensors in the checkpoint's files with config.json; takes no memory for them.

    transformers itself loads the headers into a model on the meta device, so that tensors are renamed, fused and tied
    as they are when their values are loaded. Raises ModelError.
    """
    folder = _find_folder(model)
    weights.check_files(folder, model.path)
    config = load_config(model)
    further = getattr(type(config), "extra_files", ())  # configs of transformers 5.17 have none
    if ConfigFields.read(config).quantization_config or further:
        return  # what is packed, or comes from further files, cannot be told from the headers; loading tells
    headers = weights.read_headers(folder, model.path)
    try:
        with torch.device("meta"):
            empty = _AUTO.from_config(config, trust_remote_code=False)
    except UNREADABLE as error:
        raise ModelError(f"cannot load {model.path}: {first_line(error)}") from error
    difference = _load_headers(empty, headers)
    if difference is None:
        _reject_fewer(model, empty, headers)
    else:
        _reject_difference(model, difference)


def _load_headers(empty: Any, headers: Mapping[str, weights.Header]) -> WeightsDifference | None:
    """Return None where this version of transformers loads in another way than those from 5.17 to 5.24."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.modeling_utils import LoadStateDictConfig

        state = {name: torch.empty(header.shape, device="meta") for name, header in headers.items()}
        mapping: Any = get_model_conversion_mapping(empty)
        settings = LoadStateDictConfig(
            device_map={"": "meta"},
            dtype=torch.get_default_dtype(),
            ignore_mismatched_sizes=True,
            weight_mapping=mapping,
        )
        with _quiet_loading():
            info, _ = type(empty)._load_pretrained_model(empty, state, None, settings)
        if info.conversion_errors:  # it may be the meta device that cannot
            raise ValueError(next(iter(info.conversion_errors.values())))
        empty.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
        empty._adjust_missing_and_unexpected_keys(info)
        return WeightsDifference.read(info.missing_keys, info.mismatched_keys, info.unexpected_keys)
    except (ImportError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        log.warning(
            "tensors cannot be compared by name before loading: %s: %s", type(error).__name__, first_line(error)
        )
        return None


def _reject_fewer(model: CheckpointSpec, empty: Any, headers: Mapping[str, weights.Header]) -> None:
    """Raise ModelError where the files hold fewer numbers than the model has; tied ones count once."""
    wanted, there = sum(tensor.numel() for tensor in empty.parameters()), weights.count_parameters(headers)
    if there < wanted:
        raise ModelError(
            f"cannot load {model.path}: config.json describes {wanted:,} parameters, its files hold {there:,}: they do "
            "not belong together"
        )


def _reject_difference(model: CheckpointSpec, difference: WeightsDifference) -> None:
    """Raise ModelError, one line with the tensors, where a part of the model would be filled at random."""
    missing, mismatched, extra = difference.missing, difference.mismatched, difference.unexpected
    parts = []
    if missing:
        parts.append(f"its files lack {_count_tensors(missing)} of the model ({weights.shorten(missing)})")
    if mismatched:
        first = min(mismatched)
        there, wanted = mismatched[first]
        names = f"{weights.shorten(mismatched)}; {first} is {list(there)}, the model's is {list(wanted)}"
        parts.append(f"{_count_tensors(mismatched)} of another shape ({names})")
    if not parts:
        return
    if extra:
        parts.append(f"they hold {_count_tensors(extra)} that the model has no place for ({weights.shorten(extra)})")
    raise ModelError(
        f"cannot load {model.path}: {', '.join(parts)}: config.json and the files do not belong together, or this "
        f"version of transformers ({transformers.__version__}) is not the checkpoint's"
    )


def _count_tensors(names: Collection[str]) -> str:
    return "1 tensor" if len(names) == 1 else f"{len(names):,} tensors"


def _reject_not_finite(model: CheckpointSpec, vlm: Any) -> None:
    """Raise ModelError where a weight is nan or infinite, with the file that holds it.

    One pass over the weights where they lie, without a copy of them: nan is smallest and largest of what it stands in.
    Those that accelerate keeps on the meta device (offloaded) are not seen.
    """
    ends: dict[torch.device, dict[str, torch.Tensor]] = {}
    for name, tensor in vlm.state_dict().items():
        if _may_overflow(tensor) and tensor.device.type != "meta":
            two = (tensor.amin(), tensor.amax()) if tensor.device.type == "mps" else torch.aminmax(tensor)
            ends.setdefault(tensor.device, {})[name] = torch.stack(tuple(two)).float()
    wrong = []
    for tensors in ends.values():
        finite = torch.stack(list(tensors.values())).isfinite().all(dim=-1).tolist()  # the one wait for the device
        wrong += [name for name, good in zip(tensors, finite, strict=True) if not good]
    if wrong:
        raise ModelError(f"cannot load {model.path}: {_explain_not_finite(model, wrong)}")


def _may_overflow(tensor: torch.Tensor) -> bool:
    """Return whether nan and infinity can be looked for: integers hold none, 8-bit floats have no kernels in torch."""
    return tensor.is_floating_point() and tensor.element_size() > 1 and tensor.numel() > 0


def _explain_not_finite(model: CheckpointSpec, wrong: Sequence[str]) -> str:
    """Explain why weights are not finite: the file that holds such values, or the dtype that cannot hold them."""
    for file in weights.find_files(_find_folder(model), model.path):
        damaged = []
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  it is no mapping
                tensor = tensors.get_tensor(name)
                if _may_overflow(tensor) and not bool(torch.stack(torch.aminmax(tensor)).isfinite().all()):
                    damaged.append(name)
        if damaged:
            return (
                f"{file} holds values that are not finite, in {weights.shorten(damaged)}: it is damaged, or its "
                "training failed; copy or fetch another one"
            )
    return (
        f"values of {weights.shorten(wrong)} are finite in its files and not in {model.run_dtype()}: use "
        "model.dtype=bfloat16 or float32"
    )


def load_config(model: CheckpointSpec) -> Any:
    """Load config.json with the values that `model` replaces in it; read no weights.

    Raises ModelError where transformers knows no such model, or where no position of the prompt is the image.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(_find_folder(model), trust_remote_code=False)
    except UNREADABLE as error:
        raise ModelError(f"cannot load {model.path}: {first_line(error)}") from error
    _reject_cross_attention(model, config)
    if model.max_tiles is not None and _GRIDS in config.to_dict():  # the model lays tiles out by it
        edge = config.vision_config.image_size
        config.image_grid_pinpoints = _keep_grids(model, config.image_grid_pinpoints, edge)
    if model.rms_norm_eps is not None:
        set_rms_norm_eps(config.get_text_config(), model.rms_norm_eps)
    return config


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Hide transformers' progress bars and its table of tensors, of which one line of ours holds what matters."""
    disable_progress_bar()  # type: ignore[no-untyped-call]
    logger = logging.getLogger("transformers.modeling_utils")

    def is_no_report(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(is_no_report)
    try:
        yield
    finally:
        logger.removeFilter(is_no_report)


def _reject_cross_attention(model: CheckpointSpec, config: Any) -> None:
    """Raise ModelError for Mllama, Idefics 1, Florence-2: their image is no part of the sequence that is scaled."""
    text = ConfigFields.read(config.get_text_config(decoder=True))
    crossed = text.cross_attention_layers or text.cross_layer_interval or text.add_cross_attention
    if ConfigFields.read(config).is_encoder_decoder or crossed:
        raise ModelError(
            f"cannot load {model.path}: model type {config.model_type} reads the image through cross-attention, so no "
            "position of the prompt is the image and there is nothing to scale; take a model with image tokens in its "
            "prompt (LLaVA, Qwen-VL, InternVL, Gemma 3, SmolVLM)"
        )


def count_layers(model: CheckpointSpec) -> int:
    """Count the decoder layers from config.json. Raises ModelError as load_config does."""
    return int(load_config(model).get_text_config().num_hidden_layers)


_kept: dict[CheckpointSpec, Any] = {}


def load_model_once(model: CheckpointSpec) -> Any:
    """Load a model as load_model does, once for consecutive passes of a process. Only the last model is kept."""
    if model not in _kept:
        _kept.clear()  # first: two may not fit into memory
        _kept[model] = load_model(model)
    return _kept[model]


def load_processor(model: CheckpointSpec, config: Any) -> Any:
    """Load the checkpoint's own processor without its video part, which needs torchvision."""
    folder = _find_folder(model)
    stock: Any = transformers.PROCESSOR_MAPPING.get(type(config), None)
    video = stock is not None and "video_processor" in stock.get_attributes()
    kind: Any = image_only(stock) if video else transformers.AutoProcessor
    try:
        offer_pil(type(config))  # type: ignore[arg-type]
        processor = kind.from_pretrained(folder, backend="pil", trust_remote_code=False)
    except UNREADABLE as error:
        reason = first_line(error)
        if isinstance(error, ImportError) and "torchvision" in str(error).lower():
            reason = (
                f"{reason.split()[0]} of transformers {transformers.__version__} wants torchvision: install the "
                f"release that belongs to torch {torch.__version__} (it must not bring another torch)"
            )
        raise ModelError(f"cannot load the processor of {model.path}: {reason}") from error
    _complete_processor(processor, config)
    if model.min_pixels or model.max_pixels:
        _limit_pixels(model, processor.image_processor)
    if model.max_tiles is not None:
        limit_tiles(model, processor.image_processor, config)
    return processor


def _limit_pixels(model: CheckpointSpec, images: Any) -> None:
    """Set the size to which an image processor scales pictures. Raises ModelError where it does not go by pixels."""
    if "max_pixels" not in images.valid_kwargs.__annotations__:
        key = "min_pixels" if model.min_pixels else "max_pixels"
        raise ModelError(
            f"model.{key}: {type(images).__name__} of {model.path} does not scale pictures by their number of pixels, "
            "as Qwen-VL's does: take the key away"
        )
    least = model.min_pixels or images.size["shortest_edge"]  # so called, and numbers of pixels
    most = model.max_pixels or images.size["longest_edge"]
    if least > most:
        raise ModelError(f"{model.path}: min_pixels={least} is more than max_pixels={most}: set both of model.*_pixels")
    images.size = type(images.size)(shortest_edge=least, longest_edge=most)


def limit_tiles(model: CheckpointSpec, images: Any, config: Any) -> None:
    """Limit the tiles that an image processor cuts a picture into, the tile of the whole picture not counted.

    InternVL: `max_patches`. LLaVA-1.6 and OneVision: the grids of at most so many tiles. Idefics 3 and SmolVLM: the
    largest square of tiles that has no more. Raises ModelError where it cuts no tiles, or has no grid of so few tiles.
    """
    most, known = model.max_tiles or 1, images.valid_kwargs.__annotations__
    if "max_patches" in known:
        images.min_patches, images.max_patches = min(images.min_patches, most), most
    elif _GRIDS in known:
        images.image_grid_pinpoints = _keep_grids(model, images.image_grid_pinpoints, config.vision_config.image_size)
    elif "max_image_size" in known:
        side = math.isqrt(most) * images.max_image_size["longest_edge"]
        images.size = type(images.size)(longest_edge=side)
    else:
        raise ModelError(
            f"model.max_tiles: {type(images).__name__} of {model.path} cuts no picture into tiles: take the key away"
        )


_GRIDS = "image_grid_pinpoints"  # heights and widths in pixels to which tiles are put together


def _keep_grids(model: CheckpointSpec, grids: Sequence[Sequence[int]], edge: int) -> list[list[int]]:
    """Return the grids of at most `max_tiles` tiles of `edge` pixels. Raises ModelError where there is none."""
    tiles = [(height // edge) * (width // edge) for height, width in grids]
    kept = [list(grid) for grid, count in zip(grids, tiles, strict=True) if count <= (model.max_tiles or 0)]
    if not kept:
        least = f"{model.path} cuts pictures into {min(tiles)} tiles at least"
        raise ModelError(f"model.max_tiles={model.max_tiles}: {least}")
    return kept


@cache
def offer_pil(config: type) -> Any:
    """Return a model family's image processor that needs only PIL; None where there is none.

    Without torchvision transformers 5.17 hides some of them (Idefics 3, SmolVLM) which do not use it: it searches
    their source for a word that is in their comments. After this call AutoProcessor finds them.
    """
    family = config.model_type  # type: ignore[attr-defined]
    names = IMAGE_PROCESSOR_MAPPING_NAMES.get(family)
    name = names.get("pil") if isinstance(names, dict) else None
    if name is None:
        return None
    kind: Any = getattr(transformers, name, None)  # the library's own table gives the name
    if "torchvision" not in getattr(kind, "_backends", ()):  # what transformers shows instead lists what it lacks
        return kind
    module = model_type_to_module_name(family)
    kind = vars(importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}"))[name]
    stand_in = type(f"Visible{config.__name__}", (config,), {})  # what is registered for its own classes is passed over
    AutoImageProcessor.register(stand_in, image_processor_classes={"pil": kind})
    return kind


def _complete_processor(processor: Any, config: Any) -> None:
    """Add what early LLaVA checkpoints, the published runs' revision among them, have in config.json alone."""
    held = vars(processor)
    if held.get("patch_size", 0) is None:
        processor.patch_size = config.vision_config.patch_size
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy
    strategy = held.get("vision_feature_select_strategy")
    if strategy == "default" and config.vision_config.model_type == "clip_vision_model":
        processor.num_additional_image_tokens = 1  # the class token, which "default" then drops


def image_only(stock: Any) -> Any:
    """Derive a processor class for images and text alone."""

    def build(cls: Any, args: Any, settings: dict[str, Any], /, **options: Any) -> Any:
        return stock.from_args_and_dict.__func__(cls, args, {**settings, "video_processor": None}, **options)

    body = {
        "get_attributes": classmethod(lambda _cls: ["image_processor", "tokenizer"]),
        "from_args_and_dict": classmethod(build),  # some constructors require the argument, even as None
        "video_processor": SimpleNamespace(num_frames=1, fps=1),
    }
    return type(stock.__name__, (stock,), body)


def _find_folder(model: CheckpointSpec) -> Path:
    return model.folder() or model.fetch()


def set_rms_norm_eps(config: Any, value: float) -> None:
    if ConfigFields.read(config).rms_norm_eps is None:
        raise ModelError(f"model.rms_norm_eps: {config.model_type} has no RMS norm")
    config.rms_norm_eps = value


def _describe_placement(vlm: Any) -> str:
    """Count the modules that accelerate put on each device; a CPU or disk among GPUs is slow."""
    chosen = vars(vlm).get("hf_device_map") or {"": vlm.device}  # none is noted where all fit on one device
    places = Counter(str(place) for place in chosen.values())
    return ", ".join(f"{count} modules on {place}" for place, count in sorted(places.items()))
