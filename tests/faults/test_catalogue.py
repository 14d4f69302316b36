"""The catalogue topic from outside: proposed before the first click, until a tombstone; bad records told once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from one_worker import ROOT, Site, event

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]
SHOES = "Sports > Shoes"


def nextclick(site: Site, *arguments: str) -> Any:
    """What a command says as JSON."""
    command = [sys.executable, "-m", "deploy.cli", *arguments, *site.options(), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def proposed(site: Site, n: int, since_start: int = 1) -> set[str]:
    """The items of the newest prediction, once the worker has said one after the n-th event."""
    site.send(event(n, category=SHOES))
    site.settled(events=since_start)
    newest = json.loads(site.read(site.said["topics.predictions"])[-1].value)
    assert newest["trigger"]["event_id"] == f"e{n}"
    return {item["item_id"] for item in newest["items"]}


def stocked(site: Site, **counts: int) -> None:
    """Wait until the worker's model has what the catalogue tells."""
    site.until(lambda beat: beat["catalogue"]["waiting"] == 0 and counts.items() <= beat["catalogue"].items())


def test_item_is_proposed_before_its_first_click_and_not_after_it_is_withdrawn(site: Site, tmp_path: Path) -> None:
    """A CSV file, a prediction, a ranking, a restart, a tombstone, a restart; what is no item ends as a dead letter."""
    rows = f"item_id,title,category,price\nnew-1,Trail shoe,{SHOES},89.5\nnew-2,Lamp,Home,x\n"
    (tmp_path / "items.csv").write_text(rows)
    (tmp_path / "asked.txt").write_text("new-1\ni0\n")
    site.start()
    sent = nextclick(site, "send", str(tmp_path / "items.csv"), "--items")
    assert (sent["delivered"], sent["refused"]) == (1, 1)
    assert "price: Expected" in sent["refused_lines"][0]["message"]
    bad = [(b"new-3", b'{"item_id": "other"}'), (b"new-4", b"{"), (b"\xff", None)]
    for key, value in bad:
        site.producer.send(site.said["topics.items"], key=key, value=value).get(30)
    stocked(site, items=1, withdrawn=0, refused=3)
    assert "new-1" in proposed(site, 0)
    ask = ("rank", "--user", "u", "--candidates", str(tmp_path / "asked.txt"))
    said = nextclick(site, *ask, "--url", f"http://{site.http}")
    assert {one["item_id"]: one["known"] for one in said["ranked"]} == {"new-1": True, "i0": True}

    assert site.stop() == 0
    site.start()  # the same catalogue again, and nothing of it is told twice
    stocked(site, items=1, withdrawn=0, refused=3)
    assert "new-1" in proposed(site, 1)
    letters = site.read(site.dead_letters)
    assert len(letters) == 3
    assert {(one.key, one.value) for one in letters} == set(bad)
    assert {dict(one.headers)["x-reason"] for one in letters} == {b"schema", b"bad-json"}
    assert site.stop() == 0
    said = nextclick(site, *ask)  # without a worker: what it left in the shared folder
    assert ("new-1", True) in {(one["item_id"], one["known"]) for one in said["ranked"]}

    site.start()
    (tmp_path / "gone.jsonl").write_text('{"item_id": "new-1", "withdrawn": true}\n')
    nextclick(site, "send", str(tmp_path / "gone.jsonl"), "--items")
    stocked(site, items=0, withdrawn=1)
    assert "new-1" not in proposed(site, 2)
    said = nextclick(site, *ask, "--url", f"http://{site.http}")
    assert (said["withdrawn"], [one["item_id"] for one in said["ranked"]]) == (["new-1"], ["i0"])
