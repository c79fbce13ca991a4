"""Docstrings as the site's API reference shows them: plain text, with their formulas as TeX."""

import ast
import re
from collections.abc import Iterable

GREEK = {
    "alpha", "beta", "delta", "eps", "eta", "gamma", "lambda", "mu", "phi", "pi", "rho", "sigma",
    "theta",
}  # fmt: skip
NAMES = {
    "eps": r"\varepsilon", "exp": r"\exp", "grad": r"\nabla", "log": r"\log", "sqrt": r"\sqrt",
    "sum": r"\sum", "tr": r"\operatorname{tr}",
}  # fmt: skip
TOKEN = re.compile(
    r"(?P<name>[A-Za-z]+(?:_(?:\{[^}]*\}|[A-Za-z0-9]+))*(?:-hat)?'?)"
    r"|(?P<space>\s+)|(?P<other>\|\||->|<=|>=|[^A-Za-z\s])"
)
OTHER = {"||": r"\Vert ", "->": r"\to ", "<=": r"\le ", ">=": r"\ge ", "*": r"\cdot "}


def _symbol(base: str) -> str:
    if base in NAMES or base in GREEK:
        return NAMES.get(base, f"\\{base}")
    return base if len(base) == 1 else rf"\text{{{base}}}"


def _name(text: str) -> str:
    """TeX of an identifier: `sigma_{t+delta}`, `x_0-hat`, `w_nag`, `d_alpha_t` (a derivative)."""
    prime, hat = text.endswith("'"), "-hat" in text
    base, *subscripts = re.split(r"_(?![^{]*\})", text.removesuffix("'").removesuffix("-hat"))
    if base == "d" and subscripts and subscripts[0] in GREEK:
        symbol = rf"\dot{{{_symbol(subscripts.pop(0))}}}"
    else:
        symbol = _symbol(base)
    symbol = rf"\hat{{{symbol}}}" if hat else symbol
    below = [
        tex(part[1:-1]) if part.startswith("{") else part if part.isdigit() else _symbol(part)
        for part in subscripts
    ]
    return symbol + (f"_{{{','.join(below)}}}" if below else "") + ("'" if prime else "")


def tex(formula: str) -> str:
    r"""TeX of a formula as docstrings write it, such as `sigma_t^2` for \sigma_{t}^{2}."""
    formula = re.sub(r"\(`\w+`\)|`", "", formula).strip()  # which function it is, beside it
    tokens = list(TOKEN.finditer(formula))
    shown = [_name(token[0]) if token.lastgroup == "name" else token[0] for token in tokens]
    is_word = [text.startswith(r"\text{") and text.endswith("}") for text in shown] + [False]
    written = []
    for k, match in enumerate(tokens):
        kind, text = match.lastgroup, match[0]
        if kind == "space":
            wide = (
                r"\quad " if len(text) > 2 else r"\ " if is_word[k - 1] or is_word[k + 1] else " "
            )
            written.append(wide)
        elif kind == "name":
            written.append(shown[k] if shown[k].endswith("}") else f"{shown[k]} ")
        elif text == "|":  # of a condition, or of an absolute value
            around = f" {formula} "[match.start() : match.start() + 3]
            given = around[0].isspace() == around[2].isspace() and around[2] != "^"
            written.append(r"\mid " if given else "|")
        else:
            written.append(OTHER.get(text, text))
    joined = re.sub(r" +", " ", "".join(written)).strip()
    joined = re.sub(r"\^\(([^()]*)\)", r"^{\1}", joined)
    joined = re.sub(r"\\sqrt *\(([^()]*)\)", r"\\sqrt{\1}", joined)
    return re.sub(r" *\^(-?\w+)", r"^{\1}", joined)


def escaped(text: str) -> str:
    """Prose as reStructuredText: `code` stays code, everything else means what it says."""
    parts = text.split("`")
    plain = [re.sub(r"([\\*|_])", r"\\\1", part) for part in parts[::2]]
    code = [f"``{part}``" if part.strip() == part and part else part for part in parts[1::2]]
    if len(parts) % 2 == 0:  # an odd number of backticks: no code at all
        return re.sub(r"([\\*|_`])", r"\\\1", text)
    return "".join(a + b for a, b in zip(plain, [*code, ""], strict=True))


def _is_code(lines: list[str]) -> bool:
    """Whether the lines are Python that does something, not a formula that happens to parse."""
    try:
        body = ast.parse("\n".join(lines)).body
    except SyntaxError:
        return len(lines) > 2
    calls = (ast.Call, ast.Await)
    return all(
        isinstance(node, ast.With) or (isinstance(node, ast.Expr) and isinstance(node.value, calls))
        for node in body
    )


def _block(lines: list[str]) -> list[str]:
    """An indented block: lines of code, or a formula a line."""
    body = [line[4:] for line in lines]
    if _is_code(body):
        return ["::", "", *(f"    {line}" for line in body), ""]
    return [row for line in body for row in (".. math::", "", f"    {tex(line)}", "")]


def _table(rows: list[str]) -> list[str]:
    """A Markdown table; within a cell a bar has no spaces around it."""
    cells = [re.split(r" \| ", row.strip()[2:-2]) for row in rows if not row.startswith("|--")]
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for first, *others in cells:
        lines += [f"   * - {escaped(first)}", *(f"     - {escaped(cell)}" for cell in others)]
    return [*lines, ""]


def processed(lines: Iterable[str]) -> list[str]:
    """The lines of a docstring as reStructuredText."""
    found: list[str] = []
    lines = list(lines)
    if lines and re.match(r"Alias for field number \d+", lines[0]):  # Python's own, of named tuples
        return []
    for block in "\n".join(lines).strip("\n").split("\n\n"):
        rows = block.strip("\n").split("\n")
        if all(row.startswith("    ") for row in rows):
            found += _block(rows)
        elif all(row.startswith("|") for row in rows):
            found += _table(rows)
        elif any(re.match(r"\* ", row) for row in rows):
            found += [f"* {escaped(r[2:])}" if r.startswith("* ") else escaped(r) for r in rows]
            found.append("")
        elif any(row.startswith(" ") for row in rows):  # laid out by hand
            found += ["::", "", *(f"    {row}" for row in rows), ""]
        else:
            found += [*map(escaped, rows), ""]
    return found
