"""Pictures and tables of single notebooks, from the files that their measuring cells wrote."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from companion.plots import figures
from companion.plots.style import (
    ARMS,
    DIM,
    INK,
    PALE,
    SERIES,
    WIDTH,
    arm_style,
    frame,
    line,
    ordered,
    style,
)
from nag.data.fashion_mnist import CLASSES
from nag.shift import late_time
from nag.support.uncertainty import show, sign

GUIDED = ("none", "nag", "cfg", "cfg+nag")
ADM = {  # metrics of nag.evaluation.adm
    "fid": "FID",
    "sfid": "sFID",
    "is": "IS",
    "precision": "precision",
    "recall": "recall",
    "kid": "KID",
    "fd_dinov2": "FD-DINOv2",
}


def class_names(labels: Sequence[int] | np.ndarray, numbered: bool | str = False) -> list[str]:
    """The names of Fashion-MNIST's classes, or "class 3" of other data."""
    return [f"class {k}" if numbered else CLASSES[k] for k in labels]


def arm_settings(chosen: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """The weights of notebook 4's arms in words, such as "w = 2, scale 1.5", by arm."""
    words: dict[str, str] = {}
    for arm, a in chosen.items():
        parts = [f"w = {a['w_nag']:g}"] * (a["w_nag"] != 0) + [f"scale {a['cfg']:g}"] * (
            a["cfg"] != 1
        )
        words |= {arm.replace("-", "+"): ", ".join(parts)} if parts else {}
    return words


def posterior(readings: Mapping[str, np.ndarray], **labels: str) -> Figure:
    """`figures.posterior_density` of the arms none and nag of arrays/shift*.npz, at four levels."""
    times = readings["times"]
    inner = times[(times > 0) & (times < 1)]
    at = {float(inner[np.abs(inner - t).argmin()]) for t in (0.06, 0.2, 0.5, 0.8)}
    sampled = {arm: readings[arm] for arm in ("none", "nag")}
    return figures.posterior_density(
        sampled, readings["control"], times, sorted(at, reverse=True), **labels
    )


def shift(curves: Mapping, path: str = "linear", **labels: str) -> Figure:
    """`figures.shift_curves` of the arms in curves/shift*.json of a path."""
    arms = {arm: curves[arm] for arm in GUIDED if arm in curves}
    delta = {arm: {end: np.array(v) for end, v in curve.items()} for arm, curve in arms.items()}
    return figures.shift_curves(np.array(curves["times"]), delta, late_time(path), **labels)


@style()
def energy(curves: Mapping) -> Figure:
    """Energy residuals of all arms against t, from curves/shift-FAMILY.json."""
    fig, ax = plt.subplots(figsize=(WIDTH, 3.2))
    ax.axhline(0, color=INK, lw=1, zorder=1)
    arms = ordered(curves["energy"])
    for arm in arms:
        ax.plot(curves["times"], curves["energy"][arm], **arm_style(arm))
    ax.invert_xaxis()
    ax.set(xlabel="nominal noise level t (sampling →)", ylabel="energy of $x_t$ minus expected")
    legend = [line(**arm_style(arm)) for arm in arms]
    on = np.flatnonzero(np.array(curves["times"]) > 0)[-1]
    last = ", ".join(f"{ARMS[arm]['label']} {curves['energy'][arm][on]:+.4f}" for arm in arms[:2])
    title = f"Energy above a forward state's at t = {curves['times'][on]:.2g}: {last}"
    return frame(fig, title, "", legend)


def shift_table(numbers: Mapping[str, Mapping]) -> pd.DataFrame:
    """The arms of metrics/shift-FAMILY.json: late and middle shift and late spread in thousandths
    of t with 95 % intervals, and |late| over the unguided arm's."""
    columns = {
        "late, σ/α ≤ 0.25": "shift_late",
        "middle, σ/α 2/3 to 9": "middle",
        "spread over images, late": "spread_late",
    }

    def thousandths(x: Mapping[str, float]) -> str:
        return show({end: 1000 * x[end] for end in ("value", "low", "high")})

    rows = {}
    for arm in (prefix + arm for prefix in ("", "sde-") for arm in GUIDED):
        if arm in numbers:
            row = {title: thousandths(numbers[arm][part]) for title, part in columns.items()}
            row["|late| over none's"] = f"{numbers[arm]['late_ratio']['value']:.2f}"
            rows[arm.replace("sde-", "stochastic, ")] = row
    return pd.DataFrame(rows).T


@style()
def trajectory(states: np.ndarray, times: np.ndarray) -> Figure:
    """The first channel of states (K, C, H, W) of one trajectory, with their times (K,)."""
    fig, axes = plt.subplots(1, len(states), figsize=(WIDTH, 1.7))
    for ax, state, t in zip(axes, states, times, strict=True):
        ax.imshow(state[0].astype("float32"), cmap="gray", vmin=-1.5, vmax=1.5)
        ax.set(title=f"t = {t:.2f}", xticks=[], yticks=[])
    alike = [np.corrcoef(states[-1].ravel(), state.ravel())[0, 1] for state in states]
    first = next(k for k in range(len(states)) if min(alike[k:]) > 0.5)
    title = f"From noise to image: more than half like it (correlation) from t = {times[first]:.2f}"
    return frame(fig, title, "")


@style()
def posterior_examples(curves: Sequence[Mapping]) -> Figure:
    """The posterior density of one image at each known level, {"truth", "t", "density"}."""
    fig, axes = plt.subplots(1, len(curves), figsize=(WIDTH, 2.6))
    for ax, curve in zip(axes, curves, strict=True):
        ax.fill_between(curve["t"], curve["density"], color=SERIES[1], alpha=0.4, lw=0)
        ax.axvline(curve["truth"], color=INK, ls="--", lw=1)
        ax.set(xlabel="noise level t′", yticks=[], title=f"t = {curve['truth']:.2f}")
    axes[0].set_ylabel("density p(t′|x)")
    off = max(
        abs(curve["t"][int(np.argmax(curve["density"]))] - curve["truth"]) for curve in curves
    )
    title = f"One image, {len(curves)} noise levels: p(t′|x) peaks within {off:.3f} of the true t"
    return frame(fig, title, "", [line(color=INK, ls="--", lw=1, label="true t")])


@style()
def damage(distance: pd.Series, half: int) -> Figure:
    """Fréchet distance against the strength of the noise that was added to `half` real images."""
    fig, ax = plt.subplots(figsize=(WIDTH, 3))
    ax.plot([float(strength) for strength in distance.index], distance, "o-", color=DIM)
    ax.set(
        xlabel="standard deviation of added noise (pixels in [-1, 1])",
        ylabel="Fréchet distance",
        yscale="log",
    )
    strengths = [float(strength) for strength in distance.index]
    least, most = (strengths.index(end(strengths)) for end in (min, max))
    title = (
        f"Noise of {strengths[most]:g} on the images takes the Fréchet distance from "
        f"{distance.iloc[least]:.3g} to {distance.iloc[most]:.3g}"
    )
    return frame(fig, title, f"{half} damaged real images against {half} others.")


def quality_table(quality: Mapping[str, Mapping]) -> pd.DataFrame:
    """The arms of metrics/quality-FAMILY.json with 95 % intervals, the distance over the unguided
    one's, and the recall lost."""
    none = quality["none"]
    names = ("fd", "fd_inf", "fd_inf_second", "kid", "precision", "recall")
    rows = {
        arm: {name: show(values[name], ".3f") for name in names if name in values}
        | {
            "distance / unguided": f"{values['fd_inf']['value'] / none['fd_inf']['value']:.2f}",
            "recall − unguided": f"{values['recall']['value'] - none['recall']['value']:+.3f}",
        }
        for arm, values in ((arm, quality[arm]) for arm in ordered(quality))
    }
    return pd.DataFrame(rows).T


@style()
def excesses(found: Mapping, times_label: str = "noise level t (sampling →)") -> Figure:
    """Excess of the mean level and of its spread against w, and the schedule w(t), from
    auto-FAMILY.json."""
    fig, axes = plt.subplots(1, 3, figsize=(WIDTH, 3.4))
    tried = pd.DataFrame(found["excess"])
    look = arm_style("nag")
    titles = {"mean": "mean level (the shift)", "spread": "spread over images"}
    for ax, (rule, title) in zip(axes, titles.items(), strict=False):
        ax.axhline(0, color=INK, lw=1, zorder=1)
        ax.axvline(found["constant"][rule]["w"], color=DIM, ls="--")
        ax.plot(tried["w"], tried[rule], color=look["color"], marker=look["marker"])
        ax.set(xlabel="NAG weight w", title=title)
    axes[0].set_ylabel("late excess, in units of t")
    schedule = found["schedule"]
    axes[2].step(schedule["times"], schedule["weights"], where="post", color=look["color"])
    axes[2].invert_xaxis()
    axes[2].set(xlabel=times_label, ylabel="w(t)", title="schedule that nulls the shift")
    legend = [line(color=DIM, ls="--", label="chosen w")]
    mean, spread = (found["constant"][rule]["w"] for rule in titles)
    title = f"By the estimator alone: w = {mean:.2f} by the mean level, {spread:.2f} by the spread"
    return frame(fig, title, "", legend)


@style()
def weight_rules(found: Mapping, weights: Mapping[str, float], title: str, note: str) -> Figure:
    """The distance of each rule's samples over that of the best swept weight, auto-FAMILY.json."""
    fig, ax = plt.subplots(figsize=(WIDTH, 3.2))
    over = {name: found["distance_over"][name]["best of sweep"] for name in weights}
    for y, (name, r) in enumerate(over.items()):
        look = arm_style("none" if name == "none" else "nag")
        ax.plot([r["low"], r["high"]], [y, y], color=look["color"])
        ax.plot(r["value"], y, look["marker"], color=look["color"])
    ax.axvline(1.05, color=INK, ls="--", lw=1)
    names = {
        "none": "no guidance",
        "best of sweep": "best of the sweep",
        "mean": "rule: no mean shift",
        "spread": "rule: spread as forward states'",
        "schedule": "rule: schedule w(t), on average",
    }
    ax.set_yticks(
        range(len(over)), [f"{names.get(name, name)}, w = {weights[name]:.2f}" for name in over]
    )
    ax.set_ylim(len(over) - 0.5, -0.5)
    ax.set_xlabel("Fréchet distance over that of the best swept w, 95 % intervals")
    legend = [line(color=INK, ls="--", lw=1, label="5 % above the best swept w")]
    return frame(fig, title, note, legend)


@style()
def overhead(rows: Sequence[Mapping], title: str, note: str) -> Figure:
    """Seconds per image of each arm relative to no guidance, with evaluations in words, from
    overhead.json."""
    fig, ax = plt.subplots(figsize=(WIDTH, 4.8))
    ax.axvline(1, color=DIM, lw=1, ls=":", zorder=1)
    for place, row in enumerate(rows):
        color = ARMS.get(row["arm"], {"color": PALE})["color"]
        ax.barh(place, row["relative"], color=color, edgecolor=INK, linewidth=0.6)
        extra = f" + {row['other']} other" if row["other"] else ""
        words = f"{row['relative']:.2f}×   NFE {row['nfe']}{extra}"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # no line strikes the numbers
        ax.text(row["relative"] + 0.04, place, words, va="center", fontsize=9, bbox=box)
    ax.set_yticks(range(len(rows)), [row["label"] for row in rows])
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_xlim(0, 1.35 * max(row["relative"] for row in rows))
    ax.set_xlabel("seconds per image, relative to no guidance")
    return frame(fig, title, note)


def costs(rows: Sequence[Mapping], n_images: int, parameters: int) -> dict[str, pd.DataFrame]:
    """Three tables of overhead.json's rows: "arithmetic", "time and memory", "extra"."""
    table = pd.DataFrame(rows).set_index("label")
    memory = table["memory"].astype(float)
    return {
        "arithmetic": pd.DataFrame(
            {
                "NFE": table["nfe"],
                "passes of estimator or head": table["other"],
                "GFLOP per image": table["gflop"],
                "arithmetic / unguided": table["gflop"] / table["gflop"].iloc[0],
            }
        ).round(3),
        "time and memory": pd.DataFrame(
            {
                "ms per image": 1000 * table["seconds"],
                "time / unguided": table["relative"],
                f"MiB for {n_images} images at once": memory,
                "memory / unguided": memory / memory.iloc[0],
            }
        ).round(2),
        "extra": pd.DataFrame(
            {
                "needs": table["needs"],
                "extra parameters": table["parameters"],
                "extra parameters, %": 100 * table["parameters"] / parameters,
                "extra training, % of images seen": table["training"],
            }
        ).round(3),
    }


@style()
def image_rows(images: Mapping[str, np.ndarray], title: str = "") -> Figure:
    """Rows of uint8 images (n, C, H, W), or floats in [0, 1], with the row's name above each."""
    n, _, height, width = next(iter(images.values())).shape
    rows = len(images) * (0.35 + WIDTH * height / (n * width))  # inches
    fig, axes = plt.subplots(len(images), 1, figsize=(WIDTH, rows + 0.3), squeeze=False)
    for ax, (name, stack) in zip(axes.flat, images.items(), strict=True):
        apart = np.pad(stack, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=stack.max())
        row = np.concatenate(list(np.moveaxis(apart, 1, -1)), axis=1)[:, :-1]
        ax.imshow(row.squeeze(), cmap="gray")
        ax.set_title(name)
        ax.set_axis_off()
    return frame(fig, title, "")


def _names(by_arm: Mapping[str, Mapping]) -> list[str]:
    return [name for name in ADM if name in next(iter(by_arm.values()))]


@style()
def adm_metrics(by_arm: Mapping[str, Mapping]) -> Figure:
    """Every metric of adm-FAMILY.json with its interval, a panel per metric, a row per arm."""
    names = _names(by_arm)
    fig, axes = plt.subplots(1, len(names), figsize=(1.5 * len(names), 1.3 + 0.4 * len(by_arm)))
    color = INK
    for ax, name in zip(axes, names, strict=True):
        for row, values in enumerate(by_arm.values()):
            cell = values[name]
            if cell["low"] is not None:
                ax.plot([cell["low"], cell["high"]], [row, row], color=color, marker="|", lw=1.5)
            ax.plot(cell["value"], row, "o", color=color, ms=5)
        better = "higher" if name in ("is", "precision", "recall") else "lower"
        ax.set_xlabel(f"{ADM[name]}\n({better} is better)")
        ax.margins(x=0.25)
        ax.set_ylim(len(by_arm) - 0.5, -0.5)
        ax.set_yticks(range(len(by_arm)), list(by_arm) if ax is axes[0] else [])
    each = ", ".join(f"{arm} {values[names[0]]['value']:.3g}" for arm, values in by_arm.items())
    return frame(fig, f"{ADM[names[0]]}: {each}", "Bars: 95 % intervals.")


def adm_table(by_arm: Mapping[str, Mapping]) -> pd.DataFrame:
    """The values of adm-FAMILY.json, a row per arm."""
    names = _names(by_arm)
    return pd.DataFrame(
        {
            arm: {ADM[name]: f"{values[name]['value']:.4g}" for name in names}
            for arm, values in by_arm.items()
        }
    ).T


@style()
def null_training(curves: pd.DataFrame, settings: Mapping[str, Mapping]) -> Figure:
    """Training loss of each arm of notebook 14 against images seen, a panel per mode."""
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH * 1.2, 4.6))
    panels = {"null": "trained without any noise level", "all": "whole network, both dropouts"}
    for ax, (mode, title) in zip(axes, panels.items(), strict=True):
        mine = [name for name, arm in settings.items() if arm["mode"] == mode]
        for number, name in enumerate(mine):
            part = curves[curves["arm"] == name]
            look = {"marker": "os^Dv"[number % 5], "color": SERIES[number % 5]}
            ax.plot(part["images"], part["loss"], label=name, **look)
        ax.set(xlabel="images seen", ylabel="training loss", title=title)
        if mine:
            ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
        else:
            ax.set_axis_off()
    last = curves.groupby("arm")["loss"].last()
    return frame(fig, f"Training loss at the end: {last.min():.3f} to {last.max():.3f}", "")


