"""The documentation: every Python block runs, every command and scalar name in it exists."""

import re
from pathlib import Path

import pytest

import rlgym
from rlgym import bench
from rlgym.bench.table import markdown
from rlgym.cli.main import VERBS, main
from rlgym.training.logging import NAMES

ROOT = Path(rlgym.__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
COMMAND = re.compile(r"^ {4}(?:\$ )?rlgym +([^#\n]*)", re.M)
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="docs are in the checkout")


def blocks() -> list:
    """Return every Python block with its page and number."""
    return [
        pytest.param(code, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, code in enumerate(BLOCK.findall(page.read_text("utf-8")))
    ]


def commands() -> list[list[str]]:
    """Return the words after `rlgym` of every command line that the pages show."""
    return [
        line.split("  ")[0].split("|")[0].split()
        for page in PAGES
        for line in COMMAND.findall(page.read_text("utf-8"))
    ]


@pytest.mark.parametrize("code", blocks())
def test_python_block_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs", "exec"), {"__name__": "__docs__"})


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_command_and_its_options_exist(words, capsys):
    assert not words or words[0] in VERBS
    names = [word for word in words[:2] if not word.startswith("-")]
    if names[:1] == ["bench"]:
        assert len(names) == 1 or names[1] in {*bench.BENCHES, "table", "picture", "NAME"}
        if len(names) == 2 and names[1] in bench.BENCHES:
            names = names[:2]
        else:
            return
    else:
        names = names[:1]
    flags = {word.split("=")[0] for word in words if word.startswith("--")} - {"--help", "--json"}
    flags = {flag for flag in flags if not flag.startswith("--env.")}  # the world's own
    if not flags:
        return
    with pytest.raises(SystemExit) as stop:
        raise SystemExit(main([*names, "--help"]))
    assert not stop.value.code
    shown = capsys.readouterr().out
    for flag in flags:
        assert flag in shown, f"{' '.join(names)} has no option {flag}"


def test_training_page_lists_every_scalar_with_its_meaning():
    text = (ROOT / "docs" / "training.md").read_text("utf-8")
    for name, meaning in NAMES.items():
        assert f"| `{name}` | {meaning} |" in text
    listed = re.findall(r"^\| `([a-z]+/[\w*]+)` \|", text, re.M)
    assert set(listed) == set(NAMES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in LINK.findall(page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


def test_measured_numbers_are_those_of_the_saved_results():
    """The page has the whole table as the command prints it, the README some of its rows."""
    table = markdown(ROOT / "docs" / "results")
    assert table in (ROOT / "docs" / "measured.md").read_text("utf-8")
    readme = (ROOT / "README.md").read_text("utf-8")
    shown = readme.partition("| measured |")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(shown) > 10
    for row in shown:
        assert row in table
    rows = [row for row in table.splitlines()[2:] if row.startswith("|")]
    met = sum(row.endswith("| yes |") for row in rows)
    assert f"[all {len(rows)}](docs/measured.md), {met} of which" in " ".join(readme.split())
