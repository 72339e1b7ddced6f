"""Edges on two processes (gloo) against all edges in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from weightspace.errors import SpecError
from weightspace.graphs import BlockLayout
from weightspace.graphs.message_passing import EdgeMlp, Sent, SparseEdges, edge_pass, parallel_edge_pass
from weightspace.metanets import build_metanet

HOW = ("sum", "square", "max", "min", "softmax")


def scored(edges, receivers, senders, weight):
    value = torch.tanh((edges * senders) @ weight + receivers)
    return Sent(value, edges + value, value[..., :2])


def problem() -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(5, (2, 12), generator=generator)
    shapes = ((12, 4), (5, 4), (5, 4), (4, 4))
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
    return index, tensors


def results(passed) -> torch.Tensor:
    """A function of everything that is joined; unnormalised softmax depends on its top only together."""
    found = passed.receivers
    parts = [found[h].nan_to_num(0.0, 0.0, 0.0) for h in HOW[:4]] + [passed.senders]
    total = torch.where(found["total"] > 0, found["total"], 1.0)
    parts.append(found["weighted"] / total.repeat_interleave(2, 1))
    return torch.cat([p.sin().flatten() for p in parts])


def step_of(pass_, share: slice) -> list[torch.Tensor]:
    """Results and derivatives by edges, nodes and parameters, with the edges of a share."""
    index, tensors = problem()
    topology = SparseEdges.of(index[:, share], 5)
    order = slice(None) if topology.order is None else topology.order
    edges, receivers, senders, weight = tensors
    passed = pass_(
        scored, topology, edges[share][order], receivers, senders, [weight], to_receivers=HOW, to_senders=True, piece=3
    )
    answer = results(passed)
    return [answer.detach(), *torch.autograd.grad(answer.sum(), tensors)]


def tied_step_of(pass_, share: slice) -> list[torch.Tensor]:
    """The same of messages of few values: extrema of a receiver are attained often, unevenly by the processes."""
    generator = torch.Generator().manual_seed(3)
    index = torch.stack([torch.randint(4, (12,), generator=generator), torch.arange(12) % 2])
    shapes = ((12, 3), (2, 3), (4, 3))
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64).round().requires_grad_() for s in shapes]
    topology = SparseEdges.of(index[:, share], 2, 4)
    order = slice(None) if topology.order is None else topology.order
    edges, receivers, senders = tensors
    passed = pass_(
        lambda e, i, j: Sent((e + i * j).clamp(-1, 1)), topology, edges[share][order], receivers, senders,
        to_receivers=("max", "min"), piece=3,
    )  # fmt: skip
    answer = (passed.receivers["max"] * 2 + passed.receivers["min"]) * torch.arange(1.0, 4.0)
    return [answer.detach(), *torch.autograd.grad(answer.sum(), tensors)]


def reader() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A metanetwork and four networks, the same in every process."""
    layout = BlockLayout.mlp([2, 4, 1])
    torch.manual_seed(0)
    net = build_metanet("gmn", layout, 3, {"width": 8, "edge_width": 4, "dropout": 0.0, "head_dropout": 0.0}).double()
    return net, {name: torch.randn(4, *shape, dtype=torch.float64) for name, shape in layout.shapes}


def gradients_of(net: torch.nn.Module, call: Any, weights: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    call(weights).square().mean().backward()
    return [p.grad for p in net.parameters() if p.grad is not None]


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    share = slice(0, 7) if rank == 0 else slice(7, 12)
    net, weights = reader()
    parallel = torch.nn.parallel.DistributedDataParallel(net)
    mine = {name: w[2 * rank : 2 * rank + 2] for name, w in weights.items()}
    found = {"edges": step_of(parallel_edge_pass, share), "ties": tied_step_of(parallel_edge_pass, share)}
    found |= {"networks": gradients_of(net, parallel, mine)}
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    spawn(work, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
def test_edges_on_two_processes_are_one_graph(found):
    answer, *gradients = step_of(edge_pass, slice(None))
    for process in found:
        torch.testing.assert_close(process["edges"][0], answer, rtol=1e-11, atol=1e-12)
        for a, b in zip(process["edges"][2:], gradients[1:], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    on_edges = found[0]["edges"][1] + found[1]["edges"][1]
    torch.testing.assert_close(on_edges, gradients[0], rtol=1e-10, atol=1e-12)
    assert found[0]["edges"][1][:7].any()
    assert not found[0]["edges"][1][7:].any()


@pytest.mark.slow
def test_equal_extrema_share_the_derivative_edge_by_edge_over_processes(found):
    answer, *gradients = tied_step_of(edge_pass, slice(None))
    for process in found:
        torch.testing.assert_close(process["ties"][0], answer)
        for a, b in zip(process["ties"][2:], gradients[1:], strict=True):
            torch.testing.assert_close(a, b)
    torch.testing.assert_close(found[0]["ties"][1] + found[1]["ties"][1], gradients[0])
    shares = {round(float(x), 6) for x in gradients[0].abs().flatten()}
    assert len(shares) > 4  # more than one edge in all, or in a process


@pytest.mark.slow
def test_networks_on_two_processes_are_one_batch(found):
    net, weights = reader()
    alone = gradients_of(net, net, weights)
    for process in found:
        for a, b in zip(process["networks"], alone, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_no_processes_are_named():
    index, (edges, receivers, senders, weight) = problem()
    with pytest.raises(SpecError, match="needs processes"):
        parallel_edge_pass(EdgeMlp(), SparseEdges.of(index, 5), edges, receivers, senders, [weight])
