"""What notebooks take under nbval instead of their defaults, which are in their fingerprints: a
notebook is run there to see that every cell works, not for its numbers."""

TINY = "data/tiny/sit.safetensors"
FOLDER = "build/smaller"  # the committed weights, with the tiny network in the place of SiT-mini
SEEN = {"trajectories": 10, "reference_images": 300, "resamples": 5}
MAIN = {"trajectories": 20}  # of notebooks 5 to 7, which share their samples

# Parameters by notebook
SMALLER = {
    "00_start_here": {"n": 32, "steps": 15},
    "01_train": {"images_seen": 3200, "warmup_steps": 10},
    "02_estimator": {
        "images_seen": 5120,
        "warmup_steps": 2,
        "ema_decay": 0.5,
        "n_test": 500,
    },
    "03_extractor": {"images_seen": 5120, "ema_decay": 0.5, "compared_images": 500},
    "04_tune": {"trajectories": 20, "reference_images": 300},
    "05_sample": MAIN,
    "06_noise_shift": MAIN | {"resamples": 50, "sde_images": 20},
    "07_evaluate": MAIN | {"reference_images": 300},
    "10_your_own_model": {
        "images_seen": 3000,
        "images_seen_with_dropout": 1500,
        "estimator_images_seen": 6000,
        "n_images": 40,
    },
    "11_overhead": {"n_images": 4, "steps": 2, "rounds": 1},
    "12_auto_weight": {
        "calibration_images": 20,
        "weights_tried": [0.0, 2.0],
        "reference_images": 300,
    },
    "14_null_condition": {"weights": TINY, "images_seen": 256, "held_out_images": 100},
    "15_adm_metrics": {"n_images": 300, "blocks": 5},
    "18_nag_in_diffusers": {"images_seen": 2000, "steps": 10},
    "20_weight_sweep": SEEN
    | {"w_values": [3.0], "cfg_values": [], "sde_images": 10, "sde_steps": 6},
    "21_solvers": {"trajectories": 10, "reference_images": 300},
    "22_rivals": SEEN | {"speed_images": 10},
    "23_size_and_length": {
        "sizes": ["w16", "w32"],
        "lengths": ["short", "w32"],
        "recipes": {
            "w16": [16, 1600, 0],
            "w32": [32, 1600, 0],
            "short": [32, 800, 0],
            "w32-s1": [32, 1600, 1],
        },
        "steps": 5,
        "trajectories": 20,
        "real_images": 300,
        "loss_images": 200,
        "resamples": 100,
        "quality_resamples": 5,
    },
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
        "steps": [5, 10],
        "seeds": [0],
        "resamples": 100,
    },
    "26_grids": {
        "weights": FOLDER,
        "trajectories": 20,
        "long_images": 20,
        "resamples": 50,
        "reference_images": 300,
    },
    "27_dropout": SEEN | {"steps": 5, "tiny_images": 1600, "held_out_images": 50},
    "28_finetune": {"pretrained": TINY, "images_seen": 256, "trajectories": 12},
    "29_when_to_guide": {
        "calibration_images": 20,
        "w_values": [1.5],
        "trajectories": 20,
        "reference_images": 300,
    },
    "30_small_sigma": {
        "weights": FOLDER,
        "forward_images": 10,
        "trajectories": 20,
        "resamples": 50,
        "reference_images": 300,
    },
    "31_finetune_signal": {
        "pretrained": TINY,
        "images_seen": 256,
        "examined": 20,
        "trajectories": 12,
    },
    "32_paper_samplers": SEEN | {"network": TINY, "steps": 5, "tune_steps": 3},
    "33_cousins": SEEN
    | {
        "source": "data/tiny",
        "base": "sit",
        "plain": "sit",
        "start": {"nag": [[1.0]], "self-guidance": [[1.0, 0.05]]},
        "nfe": {"ode": 15},
    },
    "34_exact_null": SEEN
    | {
        "network": TINY,
        "nfe": {"ode": 10},
        "w_values": [1.0],
        "budget": 1,
        "images_seen": 256,
        "warmup_steps": 1,
        "held_out_images": 100,
        "forward_images": 10,
        "toy_images": 32,
    },
    "35_afterthought": SEEN
    | {"steps": 5, "tiny_images": 1600, "lengths": [320], "held_out_images": 100},
    "36_trainings": SEEN
    | {
        "networks": {"sit": [TINY, TINY], "dit": [TINY]},
        "steps": {"ode": 5, "sde": 7},
        "held_out_images": 100,
    },
}

# Run before the notebook's own imports: SiT-mini is the tiny network, distances and their intervals
# come from fewer subsets, and what real images have from fewer of them.
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

metrics.subsets, metrics.KID_SUBSETS, spaces.EACH = few, 3, 250
"""


def source(name: str) -> str:
    """What is appended to the cell of parameters of a notebook, by the name of its file."""
    if name not in SMALLER:
        return ""
    return "".join(f"\n{key} = {value!r}" for key, value in SMALLER[name].items()) + PRELUDE
