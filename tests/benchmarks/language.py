"""What the language parts are worth on the Google store file; prints Markdown tables for docs/quality.md.

Usage: python tests/benchmarks/language.py textbook|robustness|forgetting FILE [EVENTS]
"""

from __future__ import annotations

import gzip
import itertools
import json
import random
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from deploy import backtest
from deploy.settings import Settings
from featurestore import lake, window
from featurestore.events import Origin, Row, Session
from trainer import judge, network, registry, retrain, textbook, texts
from trainer.cases import window_rows
from trainer.predictor import Interest, Predictor

KEY = backtest.KEY
DAY = 86_400_000
TESTED = 500
REPLAYS = (4.0, 0.0)  # old cuts for each new one


def main(what: str, file: Path, events: int) -> None:
    """Print one of the tables."""
    torch.set_num_threads(1)
    settings = Settings.load({"n_min": "100", "encoder": "none"} if what == "forgetting" else {"n_min": "200"})
    with tempfile.TemporaryDirectory() as folder:
        rows = backtest.read(settings, sampled(file, events, what == "forgetting", Path(folder) / "sample.jsonl"))
        {"textbook": compare, "robustness": disturb, "forgetting": forget}[what](settings, rows, events, Path(folder))


def sampled(file: Path, events: int, by_user: bool, out: Path) -> Path:
    """The first events of the file, or about as many of a share of its people over the whole of its time."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        if by_user:
            said = [line for line in lines if zlib.crc32(json.loads(line)["user_id"].encode()) % 516_069 < events]
        else:
            said = list(itertools.islice(lines, events))
    out.write_text("".join(said), encoding="utf-8")
    return out


class Shop:
    """A lake, its versions and the newest model."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.policy = msgspec.structs.replace(settings.window_policy(), max_age_ms=10**15)
        self.lake, self.out = lake.Lake(folder, "w"), registry.Registry(folder)
        self.words = texts.Texts(settings.encoder(), folder, "w")
        self.champion: Path | None = None
        self.since: dict[lake.PartitionKey, int] = {}
        self.cpu = 0.0

    def train(self, rows: list[Row], settings: network.NetworkSettings) -> None:
        """Write rows and make a version of all that is there; it takes the champion's place where it passes."""
        self.lake.write_rows(KEY, rows[0].origin.offset, rows)
        policy = msgspec.structs.replace(self.policy, since=self.since)
        begun = time.process_time()
        verdict = retrain.run(
            self.lake.cover(),
            self.champion,
            retrain.Recipe(network=settings),
            policy,
            0,
            texts=self.words,
            out=self.out,
        )
        self.cpu += time.process_time() - begun
        if verdict.version is not None:
            self.champion = self.out.path(verdict.version)
            self.since = {KEY: next(iter(verdict.data_offsets.values()))}
        else:
            print(f"kept out, judged by {verdict.n} cuts: {verdict.reason}", file=sys.stderr, flush=True)

    def model(self) -> Predictor:
        """The champion."""
        assert self.champion is not None
        return Predictor.load(self.champion, self.words)


def labelled(settings: Settings, rows: list[Row]) -> tuple[window.Examples, list[Row]]:
    """All cuts with their answers, and the rows that they point into."""
    made = backtest.labels_of(settings, rows)
    return made, retrain.rows_of(made)


def session_of(rows: list[Row]) -> Session:
    """These rows as a session."""
    return Session("s", "u", rows[0].event.ts_ms, rows[-1].event.ts_ms, rows, len(rows))


def told(name: str, ranks: list[int], session: Any, more: str) -> str:
    """One row of a table; rank 0: not among the first 20."""
    found = np.array(ranks, float)
    recalled = judge.interval((found > 0).astype(float), session)
    reciprocal = judge.interval(np.divide(1, found, out=np.zeros_like(found), where=found > 0), session)
    cells = [f"{b.mean:.3f} [{b.low:.3f}, {b.high:.3f}]" for b in (recalled, reciprocal)]
    return f"| {name} | {' | '.join(cells)} | {more} |"


def rank(names: list[str], target: str) -> int:
    """Its place among the names from 1 on, 0 where it has none."""
    return names.index(target) + 1 if target in names else 0


def split(settings: Settings, rows: list[Row], events: int, seed: int = 7) -> tuple[Any, list[Row], int, Any]:
    """The labels of the first events, and cuts of their last fifth whose next item was seen before."""
    made, used = labelled(settings, rows[:events])
    at = used[int(0.8 * len(used))].event.ts_ms
    known = {row.event.item_id for row in used if row.event.ts_ms < at}
    wanted = [i for i in np.flatnonzero((made.at_ms >= at) & (made.next_row >= 0))
              if used[made.next_row[i]].event.item_id in known]  # fmt: skip
    chosen = sorted(random.Random(seed).sample(wanted, min(TESTED, len(wanted))))
    return made, used, at, chosen


