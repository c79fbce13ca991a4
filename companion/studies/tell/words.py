"""Names and phrases that the answers of all studies share."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nag.support.files import read_json
from nag.support.uncertainty import outcome, show

FAMILIES = {"sit": "SiT", "dit": "DiT"}
SAMPLERS = {
    "euler": "Euler",
    "heun": "Heun",
    "midpoint": "midpoint",
    "ddim": "DDIM",
    "dpmpp_2m": "DPM-Solver++ 2M",
    "unipc": "UniPC",
    "euler_maruyama": "Euler–Maruyama",
    "euler_maruyama_tweedie": "Euler–Maruyama (Tweedie)",
    "stochastic_heun": "stochastic Heun",
    "ddpm": "DDPM",
    "ddim_eta1": "DDIM with η = 1",
    "dpmpp_2m_sde": "SDE-DPM-Solver++ 2M",
}


def sampler_name(name: str) -> str:
    """A sampler as texts name it: "Euler–Maruyama" for "euler_maruyama"; a grid behind "@" is left
    out.
    """
    return SAMPLERS[name.partition("@")[0].replace("-", "_")]


def mini(family: str) -> str:
    """The committed network of a family as texts name it: "SiT-mini" for "sit"."""
    return f"{FAMILIES[family]}-mini"


def network_name(family: str, weights: Path) -> str:
    """The committed mini, or family and size of another network: "SiT of 0.5 M parameters".

    The size is read from metrics/train-NAME.json beside the folder of NAME.safetensors."""
    weights = Path(weights)
    if weights.stem in FAMILIES:
        return mini(weights.stem)
    record = read_json(weights.parents[1] / "metrics" / f"train-{weights.stem}.json")
    return f"{FAMILIES[family]} of {record['parameters'] / 1e6:.1f} M parameters"


def listed(items: Iterable[object]) -> str:
    """ "a", "a and b", "a, b and c"."""
    *some, last = map(str, items)
    return f"{', '.join(some)} and {last}" if some else last


def counts(outcomes: Sequence[str]) -> str:
    """How often each outcome occurs, best first: "better in 3, inconclusive in 1 of 4"."""
    order = ("better", "smaller", "inconclusive", "larger", "worse")
    found = sorted(dict.fromkeys(outcomes), key=order.index)
    return f"{', '.join(f'{word} in {outcomes.count(word)}' for word in found)} of {len(outcomes)}"


def in_both(ratio: Mapping) -> str:
    """A Fréchet ratio and what it says, with that of the pixels beside it where it was measured:
    "0.75 [0.71, 0.79] better; pixels 0.80 [0.70, 0.91]"."""
    pixels = f"; pixels {show(ratio['second'])}" if "second" in ratio else ""
    return f"{show(ratio)} {outcome(ratio)}{pixels}"
