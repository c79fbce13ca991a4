"""What the site's explorer shows: the same 40 seeds under every weight, scale, sampler and network.

    python -m companion.site.explorer

samples the committed networks and writes results/explorer: for each family and sampler a sheet of
images (a row for each setting), a file of levels that the estimator reads, and for all of them
data.json with noise shifts and, where a study measured them, distances and recalls. Arms are kept
as they are made; a run that was stopped goes on.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from companion.experiments import study
from companion.experiments.generate import Arm, SampleConfig, batches, forget, sample
from companion.experiments.shards import ShardConfig
from companion.studies.families import sampler_of
from nag import checkpoint
from nag.data import fashion_mnist
from nag.interpolant import PATH_OF
from nag.shift import estimated_times, forward_states, noise_shift
from nag.support.files import atomic, write_json
from nag.support.paths import RESULTS, STUDIES, WEIGHTS

FOLDER = RESULTS / "explorer"
W = {"sit": (0.0, 0.5, 1.0, 2.0, 3.0, 4.0), "dit": (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)}
CFG = (1.0, 1.1, 1.25, 1.5)
STEPS = {"ode": 25, "sde": 50}
UNIT = 1e-4  # of t, in the files of levels


def settings(family: str) -> list[Arm]:
    """The settings of a family in the order of a sheet's rows: all scales of a weight together."""
    return [Arm(w_nag=w, cfg=scale) for w, scale in product(W[family], CFG)]


def shown(
    family: str,
    sampler: str,
    arms: Sequence[Arm],
    steps: int,
    images: int = 40,
    control: int = 400,
    compile: bool = True,
) -> dict[str, Any]:
    """Images (arms, images, 28, 28) uint8, levels (arms, images, K) and of forward states of real
    images (control, K), and the shift of each arm, of a committed network."""
    path, weights = PATH_OF[family], WEIGHTS / f"{family}.safetensors"
    net, reader = checkpoint.load(weights), study.load_reader(path)
    solver = sampler_of(sampler, path)
    config = SampleConfig(
        sampler=solver, steps=steps, n_images=images, trajectories=images, compile=compile
    )
    real = fashion_mnist.to_float(fashion_mnist.load_fashion_mnist("test")[0][:control])
    pictures, levels, kept = [], [], []
    for arm in arms:
        key = ShardConfig(weights=str(weights), arm=arm, config=config, out="").key()
        run = sample(net, arm.terms(), config, progress=False, keep=batches(key))
        kept.append(batches(key))
        pictures.append(run["images"][:, 0])
        levels.append(estimated_times(reader, run["states"]))
    times = run["times"]
    forward = estimated_times(reader, forward_states(real, times, path))
    for folder in kept:
        forget(folder, config)
    return {
        "images": np.stack(pictures),
        "levels": np.stack(levels),
        "control": forward,
        "times": times,
        "shifts": [noise_shift(level, forward, times, path=path) for level in levels],
        "solver": solver,
    }


def sheet(images: np.ndarray) -> Image.Image:
    """One picture of images (rows, columns, H, W)."""
    rows, columns, high, wide = images.shape
    return Image.fromarray(images.transpose(0, 2, 1, 3).reshape(rows * high, columns * wide))


def rounded(values: np.ndarray) -> list[float]:
    """For JSON, to a millionth."""
    return np.round(values, 6).tolist()


def in_json(found: dict[str, Any]) -> dict:
    """The times and shifts of `shown`, but for the last state, the image itself."""
    on = found["times"] > 0
    rows = [
        {name: rounded(shift["delta"][name][on]) for name in ("value", "low", "high")}
        | {"late": {name: float(f"{x:.3g}") for name, x in shift["late"].items()}}
        for shift in found["shifts"]
    ]
    return {"times": rounded(found["times"][on]), "solver": found["solver"], "shifts": rows}


def places(family: str) -> list[dict]:
    """Where the settings lie among distance and recall, as the study of weights measured them with
    the deterministic sampler (notebook 20); those that it did not measure are left out."""
    table = pd.read_csv(STUDIES / "tables" / f"weight_sweep-{family}.csv")
    measured = table[table["part"].isin(["axis", "map"])]
    rows = {(row.w_nag, row.cfg): row for row in measured.itertuples()}
    names = ("fd_inf", "fd_inf_low", "fd_inf_high", "recall", "recall_low", "recall_high")
    return [
        {"w": arm.w_nag, "cfg": arm.cfg}
        | {name: getattr(rows[arm.w_nag, arm.cfg], name) for name in names}
        for arm in settings(family)
        if (arm.w_nag, arm.cfg) in rows
    ]


def write(folder: Path, name: str, found: dict[str, Any]) -> None:
    """The sheet of images and the file of levels minus times, in UNIT, of all settings and then the
    control: 16-bit integers (rows, K)."""
    on = found["times"] > 0
    levels = np.concatenate([*found["levels"], found["control"]])[:, on] - found["times"][on]
    with atomic(folder / f"{name}.webp") as part:
        sheet(found["images"]).save(part, "WEBP", lossless=True, quality=100, method=6)
    with atomic(folder / f"{name}.bin") as part:
        part.write_bytes(np.round(levels / UNIT).astype("<i2").tobytes())


def main(folder: Path = FOLDER) -> None:
    """Sample, read and write everything."""
    sets = {}
    for family, (sampler, steps) in product(PATH_OF, STEPS.items()):
        name = f"{family}-{sampler}"
        found = shown(family, sampler, settings(family), steps)
        write(folder, name, found)
        sets[name] = in_json(found) | {"images": found["images"].shape[1]}
        print(f"{name}: {len(found['shifts'])} settings")
    about = {"w": W, "cfg": CFG, "unit": UNIT, "sets": sets}
    write_json(folder / "data.json", about | {"places": {f: places(f) for f in PATH_OF}})


if __name__ == "__main__":
    main()
