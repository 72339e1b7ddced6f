"""Build a toy zoo, take one network out, relabel its neurons, and see that it still draws the same picture."""

import tempfile
from pathlib import Path

import torch

from weightspace.tasks import trace_zoo
from weightspace.zoo.build import build
from weightspace.zoo.recipes import DigitsInr, pixel_coordinates


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        recipe = DigitsInr(limit=2, copies=1, compiled=False)
        zoo = build(recipe, Path(folder) / "zoo", workers=1, progress=False)
        item = zoo[0]
    space = trace_zoo(zoo).weight_space()
    moved = space.permute(item.weights, space.random_permutation(0))
    module, coordinates = item.module(), pixel_coordinates(8)
    before = module(coordinates)
    after = torch.func.functional_call(module, moved, (coordinates,))
    print(f"digit {item.row['label']}, PSNR {item.row['psnr']:.1f} dB")
    print(
        "\n".join("".join(" .:-=+*#%@"[min(9, int(10 * v.clamp(0, 1)))] * 2 for v in row) for row in after.view(8, 8))
    )
    print(f"largest change of a pixel after relabelling the neurons: {(before - after).abs().max():.1e}")


if __name__ == "__main__":
    main()
