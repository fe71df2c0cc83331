"""One description of every kind of dataset, model and method, with fields off their defaults."""

from __future__ import annotations

from pathlib import Path

from spatial_eval.benchmarks.hub_dataset import Hub
from spatial_eval.benchmarks.prompts import apply_template
from spatial_eval.benchmarks.readers import QuestionFile, Vsr, WhatsUp
from spatial_eval.benchmarks.scenes.rendered import Scenes
from spatial_eval.core.types import Benchmark, Cell, Experiment, Method, Model, Part
from spatial_eval.methods import routing
from spatial_eval.methods.routing import AdaptVis, Base, PaiFull, Route, ScalingVis
from spatial_eval.models.hf import HF
from spatial_eval.models.recorded import Imported, Recorded

DATASETS: dict[str, Benchmark] = {
    "whatsup": WhatsUp(
        "whatsup", "Controlled", 330, ("left", "right"), "p.jsonl", "a.json", "images", sets=True, scoring="paper"
    ),
    "vsr": Vsr("vsr", "VSR", 10, "dev.jsonl", "images", distort=True, scoring="paper"),
    "jsonl": QuestionFile(Path("/data/quiz.jsonl")),
    "hub": Hub("org/name", columns={"question": "q"}, where=("a=b",), rows=3, instruction="Answer.", scoring="words"),
    "scenes": Scenes("scenes_a", "scenes_a", "hard", 3),
    "templated": apply_template(Scenes("scenes_b", "scenes_b"), "Look. {question}", "look"),
}
MODELS: dict[str, Model] = {
    "hf": HF(
        *("org/vlm", "vlm"),
        dtype="bfloat16",
        batch_size="auto",
        share="question",
        preset="paper",
        rms_norm_eps=1e-5,
        pad_to=64,
    ),
    "recorded": Recorded(Path("/data/recorded")),
    "imported": Imported("mine"),
}
METHODS: dict[str, Method] = {
    "base": Base(),
    "scaling_vis": ScalingVis(0.5, scaling="mass", layers="0-3,5"),
    "adapt_vis": AdaptVis(0.5, 1.5, 0.4, "margin"),
    "vcd": routing.METHODS["vcd"](0.5, 0.2, 300),
    "dola": routing.METHODS["dola"]("low"),
    "text": routing.METHODS["text"](0.2),
    "m3id": routing.METHODS["m3id"](0.1),
    "sla": routing.METHODS["sla"]("high", 0.2),
    "vaf": routing.METHODS["vaf"](layers="all", sup=1.0),
    "var": routing.METHODS["var"](moved=0.2, sinks="3,1"),
    "sparc": routing.METHODS["sparc"](gain=1.2, heads="0:1"),
    "deco": routing.METHODS["deco"](alpha=0.5, top_p=0.8, top_k=10),
    "icd": routing.METHODS["icd"](0.5, 0.2, "text", "Look away, please."),
    "sid": routing.METHODS["sid"](rank=50, variant="released"),
    "sample": routing.METHODS["sample"](0.2, 0.7, 3),
    "answer_yes": routing.METHODS["answer_yes"](),
    "pai_full": PaiFull(0.5, variant="released"),
    "forced_yes": routing.METHODS["forced_yes"](),
    "route": Route("weight=0.5", "contrast=vcd", 0.4),
}
# Each at least once. Scenes are drawn, so the questions of `scenes` and `templated` can be read anywhere.
CELLS = (
    *(Cell(Experiment(dataset, MODELS["imported"]), METHODS["base"]) for dataset in DATASETS.values()),
    *(Cell(Experiment(DATASETS["scenes"], model, 7), METHODS["base"], Part("all", 5)) for model in MODELS.values()),
    *(Cell(Experiment(DATASETS["templated"], MODELS["imported"]), method, Part("val")) for method in METHODS.values()),
)