@style()
def null_errors(found: Mapping) -> Figure:
    """Error without the noise level minus error with it, before and after training, by range of t,
    from null-FAMILY.json."""
    rows = {f"before: {name}": e for name, e in found["excess_before"].items() if name != "known"}
    known = {name: e for name, e in found["excess_before"].items() if name == "known"}
    looks = {"before": (DIM, "s"), "known": (SERIES[1], "D"), "after": (INK, "o")}
    shown = [(name, e, looks["before"]) for name, e in rows.items()]
    shown += [(name, e, looks["known"]) for name, e in known.items()]
    shown += [(name, e, looks["after"]) for name, e in found["excess_after"].items()]
    ranges = [r for r in shown[0][1] if r != "all t"]
    height = 0.3 * len(shown) + 1.8
    fig, axes = plt.subplots(1, len(ranges), figsize=(WIDTH * 1.2, height), sharex=True)
    for ax, r in zip(axes, ranges, strict=True):
        ax.set_xscale("symlog", linthresh=0.01)
        ax.axvline(0, color=INK, lw=0.8)
        for y, (_, e, (color, marker)) in enumerate(shown):
            ax.plot([e[r]["low"], e[r]["high"]], [y, y], color=color)
            ax.plot(e[r]["value"], y, marker, color=color)
        ax.set_title(f"t from {r}")
        ax.set_yticks(range(len(shown)), [name for name, *_ in shown] if ax is axes[0] else [])
        ax.set_ylim(len(shown) - 0.5, -0.5)
    note = "Error without noise level minus error with it, 95 % intervals over images; the axis is "
    kept = show(found["excess_after"][found["kept"]]["all t"], ".4f")
    title = f"Not given the noise level, the kept network errs by {kept} more"
    return frame(fig, title, note + "linear below 0.01.")


