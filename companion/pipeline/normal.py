"""The normalised text of syntax trees, the same for every layout, place and version of Python."""

import ast
import builtins
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import zip_longest
from typing import Protocol

from companion.pipeline.modules import is_text
from companion.pipeline.scopes import Scope, bind, imported

Key = tuple[str, str]  # a module, and a definition in it or the following
WHOLE = ""

LEFT_OUT = {"ctx", "type_comment", "kind", "simple"}
IMPORTERS = ("importlib.import_module", "runpy.run_module", "importlib.util.find_spec")


def token(key: Key) -> str:
    return "\0{}:{}\0".format(*key)


def _chain(text: str, attributes: Iterable[str]) -> str:
    for name in attributes:
        text = f"Attribute({text}, {name})"
    return text


class OurCode(Protocol):
    """What a visitor asks of all our code (`companion.pipeline.code.Code`)."""

    def has(self, name: str) -> bool: ...
    def beginning(self, start: str) -> list[str]: ...
    def named(self, text: str) -> list[str] | None: ...
    def binds(self, module: str, name: str) -> bool: ...
    def hidden(self, parts: list[str]) -> Key: ...
    def locate(self, parts: list[str]) -> tuple[str, str, list[str]]: ...
    def run_by(self, node: ast.Import | ast.ImportFrom, package: str) -> set[str]: ...


