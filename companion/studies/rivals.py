"""Rivals of NAG at an equal number of network evaluations per image: arms, tuning, gains, costs.

A method is a name in nag.rivals.methods.METHODS; "METHOD+nag" is that method with NAG on top."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from companion.experiments import bench, study
from companion.experiments.generate import SampleConfig, sample
from companion.experiments.spaces import Features
from companion.pipeline import fingerprint
from nag import checkpoint
from nag.data import fashion_mnist
from nag.estimator import NoiseEstimator
from nag.models import DiT
from nag.rivals.methods import METHODS, Parts, Plan, Setting, describe, plan, steps_for
from nag.rivals.noise_level_correction import LevelHead, level_loss
from nag.shift import Estimator
from nag.support import device, paths
from nag.support.files import read_json, write_torch
from nag.support.rng import generator
from nag.support.uncertainty import mean_ratio, over_trainings
from nag.train import TrainConfig, train

OWN = "input-perturbation"  # DDPM-IP, whose network is trained from the start
OVERHEAD = paths.METRICS / "overhead.json"
# entries of a setting that are how strong it is
STRENGTHS = ("w", "scale", "lambda", "strength", "shift", "k")
Rows = Mapping[str, study.Row]  # by arm


@dataclass(frozen=True)
class Contest:
    """What all arms share.

    `parts` is what methods are made of, by the name of the network that they guide, the base first;
    `files` are weight files by name: of networks, of the "estimator", and of the "head of NETWORK".
    Every arm makes `nfe` evaluations per image, or the fewest below it that are whole steps."""

    parts: Mapping[str, Parts]
    files: Mapping[str, Path]
    perturbed: str
    nfe: int
    folder: Path

    @property
    def base(self) -> str:
        """The name of the network that settings are chosen for."""
        return next(iter(self.parts))

    def plan(self, method: str, setting: Setting, w: float, network: str = "") -> Plan:
        """What to sample with."""
        return plan(method, setting, self.parts[network or self.base], w)

    def arm(
        self,
        method: str,
        setting: Setting,
        w: float,
        config: SampleConfig,
        network: str = "",
        reader: Estimator | None = None,
    ) -> study.Row:
        """The arm of a method, its setting and NAG's weight w, in as many steps as `nfe` allows."""
        network = network or self.base
        found = self.plan(method, setting, w, network)
        steps = steps_for(self.nfe, found.terms, config.sampler, found.net.config.path)
        used = [self.perturbed if method == OWN else network]
        used += [f"head of {network}" if found.extra == "head" else found.extra] * bool(found.extra)
        used += ["estimator"] * bool(reader)
        return study.kept_arm(
            self.folder,
            f"{method}+nag" if w else method,
            found.net,
            found.terms,
            config.model_copy(update={"steps": steps}),
            weights=[self.files[name] for name in dict.fromkeys(used)],
            reader=reader,
            solver=found.solver,
            code=(plan,),
            method=method,
            setting=list(setting),
            data_variance=self.parts[network].data_variance,
        )


def parts_of(
    networks: Sequence[str],
    weaker: Sequence[str],
    perturbed: str,
    files: Mapping[str, Path],
    images: Tensor,
    sampler: str,
) -> dict[str, Parts]:
    """What methods are made of, for each of the networks; `images` (N, 1, 28, 28) in [-1, 1] are
    those that they were trained on.
    """
    where = device.best_device()
    shared = Parts(
        checkpoint.load(files[networks[0]]).to(where),
        {name: checkpoint.load(files[name]) for name in weaker},
        checkpoint.load(files[perturbed]) if perturbed else None,
        estimator=checkpoint.load_weights(files["estimator"], NoiseEstimator()).to(where),
        data_variance=images.flatten(1).var(1).mean().item(),
        sampler=sampler,
    )
    others = {name: checkpoint.load(files[name]).to(where) for name in networks[1:]}
    return {networks[0]: shared} | {n: shared._replace(net=net) for n, net in others.items()}


def trained_head(
    parts: Parts, weights: Path, images: Tensor, labels: Tensor, seen: int, folder: Path
) -> tuple[LevelHead, Path]:
    """The head of Noise Level Correction on one network, trained on `seen` images if its file is
    absent, and its file.
    """
    config = TrainConfig(
        images_seen=seen, batch_size=128, lr=1e-3, warmup_steps=50, ema_decay=0.99, compile=False
    )
    code = fingerprint.digest(fingerprint.of_objects(trained_head))
    file = folder / f"head-{config.key(checkpoint.sha256(weights), len(images), code)}.pt"
    torch.manual_seed(0)
    net, head = parts.net, LevelHead(parts.net.config.width)
    if not file.is_file():
        state = paths.CHECKPOINTS / file.name
        loss = level_loss(net, images, labels, net.config.path)
        train(head, loss, len(images), config, state)
        write_torch(file, head.state_dict())
        state.unlink()
    return checkpoint.load_weights(file, head).to(device.best_device()), file


