"""The runner of notebook stages: parameters, parts, errors, and code edited while it runs."""

import os
import signal
import subprocess
import sys
import time

import nbformat
import papermill
import pytest
from clones import COLD

from companion.pipeline import fingerprint, run


def write_notebook(path, *cells):
    """A notebook of (source, tags...) cells."""
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_code_cell(source, metadata={"tags": tags}) for source, *tags in cells
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def start(root, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "companion.pipeline.run", *map(str, arguments)],
        cwd=root,
        text=True,
        env=COLD | {"DVC_ROOT": str(root), "PYTHONPATH": str(fingerprint.ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def finish(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out + err


def test_known_parameters_whatever_the_comments_say(tmp_path):
    path = write_notebook(
        tmp_path / "a.ipynb",
        (
            "lr = 1.0  # path = t\npath: str = ''\na, b = 1, 2\nc = [\n  1,  # d = 3\n]",
            "parameters",
        ),
    )
    assert run.known_parameters(nbformat.read(path, 4)) == ["a", "b", "c", "lr", "path"]


def test_papermill_by_itself_knows_every_parameter_of_ours():
    """Of others it says "Passed unknown parameter", which reads like a fault."""
    for path in sorted((fingerprint.ROOT / "notebooks").glob("*.ipynb")):
        ours = set(run.known_parameters(nbformat.read(path, 4)))
        assert ours <= set(papermill.inspect_notebook(str(path))), path.name


def test_an_unknown_parameter_is_named(tmp_path, capsys):
    path = write_notebook(tmp_path / "a.ipynb", ("lr = 1.0\npath = 'x'", "parameters"))
    assert run.run(path, tmp_path / "b.ipynb", "all", {"patth": 3}) == run.NOT_STARTED
    assert capsys.readouterr().err == "a.ipynb has no parameter patth: choose from lr, path\n"
    assert not (tmp_path / "b.ipynb").exists()


USUAL = "n = 3\nlr = 0.1\nfast = True\narms = ['none']\nplan = {}\nout = 'x'\nrows = None"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"arms": "nag"}, "arms is 'nag', but must be a list, such as ['none']"),
        ({"arms": {"nag": 1}}, "arms is {'nag': 1}, but must be a list, such as ['none']"),
        ({"fast": "false"}, "fast is 'false', but must be a number, true or false, such as True"),
        ({"n": "30"}, "n is '30', but must be a number, true or false, such as 3"),
        ({"n": [30]}, "n is [30], but must be a number, true or false, such as 3"),
        ({"plan": []}, "plan is [], but must be a mapping, such as {}"),
        ({"out": None}, "out is None, but must be a text, such as 'x'"),
        ({"out": ""}, "out is '', the repository itself"),
        ({"out": "build/.."}, "out is 'build/..', the repository itself"),
    ],
)
def test_a_parameter_of_another_form_is_refused(tmp_path, capsys, values, says):
    """A text would be a list of its letters, and "false" would be true."""
    path = write_notebook(tmp_path / "a.ipynb", (USUAL, "parameters"), ("1 / 0",))
    assert run.run(path, tmp_path / "b.ipynb", "all", values) == run.NOT_STARTED
    shown = capsys.readouterr().err
    assert shown.startswith(says) and shown.count("\n") == 1
    good = {"n": 2e3, "lr": 1, "fast": 0, "arms": [], "plan": {"a": 1}, "rows": 5, "out": "build"}
    assert run.prepared(path, tmp_path / "b.ipynb", "all", good)


def test_a_family_by_hand_has_its_own_path(tmp_path, capsys):
    """Otherwise the estimator of the one path would read states of the other."""
    path = write_notebook(tmp_path / "a.ipynb", ("family = 'sit'\npath = 'linear'", "parameters"))
    assert run.run(path, tmp_path / "b.ipynb", "all", {"family": "dit"}) == run.NOT_STARTED
    assert capsys.readouterr().err == (
        "path is 'linear', but the family 'dit' is of 'ddpm': give both, such as "
        "{family: dit, path: ddpm}\n"
    )
    for values in ({"family": "dit", "path": "ddpm"}, {"family": "mine", "path": "vp"}, {}):
        assert run.prepared(path, tmp_path / "b.ipynb", "all", values)


@pytest.mark.parametrize("content", ["", "{}", "# a heading", b"\xff\xfe", "bad cell"])
def test_what_is_no_notebook_is_refused_by_name(tmp_path, capsys, content):
    path = tmp_path / "a.ipynb"
    if content == "bad cell":
        write_notebook(path, ("a = (", "parameters"))
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert run.run(path, tmp_path / "b.ipynb", "all", {"a": 1}) == run.NOT_STARTED
    shown = capsys.readouterr().err
    assert shown.startswith(f"{path} cannot be read as a notebook (")
    assert shown.endswith("with git\n")


