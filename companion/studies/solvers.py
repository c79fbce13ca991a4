"""Study of notebook 21, measured: solvers and numbers of evaluations, with and without NAG.

An arm is (family, solver, evaluations, "none" or "nag"); a cell is the first three of these. A
solver is a sampler's name, with its grid behind "@" if that is not its own."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np

from companion.experiments import study
from companion.experiments.generate import SampleConfig
from companion.experiments.spaces import Features
from nag.shift import Estimator, read_at
from nag.support.uncertainty import Interval, interval

Cell = tuple[str, str, int]
Arm = tuple[str, str, int, str]
HIGHER_ORDER = ("heun", "dpmpp_2m@logsnr")
STOCHASTIC = ("euler_maruyama", "ddpm")


def kind_of(solver: str) -> str:
    """ "first order" and "higher order" for ODE solvers, or "stochastic"."""
    if solver in STOCHASTIC:
        return "stochastic"
    return "higher order" if solver in HIGHER_ORDER else "first order"


def cells_of(plan: Mapping[str, Mapping[str, Iterable[int]]]) -> list[Cell]:
    """The cells of a plan {family: {solver: evaluations}}, each solver's in ascending order."""
    return [
        (family, solver, evaluations)
        for family, solvers in plan.items()
        for solver, budgets in solvers.items()
        for evaluations in sorted(budgets)
    ]


def steps_of(solver: str, evaluations: int, branches: int) -> int:
    """Most steps within so many evaluations, NAG having two `branches`; Heun's method takes two
    evaluations a step and one in the last.
    """
    calls = evaluations // branches
    return (calls + 1) // 2 if solver == "heun" else calls


def sampling(solver: str, steps: int, **settings: object) -> SampleConfig:
    """How a solver samples; about 25 states of every trajectory are kept."""
    sampler, _, grid = solver.partition("@")
    return SampleConfig(
        sampler=sampler,
        grid=grid or "default",
        steps=steps,
        states_every=max(1, round(steps / 25)),
        **settings,
    )


def choose_weights(
    cells: Sequence[Cell],
    w_lists: Mapping[str, Sequence[float]],
    tune_at: Iterable[int],
    measure: Callable[[Cell, float], Interval],
) -> dict[Cell, dict]:
    """`study.tuned` for every cell, by the bias-corrected distance `measure(cell, w)`.

    A cell whose evaluations are not in `tune_at` takes what the next smaller one has; the smallest
    of a solver is always tuned. A list of one weight is not tuned."""
    chosen: dict[Cell, dict] = {}
    for cell in cells:
        smaller = [other for other in chosen if other[:2] == cell[:2]]
        if smaller and cell[2] not in tune_at:
            chosen[cell] = chosen[smaller[-1]] | {"tried": {}}
        else:
            chosen[cell] = study.tuned(w_lists[cell[0]], partial(measure, cell))
    return chosen


def companions(
    rows: Mapping[Arm, study.Row],
    steps: Mapping[Arm, int],
    least_steps: int,
    take: Callable[[Arm], study.Row],
) -> dict[Arm, study.Row]:
    """For guided arms of at least so many steps: the unguided arm of as many, for the shift.

    `take(arm)` samples it if no unguided arm has as many steps."""
    found = {}
    for arm in rows:
        if arm[3] == "nag" and steps[arm] >= least_steps:
            alike = [
                other
                for other in rows
                if other[:2] == arm[:2] and other[3] == "none" and steps[other] == steps[arm]
            ]
            found[arm] = rows[alike[0]] if alike else take(arm)
    return found


def name(arm: Sequence) -> str:
    """A cell or arm in the results: "sit-euler-20"; whether it is guided follows from its place."""
    return f"{arm[0]}-{arm[1]}-{arm[2]}"


def ratios(rows: Mapping[Arm, study.Row], quality: Mapping, real: Features, catch: int) -> dict:
    """All ratios of distances that the study compares, paired by seed.

    NAG over none at equal evaluations; NAG at `catch` evaluations over none at as many and more;
    first order with NAG over higher order without, and higher order over first, both without; none
    with most evaluations over fewest; the best deterministic arm with NAG over the best without."""

    def over(one: Arm, other: Arm) -> dict:
        return study.ratio(rows[one], rows[other], real)

    def distance(arm: Arm) -> float:
        return quality[arm]["fd_inf"]["value"]

    guided = [arm for arm in rows if arm[3] == "nag"]
    unguided = [arm for arm in rows if arm[3] == "none"]
    later = {
        name((*arm[:2], other[2])): over(arm, other)
        for arm in guided
        for other in unguided
        if arm[2] == catch and other[:2] == arm[:2] and other[2] >= catch
    }
    first, higher = (
        [arm for arm in rows if kind_of(arm[1]) == kind] for kind in ("first order", "higher order")
    )
    alike = [
        (one, other)
        for one in first
        for other in higher
        if other[3] == "none" and (one[0], one[2]) == (other[0], other[2])
    ]
    longer, best = {}, {}
    for family, solver in dict.fromkeys(arm[:2] for arm in unguided):
        mine = sorted(arm for arm in unguided if arm[:2] == (family, solver))
        if len(mine) > 1:
            few, many = mine[0], mine[-1]
            found = {"over": over(many, few), "from": distance(few), "to": distance(many)}
            longer[f"{family}-{solver}"] = found
    for family in dict.fromkeys(arm[0] for arm in rows):
        of = {
            which: [arm for arm in arms if arm[0] == family and kind_of(arm[1]) != "stochastic"]
            for which, arms in (("nag", guided), ("none", unguided))
        }
        if of["nag"]:
            nag, none = (min(of[which], key=distance) for which in ("nag", "none"))
            best[family] = over(nag, none) | {"nag": name(nag), "none": name(none)}
    return {
        "equal_evaluations": {name(arm): over(arm, (*arm[:3], "none")) for arm in guided},
        "nag_at_catch_over_unguided": later,
        "first_order_nag_over_higher_order": {
            f"{name(one)} over {other[1]}": over(one, other)
            for one, other in alike
            if one[3] == "nag"
        },
        "higher_order_over_first_unguided": {
            f"{name(other)} over {one[1]}": over(other, one)
            for one, other in alike
            if one[3] == "none"
        },
        "unguided_most_over_fewest": longer,
        "best_nag_over_best_unguided": best,
    }