@torch.no_grad()
def explained(head: LevelHead, net: DiT, count: int = 2000) -> float:
    """Share of the planted deviations of the noise level that a head explains on test images; a
    head that corrects nothing, r = 0, explains none.
    """
    images, labels = fashion_mnist.load_fashion_mnist("test")
    images = fashion_mnist.to_float(images[:count])
    loss = level_loss(net, images, labels[:count], net.config.path)
    where, index = device.best_device(), torch.arange(count)
    silent = LevelHead(net.config.width).to(where)
    error, before = (loss(some, index, generator(1)).item() for some in (head, silent))
    return 1 - error / before


# ---- tuning


def at_end(value: float, values: Sequence) -> bool:
    """Whether the value is the smallest or largest of several."""
    return len(values) > 1 and value in (min(values), max(values))


def strength(method: str, setting: Setting) -> float | None:
    """How strong a setting is: its weight, scale, lambda or strength; None if it has none."""
    entries = zip(METHODS[method].entries, setting, strict=True)
    return next((float(x) for entry, x in entries if entry in STRENGTHS), None)


def tuned(
    method: str,
    settings: Sequence[Setting],
    weights: Sequence[float],
    measure: Callable[[str, Setting, float], float],
) -> tuple[dict, list[dict]]:
    """The setting of the smallest distance, then, with it held, the weight of NAG on top; and all
    that was tried.

    `measure(method, setting, w)` is the bias-corrected distance on the tuning seeds; a single
    candidate is taken without measuring it. NAG itself takes no weights."""
    tried: list[dict] = []

    def least(candidates: Sequence[tuple[Setting, float]]) -> tuple[Setting, float]:
        if len(candidates) == 1:
            return candidates[0]
        for setting, w in candidates:
            one = {"method": method, "setting": describe(method, setting), "w_nag": w}
            tried.append(one | {"fd_inf": measure(method, setting, w)})
        scores = [one["fd_inf"] for one in tried[-len(candidates) :]]
        return candidates[int(np.argmin(scores))]

    setting, _ = least([(setting, 0.0) for setting in settings])
    w = least([(setting, w) for w in weights])[1] if weights else 0.0
    strong = strength(method, setting)
    found = {
        "setting": describe(method, setting),
        "values": list(setting),
        "of": len(settings),
        "w_nag beside": w,
        "setting at an end": strong is not None
        and at_end(strong, [strength(method, other) for other in settings]),
        "w at an end": at_end(w, weights) if weights else None,
    }
    return found, tried


def report_arms(chosen: Mapping[str, Mapping]) -> dict[str, tuple[str, list, float]]:
    """(method, setting, w) of every arm of a report: none, each method, each rival with NAG."""
    arms: dict[str, tuple[str, list, float]] = {"none": ("none", [], 0.0)}
    arms |= {method: (method, one["values"], 0.0) for method, one in chosen.items()}
    return arms | {
        f"{method}+nag": (method, one["values"], one["w_nag beside"])
        for method, one in chosen.items()
        if method != "nag"
    }


def tuned_all(
    methods: Sequence[str],
    settings: Mapping[str, Sequence[Setting]],
    weights: Sequence[float],
    measure: Callable[[str, Setting, float], float],
) -> tuple[dict[str, dict], pd.DataFrame]:
    """What `tuned` chooses for every method, and a table of all that was tried."""
    chosen, tried = {}, []
    for method in methods:
        chosen[method], more = tuned(
            method, settings.get(method, [[]]), weights if method != "nag" else [], measure
        )
        tried += more
    return chosen, pd.DataFrame(tried, columns=["method", "setting", "w_nag", "fd_inf"])


# ---- gains


def compared(every: Mapping[str, Rows], arm: str, other: str, real: Features) -> dict:
    """Fréchet distance of one arm over that of another, with its 95 % interval over images and over
    trainings of the network.

    `every` has the arms of each network, the base first; the ratio is the mean over all networks
    that have both arms. DDPM-IP is one training of its own: how much another would differ is taken
    to be what the base's trainings differ by."""
    base, k = next(iter(every.values())), len(every)
    if not arm.startswith(OWN) or k == 1:
        ratios = [
            study.ratio(rows[arm], rows[other], real) for rows in every.values() if arm in rows
        ]
        return mean_ratio(ratios) | {"trainings": len(ratios)}

    def logs(name: str, corrected: bool) -> np.ndarray:
        """Logarithms of an arm's distances, one of each network that has it."""
        mine = [rows[name] for rows in every.values() if name in rows]
        return study.log_distances(mine, real, corrected)

    alike = {OWN: "none", f"{OWN}+nag": "nag"}  # the same of the base
    ratio, names = study.ratio(base[arm], base[other], real), [arm, alike.get(other, other)]
    if other.startswith(OWN):  # both arms are of the one training
        names[0] = alike[arm]
    own, others = (logs(name, True) for name in names)
    if not (ratio["bias_corrected"] and np.isfinite([*own, *others]).all()):
        ratio = study.uncorrected(ratio)
        own, others = (logs(name, False) for name in names)
    if other.startswith(OWN):
        return over_trainings(ratio, np.std(own - others, ddof=1), k) | {"trainings": 1}
    over_mean = np.exp(own[0] - others.mean()) / ratio["value"]
    ratio = ratio | {end: ratio[end] * over_mean for end in ("value", "low", "high")}
    spread = np.std(others, ddof=1) * (1 + 1 / k) ** 0.5
    return over_trainings(ratio, spread, k) | {"trainings": 1}


