"""All our code: which definitions a definition reaches, and one line with a hash for each."""

import ast
import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from companion.pipeline.modules import Module, roots
from companion.pipeline.normal import WHOLE, Key, Normal, token
from companion.pipeline.scopes import FUNCTIONS, absolute, handed_to

PACKAGES = ("nag", "companion")
# They decide names of files, no number: not counted.
OURSELVES = {
    f"companion.pipeline.{name}" for name in ("scopes", "modules", "normal", "code", "fingerprint")
}
STATEMENTS, MAIN = "(statements)", "(main)"


def digest(text: str) -> str:
    """A short hash of a text, 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
        return name in self.sources and name not in OURSELVES

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
                if module in OURSELVES:
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
            base = absolute(node, package)
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
                handed = handed_to(node) if isinstance(node, (*FUNCTIONS, ast.ClassDef)) else []
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
        if text != token(key) or key[1] == WHOLE:
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
                if any(name in module.scope for name in roots([part])):
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
