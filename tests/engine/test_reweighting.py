"""What VAR and SPARC do to probabilities, how sinks are known, and that prefixes keep what they need."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import build
from questions import share

from spatial_eval.core.arms import BASE, Arm, Sparc, Var
from spatial_eval.core.errors import ModelError
from spatial_eval.engine.decode import decode_arms
from spatial_eval.engine.kv_cache import Graphs
from spatial_eval.engine.prefix import PrefixMemory
from spatial_eval.engine.request import Intervention, sink_dimensions
from spatial_eval.engine.reweighting import GainMemory, SinkMemory, layer_heads, sink_strengths

N, H, R, P, S = 2, 3, 4, 8, 5  # prompts, heads, rows, prefix columns, own columns
IMAGE = torch.arange(P).expand(N, P) >= 3


def probabilities() -> torch.Tensor:
    """Rows over prefix and own columns that see what stands before them."""
    logits = torch.randn(N, H, R, P + S, generator=torch.Generator().manual_seed(0))
    seen = torch.arange(P + S) <= P + 1 + torch.arange(R)[:, None]
    return logits.masked_fill(~seen, float("-inf")).softmax(dim=-1)


def test_var_keeps_row_sums_and_the_order_of_what_it_raises() -> None:
    arms = [Var(nonsink_min=0.2, moved=0.5, image_min=0.3), Var(nonsink_min=1.0, moved=0.9, image_min=0.0)]
    strength = torch.zeros(1, N, P)
    strength[..., [0, 4]] = 30.0  # a sink before the image, one in it
    heads = layer_heads([{1: (0, 1)}, {1: (0, 1, 2)}], H, torch.device("cpu"))
    own = {1: torch.tensor([0.0, 30.0, 0.0, 0.0, 0.0]).expand(1, N, S)}
    given = (IMAGE, heads, torch.arange(N), torch.arange(2)[:, None])
    memory = SinkMemory(*given, arms, [(1,), (1,)], {1: strength}, own)
    before = probabilities()
    after = memory.weigh(1, before)
    assert torch.equal(memory.weigh(0, before), before)  # another layer
    torch.testing.assert_close(after.sum(dim=-1), torch.ones(N, H, R))
    assert torch.equal(after[1], before[1])  # sinks of every head take part of the image, which must be free of them
    assert torch.equal(after[0, 2], before[0, 2])  # a head that is left alone
    image, sinks = IMAGE[0], torch.zeros(P + S, dtype=torch.bool)
    sinks[[0, 4, P + 1]] = True
    others = torch.cat([image, torch.zeros(S, dtype=torch.bool)]) & ~sinks
    for head in (0, 1):
        for row in range(R):
            p, q = before[0, head, row], after[0, head, row]
            on_image = p[:P][image].sum()
            if p[4] / on_image <= 0.8 and on_image >= 0.3:
                torch.testing.assert_close(q[sinks], p[sinks] * 0.5)
                torch.testing.assert_close(q[others] / p[others], torch.full((4,), float((q[others] / p[others])[0])))
                assert torch.equal(q[~sinks & ~others], p[~sinks & ~others])
            else:
                assert torch.equal(q, p)
    assert not torch.equal(after, before)


def test_sparc_counts_what_rises_and_multiplies_from_the_next_step_on() -> None:
    arm = Sparc(gain=2.0, pace=0.5, rise_min=0.5)
    heads = layer_heads([{0: range(H), 1: range(H)}], H, torch.device("cpu"))
    times = torch.zeros(N, 1, P, dtype=torch.long)
    rows = (torch.arange(N), torch.zeros(N, 1, dtype=torch.long))
    memory = GainMemory(IMAGE, heads, *rows, [arm], [1], times.float(), times, times > 0)
    flat = torch.full((N, H, 1, P + S), 1 / (P + S))
    raised = flat.clone()
    raised[..., [2, 5]] *= 3  # of which 2 is no image token
    assert torch.equal(memory.weigh(1, flat), flat)  # the prefill
    for seen, gains in ((raised, 1.0), (raised, 2.0), (flat, 2.0)):  # after 1, 3, 3: usual 1, 2, 2.5
        memory.turn(*rows)
        expected = torch.ones(P + S)
        expected[5] = gains
        for layer in (0, 1):
            torch.testing.assert_close(memory.weigh(layer, seen), seen * expected)


def test_sparc_compares_with_mostly_the_newest_attention() -> None:
    """As its code: a~ = (1 - beta) a + beta a~, beta 0.1."""
    given = (IMAGE, {}, torch.arange(N), torch.zeros(N, 1, dtype=torch.long), [Sparc()], [0])
    memory = GainMemory(*given, *(torch.zeros(N, 1, P) for _ in range(2)), torch.zeros(N, 1, P, dtype=torch.bool))
    for seen, usual in ((0.1, 0.1), (0.2, 0.9 * 0.2 + 0.1 * 0.1), (0.05, 0.9 * 0.05 + 0.1 * 0.19)):
        memory.weigh(0, torch.full((N, H, 1, P + S), seen))
        torch.testing.assert_close(memory.usual, torch.full((N, 1, P), usual))
        memory.turn(*given[2:4])


def test_sinks_are_where_the_hidden_state_is_large() -> None:
    hidden = torch.ones(1, 2, 16)
    hidden[0, 1, 3] = -9.0
    strengths = sink_strengths(hidden, [(3, 7), (0,)])
    assert strengths.shape == (2, 1, 2)
    torch.testing.assert_close(strengths[:, 0, 1], torch.tensor([9.0, 1.0]) / (96 / 16) ** 0.5, atol=1e-4, rtol=0)


def test_dimensions_of_sinks_are_given_known_or_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def text(**values: Any) -> Any:
        config = SimpleNamespace(hidden_size=4096, intermediate_size=11008, model_type="llama", **values)
        return SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: config, model_type="llava"))

    assert sink_dimensions(text(), Var(), [1]) == (1415, 2533)
    assert sink_dimensions(text(), Var(sinks="7, 3"), [1]) == (3, 7)
    with pytest.raises(ModelError, match=r"method\.sinks=4096: the model's hidden state has 4096 dimensions"):
        sink_dimensions(text(), Var(sinks="4096"), [1])
    model = build("llava").model
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        monkeypatch.setattr(weight, "data", weight.data.clone())
        weight[1, [2, 9]] = torch.tensor([900.0, -800.0])
        assert sink_dimensions(model, Var(), [1, 1]) == (2, 9)
    with pytest.raises(ModelError, match="prompts begin with different tokens"):
        sink_dimensions(model, Var(), [1, 2])
    with pytest.raises(ModelError, match="first token sees the whole prompt"):
        sink_dimensions(build("paligemma").model, Var(), [1])


@pytest.mark.parametrize("graphs", [None, Graphs(required=False)], ids=["eager", "graphs"])
def test_a_prefix_is_kept_with_what_var_needs(graphs: Graphs | None) -> None:
    """Read without it first, so that a prefix that is taken up again would lack the strengths."""
    var = Arm(Var(layers="1-", sinks="1,5", sink_min=1.5, nonsink_min=0.2, moved=0.9, image_min=0.05))
    model, asked = build("llava").model, share("llava", {0: 1, 3: 2})
    kept, answers = PrefixMemory(), []
    for arms, memory in (((BASE,), kept), ((var, BASE), kept), ((var, BASE), kept), ((var, BASE), None)):
        found = decode_arms(
            model,
            asked.inputs,
            intervention=Intervention(arms),
            max_new_tokens=3,
            image=asked.image,
            graphs=graphs,
            memory=memory,
            names="these",
        )
        answers.append(found.logits)
    assert torch.equal(answers[1], answers[2])
    torch.testing.assert_close(answers[1], answers[3])
    assert (answers[1][:, 0] - answers[1][:, 1]).abs().max() > 0.1
