"""NAG as an afterthought: a null noise condition for a network that was trained without one.

A network without noise-condition dropout is trained further by each of ROUTES for several lengths.
Ratios are of Fréchet distances, below 1 is better."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from companion.experiments import study
from companion.pipeline import fingerprint
from companion.studies.dropout import Sampling, errors
from nag import checkpoint
from nag.models import DiT
from nag.pretrained.further_training import FurtherConfig, forget, run
from nag.pretrained.null_branch import load_null
from nag.support import paths
from nag.support.device import best_device
from nag.train import TrainConfig

BRANCH = ("x_embedder", "y_embedder", "blocks", "final_layer")
ROUTES: dict[str, dict[str, Any]] = {  # what of the network is trained further
    "branch": {"mode": "null", "layers": BRANCH},  # a null branch of its own; the rest is frozen
    "vector": {"mode": "null"},
    "all": {"mode": "all", "noise_dropout": 0.1},
}


class Held(NamedTuple):
    """Held-out uint8 images (N, 1, 28, 28) and their labels (N,)."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Afterthought:
    """A network that was trained without noise-condition dropout, and how it is trained further."""

    name: str
    file: Path
    split: str  # of Fashion-MNIST
    batch: int
    precision: str
    folder: Path

    @property
    def images_seen(self) -> int:
        """Images that it was trained on."""
        return int(checkpoint.read_weights(self.file)[1]["images_seen"])

    def further(self, route: str, images: int, lr: float) -> Path:
        """The file of what `images` further images make of it; trained if it is not there."""
        settings = TrainConfig(
            images_seen=images,
            batch_size=self.batch,
            lr=lr,
            warmup_steps=images // self.batch // 6,
            ema_decay=0.99,
            precision=self.precision,
            compile=False,  # one compilation would last as long as most of these trainings
        )
        base, code = checkpoint.sha256(self.file), fingerprint.digest(fingerprint.of_objects(run))
        key = settings.key(base, ROUTES[route], self.split, code)
        target = self.folder / f"{self.name}-{key}.safetensors"
        spec = FurtherConfig(
            weights=str(self.file),
            split=self.split,
            **ROUTES[route],
            train=settings,
            checkpoint=str(paths.CHECKPOINTS / f"{target.stem}.pt"),
            out=str(target),
        )
        if not target.is_file():
            run(spec)
            forget(spec)
        return target

    def opened(self, route: str, file: Path) -> tuple[DiT, DiT | None]:
        """The network that samples, and the twin that does without noise level (None: itself)."""
        if ROUTES[route]["mode"] == "all":
            return checkpoint.load(file).to(best_device()), None
        net = checkpoint.load(self.file).to(best_device())
        twin = load_null(file, net, checkpoint.sha256(self.file))
        return net, twin.requires_grad_(False)

    def error(self, route: str, file: Path, held: Held) -> float:
        """What a learning rate is chosen by: the held-out error without the noise level, and of the
        whole network, which changes both, with it too."""
        net, twin = self.opened(route, file)
        without = errors(twin or net, *held).mean()
        return float(without if twin else without + errors(net, *held, drop=False).mean())


class Trained(NamedTuple):
    """A route and its length, the learning rate chosen (`study.tuned`), and what it made."""

    route: str
    images: int
    lr: dict
    file: Path

    @property
    def label(self) -> str:
        """Its name in the numbers, such as "branch, 3000"."""
        return f"{self.route}, {self.images}"


def trained(
    of: Afterthought,
    lengths: Sequence[int],
    rates: Mapping[str, Sequence[float]],
    choosing: Held,
    choose_up_to: int,
) -> Iterator[Trained]:
    """Every route at every length, the shortest first, with the learning rate of the least error;
    `rates` are the first that each route tries.

    Lengths above `choose_up_to` take the rate of the longest one below. Raises ValueError if none
    is."""
    if min(lengths) > choose_up_to:
        raise ValueError(f"all lengths are above {choose_up_to}: choose a rate at one of them")
    for route in ROUTES:
        lr: dict = {}
        for images in sorted(lengths):

            def measure(lr: float, route: str = route, images: int = images) -> dict[str, float]:
                return {"value": of.error(route, of.further(route, images, lr), choosing)}

            if images <= choose_up_to:
                lr = study.tuned(rates[route], measure)
            yield Trained(route, images, lr, of.further(route, images, lr["w"]))


class Arms(NamedTuple):
    """What the routes give: numbers of each, arms by "ROUTE, LENGTH none" and "… NAG"."""

    numbers: dict[str, dict]
    rows: dict[str, study.Row]


def measured(
    of: Afterthought,
    made: Sequence[Trained],
    weights: Sequence[float],
    sampling: Sampling,
    untouched: study.Row,
    usual: Mapping[str, Any],
) -> Arms:
    """NAG's gain by every route and length.

    "gain" is over the same network unguided, "over untouched" over the network as it was, and
    "share" the part of the logarithm of the gain `usual`, of dropout from the start."""
    numbers, rows = {}, {}
    for one in made:
        net, twin = of.opened(one.route, one.file)
        files = [one.file] if twin is None else [of.file, one.file]
        unguided = untouched
        if twin is None:
            unguided = rows[f"{one.label} none"] = sampling.arm(one.label, net, 0.0, files)
        w = sampling.tuned(one.label, net, weights, files, twin)
        guided = sampling.arm(one.label, net, w["w"], files, twin)
        rows[f"{one.label} NAG"] = guided
        gain = sampling.ratio(guided, unguided)
        share = np.log(gain["value"]) / np.log(usual["value"]) if usual["value"] < 1 else None
        numbers[one.label] = {
            "route": one.route,
            "images": one.images,
            "lr": one.lr["w"],
            "lr_at_end": one.lr["at_end"],
            "w": w["w"],
            "w_at_end": w["at_end"],
            "gain": gain,
            "over untouched": sampling.ratio(guided, untouched),
            "share": None if share is None else float(share),
        }
    return Arms(numbers, rows)
