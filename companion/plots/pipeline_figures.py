"""The figures of the main pipeline (notebook 8), each from the files of a results folder.

Every function raises FileNotFoundError if one of its files is missing. A title states what was
found, computed from the same files."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from companion.plots import figures, notebooks
from companion.plots.style import named, save, solver_name
from nag.data.fashion_mnist import load_fashion_mnist
from nag.interpolant import PATH_OF
from nag.support.files import read_json
from nag.support.uncertainty import outcome, show, sign

ARMS = {"none": "none", "nag": "nag", "cfg": "cfg", "cfg-nag": "cfg+nag"}  # file name: name
PROCESSES = {"linear": "linear", "ddpm": "DDPM's"}
NOISIER = {"above": "noisier than", "below": "cleaner than", "inconclusive": "as noisy as"}


def load(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file; raises FileNotFoundError if it is missing."""
    with np.load(path) as file:
        return dict(file)


def posterior(folder: Path, family: str, model: str = "") -> Figure:
    """Posteriors of sampled against forward states under the paper's sampler (Fig. 1).

    `model` is the network's name, by default that of the family's committed one."""
    readings = load(folder / "arrays" / f"shift-sde-{family}.npz")
    curves = read_json(folder / "curves" / f"shift-sde-{family}.json")
    late = read_json(folder / "metrics" / f"shift-{family}.json")["sde-none"]["shift_late"]
    return notebooks.posterior(
        readings,
        title=f"{model or named(family)}: late in sampling, unguided states look "
        f"{NOISIER[sign(late)]} forward states",
        note=_trajectories(curves, len(readings["control"])),
    )


def shift(folder: Path, family: str, stochastic: bool = False, model: str = "") -> Figure:
    """The shift along sampling (Figs. 4 and 5), of the four arms or, with `stochastic`, of two
    under the paper's sampler."""
    prefix, name = ("sde-", "shift-sde") if stochastic else ("", "shift")
    curves = read_json(folder / "curves" / f"{name}-{family}.json")
    found = read_json(folder / "metrics" / f"shift-{family}.json")
    if not stochastic:
        protocol = read_json(folder / "protocols" / f"{family}-none.json")
        curves |= {"solver": protocol["solver"], "steps": protocol["steps"]}
    late, nag = found[prefix + "none"]["shift_late"], found[prefix + "nag"]["late_ratio"]
    result = {
        "above": f"late states look noisier; NAG leaves {show(nag)} of it",
        "below": f"late states look cleaner; NAG leaves {show(nag)} of it",
        "inconclusive": "no late shift is shown without guidance",
    }[sign(late)]
    return notebooks.shift(
        curves,
        PATH_OF[family],
        title=f"{model or named(family)}, {solver_name(curves['solver'])}: {result}",
        note=_trajectories(curves, curves.get("control")) + " Thin lines: 95 % CI over images.",
    )


def samples(folder: Path, family: str) -> Figure:
    """The first ten seeds of the four arms, and ten test images of the same classes."""
    first = {name: load(folder / "images" / f"{family}-{arm}.npz") for arm, name in ARMS.items()}
    labels = first["none"]["labels"]
    chosen = {
        arm: read_json(folder / "protocols" / f"{family}-{arm}.json")["guidance"] for arm in ARMS
    }
    changes = [_change(first[arm]["images"], first["none"]["images"]) for arm in ("nag", "cfg")]
    return figures.sample_grid(
        {name: arrays["images"] for name, arrays in first.items()},
        notebooks.class_names(labels),
        real=real_images(labels),
        settings=notebooks.arm_settings(chosen),
        title=f"{named(family)}, same seeds: NAG changes a pixel by {changes[0]:.0f} "
        f"of 255 grey levels (RMS), CFG by {changes[1]:.0f}",
        note=_protocol(folder, family) + " Title: of the images shown.",
    )


def sample(folder: Path, family: str, arm: str, latents: bool = False) -> Figure:
    """The first ten seeds of one arm (file name), with real images of the same classes below."""
    first = load(folder / "images" / f"{family}-{arm}.npz")
    made = read_json(folder / "protocols" / f"{family}-{arm}.json")
    name, labels = ARMS[arm], first["labels"]
    return figures.sample_grid(
        {name: first["images"]},
        notebooks.class_names(labels, latents),
        real=None if latents else real_images(labels),
        settings=notebooks.arm_settings({name: made["guidance"]}),
        title=f"{named(family)} makes an image in {made['nfe']} network evaluations",
        note=f"{solver_name(made['solver'])}, {made['steps']} steps.",
    )


