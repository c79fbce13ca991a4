"""Fingerprints: what a stage computes changes them, how and where it is written does not."""

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from companion.pipeline import fingerprint as fp

CODE = {
    "nag/__init__.py": "",
    "nag/grids.py": """
        LAST = 0.04
        def uniform(steps, start=1.0):
            return [start - k / steps for k in range(steps + 1)] + [LAST]
        def shifted(steps):
            return [3 * u for u in uniform(steps)]
        """,
    "nag/samplers.py": """
        from functools import partial
        import numpy as np
        from nag.grids import uniform
        from nag import grids
        EPS = 1e-3
        def euler(field, steps: int = 5):
            '''Euler's method.'''
            if steps < 1:
                raise ValueError(f"{steps} steps: give more")
            return [field(t) + np.mean(EPS) for t in uniform(steps)]
        def heun(field, steps=5):
            return euler(field, 2 * steps)
        SAMPLERS = {"euler": euler, "heun": partial(heun, steps=7)}
        SAMPLERS["twice"] = lambda field: euler(field, 2)
        def unused():
            return grids.shifted(3)
        """,
    "nag/guide.py": """
        from dataclasses import dataclass
        from typing import NamedTuple
        class Base:
            scale = 2.0
            def strength(self):
                return self.scale
        @dataclass
        class Guide(Base):
            w: float = 1.0
            def __call__(self, x):
                return self.w * x * self.strength()
        class Pair(NamedTuple):
            a: int
        """,
    "nag/study.py": """
        from nag.samplers import SAMPLERS
        def arm(name):
            return SAMPLERS[name](lambda t: t)
        """,
    "companion/plots.py": """
        def draw(x):
            return x + 1
        """,
}
BOOKS = {
    "01_euler": [
        ("steps = 3", "parameters"),
        ("from nag.samplers import euler\nimport numpy as np", "setup"),
        ("euler(np.sin, steps)",),
        ("from companion.plots import draw\ndraw(1)", "tell"),
    ],
    "02_study": [("from nag import study\nstudy.arm('euler')",)],
    "03_guide": [("from nag.guide import Guide\nGuide()(2)",)],
    "04_grid": [("import nag.grids\nnag.grids.uniform(3)",)],
}


def text(source):
    """Source without the margin of its first line."""
    lines = source.lstrip("\n").splitlines()
    margin = len(lines[0]) - len(lines[0].lstrip()) if lines else 0
    return "\n".join(line[margin:] for line in lines) + "\n"


