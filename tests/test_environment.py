"""House rules: one set of versions, clean notebooks, imports in one direction, no host name of a
package registry.
"""

import ast
import re
import subprocess
import tomllib
from graphlib import TopologicalSorter

import nbformat
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager

from nag.support.paths import ROOT

LAYERS = [  # a module imports its own layer or those above it in this list
    ["nag.support"],
    ["nag.interpolant", "nag.ddpm", "nag.toy", "nag.models"],
    ["nag.checkpoint", "nag.losses", "nag.guidance", "nag.estimator", "nag.shift"],
    ["nag.samplers"],
    ["nag.train", "nag.diagnose", "nag.auto_weight"],
    ["nag.data"],
    ["nag.pretrained", "nag.rivals", "nag.evaluation"],
    ["nag.integrations"],
    ["nag.cli"],
    ["companion.pipeline", "companion.published"],
    ["companion.experiments"],
    ["companion.plots"],
    ["companion.studies"],
    ["companion.report"],
    ["companion.site"],
]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for package in ("nag", "companion")
    for path in (ROOT / package).rglob("*.py")
    if path.stem != "__init__"
}


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lines):
    """{name: version} of lines such as `name==1.2 ; marker` or conda's `name=1.2`."""
    found = (re.match(r"([\w.-]+)={1,2}([^\s;=]+)", line) for line in lines)
    return {canonical(match[1]): match[2] for match in found if match}


@pytest.fixture(scope="module")
def lock():
    return pins((ROOT / "requirements.lock").read_text().splitlines())


@pytest.fixture(scope="module")
def conda():
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    flat = [
        line for entry in entries for line in (entry["pip"] if isinstance(entry, dict) else [entry])
    ]
    return {name: version for name, version in pins(flat).items() if name != "python"}


def test_environment_yml_has_the_versions_of_the_lock(lock, conda):
    assert {name: lock.get(name) for name in conda} == conda


def test_every_direct_dependency_is_pinned_in_both_files(lock, conda):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = sum(project["optional-dependencies"].values(), project["dependencies"])
    names = {canonical(re.match(r"[\w.-]+", requirement)[0]) for requirement in direct}
    names.remove(project["name"])  # an extra that contains another
    assert names <= lock.keys(), f"not in requirements.lock: {names - lock.keys()}"
    assert names == conda.keys(), (
        f"not in both pyproject.toml and environment.yml: {names ^ conda.keys()}"
    )


def test_every_line_of_the_lock_is_an_exact_version(lock):
    text = (ROOT / "requirements.lock").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(lines) == len(lock)
    assert [
        line
        for line in lines
        if not re.fullmatch(r"[\w.-]+==[\w.+!]+( ; sys_platform == \"\w+\")?", line)
    ] == []


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stripped_short_and_parametrised(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.metadata.kernelspec.name == "python3"
    assert not any(cell.outputs or cell.execution_count for cell in cells), (
        "run `make notebooks-strip`"
    )
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in cells) == 1
    assert 3 <= len(cells) <= 15
    plain = "\n".join(TransformerManager().transform_cell(cell.source) for cell in cells)
    assert not any(isinstance(node, ast.ClassDef) for node in ast.walk(ast.parse(plain))), (
        "classes belong into nag/"
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_read_in_minutes(path):
    """At most 80 lines of code; about 120 in studies and in notebook 0, the whole paper."""
    cells = nbformat.read(path, as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    lines = [line for source in code for line in source.splitlines() if line.strip()]
    long = path.stem >= "20" or path.stem == "00_start_here"
    assert len(lines) <= (128 if long else 80)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_say_whether_they_measure_or_tell(path):
    """A code cell has at most one tag, parameters and setup come first, a telling cell last."""
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    tags = [tuple(cell.metadata.get("tags", [])) for cell in cells]
    assert set(tags) <= {(), ("parameters",), ("setup",), ("tell",)}
    assert tags[:2] == [("parameters",), ("setup",)] and tags[-1] == ("tell",)


def imported(path):
    """The modules of this repository that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute here"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names & MODULES.keys()


def layer(module):
    """The number of the layer that names a module or its room."""
    (found,) = [
        number
        for number, names in enumerate(LAYERS)
        if any(module == name or module.startswith(f"{name}.") for name in names)
    ]
    return found


def test_imports_go_one_way():
    graph = {name: imported(path) for name, path in MODULES.items()}
    assert sum(map(len, graph.values())) > 0
    upward = [
        f"{name} imports {other}"
        for name in graph
        for other in graph[name]
        if layer(other) > layer(name)
    ]
    assert upward == []
    TopologicalSorter(graph).prepare()  # raises CycleError if modules import each other in a circle


@pytest.mark.parametrize(
    ("room", "closed_to"),
    [
        ("nag", ["companion"]),
        ("nag.guidance", ["nag.models", "nag.samplers"]),
        ("nag.samplers", ["nag.models", "nag.guidance"]),
        (
            "companion.plots",
            ["nag.models", "nag.samplers", "nag.evaluation", "companion.experiments"],
        ),
        ("companion.report", ["companion.experiments", "nag.samplers", "nag.train"]),
    ],
)
def test_a_room_is_closed_to(room, closed_to):
    """The method knows nothing of this repository, samplers take callables, figures and reports
    read numbers."""
    of_room = {name: path for name, path in MODULES.items() if f"{name}.".startswith(f"{room}.")}
    assert of_room
    found = [
        f"{name} imports {other}"
        for name, path in of_room.items()
        for other in imported(path)
        if any(f"{other}.".startswith(f"{closed}.") for closed in closed_to)
    ]
    assert found == []


def test_no_file_names_a_package_registry():
    hosts = [
        ".".join(parts)
        for parts in (
            ("pypi", "org"),
            ("pythonhosted", "org"),
            ("anaconda", "org"),
            ("anaconda", "com"),
            ("npmjs", "org"),
            ("debian", "org"),
        )
    ]
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    files = [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]
    texts = {path: content for path in files if b"\0" not in (content := path.read_bytes())}
    assert ROOT / "pyproject.toml" in texts
    assert [
        (str(path), host) for path, text in texts.items() for host in hosts if host.encode() in text
    ] == []
