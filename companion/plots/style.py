"""How a figure looks, is framed and is saved; a colour has one meaning everywhere.

Arms differ in lightness too, so they stay apart for colour-blind readers and in grey print.
"""

import math
import textwrap
from collections.abc import Collection, Container, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from nag.support.files import atomic
from nag.support.paths import FIGURES

WIDTH = 8.0  # inches, a README's column
INK, DIM, PALE = "#222222", "#666666", "#d9d9d9"
ARMS: dict[str, dict[str, Any]] = {
    "none": {"label": "no guidance", "color": "#d55e00", "marker": "o", "linestyle": "-"},
    "nag": {"label": "NAG", "color": "#0072b2", "marker": "s", "linestyle": (0, (5, 1.5))},
    "cfg": {"label": "CFG", "color": "#e69f00", "marker": "^", "linestyle": (0, (4, 1.5, 1, 1.5))},
    "cfg+nag": {
        "label": "CFG + NAG",
        "color": "#3d0f4a",
        "marker": "D",
        "linestyle": (0, (4, 1, 1, 1, 1, 1)),
    },
    "forward": {
        "label": "forward process (control)",
        "color": "#8c8c8c",
        "marker": "x",
        "linestyle": (0, (1, 1)),
    },
}
OF_SAMPLER: dict[str, dict[str, Any]] = {
    "ode": {"color": INK, "marker": "o", "linestyle": "-"},
    "sde": {"color": "#cc79a7", "marker": "s", "linestyle": "--"},
}
OF_FAMILY: dict[str, dict[str, Any]] = {
    "sit": {"color": "#882255", "marker": "o"},
    "dit": {"color": "#56b4e9", "marker": "D"},
}
DOMAIN_GUIDANCE, WITH_NAG, CLASSIFIER = "#009e73", "#004d38", "#8a5a00"  # WITH_NAG: DoG + NAG
SERIES = (INK, "#7a2b8f", "#6b8e00", "#c9a227", DIM)  # of what has no colour of its own
TITLES = {"sit": "SiT-mini", "dit": "DiT-mini"}  # the committed networks as texts name them
SOLVERS = {
    "euler": "Euler",
    "euler_maruyama": "Euler–Maruyama",
    "euler_maruyama_tweedie": "Euler–Maruyama (Tweedie)",
    "heun": "Heun",
    "ddim": "DDIM",
    "ddim_eta1": "DDIM (η = 1)",
    "ddpm": "DDPM",
}
RC = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "legend.fontsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": DIM,
    "xtick.color": DIM,
    "ytick.color": DIM,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "legend.columnspacing": 1.6,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "nag",
    "svg.fonttype": "path",
}


def style():
    """The look of all figures as a context (or decorator) that restores the caller's rcParams."""
    return mpl.rc_context(RC)


def arm_style(arm: str) -> dict:
    """Label, colour, marker and line style of an arm as Line2D keywords; raises ValueError for an
    unknown one.
    """
    if arm not in ARMS:
        raise ValueError(f"unknown arm {arm!r}: choose one of {list(ARMS)}")
    return dict(ARMS[arm])


def named(family: str) -> str:
    """The committed network of a family as texts name it; another keeps its own name."""
    return TITLES.get(family, family)


def solver_name(solver: str) -> str:
    """A solver as texts name it; one without another name keeps its own."""
    return SOLVERS.get(solver, solver)


def ordered(arms: Collection[str]) -> list[str]:
    """The given arms in the fixed order of ARMS, so that rows and legends agree between figures."""
    if not arms:
        raise ValueError(f"nothing to draw: pass at least one arm of {list(ARMS)}")
    for arm in arms:
        arm_style(arm)
    return [arm for arm in ARMS if arm in arms]


def line(**look) -> Line2D:
    """A line for a legend only."""
    return Line2D([], [], **look)


def need(table: Container[str], names: Sequence[str], what: str) -> None:
    """Raise ValueError if a mapping or a table lacks one of the names."""
    missing = [name for name in names if name not in table]
    if missing:
        raise ValueError(f"{what} has no {missing}: pass {list(names)}")


def panels(n: int, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure of n panels in rows of at most `columns`."""
    rows = math.ceil(n / columns)
    columns = math.ceil(n / rows)
    fig, axes = plt.subplots(rows, columns, figsize=(WIDTH, 0.9 + 2.25 * rows), squeeze=False)
    for ax in axes.flat[n:]:
        ax.remove()
    return fig, list(axes.flat[:n])


def _legend(fig: Figure, handles: Sequence[Line2D], bottom: float) -> Legend:
    return fig.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, bottom),
        ncols=len(handles),
        borderaxespad=0,
    )


def _rows(fig: Figure, handles: Sequence[Line2D]) -> list[Sequence[Line2D]]:
    """The handles of a legend in rows that are no wider than the figure."""
    tried = _legend(fig, handles, 0)
    width = tried.get_window_extent().width
    tried.remove()
    if width <= fig.bbox.width or len(handles) == 1:
        return [handles]
    half = (len(handles) + 1) // 2
    return _rows(fig, handles[:half]) + _rows(fig, handles[half:])


def frame(fig: Figure, title: str, note: str, *legends: Sequence[Line2D]) -> Figure:
    """Title above; legends, a row each or two where one is too wide, and note below; the axes get
    what is left (in inches, whatever the height).

    The figure is taken out of pyplot's hands, so that a notebook shows it once, as a cell's value.
    """
    height, bottom = fig.get_figheight(), 0.05
    fig.text(0.012, 1 - 0.07 / height, title, va="top", fontsize=11, weight="bold")
    if note:
        lines = textwrap.wrap(note, 132, break_on_hyphens=False)
        fig.text(
            0.012,
            bottom / height,
            "\n".join(lines),
            va="bottom",
            fontsize=8,
            color=DIM,
            linespacing=1.2,
        )
        bottom += 0.15 * len(lines) + 0.04
    for handles in reversed(legends):
        for row in reversed(_rows(fig, handles)):
            _legend(fig, row, bottom / height)
            bottom += 0.27
    fig.get_layout_engine().set(rect=(0.006, bottom / height, 0.986, 1 - (bottom + 0.33) / height))
    plt.close(fig)
    return fig


def save(fig: Figure, name: str, folder: Path = FIGURES) -> Figure:
    """Write folder/name.png (150 dpi) and .svg atomically, the same bytes each time; closes fig and
    returns it.
    """
    shown = fig.dpi
    with style():
        fig.set_dpi(100)  # the layout is the same however sharply a notebook shows the figure
        # The layout solver's last bits vary from run to run, and an SVG names its clips by hashes
        # of them: round them.
        fig.draw_without_rendering()
        fig.set_layout_engine("none")
        for ax in fig.axes:
            ax.set_position([round(edge, 6) for edge in ax.get_position(original=True).bounds])
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            with atomic(Path(folder) / f"{name}.{kind}") as part:
                fig.savefig(part, format=kind, dpi=150, metadata=metadata)
    fig.set_dpi(shown)
    plt.close(fig)
    return fig