def shifts(
    rows: Mapping[Arm, study.Row],
    companion: Mapping[Arm, study.Row],
    process: Mapping[str, str],
    readers: Mapping[str, Estimator],
    at: float,
) -> dict[str, dict]:
    """Noise shift at one t of every guided arm and of its companion of as many steps.

    {arm: {"none", "nag", "nearer"}}; "nearer" is |shift with NAG| - |shift without|, paired, since
    both start from the same noise."""
    found = {}
    for family in process:
        mine = [arm for arm in companion if arm[0] == family]
        pairs = {(arm, "none"): companion[arm] for arm in mine}
        pairs |= {(arm, "nag"): rows[arm] for arm in mine}
        of_all = study.shifts(pairs, process[family], readers[family])
        for arm in mine:
            (none, none_draws), (nag, nag_draws) = (
                read_at(of_all[arm, which], pairs[arm, which]["times"], at)
                for which in ("none", "nag")
            )
            found[name(arm)] = {
                "none": interval(none, none_draws),
                "nag": interval(nag, nag_draws),
                "nearer": interval(abs(nag) - abs(none), np.abs(nag_draws) - np.abs(none_draws)),
            }
    return found


def measure(
    rows: Mapping[Arm, study.Row],
    steps: Mapping[Arm, int],
    chosen: Mapping[Cell, Mapping],
    quality: Mapping,
    shift: Mapping[str, Mapping[str, Interval]],
    real: Features,
    catch: int,
) -> dict:
    """The numbers of the study: weights, ratios, and shifts at equal steps."""
    numbers = ratios(rows, quality, real, catch)
    for arm in rows:
        if arm[3] == "nag":
            numbers["equal_evaluations"][name(arm)] |= {
                "steps": steps[arm],
                "nfe": int(rows[arm]["nfe"]),
                "unguided nfe": int(rows[*arm[:3], "none"]["nfe"]),
            }
    return numbers | {
        "w_nag": {name(cell): found["w"] for cell, found in chosen.items()},
        "w_at_end_of_list": [name(cell) for cell, found in chosen.items() if found["at_end"]],
        "tried": [
            {"family": cell[0], "solver": cell[1], "evaluations": cell[2], "w_nag": float(w)} | v
            for cell, found in chosen.items()
            for w, v in found["tried"].items()
        ],
        "evaluations_times_images": sum(
            int(row["nfe"]) * len(row["seeds"]) for row in rows.values()
        ),
        "shift_at_equal_steps": {
            f"{name(arm)}-{which}": shift[name(arm)][which]
            | {"steps": steps[arm], "nearer": shift[name(arm)]["nearer"]}
            for arm in rows
            if arm[3] == "nag" and name(arm) in shift
            for which in ("none", "nag")
        },
    }


def table_rows(
    rows: Mapping[Arm, study.Row],
    steps: Mapping[Arm, int],
    chosen: Mapping[Cell, Mapping],
    quality: Mapping,
    equal: Mapping[str, Mapping],
) -> list[dict]:
    """A row for every arm: quality with intervals, and the ratio at equal evaluations."""
    lines = []
    for arm, row in rows.items():
        guided = arm[3] == "nag"
        line = {
            "family": arm[0],
            "solver": arm[1],
            "guidance": arm[3],
            "w_nag": chosen[arm[:3]]["w"] if guided else 0.0,
            "steps": steps[arm],
            "nfe": int(row["nfe"]),
            "n": len(row["seeds"]),
        }
        for metric in ("fd", "fd_inf", "precision", "recall"):
            line[metric] = quality[arm][metric]["value"]
        for metric in ("fd", "fd_inf"):
            line |= {f"{metric}_{end}": quality[arm][metric][end] for end in ("low", "high")}
        if guided:
            found = equal[name(arm)]
            line |= {f"ratio_{end}": found[end] for end in ("value", "low", "high")}
            line["ratio_raw"] = found["raw"]["value"]
        lines.append(line)
    return lines
