"""The package's metadata, and the files of a source distribution."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def setup():
    spec = importlib.util.spec_from_file_location("setup", ROOT / "setup.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def project():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML by itself")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def targets(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", text)


def test_a_description_without_an_address_has_no_link_that_leads_nowhere(setup):
    text = setup.long_description(README, None)
    assert targets(README)
    assert [target for target in targets(text) if not target.startswith("https://")] == []
    assert "docs/running.md: runs" in text


def test_a_description_with_an_address_has_absolute_links_of_files_that_exist(setup):
    text = setup.long_description(README, "https://host/group/genomepred")
    assert len(targets(text)) == len(targets(README))
    for target in targets(text):
        assert target.startswith("https://")
        found = re.fullmatch(r"https://host/group/genomepred/(?:blob|raw)/main/(.+)", target)
        assert found is None or (ROOT / found[1]).exists(), target
    assert "(https://host/group/genomepred/raw/main/docs/images/demo.png)" in text


def test_every_folder_of_code_is_packaged(project):
    homes = project["tool"]["setuptools"]["package-dir"]
    packaged = set(project["tool"]["setuptools"]["packages"])
    found = set()
    for name, home in homes.items():
        for init in (ROOT / home).rglob("__init__.py"):
            inner = init.parent.relative_to(ROOT / home).parts
            found.add(".".join([name, *inner]))
    assert packaged == found


def test_what_tests_need_is_constrained(project):
    """CI installs what constraints.txt says, and nothing that it does not."""
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.M)
    wanted = [*project["project"]["dependencies"]]
    for extra in project["project"]["optional-dependencies"].values():
        wanted += extra
    names = {re.split(r"[<>=\[; ]", line)[0].lower().replace("_", "-") for line in wanted}
    missing = names - {name.lower().replace("_", "-") for name in pinned} - {"genomepred"}
    assert missing == set()


def test_the_page_and_its_licenses_are_packaged(project):
    folder = ROOT / "genomepred" / "view"
    found = {
        path
        for glob in project["tool"]["setuptools"]["package-data"]["genomepred.view"]
        for path in folder.glob(glob)
    }
    assert found == {
        path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    assert {"page.html", "main.js", "igv.esm.min.js"} <= {path.name for path in found}
    assert all((ROOT / name).is_file() for name in project["project"]["license-files"])
    assert "MIT" in project["project"]["license"]
