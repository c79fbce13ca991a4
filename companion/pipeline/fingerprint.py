"""What a stage computes, as a text that changes with the code it runs and with nothing else.

The text has a line for the notebook's own cells and one for each definition of `nag` or `companion`
that they reach, with a hash of its normalised syntax tree. Comments, docstrings, layout, imports,
annotations of functions, texts of raised errors, and the place of a definition do not count. Where
a dependency is in doubt it counts: what cannot be resolved counts with its whole module.

    python -m companion.pipeline.fingerprint

writes build/fingerprints/NAME.txt for every notebook and module that stages run; with `--why NAME`
it lists the definitions that changed since that was written.
"""

import argparse
import ast
import builtins
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import zip_longest
from pathlib import Path

ROOT = Path(os.environ.get("DVC_ROOT") or Path(__file__).resolve().parents[2])
FOLDER = Path("build", "fingerprints")
PACKAGES = ("nag", "companion")
ITSELF = "companion.pipeline.fingerprint"  # decides names of files, no number: not counted
RUNNERS = (ITSELF, "companion.pipeline.run")
PIPELINES = ("dvc.yaml", "studies/dvc.yaml", "imagenet/dvc.yaml", "imagenet/finetune/dvc.yaml")
PARTS = ("measure", "tell", "all")
SHARED = {"parameters", "setup"}  # tags of the cells that belong to every part

Key = tuple[str, str]  # a module, and a definition in it or one of the following
WHOLE, STATEMENTS, MAIN = "", "(statements)", "(main)"


def digest(text: str) -> str:
    """A short hash of a text, 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---- what a scope binds

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
IMPORTS = (ast.Import, ast.ImportFrom)


@dataclass
class Scope:
    """Names bound in a module, class, function or comprehension: by imports, with their dotted
    targets, and otherwise."""

    kind: str
    bound: set[str] = field(default_factory=set)
    imports: dict[str, set[tuple[str, ...]]] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    declared_global: set[str] = field(default_factory=set)

    def __contains__(self, name: str) -> bool:
        return name in self.bound or name in self.imports

    def alias(self, name: str) -> list[str] | None:
        """The parts of what an import named so; None if the name is not always that."""
        targets = self.imports.get(name, ())
        return list(*targets) if len(targets) == 1 and name not in self.bound else None


def imported(
    node: ast.Import | ast.ImportFrom, package: str
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The names that an import statement binds, each with its module and the name in that.

    The module is one part: `from nag.ddpm import x` is of that module, whatever `nag.ddpm` is.
    """
    if isinstance(node, ast.Import):
        for item in node.names:
            first = item.name.split(".")[0]
            yield (item.asname, (item.name,)) if item.asname else (first, (first,))
    elif node.module != "__future__":
        base = _absolute(node, package)
        for item in node.names:
            yield item.asname or item.name, (base, item.name)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    """The module that `from ... import` names, in full."""
    parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    return ".".join([*parents, *([node.module] if node.module else [])])


def bind(nodes: Iterable[ast.AST], package: str, kind: str, names: Iterable[str] = ()) -> Scope:
    """The scope that these nodes make, with `names` bound already; inner scopes are not entered."""
    scope, todo, outer = Scope(kind, set(names)), list(nodes), set()
    while todo:
        node = todo.pop()
        if isinstance(node, IMPORTS):
            for name, target in imported(node, package):
                if name == "*":
                    scope.stars.append(target[0])
                else:
                    scope.imports.setdefault(name, set()).add(target)
            continue
        if isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.Lambda, *COMPREHENSIONS)):
            scope.bound |= {node.name} if hasattr(node, "name") else set()
            if isinstance(node, COMPREHENSIONS):  # an assignment expression within binds here
                scope.bound |= {
                    part.target.id for part in ast.walk(node) if isinstance(part, ast.NamedExpr)
                }
            todo += _handed_to(node)
            todo += (
                [*node.args.defaults, *filter(None, node.args.kw_defaults)]
                if hasattr(node, "args")
                else []
            )
            continue
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            scope.bound.add(node.id)
        elif isinstance(node, ast.Global | ast.Nonlocal):
            outer |= set(node.names)
            scope.declared_global |= set(node.names) if isinstance(node, ast.Global) else set()
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar | ast.MatchMapping):
            scope.bound |= {
                getattr(node, "rest" if isinstance(node, ast.MatchMapping) else "name")
            } - {None}
        todo += ast.iter_child_nodes(node)
    scope.bound -= outer
    scope.imports = {name: targets for name, targets in scope.imports.items() if name not in outer}
    return scope