def compare(settings: Settings, rows: list[Row], events: int, folder: Path) -> None:
    """Ours and the textbook's two ways, each trained for the CPU seconds that ours took."""
    made, used, at, chosen = split(settings, rows, events)
    shop = Shop(settings, folder)
    shop.train([row for row in used if row.event.ts_ms < at], network.NetworkSettings())
    model, session = shop.model(), made.session_key[chosen]
    target = [str(used[made.next_row[i]].event.item_id) for i in chosen]
    sessions = [window_rows(made, used, i) for i in chosen]
    print(f"n = {len(chosen)} cuts of {events:,} events, CPU s to train {shop.cpu:.0f}\n")
    print("| | R@20 | MRR@20 | CPU ms a session | sessions learnt |\n|---|---|---|---|---|")
    begun = time.process_time()
    ours = [predicted(model, [s])[0] for s in sessions]
    ms = 1000 * (time.process_time() - begun) / len(chosen)
    ranks = [rank([name for name, _ in said.items], t) for said, t in zip(ours, target, strict=True)]
    print(told("nextclick", ranks, session, f"{ms:.1f} | all"), flush=True)
    past = [i for i in np.flatnonzero(made.next_row >= 0) if used[made.next_row[i]].event.ts_ms < at]
    said = [textbook.session_text(window_rows(made, used, i)) for i in past]
    came = [str(used[made.next_row[i]].event.item_id) for i in past]
    names, title = sorted(set(came)), {str(r.event.item_id): str(r.event.title) for r in used if r.event.item_id}
    asked = [textbook.session_text(s) for s in sessions]
    arms: dict[str, Callable[[], tuple[Any, list[str], dict[str, str]]]] = {
        "classifier, MiniLM": lambda: (
            textbook.Classifier(str(settings.encoder()), names),
            came,
            {n: n for n in names},
        ),
        "generator, GPT-2 of 2 layers from scratch": lambda: _generator(folder, said, came, title),
    }
    for name, make in arms.items():
        arm, answers, called = make()
        seen = arm.learn(said, answers, shop.cpu, epochs=20)
        n = len(asked) if name.startswith("class") else 100
        begun = time.process_time()
        ranks = [rank(arm.ranked(a, 20), called.get(t, "")) for a, t in zip(asked[:n], target[:n], strict=True)]
        ms = 1000 * (time.process_time() - begun) / n
        note = f"{seen:,} ({seen / len(said):.0%} of a pass)" + (f", n = {n}" if n < len(asked) else "")
        print(told(name, ranks, session[:n], f"{ms:.1f} | {note}"), flush=True)


def _generator(folder: Path, said: list[str], came: list[str], title: dict[str, str]) -> Any:
    """A small decoder with a tokenizer learnt from the sessions: no weights of a large one are at hand."""
    import tokenizers
    import transformers

    end, path = "<|endoftext|>", folder / "decoder"
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    learn = tokenizers.trainers.BpeTrainer(
        vocab_size=2_000, special_tokens=[end], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(said, learn)
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token=end, eos_token=end).save_pretrained(path)
    config = transformers.GPT2Config(vocab_size=made.get_vocab_size(), n_embd=128, n_layer=2, n_head=4, n_positions=256,
                                     bos_token_id=0, eos_token_id=0)  # fmt: skip
    transformers.GPT2LMHeadModel(config).save_pretrained(path)
    called = {item: title[item] for item in set(came)}
    return textbook.Generator(str(path), sorted(set(called.values()))), [called[item] for item in came], called


def disturb(settings: Settings, rows: list[Row], events: int, folder: Path) -> None:
    """How far the predictions of the same sessions move when something in them is not as it was."""
    made, used, at, chosen = split(settings, rows, events)
    shop, rng = Shop(settings, folder), random.Random(7)
    shop.train([row for row in used if row.event.ts_ms < at], network.NetworkSettings())
    model = shop.model()
    sessions = [window_rows(made, used, i) for i in chosen]
    before = predicted(model, sessions)
    ways: dict[str, Callable[[Row], Row]] = {
        "nothing": lambda row: row,
        "a typo in every text": lambda row: _said(row, lambda text: _typo(text, rng)),
        "words swapped": lambda row: _said(row, lambda text: " ".join(rng.sample(text.split(), len(text.split())))),
        "typos, and item ids unknown": lambda row: _renamed(_said(row, lambda text: _typo(text, rng)), rng),
        "unseen categories": lambda row: changed(row, category="Garden > Hoses" if row.event.category else None),
        "another shop's items": lambda row: changed(_renamed(row, rng), title="Walnut sideboard", brand=None,
                                                     category="Furniture" if row.event.category else None),
    }  # fmt: skip
    session = made.session_key[chosen]
    target = [str(used[made.next_row[i]].event.item_id) for i in chosen]
    print(f"n = {len(chosen)} cuts, CPU s to train {shop.cpu:.0f}\n")
    print("| | total variation | of 20 items moved | R@20 |\n|---|---|---|---|", flush=True)
    for name, way in {**ways, "a session of one: its last row": None}.items():
        after = predicted(model, [s[-1:] if way is None else [way(row) for row in s] for s in sessions])
        apart = judge.interval(np.array([_apart(a, b) for a, b in zip(before, after, strict=True)]), session)
        moved = np.mean([1 - len({n for n, _ in a.items} & {n for n, _ in b.items}) / max(len(a.items), 1)
                         for a, b in zip(before, after, strict=True)])  # fmt: skip
        hits = judge.interval(
            np.array([float(t in {n for n, _ in said.items}) for said, t in zip(after, target, strict=True)]), session
        )
        print(f"| {name} | {apart.mean:.3f} [{apart.low:.3f}, {apart.high:.3f}] | {moved:.0%} "
              f"| {hits.mean:.3f} [{hits.low:.3f}, {hits.high:.3f}] |", flush=True)  # fmt: skip


