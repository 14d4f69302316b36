"""A full disk and a broken store file: the worker stops and says so, and nothing is lost."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from one_worker import Site, event

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]

EVENTS = 20_000


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with little room; needs the right to mount."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("what", ["store", "lake"])
def test_full_disk_stops_the_worker_and_loses_nothing(kafka: str, tmp_path: Path, small: Path, what: str) -> None:
    """It ends and names the cause; no half-written file is taken for a whole one; every event is stored once after."""
    where = {"store__folder": str(small)} if what == "store" else {"shared": str(small)}
    site = Site(kafka, tmp_path, **where)
    if what == "lake":
        (small / "ballast").write_bytes(bytes(4 * 2**20 - 200_000))
    try:
        site.start()
        for first in range(0, EVENTS, 1_000):
            user = f"u{first}"
            titles = [random.Random(n).randbytes(60).hex() for n in range(first, first + 1_000)]  # no packing helps
            site.send(*[event(first + k, user, title=title) for k, title in enumerate(titles)], user=user)
        assert site.process is not None
        assert site.process.wait(90) == 3
        print(f"\n{site.told()[-700:]}")
        assert "No space left on device" in site.told()
        (small / "ballast").unlink(missing_ok=True)
        subprocess.run(["mount", "-o", "remount,size=256m", str(small)], check=True)
        site.start()
        site.settled(stored=EVENTS, missing=0)
        assert site.stop() == 0
        assert site.ids() == sorted(f"e{n}" for n in range(EVENTS))
        assert not list((site.shared / "events").rglob("*.tmp"))
        code, told = site.check()
        assert code == 0, told
    finally:
        site.close()


def test_broken_store_file_is_named(kafka: str, tmp_path: Path) -> None:
    """The worker does not begin over it: one line with the file and what to do."""
    site = Site(kafka, tmp_path)
    try:
        site.send(*map(event, range(10)))
        site.start()
        site.settled(stored=10)
        assert site.stop() == 0
        file = tmp_path / "store" / "w.duckdb"
        file.write_bytes(file.read_bytes()[:5_000])
        code = site.start_only()
        last = site.told().strip().splitlines()[-1]
        assert code != 0
        assert str(file) in last
        assert "remove" in last
        file.unlink()
        site.start()
        site.settled(stored=10)
    finally:
        site.close()
