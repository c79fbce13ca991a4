"""What notebooks take under nbval instead of their defaults, which are in their fingerprints: a
notebook is run there to see that every cell works, not for its numbers."""

TINY = "data/tiny/sit.safetensors"
FOLDER = "build/smaller"  # the committed weights, with the tiny network in the place of SiT-mini
SEEN = {"trajectories": 10, "reference_images": 300, "resamples": 5}

# Parameters by notebook
SMALLER = {
    "11_overhead": {"n_images": 4, "steps": 2, "rounds": 1},
    "20_weight_sweep": SEEN | {"w_values": [3.0], "cfg_values": [], "sde_images": 10},
    "24_shift_sources": {
        "weights": FOLDER,
        "toy_steps": [10, 20, 40],
        "toy_n": 200,
        "error_sizes": [0.1],
        "error_steps": 40,
        "steps": [20, 40],
        "trajectories": 8,
        "control_images": 50,
        "one_step_images": 10,
        "resamples": 100,
    },
    "25_estimator": {
        "images_seen": 1280,
        "network_images": 128,
        "warmup_steps": 2,
        "ema_decay": 0.5,
        "trajectories": 20,
        "n_test": 100,
        "control_images": 60,
        "resamples": 100,
    },
    "28_finetune": {"pretrained": TINY, "images_seen": 256, "trajectories": 12},
    "33_cousins": SEEN | {"source": "data/tiny", "base": "sit", "plain": "sit"},
    "36_trainings": SEEN
    | {"networks": {"sit": [TINY, TINY], "dit": [TINY]}, "held_out_images": 100},
}

# Run before the notebook's own imports: SiT-mini is the tiny network, intervals of distances come
# from ten subsets, and what real images have from fewer of them.
PRELUDE = f"""
import contextlib
from nag.support import paths

folder = paths.ROOT / "{FOLDER}"
folder.mkdir(parents=True, exist_ok=True)
for file in paths.WEIGHTS.glob("*.safetensors"):
    with contextlib.suppress(FileExistsError):
        own = paths.ROOT / "{TINY}" if file.stem == "sit" else file
        (folder / file.name).symlink_to(own)
paths.WEIGHTS = folder

from companion.experiments import spaces
from nag.evaluation import metrics

def few(n, resamples, *more, subsets=metrics.subsets):
    return subsets(n, min(resamples, 10), *more)

metrics.subsets, spaces.EACH = few, 250
"""


def source(name: str) -> str:
    """What is appended to the cell of parameters of a notebook, by the name of its file."""
    if name not in SMALLER:
        return ""
    return "".join(f"\n{key} = {value!r}" for key, value in SMALLER[name].items()) + PRELUDE