class Normal(ast.NodeVisitor):
    """Writes syntax trees of one module as text; notes the definitions and modules that they use.

    A name stands for what it means: `np.mean` for numpy.mean, whatever numpy is called, and a
    definition of ours for itself. Unlike `ast.dump`, the text is that of every Python version.
    """

    def __init__(self, code: OurCode, scope: Scope, module: str = "", package: str = ""):
        self.code, self.scopes, self.module, self.package = code, [scope], module, package
        self.silent = False  # within `raise`, whose texts do not count
        self.refs: set[Key] = set()
        self.runs: set[str] = set()

    def value(self, value: object) -> str:
        if isinstance(value, list):
            return "[" + ", ".join(text for text in map(self.value, value) if text) + "]"
        return self.visit(value) if isinstance(value, ast.AST) else ascii(value)

    def generic_visit(self, node: ast.AST) -> str:
        fields = [
            f"{name}={self.value(value)}"
            for name, value in ast.iter_fields(node)
            if name not in LEFT_OUT and value is not None and value != []
        ]
        return f"{type(node).__name__}({', '.join(fields)})"

    @contextmanager
    def within(self, scope: Scope) -> Iterator[None]:
        self.scopes.append(scope)
        yield
        self.scopes.pop()

    # names

    def lookup(self, root: ast.Name, attributes: list[str]) -> Key | list[str] | None:
        """What a name means here: a definition of this module, the parts of an import, or None for
        a local or a builtin."""
        name = root.id
        for depth in range(len(self.scopes) - 1, 0, -1):
            scope, innermost = self.scopes[depth], depth == len(self.scopes) - 1
            if name in scope.declared_global:
                break
            if name not in scope or scope.kind == "class" and not innermost:
                continue
            if (
                scope.kind == "class"
                and isinstance(root.ctx, ast.Load)
                and (found := self.at_top(name))
            ):
                self.refer(
                    found, attributes
                )  # it may be the module's, read before the class has its own
            return scope.alias(name)
        return self.at_top(name)

    def at_top(self, name: str) -> Key | list[str] | None:
        top = self.scopes[0]
        if name in top:
            return top.alias(name) or ((self.module, name) if self.module else None)
        if hasattr(builtins, name):
            return None
        stars = [star for star in top.stars if self.code.has(star)]
        found = next((star for star in stars if self.code.binds(star, name)), None)
        self.refs |= set() if found else {(star, WHOLE) for star in stars}
        return [found, name] if found else None

    def refer(self, found: Key | list[str], attributes: list[str]) -> str:
        if isinstance(found, list):
            return self.point(found + attributes)
        self.refs.add(found)
        return _chain(token(found), attributes)

    def point(self, parts: list[str]) -> str:
        """The text of a dotted name: a definition or module of ours and what follows, or itself."""
        module, name, rest = self.code.locate(parts)
        if not module:
            self.doubt(name)
            return f"Name(of {name})"
        self.refs |= {(module, name), self.code.hidden(parts)}
        return _chain(token((module, name)), rest)

    def visit_Name(self, node: ast.Name) -> str:
        return self.meaning(node, [])

    def meaning(self, root: ast.Name, attributes: list[str]) -> str:
        if found := self.lookup(root, attributes):
            return self.refer(found, attributes)
        self.doubt(root.id)
        return _chain(f"Name({root.id})", attributes)

    def doubt(self, name: str) -> None:
        """Count this whole module if it looks itself up by names."""
        if name in ("globals", "eval", "exec", "sys.modules") and self.module:
            self.refs.add((self.module, WHOLE))

    def visit_Attribute(self, node: ast.Attribute) -> str:
        attributes, root = [node.attr], node.value
        while isinstance(root, ast.Attribute):
            attributes.insert(0, root.attr)
            root = root.value
        if isinstance(root, ast.Name):
            return self.meaning(root, attributes)
        return _chain(self.visit(root), attributes)

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> str:
        """Nothing, but for a name that is not always what is imported here."""
        self.runs |= self.code.run_by(node, self.package)
        kept = []
        for name, target in imported(node, self.package):
            always = self.code.has(target[0]) if name == "*" else self.scopes[-1].alias(name)
            if not always:
                kept.append(f"{name}={self.point(list(target))}")
        return f"Import({', '.join(sorted(kept))})" if kept else ""

    visit_ImportFrom = visit_Import

    # strings

    def visit_Constant(self, node: ast.Constant) -> str:
        if isinstance(node.value, str):
            if self.silent:
                return "Text"
            if module := self.code.named(node.value):
                return self.point(module)
        return f"Constant({ascii(node.value)})"

    def visit_JoinedStr(self, node: ast.JoinedStr) -> str:
        if self.silent:
            values = [
                self.visit(value) for value in node.values if isinstance(value, ast.FormattedValue)
            ]
            return f"JoinedStr([{', '.join(values)}])" if values else "Text"
        # Python 3.12 ends the format {x:{form}} with an empty text, others do not
        written = [x for x in node.values if not isinstance(x, ast.Constant) or x.value]
        return self.generic_visit(ast.JoinedStr(written))

    def visit_Raise(self, node: ast.Raise) -> str:
        before, self.silent = self.silent, True
        text = self.generic_visit(node)
        self.silent = before
        return text

    def visit_Expr(self, node: ast.Expr) -> str:
        return "" if is_text(node) else self.generic_visit(node)

    def visit_Pass(self, node: ast.Pass) -> str:
        return ""

    def visit_Call(self, node: ast.Call) -> str:
        function = self.visit(node.func)
        if (
            function in ("Name(__import__)", *(f"Name(of {name})" for name in IMPORTERS))
            and node.args
        ):
            first = node.args[0]
            start = first.values[0] if isinstance(first, ast.JoinedStr) and first.values else first
            if isinstance(start, ast.Constant) and isinstance(start.value, str):
                name = self.package + start.value if start.value.startswith(".") else start.value
                for module in self.code.beginning(name) if start is not first else [name]:
                    if self.code.has(module):
                        self.refs.add((module, WHOLE))
        return self.generic_visit(node)

    # annotations

    def visit_AnnAssign(self, node: ast.AnnAssign) -> str:
        if self.scopes[-1].kind != "class":
            return self.visit(ast.Assign([node.target], node.value)) if node.value else ""
        literal = {
            part
            for outer in ast.walk(node.annotation)
            if isinstance(outer, ast.Subscript) and self.visit(outer.value).endswith("Literal)")
            for part in ast.walk(outer)
        }
        for part in ast.walk(
            node.annotation
        ):  # "Other" of `other: "Other"`, which pydantic looks up
            if (
                isinstance(part, ast.Constant)
                and isinstance(part.value, str)
                and part not in literal
            ):
                with suppress(SyntaxError):
                    self.visit(ast.parse(part.value, mode="eval").body)
        return self.generic_visit(node)

    # scopes

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> str:
        a = node.args
        groups = [[x.arg for x in group] for group in (a.posonlyargs, a.args, a.kwonlyargs)]
        rest = [x.arg if x else None for x in (a.vararg, a.kwarg)]
        body = node.body if isinstance(node.body, list) else [node.body]
        names = {*sum(groups, []), *rest, *(p.name for p in getattr(node, "type_params", []))} - {
            None
        }
        head = [
            type(node).__name__,
            getattr(node, "name", ""),
            f"{groups} {rest}",
            self.value(a.defaults),
            self.value(a.kw_defaults),
            self.value(getattr(node, "decorator_list", [])),
        ]
        with self.within(bind(body, self.package, "function", names)):
            return f"{' '.join(head)} {self.value(body)}"

    visit_AsyncFunctionDef = visit_Lambda = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> str:
        head = [
            "ClassDef",
            node.name,
            *map(self.value, (node.bases, node.keywords, node.decorator_list)),
        ]
        names = {p.name for p in getattr(node, "type_params", [])}
        with self.within(bind(node.body, self.package, "class", names)):
            return f"{' '.join(head)} {self.value(node.body)}"

    def visit_ListComp(
        self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
    ) -> str:
        first = self.visit(node.generators[0].iter)  # it is evaluated outside
        with self.within(bind([g.target for g in node.generators], self.package, "comprehension")):
            parts = [
                f"for {g.is_async} {self.visit(g.target)} in {first or self.visit(g.iter)} "
                f"{self.value(g.ifs)}"
                for g, first in zip_longest(node.generators, [first])
            ]
            made = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
            return f"{type(node).__name__}({self.value(made)} {' '.join(parts)})"

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp
