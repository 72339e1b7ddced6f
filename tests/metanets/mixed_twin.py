"""Metanetworks for mixed architectures as their equations: one network at a time, operators between whole layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from weightspace.graphs import BlockLayout
from weightspace.graphs.block_layout import EdgeBlock
from weightspace.layers import SharedFunctions, SharedPlan
from weightspace.layers.mixed.relations import node_type, relation_type, stateless_layers
from weightspace.layers.mixed.shared_plan import INDEX_FEATURES
from weightspace.metanets import SharedMetanet, SharedOperatorNet


def twin_answers(net: SharedMetanet, groups: list[tuple[BlockLayout, dict[str, Tensor]]]) -> Tensor:
    """What ``net(groups)`` must be, network by network."""
    rows = []
    for layout, weights in groups:
        for n in range(len(next(iter(weights.values())))):
            rows.append(_Twin(net, layout, {k: w[n] for k, w in weights.items()}).answer())
    return torch.stack(rows)


class _Twin:
    def __init__(self, net: Any, layout: BlockLayout, weights: dict[str, Tensor]) -> None:
        self.net, self.layout = net, layout
        self.silent = stateless_layers(layout)
        self.layers = [layer for layer in layout.layers if layer.name not in self.silent]
        self.kind = {x.name: net.types.node(node_type(layout, x)) for x in self.layers}
        self.type = {b.name: net.types.relation(relation_type(layout, b)) for b in layout.blocks}
        self.plan = SharedPlan(layout, net.types).to(net.standardise.mean)
        self.values: dict[str, Tensor] = {}
        self.scales: dict[str, Tensor] = {}
        for block, value in zip(layout.blocks, layout.split(weights, 0), strict=True):
            if value is not None:
                self.values[block.name] = self._standardised(block, value)

    def _standardised(self, block: EdgeBlock, value: Tensor) -> Tensor:
        at, t = self.net.standardise, self.type[block.name]
        x = value if block.source in self.silent else value * (block.inputs * block.positions) ** 0.5
        if at.mode == "relation":
            return (x - at.mean[t]) / at.std[t]
        std = (x.var(correction=0) if x.numel() > 1 else x.new_zeros(())).add(1e-12).sqrt()
        scales = torch.stack([std.log(), (x.mean() / std).clamp(-3, 3)])
        self.scales[block.name] = (scales - at.scale_mean[t]) / at.scale_std[t]
        return (x - x.mean()) / std if x.numel() > 1 else x / (x.square() + 1e-12).sqrt()

    def _functions(self, parameters: list, block: EdgeBlock, *, joined: bool) -> Tensor:
        places = self.plan.places(self.layout.blocks.index(block))
        return SharedFunctions.apply_to(
            parameters[self.type[block.name]], self.values[block.name], places, joined=joined
        )

    def _nodes(self, block: EdgeBlock, side: str) -> Tensor:
        layer = self.layout.layer(getattr(block, side))
        nodes = getattr(block, f"{side}_nodes")
        return torch.arange(layer.size) if nodes is None else torch.tensor(nodes)

    def _first(self) -> dict[str, Tensor]:
        net, x = self.net, {}
        start, index, size = net.start(), net.index(), net.size()
        for layer in self.layers:
            node, t = self.plan.by_name[layer.name], self.kind[layer.name]
            numbers = self.plan.numbers[node.start : node.start + node.size]
            by_size = F.linear(numbers[:, INDEX_FEATURES:], *size[t])
            x[layer.name] = start[t] + F.linear(numbers[:, :INDEX_FEATURES], *index[t]) + by_size
        for block in self.layout.blocks:
            if block.name in self.values and block.source in self.silent:
                functions = self._functions(net.node_functions(), block, joined=True).flatten(1)
                x[block.target] = x[block.target].index_add(0, self._nodes(block, "target"), functions.T)
            if block.name in self.scales:
                weight, bias = net.scale()[self.type[block.name]]
                x[block.target] = x[block.target] + F.linear(self.scales[block.name], weight, bias)
        return x

    def _operator(self, block: EdgeBlock, gates: Tensor) -> Tensor:
        """``(heads, G, O, I)`` as matrices between whole layers, zero where there is no edge."""
        target = self._nodes(block, "target").view(block.groups, block.out, 1).expand(-1, -1, block.inputs)
        source = self._nodes(block, "source").view(block.groups, 1, block.inputs).expand(-1, block.out, -1)
        shape = len(gates), self.layout.layer(block.target).size, self.layout.layer(block.source).size
        heads = torch.arange(len(gates)).view(-1, 1, 1, 1).expand(gates.shape)
        return gates.new_zeros(shape).index_put(
            (heads, target.expand(gates.shape), source.expand(gates.shape)), gates, True
        )

    def _round(self, m: int, x: dict[str, Tensor], gates: dict[str, Any]) -> dict[str, Tensor]:
        layer = self.net.messages[m]
        normed = {name: layer.norm(state) for name, state in x.items()}
        heard = {side: {name: torch.zeros_like(state) for name, state in x.items()} for side in ("target", "source")}
        carriers = [b for b in self.layout.blocks if b.source not in self.silent]
        for block in carriers:
            ones = next(iter(self.values.values())).new_ones(1, block.groups, block.out, block.inputs)
            for n, (side, other) in enumerate((("target", "source"), ("source", "target"))):
                end, origin = getattr(block, side), getattr(block, other)
                fan = sum(getattr(b, side) == end for b in carriers) * (block.inputs if n == 0 else block.out)
                value = F.linear(normed[origin], *layer.values[side]()[self.type[block.name]])
                matrices = self._operator(block, gates[block.name][n] if block.name in gates else ones)
                matrices = matrices if n == 0 else matrices.mT
                per_head = value.unflatten(1, (len(matrices), -1)).transpose(0, 1)
                heard[side][end] = heard[side][end] + (matrices @ per_head).transpose(0, 1).flatten(1) * fan**-0.5
        result = {}
        for name, state in x.items():
            columns = torch.cat([normed[name], heard["target"][name], heard["source"][name]], 1)
            hidden = F.silu(F.linear(columns, *layer.hidden()[self.kind[name]]))
            result[name] = state + F.linear(hidden, *layer.out()[self.kind[name]])
        return result

    def _update(self, m: int, edges: dict[str, Tensor], x: dict[str, Tensor]) -> dict[str, Tensor]:
        update, result = self.net.updates[m], {}
        for block in self.layout.blocks:
            if block.name not in edges:
                continue
            t, e = self.type[block.name], edges[block.name].movedim(0, -1)  # shape: (G, O, I, K, C_e)
            ends = []
            for side, linear, shape in (
                ("target", update.target, (block.groups, block.out, 1, 1)),
                ("source", update.source, (block.groups, 1, block.inputs, 1)),
            ):
                states = update.norm(x[getattr(block, side)])[self._nodes(block, side)]
                ends.append(F.linear(states, *linear()[t]).view(*shape, -1))
            hidden = F.silu(F.linear(e, *update.edge()[t]) + ends[0] + ends[1])
            result[block.name] = (e + F.linear(hidden, *update.out()[t])).movedim(-1, 0)
        return result

    def answer(self) -> Tensor:
        """Of the one network."""
        net, x = self.net, self._first()
        blocks = [b for b in self.layout.blocks if b.name in self.values and b.source not in self.silent]
        is_operator = isinstance(net, SharedOperatorNet)
        made = {b.name: self._functions(net.functions(), b, joined=is_operator) for b in blocks}
        for m in range(len(net.messages)):
            if is_operator:
                gates = {name: f.unflatten(0, (len(net.messages), 2, -1))[m].unbind() for name, f in made.items()}
            else:
                gates = {name: (e.sum(-1) * e.shape[-1] ** -0.5,) * 2 for name, e in made.items()}
            x = self._round(m, x, gates)
            if not is_operator and m < len(net.updates):
                made = self._update(m, made, x)
        return net.head(self._pooled(x))

    def _pooled(self, x: dict[str, Tensor]) -> Tensor:
        pooled = {"input": [], "output": [], "between": []}
        for layer in self.layers:
            state = x[layer.name]
            pooled[layer.kind if layer.kind in pooled else "between"].append(torch.cat([state.mean(0), state.amax(0)]))
        nothing = torch.zeros_like(pooled["output"][0])
        mean = [torch.stack(rows).mean(0) if rows else nothing for rows in pooled.values()]
        most = torch.stack(pooled["between"]).amax(0) if pooled["between"] else nothing
        return self.net.readout.norm(torch.cat([*mean, most]))
