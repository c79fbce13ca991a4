"""What a scope of Python binds: the names of a module, class, function or comprehension."""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

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
        base = absolute(node, package)
        for item in node.names:
            yield item.asname or item.name, (base, item.name)


def absolute(node: ast.ImportFrom, package: str) -> str:
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
            todo += handed_to(node)
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


def handed_to(node: ast.AST) -> list[ast.expr]:
    """Decorators of a function or class, and bases and keywords of a class: what learns of it."""
    keywords = [keyword.value for keyword in getattr(node, "keywords", [])]
    return [*getattr(node, "decorator_list", []), *getattr(node, "bases", []), *keywords]
