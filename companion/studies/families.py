"""The committed network of a family with the estimator that reads its states."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from companion.experiments import study
from nag import checkpoint
from nag.interpolant import PATH_OF
from nag.models import DiT
from nag.samplers.registry import resolve
from nag.support.device import best_device


@dataclass(frozen=True)
class Family:
    """A network, the estimator of its forward process, and the files of both."""

    name: str  # "sit" or "dit"
    net: DiT
    reader: Callable[[Tensor], Tensor]
    files: list[Path]

    @property
    def path(self) -> str:
        """The forward process."""
        return PATH_OF[self.name]


def load_family(name: str, weights: Path) -> Family:
    """FAMILY.safetensors in a folder, and the committed estimator."""
    return family_of(name, Path(weights) / f"{name}.safetensors")


def family_of(name: str, file: Path) -> Family:
    """A network of a family in any file, with the committed estimator."""
    process = PATH_OF[name]
    net = checkpoint.load(file).to(best_device())
    return Family(name, net, study.load_reader(process), [file, study.estimator_file(process)])


def sampler_of(kind: str, process: str) -> str:
    """The sampler of a study for "ode" or "sde" on a forward process: the usual one, but
    Euler-Maruyama with Tweedie's last step, since SiT's own leaves noise in images of pixels.
    """
    name = resolve(kind, process)
    return "euler_maruyama_tweedie" if name == "euler_maruyama" else name
