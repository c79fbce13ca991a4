"""A module by its syntax tree: its names, the statements of each definition, and the others."""

import ast
from collections.abc import Iterable, Iterator

from companion.pipeline.scopes import FUNCTIONS, IMPORTS, bind


def _is_typing(test: ast.expr) -> bool:
    return getattr(test, "id", getattr(test, "attr", "")) == "TYPE_CHECKING"


def is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _is_main(test: ast.expr) -> bool:
    return (
        isinstance(test, ast.Compare)
        and getattr(test.left, "id", "") == "__name__"
        and getattr(test.comparators[0], "value", "") == "__main__"
    )


def roots(targets: Iterable[ast.expr]) -> Iterator[str]:
    """The names that assignments to these targets change: x of `x`, `x.a`, `x[0]`; "" if none."""
    for target in targets:
        if isinstance(target, ast.Tuple | ast.List):
            yield from roots(target.elts)
            continue
        while isinstance(target, ast.Attribute | ast.Subscript | ast.Starred):
            target = target.value
        yield getattr(target, "id", "")


class Module:
    """A module's names, the statements of each definition, and those run for their effect."""

    def __init__(self, name: str, is_package: bool, source: str):
        self.name, self.is_package = name, is_package
        self.package = name if is_package else name.rpartition(".")[0]
        body = ast.parse(source, f"{name}.py").body
        self.scope = bind(body, self.package, "module")
        self.nodes: dict[str, list[ast.stmt]] = {}
        self.statements: list[ast.stmt] = []
        self.main: list[ast.stmt] = []
        self.imports: list[ast.Import | ast.ImportFrom] = []
        for statement in body:
            self._place(statement)

    def _place(self, node: ast.stmt) -> None:
        if isinstance(node, ast.If) and (_is_typing(node.test) or _is_main(node.test)):
            self.main += node.body if _is_main(node.test) else []
            for statement in node.orelse:
                self._place(statement)
            return
        inner = bind([node], self.package, "module")
        names = inner.bound | inner.imports.keys()
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            changed = set(roots(node.targets if isinstance(node, ast.Assign) else [node.target]))
            effect = any(name not in self.scope.bound for name in changed)
            names |= changed
        else:
            effect = not is_text(node) and not isinstance(
                node,
                (*FUNCTIONS, ast.ClassDef, ast.Pass, *IMPORTS, getattr(ast, "TypeAlias", ast.Pass)),
            )
        self.imports += (
            [part for part in ast.walk(node) if isinstance(part, IMPORTS)] if effect else []
        )
        self.imports += [node] if isinstance(node, IMPORTS) else []
        self.statements += [node] if effect else []
        for name in names:
            if name in self.scope and not self.scope.alias(name):
                self.nodes.setdefault(name, []).append(node)
