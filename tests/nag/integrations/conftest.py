"""`pytest tests/nag/integrations --run-slow --tables` (`make tables`) keeps the outcomes of tests
that the tables of docs/your_model.md show, as results/integrations.json."""

import re
from importlib.metadata import version

import pytest

from nag.support.files import write_json
from nag.support.paths import ROOT

FILE = ROOT / "results/integrations.json"
COLUMNS = {  # test: table, column
    "test_levels_are_right": ("schedulers", "levels"),
    "test_states_are_paired_right": ("schedulers", "pairing"),
    "test_guided_output": ("architectures", "guided output"),
    "test_hooks_leave_no_trace": ("architectures", "hooks gone"),
    "test_compile_traces_once": ("architectures", "compile"),
    "test_save_and_load": ("architectures", "save and load"),
    "test_its_pipeline_is_recorded_and_guided": ("architectures", "pipeline"),
}
OUTCOMES = pytest.StashKey[dict]()


def pytest_addoption(parser):
    parser.addoption("--tables", action="store_true", help=f"write {FILE.name}")


def pytest_configure(config):
    config.stash[OUTCOMES] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    match = re.fullmatch(r"(\w+)\[(\w+)\]", item.name)
    if match and match[1] in COLUMNS and (report.when == "call" or not report.passed):
        table, column = COLUMNS[match[1]]
        rows = item.config.stash[OUTCOMES].setdefault(table, {})
        rows.setdefault(match[2], {})[column] = report.outcome
    return report


def pytest_sessionfinish(session):
    if session.config.getoption("--tables", default=False):
        libraries = {name: version(name) for name in ("diffusers", "torch", "transformers")}
        write_json(FILE, {"versions": libraries, **session.config.stash[OUTCOMES]})
