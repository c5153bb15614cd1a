"""The documentation: its links hold in the repository and on the site that MkDocs makes of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ENVIRONMENT, REPOSITORY

from mtrl.options.command_line import load_config
from mtrl.schema import flatten

PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for path in (
        *REPOSITORY.glob("*.md"),
        *REPOSITORY.glob("docs/*.md"),
        *REPOSITORY.glob("docker/*.md"),
    )
)


def anchors(path: Path) -> set[str]:
    """Of a page's headings, as the forge has them."""
    headings = re.findall(r"^#+ (.*)", path.read_text(), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


def test_pages_are_linked_and_not_only_named() -> None:
    for page in (REPOSITORY / "docs").glob("*.md"):
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        named = set(re.findall(r"`docs/([a-z-]+\.md)`", prose)) - {page.name}
        assert not named, f"{page.name} names {named} without a link"


@pytest.mark.parametrize("page", PAGES)
def test_links_between_files_hold_in_the_repository(page: str) -> None:
    text = re.sub(r"```.*?```", "", (REPOSITORY / page).read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        if re.match(r"\w+:", name):  # elsewhere
            continue
        path = (REPOSITORY / page).parent / name if name else REPOSITORY / page
        assert path.exists(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(path), f"{page} links to {target}"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Every page is in the navigation, every link leads somewhere, every name of the API exists."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=REPOSITORY,
        env=ENVIRONMENT | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    home = (tmp_path / "index.html").read_text()
    for link in re.findall(r'href="([^"#:]+)(?:#[^"]*)?"', home):
        assert (tmp_path / link).exists(), link
    api = (tmp_path / "api.html").read_text()
    for name in (
        "mtrl.train",
        "mtrl.Callback",
        "mtrl.smto.register",
        "mtrl.networks.register_network",
    ):
        assert f'id="{name}"' in api


def test_pre_commit_runs_what_the_tests_begin_with() -> None:
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"][0][
        "hooks"
    ]
    tools = [hook["entry"].removesuffix(" --fix").removesuffix(" .") for hook in hooks]
    script = (REPOSITORY / "scripts/test.sh").read_text()
    assert tools == re.findall(r"^(\.venv/bin/(?:ruff \w+|mypy))", script, re.MULTILINE)


def test_the_documented_settings_are_the_presets() -> None:
    page = (REPOSITORY / "docs/protocols.md").read_text().partition("## The presets' settings")[2]
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("| `") or line.startswith("| option")
    ]
    (_, *presets), *settings = rows
    assert len(settings) > 20
    for column, preset in enumerate(presets, start=1):
        flat = flatten(load_config(preset))
        assert {row[0]: row[column] for row in settings} == {
            row[0]: str(flat[row[0]]) for row in settings
        }