def gains(every: Mapping[str, Rows], real: Features) -> dict:
    """All ratios of a report: over the unguided arm, with NAG over without, with the rival over NAG
    alone, and each network's own over its unguided arm.
    """
    arms = [arm for arm in next(iter(every.values())) if arm != "none"]
    rivals = [arm for arm in arms if arm != "nag" and not arm.endswith("+nag")]
    return {
        "unguided": {arm: compared(every, arm, "none", real) for arm in arms},
        "nag_adds": {m: compared(every, f"{m}+nag", m, real) for m in rivals},
        "rival_adds": {m: compared(every, f"{m}+nag", "nag", real) for m in rivals},
        "ratio_by_network": {
            arm: [
                study.ratio(rows[arm], rows["none"], real)["value"]
                for rows in every.values()
                if arm in rows
            ]
            for arm in arms
        },
    }


def late_shifts(rows: Rows, reader: Estimator) -> dict[str, dict[str, float]]:
    """Late noise shift of every arm of one network, with its 95 % interval."""
    found = study.shifts(rows, "linear", reader)
    return {arm: {k: float(v) for k, v in one["late"].items()} for arm, one in found.items()}


# ---- costs


def images_seen(files: Mapping[str, Path], base: str, head: int) -> dict[str, int]:
    """Images that networks, heads and the estimator were trained on, by name; "base" is the base's.

    A file of weights that does not say so has none."""
    seen = {
        name: int(checkpoint.read_weights(file)[1].get("images_seen", 0))
        for name, file in files.items()
        if not name.startswith("head of")
    }
    estimator = read_json(paths.METRICS / "estimator-linear.json")["images_seen"]
    return seen | {"base": seen[base], "head": head, "estimator": estimator}


def seconds(
    plans: Mapping[str, Plan], steps: Mapping[str, int], config: SampleConfig, rounds: int
) -> dict[str, float]:
    """Seconds that sampling takes each arm, measured in turns, so that a drift of the machine's
    speed touches all alike.
    """

    def work(arm: str) -> Callable[[], object]:
        found, how = plans[arm], config.model_copy(update={"steps": steps[arm]})
        return lambda: sample(found.net, found.terms, how, progress=False, solver=found.solver)

    return bench.turns({arm: work(arm) for arm in plans}, rounds, device.best_device())


def costs(
    plans: Mapping[str, Plan],
    nfe: Mapping[str, int],
    took: Mapping[str, float],
    images: int,
    seen: Mapping[str, int],
) -> dict[str, dict]:
    """What each arm costs: evaluations, speed, parameters beyond the network's, further training in
    % of the network's images.

    `seen` has the images that the "base" and each extra part were trained on; the time at equal
    *steps* is another network's, of notebook 11. DDPM-IP has no further training (None): it is
    trained from the start."""
    overhead = {row["arm"]: row["seconds"] for row in read_json(OVERHEAD)["rows"]}
    found = {}
    for arm, one in plans.items():
        method, _, nag = arm.partition("+")
        needs = [METHODS[method].needs, METHODS["nag"].needs if nag else ""]
        extra = "time-shift-estimator" if one.extra == "estimator" else method
        found[arm] = {
            "nfe": nfe[arm],
            "images_s": images / took[arm],
            "nfe_images_s": nfe[arm] * images / took[arm],
            "time": took[arm] / took["none"],
            "parameters": one.parameters,
            "needs": "; ".join(filter(None, needs)) or "nothing",
            "training": None if method == OWN else 100 * seen.get(one.extra, 0) / seen["base"],
            "time_equal_steps": None
            if nag or extra not in overhead
            else overhead[extra] / overhead["none"],
        }
    return found


def records(numbers: Mapping, steps: Mapping[str, int]) -> pd.DataFrame:
    """One row for each arm: setting, ratio to unguided, quality, late shift and costs."""
    lines = []
    for arm, cost in numbers["costs"].items():
        method, _, nag = arm.partition("+")
        chosen = numbers["chosen"].get(method, {"setting": "none", "w_nag beside": 0.0})
        measures = {
            "ratio": numbers["unguided"].get(arm, dict.fromkeys(("value", "low", "high"), 1))
        }
        measures |= {k: numbers["quality"][arm][k] for k in ("fd", "fd_inf", "precision", "recall")}
        measures["shift_late"] = numbers["shift_late"][arm]
        record = {
            "arm": arm,
            "label": METHODS[method].label + " + NAG" * bool(nag),
            "setting": chosen["setting"],
            "w_nag": chosen["w_nag beside"] if nag else 0.0,
            "steps": steps[arm],
        }
        for name, x in measures.items():
            record |= {name: x["value"], f"{name}_low": x["low"], f"{name}_high": x["high"]}
        lines.append(record | cost)
    return pd.DataFrame(lines)
