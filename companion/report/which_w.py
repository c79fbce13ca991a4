"""Which weight of NAG, without a distance: what the late shift shows in the sweeps of the minis."""

from companion.report.evidence import Reader
from nag.support.uncertainty import sign


def sweep(reader: Reader, family: str) -> dict[float, dict]:
    """{w: distance over unguided and late shift, with intervals} of NAG alone, deterministic."""
    name = f"weight_sweep-{family}"
    ratios = reader.study(name, "ratio_to_unguided")
    shifts = reader.study(name, "late_shift/ode")
    weights = [key.split()[0] for key in ratios if key.endswith(" cfg1")]
    return {
        float(w.removeprefix("w")): {"ratio": ratios[f"{w} cfg1"], "shift": shifts[f"{w} cfg1"]}
        for w in weights
    }


def by_shift(rows: dict[float, dict]) -> float:
    """The largest weight whose late shift is not clearly off zero; 0 if there is none."""
    return max((w for w, row in rows.items() if sign(row["shift"]) == "inconclusive"), default=0.0)


def least(rows: dict[float, dict]) -> float:
    """The weight with the least distance."""
    return min(rows, key=lambda w: rows[w]["ratio"]["value"])
