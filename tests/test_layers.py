"""The house: imports point down only, and the README's tree is the disk's."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("streams", "trainer", "featurestore", "deploy")
BLOCK = re.compile(r"^```[a-z]*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def test_imports_point_down_only() -> None:
    """deploy → streams → trainer → featurestore, never back."""
    lint = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert lint is not None, "import-linter is not installed: pip install -e '.[dev]'"
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def captioned(text: str) -> dict[str, str]:
    """Every path of a tree with its caption; entries lie below the last line that names a folder at the margin.

    >>> captioned("a/    what it is\\n  b.py *   does b\\n  c/d.py   does d")
    {'a/': 'what it is', 'a/b.py': 'does b', 'a/c/d.py': 'does d'}
    """
    found: dict[str, str] = {}
    folder = ""
    for line in filter(str.strip, text.splitlines()):
        name, _, caption = line.strip().partition(" ")
        if not line.startswith(" "):
            folder = name if name.endswith("/") else ""
            found[name] = caption.strip(" *")
        else:
            found[folder + name] = caption.strip(" *")
    return found


@pytest.fixture(scope="module")
def tree() -> dict[str, str]:
    """The README's tree."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = [captioned(block) for block in BLOCK.findall(readme)]
    trees = [block for block in blocks if all(f"{package}/" in block for package in PACKAGES)]
    assert trees, "README.md has no fenced block that lists the files of the four packages, each with a caption"
    return trees[0]


def test_every_listed_file_exists(tree: dict[str, str]) -> None:
    """What the tree names is there, and says what it is for."""
    assert [path for path in tree if not (ROOT / path).exists()] == []
    assert [path for path, caption in tree.items() if not caption] == []


def test_every_module_is_listed(tree: dict[str, str]) -> None:
    """Every module of the four packages is in the tree, by its name or by its folder's."""
    folders = tuple(path for path in tree if path.endswith("/") and path.rstrip("/") not in PACKAGES)
    modules = [
        module.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for module in sorted((ROOT / package).rglob("*.py"))
        if module.name != "__init__.py"
    ]
    assert [path for path in modules if path not in tree and not path.startswith(folders or ("\0",))] == []


def test_tree_is_read_by_its_margins() -> None:
    """A caption follows its name, a star is a footnote, entries belong to the folder above them."""
    text = "a/    what it is\n  b.py *   does b\n  c/   holds d\ne.py  does e\n"
    assert captioned(text) == {"a/": "what it is", "a/b.py": "does b", "a/c/": "holds d", "e.py": "does e"}
