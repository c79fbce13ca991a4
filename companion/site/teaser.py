"""The first picture of the README and the site, and an animation of the same images forming.

    python -m companion.site.teaser

samples ten seeds with SiT-mini under the paper's sampler in its 250 steps, without NAG and with the
tuned weight, and writes results/site: teaser.png and teaser.svg, shift curves of notebook 32 beside
the images, and forming.webp, every fifth state with the level that the estimator reads.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from companion.experiments import study
from companion.experiments.arms import guidance_of
from companion.experiments.generate import SampleConfig, sample
from companion.plots import site_figures
from companion.plots.style import TITLES, save, solver_name, style
from nag import checkpoint
from nag.data import fashion_mnist
from nag.shift import estimated_times, forward_states, late_time
from nag.support.files import atomic, read_json
from nag.support.paths import RESULTS, ROOT, WEIGHTS
from nag.support.uncertainty import show, sign

FOLDER = RESULTS / "site"
STUDY = "studies/results/metrics/paper_samplers-sit.json"
LONGEST = 2_000_000  # bytes of the animation
MILLISECONDS, LAST = 90, 3000  # of a frame, of the last one
SAID = {
    "above": "noisier than scheduled",
    "below": "cleaner than scheduled",
    "inconclusive": "as noisy as scheduled",
}


def sampled(steps: int = 250, images: int = 10, control: int = 400) -> dict[str, Any]:
    """States (images, K, 28, 28) and mean shifts (K,) of both arms, their times and the weight."""
    net, reader = checkpoint.load(WEIGHTS / "sit.safetensors"), study.load_reader("linear")
    config = SampleConfig(
        sampler="euler_maruyama_tweedie",
        steps=steps,
        states_every=5,
        n_images=images,
        trajectories=images,
        precision="fp32",
        compile=False,
    )
    arms = {arm: guidance_of("sit", arm, STUDY) for arm in site_figures.PAIR}
    runs = {
        arm: sample(net, guidance.terms(), config, progress=False) for arm, guidance in arms.items()
    }
    times = runs["none"]["times"]
    real = fashion_mnist.to_float(fashion_mnist.load_fashion_mnist("test")[0][:control])
    forward = estimated_times(reader, forward_states(real, times)).mean(0)
    return {
        "times": times,
        "w": arms["nag"].w_nag,
        "states": {arm: run["states"][:, :, 0].astype(np.float32) for arm, run in runs.items()},
        "shifts": {
            arm: estimated_times(reader, run["states"]).mean(0) - forward
            for arm, run in runs.items()
        },
    }


def teaser(found: dict[str, Any]) -> Figure:
    """The study's curves beside the sampled images, under what they show."""
    numbers = read_json(ROOT / STUDY)
    curves, shift = numbers["curves"], numbers["shift"]
    none, ratio = shift["none"]["shift_late"], shift["nag"]["late_ratio"]
    title = f"Late states look {SAID[sign(none)]}; NAG takes the shift to {show(ratio)} of it"
    note = (
        f"{TITLES['sit']}, {solver_name(numbers['sampler'])}, {numbers['steps']} steps. "
        f"Left: {curves['n']} images, 95 % CI. Right: ten seeds, not picked, w = {found['w']:g}."
    )
    images = {arm: states[:, -1] for arm, states in found["states"].items()}
    times, late = np.array(curves["times"]), late_time("linear")
    return site_figures.teaser(times, curves, images, late, title, note)


def forming(found: dict[str, Any]) -> list[Image.Image]:
    """A frame for every state."""
    frames = []
    for k in range(len(found["times"])):
        figure = site_figures.frame(
            k,
            found["times"],
            found["states"],
            found["shifts"],
            f"Ten images forming, w = {found['w']:g}",
        )
        canvas = FigureCanvasAgg(figure)
        with style():
            figure.set_dpi(100)
            canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    return frames


def main(folder: Path = FOLDER) -> None:
    """Write the picture and the animation; raises ValueError if the animation is too large."""
    found = sampled()
    save(teaser(found), "teaser", folder)
    first, *others = forming(found)
    with atomic(folder / "forming.webp") as part:
        times = [MILLISECONDS] * len(others) + [LAST]
        first.save(
            part,
            "WEBP",
            save_all=True,
            append_images=others,
            duration=times,
            loop=0,
            quality=60,
            method=4,
        )
        if (size := part.stat().st_size) > LONGEST:
            raise ValueError(
                f"the animation has {size} bytes, at most {LONGEST}: lower its quality"
            )


if __name__ == "__main__":
    main()
