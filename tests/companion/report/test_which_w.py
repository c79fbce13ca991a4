"""The weight that the late shift alone would choose, beside the one with the least distance."""

from companion.report import which_w
from companion.report.evidence import Reader


def around(value, half):
    return {"value": value, "low": value - half, "high": value + half}


def test_the_largest_weight_without_a_clear_shift():
    shifts = {0.0: 0.3, 0.5: -0.2, 1.0: 0.0, 2.0: -0.4, 3.0: 0.9}
    ratios = {0.0: 1.0, 0.5: 0.8, 1.0: 0.9, 2.0: 0.7, 3.0: 1.2}
    content = {
        "ratio_to_unguided": {f"w{w:g} cfg1": around(v, 0.1) for w, v in ratios.items()},
        "late_shift": {"ode": {f"w{w:g} cfg1": around(v, 0.35) for w, v in shifts.items()}},
    }
    content["ratio_to_unguided"]["w4 cfg1.1"] = around(0.1, 0.1)
    rows = which_w.sweep(Reader(lambda file: content), "sit")
    assert list(rows) == list(shifts)
    assert which_w.by_shift(rows) == 1.0 and which_w.least(rows) == 2.0
    assert which_w.by_shift({w: row for w, row in rows.items() if w > 1}) == 0.0
