"""Matching trained networks: planted permutations, loss barriers, and the cost next to a loop over pairs.

Networks are trained on the 8x8 digits of scikit-learn. ``planted``: a random permutation of a trained network is undone
by weight matching, in 100 trials each for an MLP, a CNN, a ResNet and a transformer encoder; exact means bit for bit.
``barriers``: two networks of different seeds, the loss on the line between them as they are, matched by weights and
matched by activations; every figure is the mean over pairs. ``speed``: pairs of INRs 2-32-32-1 as one batch, against
the textbook loop over pairs and layers with SciPy, in CPU seconds.

    python benchmarks/matching.py [--only planted barriers speed] [--trials 100] [--pairs 3]
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call

from weightspace.graphs import WeightSpace, trace
from weightspace.graphs.matching.activation_matching import match_activations
from weightspace.graphs.matching.merging import draw_barriers, loss_barrier, reset_batch_norm
from weightspace.graphs.matching.weight_matching import match_weights

RESULTS = Path(__file__).parent / "results"
BATCH = 100


class Residual(nn.Module):
    """Two convolutions beside a skip, which halves the image where the width changes."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        stride = 1 if width == out else 2
        self.c1, self.n1 = nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.c2, self.n2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.skip = nn.Identity() if stride == 1 else nn.Conv2d(width, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return torch.relu(self.n2(self.c2(torch.relu(self.n1(self.c1(x))))) + self.skip(x))


class Encoder(nn.Module):
    """One transformer block over the rows of an image: 4 heads of width 8."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(8, 32), nn.Parameter(0.1 * torch.randn(8, 32))
        self.block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.head(self.block(self.embed(x[:, 0]) + self.place).mean(1))


def mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
                         nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))  # fmt: skip


def cnn(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(8 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, 10),
    )  # fmt: skip


def resnet(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), Residual(width, width),
        Residual(width, 2 * width), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10),
    )  # fmt: skip


PLANTED: dict[str, Callable[[], nn.Module]] = {
    "MLP 64-128-128-128-10": lambda: mlp(128),
    "CNN, batch norm, flattened": lambda: cnn(16),
    "ResNet, 2 stages": lambda: resnet(16),
    "transformer block, 4 heads": Encoder,
}
BARRIERS: dict[str, Callable[[], nn.Module]] = {"MLP, width 512": lambda: mlp(512), "CNN, width 64": lambda: cnn(64)}


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images, of shape ``(n, 1, 8, 8)``, with labels."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x = torch.tensor(images[order] / 8 - 1, dtype=torch.float32).reshape(-1, 1, 8, 8)
    y = torch.tensor(labels[order])
    return x[:1400], y[:1400], x[1400:], y[1400:]


def train(build: Callable[[], nn.Module], seed: int, epochs: int) -> nn.Module:
    """A trained network in evaluation mode."""
    x, y, _, _ = digits()
    torch.manual_seed(seed)
    module = build()
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3, weight_decay=1e-2)
    steps = epochs * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    return module.eval()


def accuracy(module: nn.Module) -> float:
    _, _, x, y = digits()
    with torch.no_grad():
        return float((module(x).argmax(1) == y).float().mean())


def loss_on(images: Tensor, labels: Tensor, module: nn.Module) -> Callable[[dict[str, Tensor]], float]:
    """Cross-entropy of a state dict."""

    def evaluate(weights: dict[str, Tensor]) -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(functional_call(module, weights, (images,)), labels))

    return evaluate


def planted(trials: int) -> list[dict]:
    """Random permutations of trained networks, undone."""
    rows = []
    for name, build in PLANTED.items():
        module = train(build, 0, 20)
        space = trace(module, torch.zeros(2, 1, 8, 8)).weight_space()
        a = {n: t.detach() for n, t in module.state_dict().items()}
        row = {"network": name, "parameters": sum(p.numel() for p in module.parameters()), "trials": trials,
               "test_accuracy": accuracy(module), "log_order": space.log_order}  # fmt: skip
        for start in ("sorted", "identity"):
            exact, began = 0, time.process_time()
            for seed in range(trials):
                b = space.permute(a, space.random_permutation(seed))
                back = match_weights(space, a, b, start=start, generator=seed).apply(b)
                exact += all(torch.equal(a[n], back[n]) for n in a)
            row |= {f"exact_{start}": exact, f"seconds_{start}": (time.process_time() - began) / trials}
        rows.append(row)
        print(row)
    return rows


def barriers(pairs: int) -> list[dict]:
    """Losses between independently trained networks, matched and not."""
    x, y, x_test, y_test = digits()
    rows = []
    for name, build in BARRIERS.items():
        traced, found = trace(build(), torch.zeros(BATCH, 1, 8, 8)), {}
        space = traced.weight_space()

        for pair in range(pairs):
            modules = [train(build, 2 * pair + k, 40) for k in (0, 1)]
            a, b = ({n: t.detach().clone() for n, t in m.state_dict().items()} for m in modules)
            matched = {
                "as they are": b,
                "weights matched": match_weights(space, a, b, restarts=4).apply(b),
                "activations matched": match_activations(traced, a, b, list(x.split(BATCH))).apply(b),
            }
            reset = reset_batch_norm(modules[0], list(x.split(BATCH))) if "CNN" in name else None
            print(name, pair, [accuracy(m) for m in modules])
            for label, moved in matched.items():
                for split, images, labels in (("train", x, y), ("test", x_test, y_test)):
                    evaluate = loss_on(images, labels, modules[0])
                    found.setdefault((label, split), []).append(loss_barrier(evaluate, a, moved))
                    if reset is not None:
                        again = loss_barrier(evaluate, a, moved, prepare=reset)
                        found.setdefault((f"{label}, statistics reset", split), []).append(again)
        for (label, split), curves in found.items():
            rows.append({"network": name, "matching": label, "split": split, "pairs": pairs,
                         "barrier": float(np.mean([c.height for c in curves])),
                         "smallest": min(c.height for c in curves), "largest": max(c.height for c in curves),
                         "loss_of_ends": float(np.mean([float(c.losses[k]) for c in curves for k in (0, -1)])),
                         "first_pair": [float(v) for v in curves[0].losses]})  # fmt: skip
            print({k: v for k, v in rows[-1].items() if k != "first_pair"})
        shown = {label: curves[0] for (label, split), curves in found.items() if split == "test"}
        figure = draw_barriers(shown, title=f"{name}, trained on digits", ylabel="test cross-entropy")
        figure.savefig(RESULTS / f"barriers_{name.split(',')[0].lower()}.png", dpi=110)
    return rows


def plain_loop(a: list[np.ndarray], b: list[np.ndarray], sweeps: int = 100) -> None:
    """Git Re-Basin for one MLP, ``b`` moved in place; weights and biases in turn."""
    layers = len(a) // 2 - 1
    for _ in range(sweeps):
        moved = False
        for k in range(layers):
            w, v = 2 * k, 2 * k + 1
            cost = a[w] @ b[w].T + np.outer(a[v], b[v]) + a[w + 2].T @ b[w + 2]
            column = linear_sum_assignment(cost, maximize=True)[1]
            if cost[np.arange(len(cost)), column].sum() > np.trace(cost) + 1e-6:
                b[w], b[v], b[w + 2] = b[w][column], b[v][column], b[w + 2][:, column]
                moved = True
        if not moved:
            return


def speed(pairs: int) -> list[dict]:
    """A batch of pairs of INRs against the plain loop, in turns."""
    axes = {"0.weight": ("h0", "in"), "0.bias": ("h0",), "1.weight": ("h1", "h0"), "1.bias": ("h1",),
            "2.weight": ("out", "h1"), "2.bias": ("out",)}  # fmt: skip
    shapes = {"0.weight": (32, 2), "0.bias": (32,), "1.weight": (32, 32), "1.bias": (32,), "2.weight": (1, 32),
              "2.bias": (1,)}  # fmt: skip
    space = WeightSpace.from_axes(axes, shapes, fixed=("in", "out"))
    generator = torch.Generator().manual_seed(0)
    a, b = ({n: torch.randn(pairs, *s, generator=generator) for n, s in shapes.items()} for _ in range(2))
    took: dict[str, list[float]] = {"batched": [], "loop": []}
    for _ in range(5):
        began = time.process_time()
        match_weights(space, a, b, batch_dims=1, start="identity")
        took["batched"].append(time.process_time() - began)
        lists = [([x[n][k].numpy() for n in shapes], [y[n][k].numpy().copy() for n in shapes])
                 for x, y in [(a, b)] for k in range(pairs)]  # fmt: skip
        began = time.process_time()
        for left, right in lists:
            plain_loop(left, right)
        took["loop"].append(time.process_time() - began)
    row = {"network": "INR 2-32-32-1", "pairs": pairs, **{k: float(np.median(v)) for k, v in took.items()}}
    print(row)
    return [row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=["planted", "barriers", "speed"])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = {"planted": lambda: planted(options.trials), "barriers": lambda: barriers(options.pairs),
             "speed": lambda: speed(1000)}  # fmt: skip
    path = RESULTS / "matching.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    result |= {"date": date.today().isoformat(), "torch": torch.__version__, "machine": platform.machine()}
    for name in options.only:
        result[name] = parts[name]()
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