def null_table(found: Mapping) -> pd.DataFrame:
    """Each arm of null-FAMILY.json: the error without noise level in excess of that with it, the
    change of the branch with it, and the comparison with the known null vector or the start."""
    rows = {}
    for name, excess in found["excess_after"].items():
        branch = found["conditional"][name]
        moved = branch["largest change of a prediction"] > 0
        compared = found["compared"][name]
        rows[name] = {
            "excess without noise level": show(excess["all t"], ".4f"),
            "error with it": show(branch, "+.4f") if moved else "unchanged, bit for bit",
            f"against the {found['compared_with']}": show(compared, "+.4f"),
            "outcome": compared["outcome"],
        }
    return pd.DataFrame(rows).T


@style()
def shifts_of(runs: Mapping[str, Mapping], names: Sequence[str], title: str = "") -> Figure:
    """delta(t) of up to four runs of shifts.json, whole and for t <= 0.2: without guidance, with
    NAG, with more of it, and of forward states."""
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.6), width_ratios=(1.25, 1))
    strong = {"marker": "^", "linestyle": ":"}  # NAG of a larger weight
    arms = (ARMS["none"], ARMS["nag"], ARMS["nag"] | strong, ARMS["forward"])
    looks = [{k: v for k, v in arm.items() if k != "label"} for arm in arms]
    for ax, end in zip(axes, (1.0, 0.2), strict=True):
        ax.axhline(0, color=INK, lw=1, zorder=1)
        for look, name in zip(looks, names, strict=False):
            times = np.array(runs[name]["times"])
            on = (times > 0) & (times <= end + 1e-9)
            value, low, high = (
                np.array(runs[name]["delta"][key])[on] for key in ("value", "low", "high")
            )
            ax.plot(times[on], value, **look)
            ax.fill_between(times[on], low, high, color=look["color"], alpha=0.15, lw=0)
        ax.set(xlabel="nominal noise level t (sampling →)", xlim=(end, 0))
    axes[0].set_ylabel("shift δ(t), in units of t\n(sampled − forward estimate)")
    legend = [line(label=name, **look) for look, name in zip(looks, names, strict=False)]
    return frame(fig, title, "Bands: 95 % bootstrap intervals over images.", legend)


def late_table(runs: Mapping[str, Mapping], names: Sequence[str]) -> pd.DataFrame:
    """Late shift with its interval, growth, and whether states are too noisy, by run."""
    words = {"above": "too noisy", "below": "too clean", "inconclusive": "inconclusive"}
    return pd.DataFrame(
        {
            name: {
                "late shift": show(runs[name]["late"], "+.4f"),
                "growth": f"{runs[name]['growth']['value']:+.4f}",
                "states are": words[sign(runs[name]["late"])],
            }
            for name in names
        }
    ).T