def _handed_to(node: ast.AST) -> list[ast.expr]:
    """Decorators of a function or class, and bases and keywords of a class: what learns of it."""
    keywords = [keyword.value for keyword in getattr(node, "keywords", [])]
    return [*getattr(node, "decorator_list", []), *getattr(node, "bases", []), *keywords]


# ---- a module: its definitions and its other statements


def _is_typing(test: ast.expr) -> bool:
    return getattr(test, "id", getattr(test, "attr", "")) == "TYPE_CHECKING"


def _is_text(node: ast.stmt) -> bool:
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


def _roots(targets: Iterable[ast.expr]) -> Iterator[str]:
    """The names that assignments to these targets change: x of `x`, `x.a`, `x[0]`; "" if none."""
    for target in targets:
        if isinstance(target, ast.Tuple | ast.List):
            yield from _roots(target.elts)
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
            changed = set(_roots(node.targets if isinstance(node, ast.Assign) else [node.target]))
            effect = any(name not in self.scope.bound for name in changed)
            names |= changed
        else:
            effect = not _is_text(node) and not isinstance(
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


# ---- normalised text

LEFT_OUT = {"ctx", "type_comment", "kind", "simple"}
IMPORTERS = ("importlib.import_module", "runpy.run_module", "importlib.util.find_spec")


def _token(key: Key) -> str:
    return "\0{}:{}\0".format(*key)


def _chain(text: str, attributes: Iterable[str]) -> str:
    for name in attributes:
        text = f"Attribute({text}, {name})"
    return text


class Normal(ast.NodeVisitor):
    """Writes syntax trees of one module as text; notes the definitions and modules that they use.

    A name stands for what it means: `np.mean` for numpy.mean, whatever numpy is called, and a
    definition of ours for itself. Unlike `ast.dump`, the text is that of every Python version.
    """

    def __init__(self, code: "Code", scope: Scope, module: str = "", package: str = ""):
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
        return _chain(_token(found), attributes)

    def point(self, parts: list[str]) -> str:
        """The text of a dotted name: a definition or module of ours and what follows, or itself."""
        module, name, rest = self.code.locate(parts)
        if not module:
            self.doubt(name)
            return f"Name(of {name})"
        self.refs |= {(module, name), self.code.hidden(parts)}
        return _chain(_token((module, name)), rest)

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
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> str:
        before, self.silent = self.silent, True
        text = self.generic_visit(node)
        self.silent = before
        return text

    def visit_Expr(self, node: ast.Expr) -> str:
        return "" if _is_text(node) else self.generic_visit(node)

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


# ---- all our code


@dataclass(frozen=True)
class Text:
    """A definition's normalised text, the definitions it names, and the modules it imports."""

    text: str
    refs: frozenset[Key] = frozenset()
    runs: frozenset[str] = frozenset()


class Code:
    """Our modules by dotted name, from (name, is a package, source); parsed when asked for."""

    def __init__(self, sources: Iterable[tuple[str, bool, str]]):
        self.sources = {name: (is_package, source) for name, is_package, source in sources}
        for name in list(self.sources):  # folders without __init__.py are packages too
            while (name := name.rpartition(".")[0]) and name not in self.sources:
                self.sources[name] = (True, "")
        self.module = cache(lambda name: Module(name, *self.sources[name]))
        self.text = cache(self._text)
        self.executed = cache(self._executed)
        self.registered = cache(self._registered)

    def has(self, name: str) -> bool:
        return name in self.sources and name != ITSELF

    def beginning(self, start: str) -> list[str]:
        """The modules whose names begin so, but for the packages themselves."""
        return [name for name in self.sources if "." in start and name.startswith(start)]

    def parts(self, text: str) -> list[str]:
        """The parts of a dotted name, or of "module:definition"; a module is one part."""
        module, _, name = text.partition(":")
        return [module, name] if name else [text] if text in self.sources else text.split(".")

    def named(self, text: str) -> list[str] | None:
        """The parts of a string that names one of our modules or definitions; else None."""
        if not re.fullmatch(r"\w+(\.\w+)+(:\w+)?", text):
            return None
        module, _, rest = self.locate(self.parts(text))
        return self.parts(text) if module and not rest else None

    def binds(self, module: str, name: str) -> bool:
        """Whether a name is found in a module of ours."""
        return not self.locate([module, name])[2]

    def hidden(self, parts: list[str]) -> Key:
        """What a name of ours means if its modules come first, e.g. the module `nag.ddpm` where
        `nag` has a function of that name: which it is depends on the order of imports.
        """
        parts = ".".join(parts).split(".")
        count = next(k for k in range(len(parts), 0, -1) if ".".join(parts[:k]) in self.sources)
        return self.locate([".".join(parts[:count]), *parts[count:]])[:2]

    def locate(self, parts: list[str], seen: frozenset = frozenset()) -> tuple[str, str, list[str]]:
        """(module, definition, the parts that follow) of a name; ("", full name, []) if not ours.

        The definition is WHOLE if the name is a module's, or if the module has no such name.
        """
        module = parts[0]
        if not self.has(module):
            return "", ".".join(parts), []
        for k, part in enumerate(parts[1:], 1):
            scope, here = self.module(module).scope, (module, part)
            target = scope.alias(part)
            if target and here not in seen and target != [module, part]:
                return self.locate(target + parts[k + 1 :], seen | {here})
            if part in scope and not target:
                return module, part, parts[k + 1 :]
            if f"{module}.{part}" in self.sources:
                module = f"{module}.{part}"
                if module == ITSELF:
                    return "", ".".join(parts), []
                continue
            for star in scope.stars:
                if self.has(star) and (star, part) not in seen:
                    found = self.locate([star, *parts[k:]], seen | {here, (star, part)})
                    if found[1] != WHOLE:
                        return found
            return module, WHOLE, parts[k:]
        return module, WHOLE, []

    def run_by(self, node: ast.Import | ast.ImportFrom, package: str) -> set[str]:
        """Our modules that an import statement names, be it as modules or by names in them."""
        if isinstance(node, ast.Import):
            names = {item.name for item in node.names}
        else:
            base = _absolute(node, package)
            names = {base, *(f"{base}.{item.name}" for item in node.names)}
        return {name for name in names if self.has(name)}

    def _executed(self, name: str) -> set[str]:
        """The modules that run when one is imported: it, its packages, and all that they import."""
        found, todo = set(), [name]
        while todo:
            if (name := todo.pop()) in found:
                continue
            found.add(name)
            module = self.module(name)
            todo += [name.rpartition(".")[0]] if "." in name else []
            todo += [
                other for node in module.imports for other in self.run_by(node, module.package)
            ]
        return found

    def _text(self, key: Key) -> Text:
        module, name = self.module(key[0]), key[1]
        if name == WHOLE:
            return Text("", frozenset(self.members(module)))
        nodes = {STATEMENTS: module.statements, MAIN: module.main}.get(name) or module.nodes.get(
            name, []
        )
        normal = Normal(self, module.scope, module.name, module.package)
        return Text(normal.value(nodes), frozenset(normal.refs), frozenset(normal.runs))

    def members(self, module: Module) -> set[Key]:
        """All of a module: definitions, statements, what it re-exports, and a package's modules."""
        found = {(module.name, name) for name in module.nodes}
        found |= {(module.name, STATEMENTS)} if module.statements else set()
        found |= {(module.name, MAIN)} if module.main else set()
        passed_on = [
            self.locate(target)[:2]
            for name in module.scope.imports
            if (target := module.scope.alias(name))
        ]
        found |= {key for key in passed_on if key[0] and key[1] != WHOLE}
        found |= {(star, WHOLE) for star in module.scope.stars if self.has(star)}
        if module.is_package:
            found |= {
                (name, WHOLE)
                for name in self.sources
                if name.rpartition(".")[0] == module.name and self.has(name)
            }
        return found

    def _registered(self, name: str) -> set[Key]:
        """The definitions that a decorator, base class or metaclass may register on import."""
        module, found = self.module(name), set()
        for definition, nodes in module.nodes.items():
            for node in nodes:
                handed = _handed_to(node) if isinstance(node, (*FUNCTIONS, ast.ClassDef)) else []
                if any(self.registers(part, module, frozenset()) for part in handed):
                    found.add((name, definition))
        return found

    def registers(
        self, expression: ast.expr, module: Module, seen: frozenset[Key] = frozenset()
    ) -> bool:
        """Whether calling this, e.g. a decorator or base class, may have an effect that stays.

        Any method of a constant of ours may; a function or class may if its code does.
        """
        while isinstance(expression, ast.Call | ast.Subscript):
            expression = expression.func if isinstance(expression, ast.Call) else expression.value
        normal = Normal(self, module.scope, module.name, module.package)
        text = normal.visit(expression)
        if not normal.refs:
            return False
        key = min(normal.refs)
        if text != _token(key) or key[1] == WHOLE:
            return True
        home = self.module(key[0])
        return key not in seen and any(
            self._keeps(node, home, seen | {key}) for node in home.nodes.get(key[1], [])
        )

    def _keeps(self, node: ast.stmt, module: Module, seen: frozenset[Key]) -> bool:
        """Whether the code of a function or class may change something outside; a constant may."""
        if isinstance(node, ast.ClassDef):
            methods = {part.name for part in node.body if isinstance(part, FUNCTIONS)}
            is_metaclass = any(getattr(base, "id", "") == "type" for base in node.bases)
            has_metaclass = any(keyword.arg == "metaclass" for keyword in node.keywords)
            if "__init_subclass__" in methods or is_metaclass or has_metaclass:
                return True
            if any(self.registers(base, module, seen) for base in node.bases):
                return True
        elif not isinstance(node, FUNCTIONS):
            return True
        for part in ast.walk(node):
            if isinstance(part, ast.Global):
                return True
            if isinstance(part, ast.Call) and self.registers(part.func, module, seen):
                return True
            if isinstance(part, ast.Attribute | ast.Subscript) and not isinstance(
                part.ctx, ast.Load
            ):
                if any(name in module.scope for name in _roots([part])):
                    return True
        return False

    def reach(self, refs: Iterable[Key], runs: Iterable[str] = ()) -> set[Key]:
        """All that is reached from these definitions and from importing these modules."""
        found: set[Key] = set()
        todo, imports = list(refs), list(runs)
        done: set[str] = set()
        while todo or imports:
            while imports:
                for name in self.executed(imports.pop()) - done:
                    done.add(name)
                    todo += self.registered(name)
                    todo += [(name, STATEMENTS)] if self.module(name).statements else []
            if todo and (key := todo.pop()) not in found:
                found.add(key)
                text = self.text(key)
                todo += text.refs
                imports += [key[0], *text.runs]
        return found

    def fingerprint(self, own: Text) -> str:
        """A line for own text, if there is any, and one for each definition that it reaches."""
        keys = self.reach(own.refs, own.runs)
        texts = {key: self.text(key).text for key in keys if key[1] != WHOLE}
        plain = {key: digest(_written(text, lambda found: found[1])) for key, text in texts.items()}
        for key in keys - texts.keys():
            plain[key] = digest(" ".join(sorted(plain[k] for k in texts if k[0] == key[0])))
        meanings: dict[str, set[str]] = {}
        for (_, name), text in plain.items():
            meanings.setdefault(name, set()).add(text)

        def meant(key: Key) -> str:
            """A definition's name, and its hash where others have its name."""
            return key[1] if len(meanings[key[1]]) == 1 else f"{key[1]} {plain[key]}"

        lines = sorted(
            f"{name}  {digest(_written(text, meant))}" for (_, name), text in texts.items()
        )
        first = [f"(cells)  {digest(_written(own.text, meant))}"] if own.text else []
        return "\n".join(first + lines) + "\n"


def _written(text: str, name: Callable[[Key], str]) -> str:
    """A text with its definitions named."""
    return re.sub(
        "\0([^\0]*):([^\0]*)\0", lambda found: f"Name(our {name((found[1], found[2]))})", text
    )


@lru_cache(maxsize=2)
def _parsed(sources: tuple[tuple[str, bool, str], ...]) -> Code:
    return Code(sources)


def code_in(root: Path) -> Code:
    """The code of the packages below a folder, as it is now."""
    files = [file for package in PACKAGES for file in sorted((root / package).rglob("*.py"))]
    return _parsed(
        tuple(
            (
                ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"),
                file.name == "__init__.py",
                file.read_text(encoding="utf-8"),
            )
            for file in files
        )
    )


# ---- fingerprints


def belongs(tags: Iterable[str], part: str) -> bool:
    """Whether a code cell with these tags is in a part: "parameters" and "setup" are in every one,
    "tell" is in that, and all others measure."""
    tags = set(tags)
    return part == "all" or bool(tags & SHARED) or ("tell" in tags) == (part == "tell")


def code_cells(path: Path, part: str = "all") -> list[str]:
    """The sources of the notebook's code cells in a part; raises ValueError for an unknown part."""
    if part not in PARTS:
        raise ValueError(f"unknown part {part!r} of a notebook: choose one of {', '.join(PARTS)}")
    cells = [
        cell
        for cell in json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
    ]
    return [
        "".join(cell["source"]) for cell in cells if belongs(cell["metadata"].get("tags", []), part)
    ]


def parse_cell(source: str, name: str) -> ast.Module:
    """A cell's syntax tree, IPython's own lines as text in it; raises ValueError if it has none."""
    try:
        return ast.parse(source)
    except SyntaxError:
        lines = source.splitlines()
    whole = next((line for line in lines if line.strip()), "").startswith("%%")
    python = [
        re.sub(
            r"^(\s*)([\w, ]+=\s*)?([%!].*|\?+\S+|\S+\?+)$",
            lambda m: f"{m[1]}magic({m[0].strip()!r})",
            line,
        )
        for line in lines
    ]
    try:
        return ast.parse(f"magic({source!r})" if whole else "\n".join(python))
    except SyntaxError as error:
        raise ValueError(
            f"{name} has a cell that is not Python ({error}): correct it first"
        ) from error


def of_notebook(path: Path, part: str = "all", root: Path = ROOT) -> str:
    """The fingerprint of a part of a notebook, "measure", "tell" or "all"; raises ValueError for
    another, or for a cell that is not Python."""
    code, path = code_in(root), Path(path)
    body = [
        node for source in code_cells(path, part) for node in parse_cell(source, path.name).body
    ]
    normal = Normal(code, bind(body, "", "module"))
    text = normal.value(body)
    magics = [
        part.value
        for node in body
        for call in ast.walk(node)
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "magic"
        for part in call.args
        if isinstance(part, ast.Constant)
    ]
    named = {
        name
        for magic in magics
        for name in re.findall(r"\w+(?:\.\w+)+", str(magic))
        if code.has(name)
    }
    refs = normal.refs | {(name, WHOLE) for name in named}
    return code.fingerprint(Text(text, frozenset(refs), frozenset(normal.runs)))


def of_module(name: str, root: Path = ROOT) -> str:
    """The fingerprint of a module that `python -m name` runs; raises ValueError if not ours."""
    code = code_in(root)
    name = f"{name}.__main__" if code.has(f"{name}.__main__") else name
    if not code.has(name):
        raise ValueError(f"{name} is no module of {' or '.join(PACKAGES)}: correct its name")
    return code.fingerprint(Text("", frozenset({(name, WHOLE)})))


def of_objects(*objects: str | Callable, root: Path = ROOT) -> str:
    """The fingerprint of definitions, themselves or as "module:name", to name what a study keeps.

    It is of the code on disk when first asked for, and stays. Raises ValueError for what is not
    defined in our packages.
    """
    names = [
        item if isinstance(item, str) else f"{item.__module__}:{item.__qualname__.split('.')[0]}"
        for item in objects
    ]
    return _of_names(tuple(names), root)


@cache
def _of_names(names: tuple[str, ...], root: Path) -> str:
    code, refs = code_in(root), set()
    for name in names:
        module, definition, rest = code.locate(code.parts(name))
        if not module or (rest and definition == WHOLE):
            raise ValueError(
                f"{name} is not defined in {' or '.join(PACKAGES)}: give a function or class of "
                "theirs, or its name as package.module:name"
            )
        refs.add((module, definition))
    return code.fingerprint(Text("", frozenset(refs)))


def changed(old: str, new: str) -> list[str]:
    """The names of the definitions that differ between fingerprints; (cells): the notebook's."""
    lines = set(old.splitlines()) ^ set(new.splitlines())
    return sorted({line.rpartition("  ")[0] for line in lines})


# ---- files of fingerprints


def modules_run(root: Path = ROOT, pipelines: Iterable[Path] = ()) -> list[str]:
    """Our modules that commands of the pipelines run by -m."""
    listed: list[Path | str] = [*PIPELINES, *pipelines]
    files = {(root / name).resolve() for name in listed}
    text = "\n".join(file.read_text(encoding="utf-8") for file in sorted(files) if file.is_file())
    text = re.sub(r"(^|\s)#.*", "", text, flags=re.MULTILINE)
    names = re.findall(rf"-m\s+((?:{'|'.join(PACKAGES)})(?:\.\w+)+)", text)
    return sorted(set(names) - set(RUNNERS))


def fingerprints(root: Path = ROOT, pipelines: Iterable[Path] = ()) -> dict[str, str]:
    """All fingerprints by name: NOTEBOOK.measure, NOTEBOOK.tell if it has such cells, MODULE."""
    found = {}
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        found[f"{path.stem}.measure"] = of_notebook(path, "measure", root)
        if code_cells(path, "all") != code_cells(path, "measure"):
            found[f"{path.stem}.tell"] = of_notebook(path, "tell", root)
    return found | {name: of_module(name, root) for name in modules_run(root, pipelines)}


def write(root: Path = ROOT, pipelines: Iterable[Path] = ()) -> list[str]:
    """Write the fingerprints that changed, remove those of what is gone; returns both's names."""
    folder, new = root / FOLDER, fingerprints(root, pipelines)
    folder.mkdir(parents=True, exist_ok=True)
    old = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.txt")}
    for name in old.keys() - new.keys():
        (folder / f"{name}.txt").unlink()
    for name, text in new.items():
        if old.get(name) != text:
            part = folder / f".{os.getpid()}.{name}"  # support.files would import pandas
            part.write_text(text, encoding="utf-8")
            part.replace(folder / f"{name}.txt")
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def why(name: str, folder: Path, new: dict[str, str]) -> str:
    """A sentence on what changed in a fingerprint since it was written to a folder."""
    file = folder / f"{name}.txt"
    if name not in new:
        return (
            f"{name}: there is no such notebook part or module; there are {', '.join(sorted(new))}"
        )
    if not file.is_file():
        return f"{name}: not in {folder}"
    names = changed(file.read_text(encoding="utf-8"), new[name])
    return f"{name}: {', '.join(names) if names else 'nothing'} changed"


def main(arguments: list[str]) -> None:
    """Write all fingerprints, or print what changed since they were written."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {ITSELF}", description="What each stage computes, in build/fingerprints"
    )
    parser.add_argument(
        "pipelines",
        nargs="*",
        type=Path,
        help=f"further files of stages, besides {', '.join(PIPELINES)}",
    )
    parser.add_argument(
        "--why",
        nargs="+",
        metavar="NAME",
        help="print what changed since NAME was written, and write nothing",
    )
    parser.add_argument(
        "--diff",
        type=Path,
        metavar="FOLDER",
        help="print what differs from the fingerprints in FOLDER",
    )
    given = parser.parse_args(arguments)
    pipelines = [path.resolve() for path in given.pipelines]
    for path in [*pipelines, *([given.diff] if given.diff else [])]:
        if not path.exists():
            parser.error(f"there is no {path}")
    try:
        if given.why or given.diff:
            folder, new = given.diff or ROOT / FOLDER, fingerprints(ROOT, pipelines)
            for name in given.why or sorted(new):
                print(why(name.removesuffix(".txt"), folder, new))
        else:
            names = write(ROOT, pipelines)
            print(f"{len(names)} fingerprints changed{': ' if names else ''}{', '.join(names)}")
    except (ValueError, SyntaxError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
