"""What `trace` accepts: keyword inputs, a choice of outputs, weights that are held."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from weightspace.errors import ShapeError, SpecError, UnsupportedModuleError
from weightspace.graphs import trace


class Branches(nn.Module):
    """Two hidden layers; returns the result and the hidden values, as models of language do."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 2)
        self.register_buffer("table", torch.linspace(0, 1, 5))

    def forward(self, x: Tensor, shift: Tensor | None = None, *, scale: dict[str, Tensor], flag: bool = False) -> Any:
        h = torch.tanh(self.a(x)) * self.table
        h = h if shift is None else h + shift
        g = torch.tanh(self.b(h)) * scale["s"]
        return {"hidden": (h, g), "logits": -self.c(g) if flag else self.c(g)}


X, S, SCALE = torch.zeros(3, 4), torch.zeros(3, 1), {"s": torch.ones(3, 1)}


def test_keyword_inputs_in_any_order_are_those_of_the_module() -> None:
    module = Branches()
    generator = torch.Generator().manual_seed(0)
    x, shift, scale = (torch.randn(3, n, generator=generator) for n in (4, 1, 1))
    traced = trace(module, X, scale=SCALE, flag=True, shift=S, outputs=lambda out: out["logits"])
    with torch.no_grad():
        expected = module(x, shift, scale={"s": scale}, flag=True)["logits"]
    assert torch.allclose(traced.evaluate({}, x, shift=shift, scale={"s": scale}, flag=True), expected, atol=1e-6)
    assert set(traced.node_values({}, x, flag=True, scale={"s": scale}, shift=shift)) >= {"a", "b"}
    assert traced.verify().ok
    assert traced.verify().moved


def test_inputs_of_another_form_are_refused() -> None:
    traced = trace(Branches(), X, scale=SCALE)
    with pytest.raises(ShapeError, match=r"1 positional inputs and keyword inputs \['scale'\] \(got 1 and \[\]"):
        traced.evaluate({}, X)
    with pytest.raises(ShapeError, match="other structures"):
        traced.evaluate({}, X, scale=torch.ones(3, 1))
    flagged = trace(Branches(), X, scale=SCALE, flag=True)
    with pytest.raises(ShapeError, match=r"traced with True, which is part of the function now \(got False\)"):
        flagged.node_values({}, X, scale=SCALE, flag=False)


def test_constants_of_tracing_may_be_no_numbers() -> None:
    traced = trace(Branches(), X, scale=SCALE, flag=float("nan"))
    assert traced.evaluate({}, X, scale=SCALE, flag=float("nan"))["logits"].shape == (3, 2)


class Dense(nn.Module):
    """Two layers side by side, normalised together."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(3, 4), nn.Linear(4, 5), nn.BatchNorm1d(9)
        self.out = nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.out(torch.relu(self.norm(torch.cat([h, self.b(torch.relu(h))], 1))))


def test_values_of_layers_side_by_side_are_their_own() -> None:
    module = Dense().eval()
    x = torch.randn(6, 3)
    values = trace(module, x).node_values({}, x)
    assert torch.allclose(values["a"], module.a(x))
    assert torch.allclose(values["b"], module.b(torch.relu(module.a(x))))


def test_one_name_of_tied_weights_is_enough() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    module[2].weight = module[4].weight = module[0].weight
    x, other = torch.randn(5, 3), torch.randn(3, 3)
    traced = trace(module, x)
    answers = [traced.evaluate({name: other}, x) for name in ("0.weight", "2.weight", "4.weight")]
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])
    assert not torch.equal(answers[0], traced.evaluate({}, x))
    both = {"4.weight": torch.zeros(3, 3), "2.weight": other}
    assert torch.equal(answers[0], traced.evaluate(both, x))


def test_exposed_hidden_values_take_symmetries_away_unless_outputs_are_picked() -> None:
    module = Branches()
    everything = trace(module, X, scale=SCALE)
    picked = trace(module, X, scale=SCALE, outputs=lambda out: out["logits"])
    some = trace(module, X, scale=SCALE, outputs=lambda out: (out["logits"], out["hidden"][0]))
    assert [g.size for g in everything.weight_space().permutable] == []
    assert [g.size for g in picked.weight_space().permutable] == [5, 6]
    assert [g.size for g in some.weight_space().permutable] == [6]
    assert list(picked.example_weights) == [n for n, _ in module.state_dict().items() if n != "table"] + ["table"]


def test_picking_outputs_leaves_the_forward_function_alone() -> None:
    module, replaced = Branches(), Branches()
    own = replaced.forward = lambda x, **_: {"logits": x}  # type: ignore[method-assign]
    for m in (module, replaced):
        trace(m, X, scale=SCALE, outputs=lambda out: out["logits"])
    assert "forward" not in vars(module)
    assert replaced.forward is own
    with pytest.raises(UnsupportedModuleError, match="cannot trace Branches"):
        trace(module, X, scale=SCALE, outputs=lambda out: out["missing"])
    assert "forward" not in vars(module)


def test_held_weights_keep_their_places() -> None:
    free = trace(Branches(), X, scale=SCALE, outputs=lambda out: out["logits"])
    held = trace(Branches(), X, scale=SCALE, outputs=lambda out: out["logits"], held=["tab*"])
    assert [g.size for g in free.weight_space().permutable] == [5, 6]
    assert [g.size for g in held.weight_space().permutable] == [6]
    moved = held.weight_space().permute(held.example_weights, held.weight_space().random_permutation(1))
    assert torch.equal(moved["table"], held.example_weights["table"])


def test_a_held_name_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SpecError, match=r"No parameter or buffer is named \['tables'\]; the names are"):
        trace(Branches(), X, scale=SCALE, held=["tables"])


def test_a_held_name_of_a_tied_weight_holds_it() -> None:
    module = nn.Sequential(
        nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), nn.Linear(3, 1)
    )
    module[3].weight = module[2].weight
    assert [g.size for g in trace(module, X).weight_space().permutable] == [3]
    assert trace(module, X, held=["3.weight"]).weight_space().permutable == []
