"""Draws the pictures of concepts.md: `python docs/drawings.py` writes docs/images/concept_*.png.

Everything is computed from a small two-dimensional example, so that the pictures are exact.
"""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

IMAGES = Path(__file__).parent / "images"
BLUE, ORANGE, GREY, GREEN = "#0072B2", "#D55E00", "#8A8A8A", "#009E73"
mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "savefig.dpi": 200})


def _plane(axes, title: str) -> None:
    axes.set(xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), aspect="equal", xticks=[], yticks=[], title=title)
    axes.add_patch(mpl.patches.Circle((0, 0), 1, fill=False, color="#D0D0D0", linewidth=1))
    for side in axes.spines.values():
        side.set_visible(False)


def _arrow(axes, angle: float, colour: str, label: str) -> None:
    tip = np.array([np.cos(angle), np.sin(angle)])
    axes.annotate("", xy=tip, xytext=(0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 2.2})
    axes.text(*(1.16 * tip), label, color=colour, ha="center", va="center", fontsize=12, fontweight="bold")


def mode() -> Figure:
    """Grouping, neither, and context: the angle between query direction and key direction."""
    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    cases = (("grouping: cosine 0.94", 0.35), ("orthogonal: cosine 0", np.pi / 2), ("context: cosine -0.77", 2.45))
    for axes, (title, angle) in zip(figure.subplots(1, 3), cases, strict=True):
        _plane(axes, title)
        start = 0.5
        _arrow(axes, start, BLUE, "u")
        _arrow(axes, start + angle, ORANGE, "v")
        arc = np.linspace(start, start + angle, 40)
        axes.plot(0.35 * np.cos(arc), 0.35 * np.sin(arc), color=GREY, linewidth=1)
    figure.supxlabel("A query along u (blue) attends to keys along v (orange).", fontsize=9)
    return figure


def maps() -> Figure:
    """An image of patches, its query map, its key map, and the attention that one mode gives to one query."""
    size = 6
    y, x = np.mgrid[:size, :size]
    outside = (np.maximum(abs(y - 2.5), abs(x - 2.5)) > 2).astype(float)
    inside = 1 - outside
    rng = np.random.default_rng(0)
    query = outside + 0.08 * rng.standard_normal((size, size))
    key = inside + 0.08 * rng.standard_normal((size, size))
    score = 3 * query[0, 1] * key.ravel()
    attention = (np.exp(score) / np.exp(score).sum()).reshape(size, size)
    panels = (
        ("image: a square", inside, "gray", "dark: background,\nlight: square"),
        ("query map  y . u", query, "Blues", "which patches use the mode:\nthe background"),
        ("key map  y . v", key, "Oranges", "what it attends to:\nthe square"),
        ("attention of the marked patch", attention, "Greens", "softmax of s (y . u)(y . v)"),
    )
    figure = Figure(figsize=(7.2, 2.75), layout="constrained")
    for axes, (title, values, colours, text) in zip(figure.subplots(1, 4), panels, strict=True):
        axes.imshow(values, cmap=colours)
        axes.set(xticks=[], yticks=[])
        axes.set_title(title, fontsize=8.5)
        axes.set_xlabel(text.replace("\\\n", "\n"), fontsize=8)
        if "attention" in title:
            axes.add_patch(mpl.patches.Rectangle((0.5, -0.5), 1, 1, fill=False, edgecolor="black", linewidth=2))
    return figure


def decomposition() -> Figure:
    """M as a sum of modes, and how strength and cosine are read off."""
    rng = np.random.default_rng(3)
    u, _ = np.linalg.qr(rng.standard_normal((8, 3)))
    v, _ = np.linalg.qr(0.75 * u + 0.3 * rng.standard_normal((8, 3)))
    v = v * np.sign((u * v).sum(0, keepdims=True))
    strength = np.array([3.0, 1.6, 0.8])
    terms = [s * np.outer(a, b) for s, a, b in zip(strength, u.T, v.T, strict=True)]
    limit = np.abs(sum(terms)).max()
    figure = Figure(figsize=(7.2, 2.2), layout="constrained")
    panels = figure.subplots(1, 4)
    titles = ["M = Wq Wkᵀ", *(f"{sign} mode {n}" for n, sign in enumerate(("=", "+", "+")))]
    for n, (axes, values) in enumerate(zip(panels, [sum(terms), *terms], strict=True)):
        axes.imshow(values, cmap="PuOr", vmin=-limit, vmax=limit)
        axes.set(xticks=[], yticks=[], title=titles[n])
        if n:
            axes.set_xlabel(f"strength {strength[n - 1]:.1f}\ncosine {u[:, n - 1] @ v[:, n - 1]:.2f}", fontsize=8.5)
        else:
            axes.set_xlabel("embed x embed,\nof one head", fontsize=8.5)
    return figure


if __name__ == "__main__":
    for name, draw in {"mode": mode, "maps": maps, "decomposition": decomposition}.items():
        draw().savefig(IMAGES / f"concept_{name}.png")