def test_results_outside_of_the_repository_are_refused_before_anything_runs(
    tmp_path, monkeypatch, capsys
):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    path = write_notebook(
        root / "a.ipynb", ("out = 'build'  # below = inside", "parameters"), ("1 / 0",)
    )
    elsewhere.mkdir()
    (root / "link").symlink_to(elsewhere)
    (root / "inner").mkdir()
    (root / "near").symlink_to(root / "inner")
    monkeypatch.setattr(fingerprint, "ROOT", root)
    for out in (str(elsewhere), "../elsewhere", "link", "link/more"):
        assert run.run(path, root / "b.ipynb", "all", {"out": out}) == run.NOT_STARTED
        shown = capsys.readouterr().err
        assert "outside of the repository" in shown and "such as build/by-hand" in shown
        assert shown.count("\n") == 1 and not (root / "b.ipynb").exists()
    for out in ("build/by-hand", str(root / "build"), "near/x"):
        assert run.prepared(path, root / "b.ipynb", "all", {"out": out})


@pytest.mark.slow
def test_a_part_with_parameters(tmp_path):
    """The other part's cells are not run; what is printed to stderr is shown, and nothing else."""
    path = write_notebook(
        tmp_path / "a.ipynb",
        ("lr = 1.0  # lr = 2 is too much", "parameters"),
        ("import sys\nprint('hidden')\nprint('seen', lr * 2, file=sys.stderr)", "setup"),
        ("raise SystemError",),
        ("open('told', 'w').write('x')", "tell"),
    )
    code, output = finish(
        start(tmp_path, path, tmp_path / "new/b.ipynb", "--part", "tell", "-y", "{lr: 1e-3}")
    )
    lines = [
        line for line in output.splitlines() if line and "caught in kernel" not in line
    ]  # at times, as it is shut down
    assert (code, lines) == (0, ["seen 0.002"])
    assert (tmp_path / "told").read_text() == "x"
    executed = nbformat.read(tmp_path / "new/b.ipynb", 4)
    assert [cell.metadata.tags for cell in executed.cells] == [
        ["parameters"],
        ["injected-parameters"],
        ["setup"],
        ["tell"],
    ]


@pytest.mark.slow
def test_a_failing_cell(tmp_path):
    path = write_notebook(tmp_path / "a.ipynb", ("x = 1",), ("1 / (x - 1)",), ("x = 3",))
    code, output = finish(start(tmp_path, path, tmp_path / "b.ipynb"))
    assert (
        code == 1
        and "ZeroDivisionError" in output
        and "1 / (x - 1)" in output
        and "site-packages" not in output
    )
    assert any(
        "error" in [o.output_type for o in cell.get("outputs", [])]
        for cell in nbformat.read(tmp_path / "b.ipynb", 4).cells
    )


@pytest.mark.slow
def test_an_interrupt_reaches_the_kernel(tmp_path):
    path = write_notebook(
        tmp_path / "a.ipynb",
        (
            "import time\nfrom pathlib import Path\n"
            "try:\n    Path('ready').touch()\n    time.sleep(50)\n"
            "except KeyboardInterrupt:\n    Path('saved').touch()\n    raise",
        ),
    )
    process = start(tmp_path, path, tmp_path / "b.ipynb", start_new_session=True)
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    code, output = finish(process)
    assert code == 1 and output.endswith("Stopped.\n") and (tmp_path / "saved").exists()


def test_long_folders_for_temporary_files(monkeypatch):
    monkeypatch.setattr(run.tempfile, "gettempdir", lambda: "/tmp/" + 100 * "x")
    with run.private_sockets() as config:
        assert len(config.KernelManager.connection_file) < 70


def small_repository(root, *cells):
    """One notebook, 01_first, on one function, nag.code.number; its fingerprint is written."""
    (root / "nag").mkdir()
    (root / "nag/__init__.py").touch()
    (root / "nag/code.py").write_text("def number():\n    return 1\n")
    path = write_notebook(root / "notebooks/01_first.ipynb", *cells)
    fingerprint.write(root)
    return path


@pytest.mark.slow
def test_parameters_of_a_file_and_of_the_command_line(tmp_path):
    """Lists and mappings arrive whole; the command line counts more."""
    path = write_notebook(
        tmp_path / "a.ipynb",
        ("w = []\nplan = {}\nn = 1\nlr = 0.1", "parameters"),
        ("import json\nfrom pathlib import Path\n"
         "Path('got').write_text(json.dumps([w, plan, n, lr]))",),
    )  # fmt: skip
    (tmp_path / "own.yaml").write_text(
        "tune: {sit: {w: [0.5, [1]], n: 2}}\nplan: {euler: [1, 2]}\nlr: 1e-3\n"
    )
    named = ["--params", "own.yaml", "-p", "tune.sit", "-p", ":plan,lr", "-y", "{n: 3}"]
    code, output = finish(start(tmp_path, path, tmp_path / "b.ipynb", *named))
    assert code == 0, output
    assert (tmp_path / "got").read_text() == '[[0.5, [1]], {"euler": [1, 2]}, 3, 0.001]'


