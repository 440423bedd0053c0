"""The picture of README: columns of an image written as values under keys that resemble each other, and read back with the same keys.

python docs/mesa_picture.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath

import fla_mesa  # noqa: F401 (lets fla's code run without a GPU)
from fla_mesa.ops import chunk_mesa_net, mesa_net_query

HERE = Path(__file__).parent
T, ROWS = 64, 18  # positions, and entries of a value
LAMB = 0.02


def word(text: str = "MESA") -> torch.Tensor:
    """A word in black and white, [T, ROWS]: each column is the value of one position."""
    outline = TextPath((0, 0), text, size=20, prop=FontProperties(family="DejaVu Sans", weight="bold"))
    box = outline.get_extents()
    x = box.x0 + (np.arange(T) + 0.5) / T * (box.width)
    y = box.y1 - (np.arange(ROWS) - 1.5) / (ROWS - 4) * box.height
    grid = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    inside = np.zeros(len(grid), bool)
    for polygon in outline.to_polygons():
        inside ^= Outline(polygon).contains_points(grid)
    return torch.tensor(inside.reshape(ROWS, T).T.astype(np.float32))


def keys(reach: float = 6.0) -> torch.Tensor:
    """Unit keys [T, T] whose products fall off with the distance of their positions."""
    distance = (torch.arange(T)[:, None] - torch.arange(T)[None]).abs()
    return torch.linalg.cholesky(torch.exp(-distance / reach).double()).float()


def main() -> None:
    v, k = word(), keys()
    q, g, beta = k[None, :, None], torch.zeros(1, T, 1), torch.ones(1, T, 1)  # [B, T, H, K]: one sequence, one head
    lamb = torch.full((1, T), LAMB)
    _, h_kk, h_kv = chunk_mesa_net(q, q, v[None, :, None], g, beta, lamb, output_final_state=True)
    linear = k @ h_kv[0, 0]  # G' q for every key
    reads = {
        "linear attention reads  $G^{\\top} q$": linear / linear.max(),
        "Mesa reads  $G^{\\top} (H + \\Lambda)^{-1} q$,  4 steps of its solver": read(q, h_kk, h_kv, lamb, 4),
        "the same, converged": read(q, h_kk, h_kv, lamb, 60),
    }
    figure = plt.figure(figsize=(10, 4.1), dpi=150, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.15], wspace=0.06)
    left.suptitle("written: 64 values under 64 keys", fontsize=11, weight="bold")
    image, alike = left.subplots(2, 1, height_ratios=[1, 2.1])
    show(image, v, "value $v_t$ (a column) at position $t$")
    alike.imshow(k @ k.T, cmap="Blues", vmin=0, vmax=1)
    alike.set_title("products of the keys $k_s^{\\top} k_t$: neighbours resemble each other", fontsize=9)
    alike.set(xticks=[], yticks=[])
    right.suptitle("read back from a state of fixed size, with $q = k_t$", fontsize=11, weight="bold")
    for axes, (title, image) in zip(right.subplots(3, 1), reads.items(), strict=True):
        show(axes, image, title)
    right.supxlabel(
        "both keep $G = \\sum_t k_t v_t^{\\top}$;   Mesa also keeps $H = \\sum_t k_t k_t^{\\top}$", fontsize=10
    )
    figure.savefig(HERE / "mesa.png", pad_inches=0.1, bbox_inches="tight")


def read(q, h_kk, h_kv, lamb, steps: int) -> torch.Tensor:
    """[T, ROWS] after so many steps of conjugate gradients."""
    return mesa_net_query(q, h_kk, h_kv, lamb, steps, cg_tolerance=1e-6)[0, :, 0]


def show(axes, image: torch.Tensor, title: str) -> None:
    axes.imshow(image.T, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    axes.set_title(title, fontsize=10)
    axes.set(xticks=[], yticks=[])


if __name__ == "__main__":
    main()
