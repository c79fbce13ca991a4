"""Docstrings on the site: formulas as TeX, prose as it is written."""

import ast

import pytest

from companion.site.docstrings import escaped, processed, tex
from nag.support.paths import ROOT


@pytest.mark.parametrize(
    "formula, wanted",
    [
        ("sigma_{t+delta}^2 = sigma_t^2", r"\sigma_{t +\delta}^{2} = \sigma_{t}^{2}"),
        ("x_0-hat + eps-hat", r"\hat{x}_{0} + \hat{\varepsilon}"),
        ("w grad_x log g_phi(t|x)", r"w \nabla_{x} \log g_{\phi}(t \mid x )"),
        ("|m - mu|^2 + (C sigma)^(1/2)", r"|m - \mu |^{2} + (C \sigma )^{1/2}"),
        ("||eps|| / sqrt(n)", r"\Vert \varepsilon \Vert / \sqrt{n }"),
        ("d_alpha_t x + w_cfg y", r"\dot{\alpha}_{t} x + w_{\text{cfg}} y"),
        ("t' -> p with a,   w <= 2", r"t' \to p \ \text{with}\ a ,\quad w \le 2"),
        ("f = g                      (`guide`)", "f = g"),
    ],
)  # fmt: skip
def test_tex(formula, wanted):
    assert tex(formula) == wanted


def test_every_formula_of_the_package_becomes_balanced_tex():
    blocks = []
    for path in sorted((ROOT / "nag").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                lines = processed((ast.get_docstring(node) or "").splitlines())
                blocks += [lines[k + 2] for k, line in enumerate(lines) if line == ".. math::"]
    assert len(blocks) > 20
    for block in blocks:
        assert block.count("{") == block.count("}") and block.strip(), block
        assert "`" not in block and r"\text{}" not in block, block


def test_prose_keeps_its_signs():
    assert escaped("w*x_t of `net(x)` | 2") == r"w\*x\_t of ``net(x)`` \| 2"
    assert escaped("an odd ` and *") == r"an odd \` and \*"


def test_blocks_are_told_apart():
    text = [
        "One sentence.",
        "",
        "    with record(pipe) as recording:",
        "        pipe(prompt)",
        "",
        "    D + w (D - D_neg)",
        "",
        "* a_b",
        "",
        "| formula | here |",
        "|---|---|",
        "| p(t|x) | `f` |",
    ]
    found = processed(text)
    assert found[:2] == ["One sentence.", ""]
    assert found[2:6] == ["::", "", "    with record(pipe) as recording:", "        pipe(prompt)"]
    assert ".. math::" in found and r"* a\_b" in found
    assert r"   * - p(t\|x)" in found and "     - ``f``" in found
    assert processed(["Alias for field number 0"]) == []