def real_images(labels: np.ndarray) -> np.ndarray:
    """A test image (1, 28, 28) of each label, the first one of its class."""
    images, classes = load_fashion_mnist("test")
    places = [int((classes == int(label)).nonzero()[0]) for label in labels]
    return images[places].numpy()


def calibration(folder: Path, path: str) -> Figure:
    """Calibration of the estimator of a forward process."""
    arrays = read_json(folder / "curves" / f"calibration-{path}.json")
    arrays = {name: np.array(v) for name, v in arrays.items() if name != "example"}
    found = read_json(folder / "metrics" / f"estimator-{path}.json")
    return figures.calibration(
        arrays,
        title=f"Estimator, {PROCESSES[path]} forward process: coverage within "
        f"{found['coverage_gap']:.3f}, late bias within {found['late_bias']:.4f}",
        note=f"{len(arrays['pit'])} forward states of held-out images.",
    )


def training(folder: Path, families: list[str]) -> Figure:
    """The training loss of the networks."""
    logs = {named(f): pd.read_csv(folder / "curves" / f"train-{f}.csv") for f in families}
    last = (f"{log['loss'].tail(10).mean():.3f} ({name})" for name, log in logs.items())
    return figures.training_curves(logs, title=f"The training loss ends at {' and '.join(last)}")


def quality(folder: Path, family: str) -> Figure:
    """Distances, precision and recall of the four arms."""
    ratios = read_json(folder / "metrics" / f"ratios-{family}.json")
    gain = ratios["nag over none"]
    second = gain.get("second")
    pixels = f", in pixels {show(second)} ({outcome(second)})" if second else ""
    return figures.quality(
        read_json(folder / "metrics" / f"quality-{family}.json"),
        floor=ratios["real training images"],
        title=f"{named(family)}, NAG over unguided: {show(gain)} ({outcome(gain)})" + pixels,
        note=_protocol(folder, family) + " Intervals: 95 %.",
    )


def tuning(folder: Path, family: str) -> Figure:
    """The sweep of NAG's weight and CFG's scale."""
    tuned = read_json(folder / "metrics" / f"tune-{family}.json")
    chosen = {ARMS[arm]: (a["w_nag"], a["cfg"]) for arm, a in tuned["chosen"].items()}
    first, last = tuned["seeds"]
    return figures.tuning(
        pd.read_csv(folder / "curves" / f"tune-{family}.csv"),
        chosen,
        title=f"{named(family)}: NAG alone is best at w = {chosen['nag'][0]:g}, CFG alone at "
        f"scale {chosen['cfg'][1]:g}",
        note=f"{tuned['n']} images per point, seeds {first} to {last}, "
        f"{solver_name(tuned['sampler'])}, {tuned['steps']} steps.",
    )


def draw(
    make: Callable[..., Figure], *of: object, name: str, target: Path, **labels: str
) -> Figure | None:
    """Draw a figure and save it as target/NAME.png and .svg; without its files, say so instead."""
    try:
        return save(make(*of, **labels), name, target)
    except FileNotFoundError as error:
        print(f"{name}: not drawn, {error}")
        return None


def _change(images: np.ndarray, others: np.ndarray) -> float:
    """Root mean square difference of uint8 images of the same shape."""
    return float(np.sqrt(np.mean((images.astype(float) - others) ** 2)))


def _trajectories(curves: Mapping, control: int | None) -> str:
    against = f", against {control} forward states" if control else ""
    solver = solver_name(curves["solver"])
    return f"{curves['n']} trajectories per arm{against}; {solver}, {curves['steps']} steps."


def _protocol(folder: Path, family: str) -> str:
    p = read_json(folder / "protocols" / f"{family}-none.json")
    return (
        f"{p['n']} images per arm, seeds {p['seeds'][0]} to {p['seeds'][1]}, "
        f"{solver_name(p['solver'])}, {p['steps']} steps."
    )