def predicted(model: Predictor, sessions: list[list[Row]]) -> list[Interest]:
    """What a model says of sessions at their last rows."""
    return model.predict([session_of(rows) for rows in sessions], [rows[-1].event.ts_ms for rows in sessions])


def _apart(a: Interest, b: Interest) -> float:
    """Total variation between two predictions: their 20 items, none, and all other items as one outcome."""
    one, two = ({**dict(said.items), "": said.none_probability} for said in (a, b))
    rest = abs(sum(one.values()) - sum(two.values()))
    return 0.5 * (sum(abs(one.get(k, 0) - two.get(k, 0)) for k in one.keys() | two.keys()) + rest)


def changed(row: Row, **said: Any) -> Row:
    return msgspec.structs.replace(row, event=msgspec.structs.replace(row.event, **said))


def _said(row: Row, way: Callable[[str], str]) -> Row:
    texts_ = {name: way(text) for name in ("title", "query") if (text := getattr(row.event, name))}
    return changed(row, **texts_)


def _typo(text: str, rng: random.Random) -> str:
    i = rng.randrange(max(1, len(text) - 1))
    return text[:i] + text[i + 1 : i + 2] + text[i : i + 1] + text[i + 2 :]


def _renamed(row: Row, rng: random.Random) -> Row:
    return changed(row, item_id=f"other-{rng.randrange(10**9)}") if row.event.item_id else row


def forget(settings: Settings, rows: list[Row], _: int, folder: Path) -> None:
    """After many retrains: quality on behaviour of different ages by people who were never trained on."""
    people = sorted({row.event.user_id for row in rows})
    held = set(random.Random(8).sample(people, 7 * len(people) // 10))
    ends = rows[-1].event.ts_ms
    made, used = labelled(settings, rows)
    print(
        "| replay (versions, CPU s) | behaviour | n | newest version: R@20 | MRR@20 | that of its time: R@20 | MRR@20 |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    for replay in REPLAYS:
        shop, made_by = Shop(settings, folder / str(replay)), list[tuple[int, Path]]()
        train = [row for row in rows if row.event.user_id not in held]
        train = [msgspec.structs.replace(row, origin=Origin(KEY.topic, 0, i, 0, row.event.ts_ms))
                 for i, row in enumerate(train)]  # fmt: skip
        edges = np.searchsorted([r.event.ts_ms for r in train], np.arange(ends - 40 * DAY, ends + 1, 4 * DAY))
        for begin, end in zip([0, *edges], [*edges, len(train)], strict=True):
            if end > begin:
                shop.train(train[begin:end], network.NetworkSettings(replay=replay, cuts=20_000))
                if shop.champion is not None:
                    made_by.append((train[end - 1].event.ts_ms, shop.champion))
        arm = f"{replay:g} ({len({path for _, path in made_by})}, {shop.cpu:.0f})"
        for name, days in (("a day old", 1), ("a week old", 7), ("a month old", 30)):
            until = ends - (days - 1) * DAY
            when = (made.at_ms < until) & (made.at_ms >= until - 3 * DAY)
            cuts = [i for i in np.flatnonzero(when & (made.next_row >= 0)) if used[made.row[i]].event.user_id in held]
            cuts = cuts[:: max(1, len(cuts) // TESTED)]
            sessions, target = [window_rows(made, used, int(i)) for i in cuts], _targets(made, used, cuts)
            cells = []
            for path in (made_by[-1][1], next((p for at, p in made_by if at >= until - DAY), made_by[-1][1])):
                answers = predicted(Predictor.load(path, shop.words), sessions)
                ranks = [rank([n for n, _ in said.items], t) for said, t in zip(answers, target, strict=True)]
                cells.append(told("", ranks, made.session_key[cuts], "").strip("| "))
            print(f"| {arm} | {name} | {len(cuts)} | {' | '.join(cells)} |", flush=True)


def _targets(made: window.Examples, used: list[Row], cuts: list[Any]) -> list[str]:
    return [str(used[made.next_row[i]].event.item_id) for i in cuts]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(json.loads(sys.argv[3])) if len(sys.argv) > 3 else 40_000)