def write_notebook(path, cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    made = [
        {
            "cell_type": "code",
            "metadata": {"tags": tags},
            "source": source.splitlines(keepends=True),
        }
        for source, *tags in cells
    ]
    path.write_text(
        json.dumps(
            {"cells": [{"cell_type": "markdown", "metadata": {}, "source": ["A title"]}, *made]}
        )
    )


@pytest.fixture
def repo(tmp_path):
    """A small repository: its code and notebooks, to be edited, and their fingerprints."""

    class Repo:
        root, code, books = (
            tmp_path,
            {name: text(source) for name, source in CODE.items()},
            dict(BOOKS),
        )

        def edit(self, name, old, new, count=1):
            assert self.code[name].count(old) >= 1
            self.code[name] = self.code[name].replace(old, new, count)

        def prints(self):
            for folder in ("nag", "companion", "notebooks"):
                shutil.rmtree(tmp_path / folder, ignore_errors=True)
            for name, source in self.code.items():
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text(source)
            for name, cells in self.books.items():
                write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", cells)
            return fp.fingerprints(tmp_path)

        def changed(self, before):
            after = self.prints()
            return {
                name.removesuffix(".measure")
                for name in before | after
                if before.get(name) != after.get(name)
            }

    return Repo()


EULER = {"01_euler", "02_study"}
RUN = {*EULER, "01_euler.tell"}  # its cell `setup` imports the module

LAYOUT = {
    "comment": ("nag/samplers.py", "EPS = 1e-3", "EPS = 0.001  # small\n\n"),
    "docstring": ("nag/samplers.py", "'''Euler's method.'''", "'''The method of Euler.'''"),
    "no docstring": ("nag/samplers.py", "    '''Euler's method.'''\n", ""),
    "annotation": (
        "nag/samplers.py",
        "def euler(field, steps: int = 5):",
        "def euler(field: 'F', *, steps=5) -> list[float]:".replace("*, ", ""),
    ),
    "error text": ("nag/samplers.py", "{steps} steps: give more", "give more than {steps}"),
    "annotated constant": ("nag/samplers.py", "EPS = 1e-3", "EPS: float = 1e-3"),
    "parentheses": ("nag/samplers.py", "2 * steps", "(2 * steps)"),
    "import as": (
        "nag/samplers.py",
        "import numpy as np",
        "from numpy import mean\nimport numpy as np",
    ),
    "another definition": (
        "nag/samplers.py",
        "def unused",
        "def more():\n    return 1\ndef unused",
    ),
    "unused definition": ("nag/samplers.py", "shifted(3)", "shifted(4)"),
    "main block": (
        "nag/samplers.py",
        "def unused",
        "if __name__ == '__main__':\n    print(euler(abs))\ndef unused",
    ),
    "for type checkers": (
        "nag/samplers.py",
        "EPS",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from x import y\nEPS",
    ),
}


def test_the_tree_of_python_3_12_does_not_count(repo, monkeypatch):
    """There a format that a name stands for ends with an empty text."""
    repo.edit("nag/grids.py", "return [3", "print(f'{steps:{LAST}}')\n    return [3")
    repo.books["04_grid"] = [("import nag.grids\nnag.grids.shifted(3)",)]
    before = repo.prints()

    def parse(*arguments, usual=ast.parse):
        tree = usual(*arguments)
        for node in ast.walk(tree):
            if isinstance(node, ast.FormattedValue) and node.format_spec:
                node.format_spec.values = [*node.format_spec.values[:1], ast.Constant("")]
        return tree

    monkeypatch.setattr(ast, "parse", parse)
    repo.edit("nag/grids.py", "LAST = 0.04", "LAST = 0.04  # so that it is read again")
    assert repo.changed(before) == set()


@pytest.mark.parametrize("case", LAYOUT)
def test_how_it_is_written_does_not_count(repo, case):
    before = repo.prints()
    repo.edit(*LAYOUT[case])
    assert repo.changed(before) == set()


NUMBERS = {
    "constant": ("nag/samplers.py", "1e-3", "2e-3", EULER),
    "default": ("nag/samplers.py", "steps: int = 5", "steps: int = 6", EULER),
    "function reached through two modules": (
        "nag/grids.py",
        "start - k",
        "start + k",
        {*EULER, "04_grid"},
    ),
    "constant reached through three": ("nag/grids.py", "0.04", "0.05", {*EULER, "04_grid"}),
    "entry of a register": ("nag/samplers.py", "steps=7", "steps=8", {"02_study"}),
    "entry added to a register": (
        "nag/samplers.py",
        "euler(field, 2)",
        "euler(field, 3)",
        {"02_study"},
    ),
    "function in a register": ("nag/samplers.py", "2 * steps", "3 * steps", {"02_study"}),
    "which error": ("nag/samplers.py", "raise ValueError", "raise TypeError", EULER),
    "number in an error": (
        "nag/samplers.py",
        "{steps} steps: give more",
        "{steps + 1} steps: give more",
        EULER,
    ),
    "default of a dataclass": ("nag/guide.py", "w: float = 1.0", "w: float = 2.0", {"03_guide"}),
    "type in a class": ("nag/guide.py", "w: float", "w: int", {"03_guide"}),
    "attribute of a base class": ("nag/guide.py", "2.0", "3.0", {"03_guide"}),
    "method of a base class": (
        "nag/guide.py",
        "return self.scale",
        "return -self.scale",
        {"03_guide"},
    ),
    "decorator": ("nag/guide.py", "@dataclass\n", "@dataclass(frozen=True)\n", {"03_guide"}),
    "added decorator": ("nag/samplers.py", "def heun", "@partial\ndef heun", {"02_study"}),
    "external function": ("nag/samplers.py", "np.mean", "np.median", EULER),
    "external module": ("nag/samplers.py", "import numpy as np", "import torch as np", EULER),
    "conditional import": (
        "nag/samplers.py",
        "import numpy as np",
        "try:\n    import numpy as np\nexcept ImportError:\n    np = None",
        RUN,
    ),
    "augmented constant": ("nag/samplers.py", "EPS = 1e-3", "EPS = 1e-3\nEPS += 1", EULER),
    "statement": ("nag/samplers.py", "EPS = 1e-3", "EPS = 1e-3\nnp.seterr('raise')", RUN),
    "effect on another module": ("nag/samplers.py", "EPS = 1e-3", "EPS = 1e-3\nnp.x = 3", RUN),
    "plot": ("companion/plots.py", "x + 1", "x + 2", {"01_euler.tell"}),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_what_it_computes_counts_where_it_is_reached(repo, case):
    before = repo.prints()
    *edit, expected = NUMBERS[case]
    repo.edit(*edit)
    assert repo.changed(before) == expected


def test_a_string_counts_unless_it_is_a_docstring(repo):
    repo.edit("nag/grids.py", "LAST = 0.04", "LAST = 'a'")
    before = repo.prints()
    repo.edit("nag/grids.py", "'a'", "'b'")
    assert repo.changed(before) == {*EULER, "04_grid"}


def test_a_definition_may_move(repo):
    before = repo.prints()
    euler = re.search(r"def euler.*?(?=def heun)", repo.code["nag/samplers.py"], re.DOTALL)[0]
    repo.edit("nag/samplers.py", euler, "from nag.one_step.methods import euler\n")
    repo.edit("nag/samplers.py", "EPS = 1e-3\n", "")
    repo.code["nag/one_step/methods.py"] = (
        f"import numpy\nfrom .. import grids as g\n\nEPS = 1e-3\n\n\n{euler}".replace(
            "uniform(", "g.uniform("
        ).replace("np.", "numpy.")
    )
    assert repo.changed(before) == set()


def test_a_module_may_move(repo):
    before = repo.prints()
    repo.code["nag/rooms/one/samplers.py"] = repo.code.pop("nag/samplers.py").replace(
        "from nag.grids", "from nag.rooms.times"
    )
    repo.code["nag/rooms/times.py"] = repo.code.pop("nag/grids.py")
    repo.edit(
        "nag/rooms/one/samplers.py", "from nag import grids", "from ...rooms import times as grids"
    )
    repo.code["nag/rooms/__init__.py"] = (
        "from nag.rooms.times import uniform\nfrom nag.rooms.one.samplers import *\n"
    )
    repo.edit("nag/study.py", "nag.samplers", "nag.rooms")
    repo.books["01_euler"] = [
        ("steps = 3", "parameters"),
        ("import numpy\nfrom nag import rooms", "setup"),
        ("rooms.euler(numpy.sin, steps)",),
        ("import companion.plots as p\np.draw(1)", "tell"),
    ]
    repo.books["04_grid"] = [("from nag.rooms import *\nuniform(3)",)]
    assert repo.changed(before) == set()


def test_cells_comments_and_text_of_a_notebook_do_not_count(repo):
    before = repo.prints()
    repo.books["01_euler"] = [
        ("# the steps\nsteps = 3", "parameters"),
        ("import numpy as np\n", "setup"),
        ("from nag.samplers import euler", "setup"),
        ("'''Now.'''",),
        ("euler(np.sin,\n  steps)\n",),
        ("from companion.plots import draw", "tell"),
        ("draw(1);", "tell"),
    ]
    assert repo.changed(before) == set()


def test_parts_of_a_notebook(repo):
    before = repo.prints()
    assert set(before) == {
        "01_euler.measure",
        "01_euler.tell",
        "02_study.measure",
        "03_guide.measure",
        "04_grid.measure",
    }
    names = {
        name: {line.split("  ")[0] for line in text.splitlines()} for name, text in before.items()
    }
    assert "draw" in names["01_euler.tell"] and "draw" not in names["01_euler.measure"]
    assert "euler" in names["01_euler.measure"] and "euler" not in names["01_euler.tell"]
    repo.books["01_euler"] = [("steps = 4", "parameters"), *BOOKS["01_euler"][1:]]
    assert repo.changed(before) == {"01_euler", "01_euler.tell"}
    with pytest.raises(ValueError, match="measure, tell, all"):
        fp.of_notebook(repo.root / "notebooks/01_euler.ipynb", "half", repo.root)


def reached(repo, cell, **code):
    """The names that a cell reaches in the small repository, with further modules nag/NAME.py."""
    repo.code |= {f"nag/{name}.py": text(source) for name, source in code.items()}
    repo.books = {"cell": [(cell,)]}
    return {line.split("  ")[0] for line in repo.prints()["cell.measure"].splitlines()} - {
        "(cells)"
    }


UNIFORM = {"uniform", "LAST"}
NOT_REACHED = {
    "parameter": "def f(uniform):\n    return uniform(3)\nf(1)",
    "local": "def f():\n    uniform = 3\n    return uniform\nf()",
    "lambda": "(lambda uniform: uniform)(3)",
    "comprehension": "[uniform for uniform in range(3)]",
    "inner function": "def f(uniform):\n    def g():\n        return uniform\n    return g\nf(2)",
    "loop in a function": "def f():\n    for uniform in range(3):\n        print(uniform)\nf()",
    "match": "def f(x):\n    match x:\n        case [uniform, *_]: return uniform\nf([1])",
    "exception": "def f():\n    try: g()\n    except OSError as uniform: print(uniform)\nf()",
}


@pytest.mark.parametrize("case", NOT_REACHED)
def test_local_names_shadow(repo, case):
    assert reached(repo, f"from nag.grids import uniform\n{NOT_REACHED[case]}") == set()


REACHED = {
    "body": "def f(x):\n    return uniform(x)\nf(1)",
    "nested": "def f():\n    def g():\n        uniform(1)\n    return g\nf()",
    "default": "def f(x=uniform(3)):\n    return x\nf()",
    "default of the same name": "def f(uniform=uniform):\n    return uniform(1)\nf()",
    "iterable of a comprehension": "[uniform for uniform in uniform(3)]",
    "condition of a comprehension": "[u for u in range(3) if uniform(u)]",
    "class body": "class A:\n    uniform = uniform\nA()",
    "method": "class A:\n    uniform = 3\n    def f(self):\n        return uniform(2)\nA()",
    "decorator": "@uniform\ndef f():\n    pass",
    "global": "def f():\n    global uniform\n    return uniform\nf()",
    "f-string": "f'{uniform(3):.2f}'",
    "keyword": "print(sep=uniform)",
    "walrus": "if (u := uniform(3)):\n    pass",
    "inner walrus": "def f():\n    def g(): return (uniform := 3)\n    return uniform(2), g\nf()",
    "await": "await uniform(3)",
    "match": "match x:\n    case 1 if uniform(3):\n        pass",
    "import within": "def f():\n    from nag import grids\n    return grids.uniform(3)\nf()",
    "raise": "raise ValueError('a', uniform(3))",
    "magic": "%time uniform(3)\nuniform(2)",
    "string": "run('nag.grids:uniform')",
}


@pytest.mark.parametrize("case", REACHED)
def test_every_way_of_naming_reaches(repo, case):
    assert reached(repo, f"from nag.grids import uniform\n{REACHED[case]}") == UNIFORM


GRIDS = UNIFORM | {"shifted"}
WHOLE = {
    "getattr": "from nag import grids\ngetattr(grids, name)(3)",
    "passed": "import nag.grids as g\nf(g)",
    "unknown name": "from nag import grids\ngrids.other(3)",
    "import_module": "import importlib\nimportlib.import_module('nag.grids')",
    "import_module of a pattern": "import importlib as i\ni.import_module(f'nag.gri{x}')",
    "string": "launch('nag.grids', 3)",
    "shell": "!python -m nag.grids 3",
    "rebound": "from nag import grids\ngrids = grids or None\ngrids.uniform(3)",
}


@pytest.mark.parametrize("case", WHOLE)
def test_what_cannot_be_resolved_counts_with_its_module(repo, case):
    assert reached(repo, WHOLE[case]) == GRIDS


def test_the_name_of_a_package_is_only_a_word(repo):
    assert reached(repo, "kind = 'nag'\nfile = 'nag.json'") == set()


def test_a_module_that_looks_itself_up_counts_whole(repo):
    assert reached(
        repo,
        "from nag.own import find\nfind('a')",
        own="""
        def find(name):
            return globals()[name]
        def a():
            return 1
        """,
    ) == {"find", "a"}


def test_register_filled_by_decorators_and_base_classes(repo):
    code = {
        "register": """
        FOUND = {}
        def register(name):
            def keep(f):
                FOUND[name] = f
                return f
            return keep
        def plain(f):
            return lambda: f()
        class Kept:
            kinds = []
            def __init_subclass__(cls):
                Kept.kinds.append(cls)
        """,
        "filled": """
        from nag.register import Kept, plain, register
        @register("a")
        def a():
            return 1
        class B(Kept):
            x = 1
        @plain
        def c():
            return 2
        """,
    }
    found = reached(repo, "import nag.filled\nfrom nag.register import FOUND\nFOUND['a']()", **code)
    assert found == {"FOUND", "register", "a", "Kept", "B"}
    assert "a" not in reached(repo, "from nag.register import FOUND\nFOUND['a']()", **code)


def test_conditional_definitions_and_module_getattr(repo):
    code = {
        "odd": """
        try:
            from nag.grids import shifted as pick
        except ImportError:
            def pick(steps):
                return 3
        def __getattr__(name):
            return 7
        """
    }
    assert reached(repo, "from nag.odd import pick\npick(3)", **code) == {
        *GRIDS,
        "pick",
        "(statements)",
    }
    assert reached(repo, "from nag import odd\nodd.seven", **code) == {
        *GRIDS,
        "pick",
        "__getattr__",
        "(statements)",
    }


def test_annotations_in_classes_reach(repo):
    assert reached(
        repo,
        "from nag.forms import Form\nForm()",
        forms="""
        from typing import Literal
        from nag.guide import Pair
        class Other:
            x = 1
        class Form:
            first: Pair
            later: "Other"
            word: Literal["unused"]
        def unused():
            return 1
        """,
    ) == {"Form", "Pair", "Other"}


def test_one_of_two_definitions_with_a_name(repo):
    """Both are reached already; which of them is called counts."""
    repo.code |= {"nag/a.py": "def f():\n    return 1\n", "nag/b.py": "def f():\n    return 2\n"}
    repo.books = {"cell": [("from nag import a, b\nx = a.f() + 2 * b.f()",)]}
    before = repo.prints()
    assert before["cell.measure"].count("f  ") == 2
    repo.books = {"cell": [("from nag import a, b\nx = b.f() + 2 * a.f()",)]}
    assert repo.changed(before) == {"cell"}


def test_a_function_named_as_a_module(repo):
    """`from nag.ddpm import x` is of the module; `nag.ddpm` may be either."""
    code = {
        "ddpm": "def x(): return 1\ndef y(): return 2",
        "methods": "def ddpm(): return 3",
        "__init__": "from nag.methods import ddpm",
    }
    assert reached(repo, "from nag.ddpm import x\nx()", **code) == {"x"}
    assert reached(repo, "run('nag.ddpm:x')", **code) == {"x"}
    assert reached(repo, "import nag.ddpm\nnag.ddpm.x()", **code) == {"ddpm", "x"}
    assert reached(repo, "from nag import ddpm\nddpm()", **code) == {"ddpm", "x", "y"}


def test_which_import_a_rebound_name_has_counts(repo):
    repo.books = {"cell": [("from numpy import mean\nmean(3)\nmean = 4",)]}
    before = repo.prints()
    repo.books = {"cell": [("from torch import mean\nmean(3)\nmean = 4",)]}
    assert repo.changed(before) == {"cell"}


def test_this_tool_is_nobodys_code(repo):
    repo.code["companion/pipeline/fingerprint.py"] = "def of_objects(x):\n    return 1\n"
    assert (
        reached(repo, "from companion.pipeline import fingerprint\nfingerprint.of_objects(1)")
        == set()
    )


def test_modules(repo):
    repo.code["nag/shards.py"] = (
        "from nag.samplers import euler\ndef main():\n    euler(abs)\n"
        "if __name__ == '__main__':\n    main()\n"
    )
    repo.prints()
    names = {line.split("  ")[0] for line in fp.of_module("nag.shards", repo.root).splitlines()}
    assert names == {"(main)", "main", "euler", "EPS", *UNIFORM}
    with pytest.raises(ValueError, match="correct its name"):
        fp.of_module("nag.shard", repo.root)
    (repo.root / "dvc.yaml").write_text(
        "# python -m nag.gone\nstages:\n  a:\n    cmd: python -m nag.shards spec.json\n"
        "  b:\n    cmd: python -m companion.pipeline.run a.ipynb b.ipynb\n"
    )
    assert "nag.shards" in fp.fingerprints(repo.root) and fp.modules_run(repo.root) == [
        "nag.shards"
    ]


def test_objects(repo):
    repo.prints()
    made = fp.of_objects("nag.grids:shifted", root=repo.root)
    assert [line.split("  ")[0] for line in made.splitlines()] == ["LAST", "shifted", "uniform"]
    assert re.fullmatch("[0-9a-f]{16}", fp.digest(made))
    with pytest.raises(ValueError, match="package.module:name"):
        fp.of_objects("nag.grids:nothing", root=repo.root)
    with pytest.raises(ValueError, match="package.module:name"):
        fp.of_objects(json.dumps)


def test_a_cell_that_is_not_python(repo):
    repo.books = {"cell": [("x = = 3",)]}
    with pytest.raises(ValueError, match="cell.ipynb has a cell"):
        repo.prints()


def test_files_are_written_only_when_they_change(repo):
    repo.prints()
    (repo.root / "build/fingerprints").mkdir(parents=True)
    (repo.root / "build/fingerprints/gone.txt").write_text("x")
    assert set(fp.write(repo.root)) == {"gone", *repo.prints()}
    stamps = {
        path: path.stat().st_mtime_ns for path in (repo.root / "build/fingerprints").iterdir()
    }
    assert len(stamps) == 5
    repo.edit("nag/guide.py", "2.0", "3.0")
    new = repo.prints()
    assert (
        fp.why("03_guide.measure", repo.root / fp.FOLDER, new) == "03_guide.measure: Base changed"
    )
    assert fp.write(repo.root) == ["03_guide.measure"] and fp.write(repo.root) == []
    rewritten = [path.name for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp]
    assert rewritten == ["03_guide.measure.txt"]
    assert (
        fp.why("03_guide.measure", repo.root / fp.FOLDER, new)
        == "03_guide.measure: nothing changed"
    )


# ---- this repository


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A copy of this repository's code and notebooks."""
    root = tmp_path_factory.mktemp("ours")
    for folder in (*fp.PACKAGES, "notebooks"):
        shutil.copytree(
            fp.ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    return root


@pytest.mark.slow
def test_one_number_in_a_sampler_of_ours(ours):
    before = fp.fingerprints(ours)
    file = next(path for path in (ours / "nag").rglob("*.py") if "\ndef heun(" in path.read_text())
    old = file.read_text()
    body = old[old.index("def heun(") :]
    assert "* 0.5 *" in body.split("\ndef ")[0]
    file.write_text(old[: old.index("def heun(")] + body.replace("* 0.5 *", "* 0.25 *", 1))
    after = fp.fingerprints(ours)
    file.write_text(old)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {name for name, text in before.items() if "\nheun  " in text}
    assert {"05_sample.measure", "04_tune.measure"} <= changed
    assert not {"03_extractor.measure", "15_adm_metrics.measure"} & changed


@pytest.mark.slow
def test_nothing_that_takes_long_is_imported(ours):
    program = """
import sys
from companion.pipeline import fingerprint
fingerprint.fingerprints(fingerprint.ROOT)
assert not {"numpy", "torch", "nag"} & sys.modules.keys()
"""
    env = {"DVC_ROOT": str(ours), "PYTHONPATH": str(fp.ROOT)}
    subprocess.run([sys.executable, "-c", program], check=True, env=env)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, smaller",
    [
        ("05_sample", {"n_images": 10, "steps": 2, "trajectories": 2}),
        ("11_overhead", {"n_images": 2, "steps": 2, "rounds": 1}),
    ],
)
def test_every_function_that_runs_is_listed(name, smaller, tmp_path):
    """A notebook runs in this process; what of ours is called must be in its fingerprint."""
    path, called = fp.ROOT / "notebooks" / f"{name}.ipynb", set()
    listed = {line.split("  ")[0] for line in fp.of_notebook(path).splitlines()}
    cells, folders = (
        fp.code_cells(path),
        tuple(f"{fp.ROOT / package}{os.sep}" for package in fp.PACKAGES),
    )

    def note(frame, event, _):
        code = frame.f_code  # without those of classes and modules, which run on import
        is_function = code.co_flags & inspect.CO_NEWLOCALS and not code.co_name.startswith("<")
        if event == "call" and is_function and code.co_filename.startswith(folders):
            called.add(code.co_qualname.split(".")[0])

    values = {"__name__": "__main__", "display": print}
    sys.setprofile(note)
    try:
        for source in cells:
            exec(source, values)
            if "out" in values and values["out"] != str(tmp_path):
                values.update(smaller, out=str(tmp_path))
    finally:
        sys.setprofile(None)
    assert len(called) > 20 and called <= listed, called - listed