@pytest.mark.slow
def test_parameters_edited_while_the_stage_runs(tmp_path):
    """DVC would record the new value with the results of the old one, so the stage fails."""
    path = write_notebook(
        tmp_path / "a.ipynb",
        ("w = []", "parameters"),
        ("from pathlib import Path\nPath('params.yaml').write_text('{a: {w: [2]}, b: 1}')",),
    )
    (tmp_path / "params.yaml").write_text("{a: {w: [1]}, b: 0}")
    code, output = finish(start(tmp_path, path, tmp_path / "b.ipynb", "-p", "a"))
    assert code == 1 and "params.yaml was edited while the stage ran (w)" in output
    assert finish(start(tmp_path, path, tmp_path / "b.ipynb", "-p", "a"))[0] == 0


def test_code_edited_before_the_start(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fingerprint, "ROOT", tmp_path)
    path = small_repository(tmp_path, ("from nag.code import number\nnumber()",))
    assert run.edited(path, run.recorded(path, "measure")) == ""
    (tmp_path / "nag/code.py").write_text("def number():\n    return 2\n")
    for part in ("measure", "all"):
        assert run.run(path, tmp_path / "b.ipynb", part, {}) == run.NOT_STARTED
        assert capsys.readouterr().err == (
            "The code of 01_first changed since its fingerprint was taken (number): "
            "run `dvc repro` again.\n"
        )
    assert run.recorded(path, "tell") == {}
    (tmp_path / "nag/code.py").write_text("def number(:\n")
    assert run.edited(path, run.recorded(path, "measure")).startswith("it cannot be read now")


DVC = """
from dvc.cli import main
from companion.pipeline import fingerprint
main(["init", "--no-scm", "-q"])
for k in range(3):
    fingerprint.write()
    print("repro", k, main(["repro"]), flush=True)
"""


def repeated(root):
    """Three times `dvc repro` in a repository: what each printed, and the errors of all."""
    env = COLD | {
        "DVC_ROOT": str(root),
        "PYTHONPATH": f"{root}{os.pathsep}{fingerprint.ROOT}",
    }
    done = subprocess.run(
        [sys.executable, "-c", DVC], cwd=root, env=env, text=True, capture_output=True
    )
    return done.stdout.split("repro "), done.stderr


@pytest.mark.slow
def test_code_edited_while_dvc_runs_the_stage(tmp_path):
    """It ends well and says so; the next `dvc repro` runs it again, then nothing is left."""
    small_repository(
        tmp_path,
        (
            "from pathlib import Path\nfrom nag.code import number\n"
            "Path('first').write_text(str(number()))\n"
            "source = Path('nag/code.py')  # edited as if by hand\n"
            "source.write_text(source.read_text().replace('1', '2'))",
        ),
    )
    (tmp_path / "dvc.yaml").write_text(f"""
stages:
  first:
    cmd: {sys.executable} -m companion.pipeline.run notebooks/01_first.ipynb build/first.ipynb
    deps: [build/fingerprints/01_first.measure.txt]
    outs: [first: {{cache: false}}]
""")
    (first, second, third, _), errors = repeated(tmp_path)
    said = (
        "The code of 01_first was edited while it ran (number): the results are of the code at the"
    )
    assert said in errors
    assert errors.count("edited while it ran") == 1
    assert (
        second.startswith("0 0\n")
        and "Running stage 'first'" in first
        and "Running stage 'first'" in second
    )
    assert "Running stage" not in third and (tmp_path / "first").read_text() == "2"


@pytest.mark.slow
def test_data_that_change_while_dvc_runs_the_stage_are_not_recorded(tmp_path):
    """DVC would take their later content for what the results are of, and call them up to date."""
    small_repository(
        tmp_path,
        (
            "from pathlib import Path\ndata = Path('data/a.txt')\n"
            "Path('first').write_text(data.read_text())\n"
            "data.write_text('later')  # as if by hand\n"
            "Path('params.yaml').write_text('used: 1\\nmore: 1\\n')  # of another stage: no matter",
        ),
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "params.yaml").write_text("used: 1\n")
    (tmp_path / "data" / "a.txt").write_text("early")
    (tmp_path / "dvc.yaml").write_text(f"""
stages:
  first:
    cmd: {sys.executable} -m companion.pipeline.run notebooks/01_first.ipynb build/first.ipynb
    deps: [data, build/fingerprints/01_first.measure.txt]
    params: [used]
    outs: [first: {{cache: false}}]
""")
    (first, second, third, _), errors = repeated(tmp_path)
    assert errors.count("a.txt changed while the stage ran: its results may be") == 1
    assert not second.startswith("0 0\n") and third.startswith("1 0\n")
    assert "Running stage 'first'" in first and "Running stage 'first'" in second
    assert "Running stage" not in third and (tmp_path / "first").read_text() == "later"
