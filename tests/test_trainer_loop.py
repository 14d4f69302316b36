"""From rows to a version and back: memory, blend, judge, registry, retrain."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from featurestore import disk, lake, sessions, window
from featurestore.events import Event, Origin, Row
from trainer import blend, cadence, heads, judge, lambdarank, memory, registry, retrain, texts
from trainer.cases import replay, window_rows
from trainer.network import NetworkSettings
from trainer.predictor import Predictor, Trained

KEY = lake.PartitionKey("events@log", 0)
MINUTE = 60_000


def shop_rows(n: int, *, seed: int = 1) -> list[Row]:
    """People who mostly go from item k to item k + 1."""
    rng, rows, open_ = random.Random(seed), [], sessions.OpenSessions()
    settings = sessions.SessionSettings()
    at: dict[str, int] = {}
    for i in range(n):
        user = f"u{rng.randrange(40)}-{i // 400}"
        item = (at.get(user, rng.randrange(30)) + 1) % 30 if rng.random() < 0.8 else rng.randrange(30)
        at[user] = item
        event = Event(
            event_id=f"e{i}",
            type="view",
            user_id=user,
            ts_ms=1_700_000_000_000 + i * 3_000,
            item_id=f"i{item}",
            title=f"thing {item}",
            category=f"c{item % 5}",
        )
        folded = sessions.fold(open_, event, Origin(KEY.topic, 0, i, 0, event.ts_ms), settings)
        assert folded.row is not None
        rows.append(folded.row)
    return rows


@pytest.fixture
def shop(tmp_path: Path) -> tuple[lake.Lake, texts.Texts, registry.Registry]:
    """A lake with one partition, hashed texts, an empty registry."""
    return lake.Lake(tmp_path, "w"), texts.Texts(None, tmp_path, "w"), registry.Registry(tmp_path)


POLICY = window.WindowPolicy(horizon_next_ms=10 * MINUTE, horizon_purchase_ms=10 * MINUTE, n_min=100)
REFRESH = retrain.Recipe()


def champion(
    shop: tuple[lake.Lake, texts.Texts, registry.Registry], rows: list[Row], recipe: retrain.Recipe = REFRESH
) -> Path:
    """The folder of the first version, learnt from these rows, which the lake has from then on."""
    the_lake, words, out = shop
    the_lake.write_rows(KEY, 0, rows)
    name = retrain.run(the_lake.cover(), None, recipe, POLICY, 0, texts=words, out=out).version
    assert name is not None
    return out.path(name)


def test_first_champion_learns_the_shop_and_predicts_what_it_judged(
    shop: tuple[lake.Lake, texts.Texts, registry.Registry],
) -> None:
    """A version that is loaded again ranks the usual follower high and its probabilities sum to at most one."""
    the_lake, words, out = shop
    rows = shop_rows(3_000)
    the_lake.write_rows(KEY, 0, rows)
    verdict = retrain.run(the_lake.cover(), None, retrain.Recipe(), POLICY, 0, texts=words, out=out)
    assert verdict.accepted
    assert verdict.version is not None
    assert (verdict.metrics["candidate"]["recall20"].mean or 0) > 0.8
    out.verify(verdict.version)
    model = Predictor.load(out.path(verdict.version), words)
    open_ = sessions.OpenSessions()
    sessions.restore(open_, rows[-50:], rows[-1].event.ts_ms, sessions.SessionSettings())
    session = open_.of(rows[-1].event.user_id)[0]
    (interest,) = model.predict([session], [rows[-1].event.ts_ms])
    item = int((rows[-1].event.item_id or "")[1:])
    assert f"i{(item + 1) % 30}" in [name for name, _ in interest.items[:3]]
    assert sum(p for _, p in interest.items) + interest.none_probability <= 1 + 1e-9
    assert interest.reason == "model"
    assert interest.version == verdict.version


def test_second_version_goes_through_the_gate(shop: tuple[lake.Lake, texts.Texts, registry.Registry]) -> None:
    """With newer data the verdict has n, both arms and finite bounds, whichever way it went."""
    the_lake, words, out = shop
    rows = shop_rows(5_000)
    the_lake.write_rows(KEY, 0, rows[:2_500])
    first = retrain.run(the_lake.cover(), None, retrain.Recipe(), POLICY, 0, texts=words, out=out)
    assert first.version is not None
    the_lake.write_rows(KEY, 2_500, rows[2_500:])
    newer = window.WindowPolicy(
        horizon_next_ms=10 * MINUTE, horizon_purchase_ms=10 * MINUTE, n_min=100, since={KEY: 2_500}
    )
    second = retrain.run(the_lake.cover(), out.path(first.version), retrain.Recipe(), newer, 0, texts=words, out=out)
    assert second.n >= 100
    assert set(second.metrics) == {"candidate", "champion"}
    assert all(b.low is not None and b.high is not None and b.low <= b.high for b in second.bounds.values())


def test_too_few_labels_keep_the_champion(shop: tuple[lake.Lake, texts.Texts, registry.Registry]) -> None:
    """Below n_min nothing is published and the verdict says so."""
    the_lake, words, out = shop
    the_lake.write_rows(KEY, 0, shop_rows(50))
    verdict = retrain.run(the_lake.cover(), None, retrain.Recipe(), POLICY, 0, texts=words, out=out)
    assert not verdict.accepted
    assert "too few labels" in verdict.reason
    assert out.names() == []


def test_gate_refuses_a_worse_candidate_and_one_without_cases() -> None:
    """A candidate that is worse by more than the margin stays out, and so does one that cannot be judged."""
    n = 400
    session, half = np.arange(n), np.full(n, 0.5)
    rest = dict.fromkeys(("category_loss", "category_right", "category_recalled"), half)
    right = (np.arange(n) % 2).astype(float)

    def arm(loss: float, reciprocal: float) -> judge.Scores:
        filled = (np.full(n, loss), np.full(n, reciprocal), np.full(n, reciprocal), half, right)
        return judge.Scores(**dict(zip(judge.Scores.__struct_fields__, filled, strict=False)), **rest)

    good, worse, unknown = arm(1.0, 0.5), arm(1.1, 0.5), arm(1.0, np.nan)
    assert judge.refresh_gate(good, good, session)[0]
    assert "log loss" in judge.refresh_gate(worse, good, session)[1]
    assert not judge.refresh_gate(unknown, unknown, session)[0]


def test_blend_recovers_what_drives_the_choice() -> None:
    """Where the first feature decides, the fitted probabilities follow it and sum to one."""
    rng = np.random.default_rng(0)
    cases = []
    for _ in range(300):
        x = rng.normal(size=(8, blend.WIDTH))
        best = int(x[:, 0].argmax())
        cases.append(blend.Case(candidates=x, session=np.eye(len(blend.SESSION))[0], target=best))
    fitted = blend.fit(cases)
    each, none, other = fitted.probabilities(cases[0])
    assert each.argmax() == cases[0].target
    assert each.sum() + none + other == pytest.approx(1)


def drawn(rng: np.random.Generator, law: blend.Blend, n: int) -> list[blend.Case]:
    """Cases that came of a law; features lie around −7, as logarithms do, and say much the same."""
    made = []
    for _ in range(n):
        x = -7 + rng.normal(size=(30, 1)) + 0.3 * rng.normal(size=(30, blend.WIDTH))
        case = blend.Case(candidates=x, session=np.eye(len(blend.SESSION))[0], none=0.1)
        each, none, other = law.probabilities(case)
        came = rng.choice(32, p=np.append(each, (none, other)))
        made.append(dataclasses.replace(case, target=int(came) if came < 30 else 29 - int(came)))
    return made


def some_law(rng: np.random.Generator) -> blend.Blend:
    """Of weights that sum to nothing: where the features lie says nothing."""
    weights, session = rng.normal(size=blend.WIDTH), [0.0] * len(blend.SESSION)
    return blend.Blend(item=(weights - weights.mean()).tolist(), other=session)


def test_a_small_refit_does_no_harm() -> None:
    """Two hundred cases of the same law leave what was learnt from thousands as good as it was."""
    rng = np.random.default_rng(5)
    law = some_law(rng)
    champion = blend.fit(drawn(rng, law, 2_000))
    few = drawn(rng, law, 200)
    arms, later = (champion, blend.fit(few, start=champion), blend.fit(few)), drawn(rng, law, 2_000)
    before, refit, alone = (float(np.mean([blend.surprise(arm, case) for case in later])) for arm in arms)
    assert refit < before + 0.005
    assert alone > refit + 0.005
    assert arms[1].evidence == champion.evidence + sum(case.target != -1 for case in few)


def test_much_that_is_new_takes_over() -> None:
    """Where the law has changed, thousands of cases of the new one are believed."""
    rng = np.random.default_rng(6)
    old, new = some_law(rng), some_law(rng)
    champion = blend.fit(drawn(rng, old, 1_000))
    refit, later = blend.fit(drawn(rng, new, 5_000), start=champion), drawn(rng, new, 1_000)
    after, before, best = (np.mean([blend.surprise(arm, case) for case in later]) for arm in (refit, champion, new))
    assert after - best < 0.1 * (before - best)


def test_nothing_new_to_fit_on_leaves_the_blend_as_it_was() -> None:
    """All fresh cuts may be held out for the judge; a few pull the weights only a little."""
    start = blend.Blend(item=[0.5] * blend.WIDTH, other=[0.0] * len(blend.SESSION))
    assert blend.fit([], start=start) == start
    x = np.random.default_rng(1).normal(size=(8, blend.WIDTH))
    near = blend.fit([blend.Case(candidates=x, session=np.eye(len(blend.SESSION))[0], target=2)], start=start)
    assert np.abs(np.array(near.item) - 0.5).max() < 0.1


def test_memory_counts_no_row_twice_and_does_not_mind_the_order_of_partitions() -> None:
    """Rows below the offsets seen change nothing; popularity is the same newest first and oldest first."""
    rows = shop_rows(200)
    once, twice = memory.Memory(), memory.Memory()
    once.learn(rows)
    twice.learn(rows)
    twice.learn(rows)
    assert once.state() == twice.state()
    assert all(np.array_equal(a, b) for a, b in zip(once.arrays().values(), twice.arrays().values(), strict=True))
    backwards = memory.Memory()
    for row in reversed(rows):
        backwards.take(row)
    for item in once.items:
        one, other = once.words[item], backwards.words[item]
        assert backwards.popular[other] == pytest.approx(once.popular[one])
        assert backwards.popular_ms[other] == once.popular_ms[one]


def test_registry_refuses_names_that_leave_the_folder_and_bytes_that_changed(tmp_path: Path) -> None:
    """A version is its bytes; its name is never a path."""
    out = registry.Registry(tmp_path)
    version = out.publish(lambda d: (d / "memory.json").write_bytes(b"{}") and None, {"n": 1})
    out.verify(version)
    assert out.meta(version) == {"n": 1}
    for name in ("../" + version, "..", version + "/x", "v1"):
        with pytest.raises(registry.UnknownVersion):
            out.path(name)
    (out.path(version) / "memory.json").write_bytes(b"[]")
    with pytest.raises(registry.CorruptVersion):
        out.verify(version)


def publish(out: registry.Registry, encoder: str) -> str:
    """A version that names an encoder and holds nothing else."""
    config = f'{{"encoder": "{encoder}"}}'
    return out.publish(lambda d: (d / "config.json").write_text(config) and None, {"n": len(out.names())})


def test_encoders_and_vectors_go_with_the_last_version_that_names_them(tmp_path: Path) -> None:
    """What a kept version or the settings name stays, and so does what may just be being made; the rest goes."""
    out = registry.Registry(tmp_path)
    publish(out, "old")
    kept = publish(out, "tuned")
    for name in ("old", "tuned", "default", "rejected", ".half.tmp"):
        for folder in ("encoders", "vectors"):
            (tmp_path / folder / name).mkdir(parents=True)
            (tmp_path / folder / name / "file").write_bytes(b"x")
    opened = (tmp_path / "encoders" / "rejected" / "file").open("rb")
    now_ms = int((tmp_path / "encoders" / "old").stat().st_mtime * 1000) + 10_000
    assert out.sweep({"default"}, 60_000, now_ms) == ()
    gone = {f"{f}/{n}" for f in ("encoders", "vectors") for n in ("rejected", ".half.tmp")}
    assert set(out.sweep({"default"}, 5_000, now_ms)) == gone
    assert opened.read() == b"x"  # a reader goes on
    opened.close()
    out.prune(1, {kept})
    assert set(out.sweep({"default"}, 5_000, now_ms)) == {"encoders/old", "vectors/old"}
    assert sorted(p.name for p in (tmp_path / "encoders").iterdir()) == ["default", "tuned"]
    assert sorted(p.name for p in (tmp_path / "vectors").iterdir()) == ["default", "tuned"]


def test_nothing_is_swept_where_a_version_does_not_tell_its_encoder(tmp_path: Path) -> None:
    """Better too much on the disk than an encoder too few."""
    out = registry.Registry(tmp_path)
    (out.path(publish(out, "tuned")) / "config.json").unlink()
    (tmp_path / "encoders" / "rejected").mkdir(parents=True)
    assert out.sweep((), 0, 2**60) == ()
    assert (tmp_path / "encoders" / "rejected").is_dir()


def test_a_version_is_on_the_disk_before_it_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file and the folder are synced, then the name appears, then the folder above is synced."""
    steps: list[str] = []
    sync = disk.sync
    monkeypatch.setattr(disk, "sync", lambda p: steps.append(p.name) or sync(p))
    version = publish(registry.Registry(tmp_path), "e")
    assert set(steps[:-2]) == {"config.json", "meta.json", "README.md", "digest"}
    assert steps[-2].endswith(".tmp")
    assert steps[-1] == "versions"
    assert (tmp_path / "versions" / version / "digest").is_file()


def test_cadence_is_beaten_by_a_pause_and_a_pause_by_a_command() -> None:
    """The clock asks once a cadence; a pause holds it; `retrain.now` goes before both."""
    policy = cadence.CadencePolicy(cadence_ms=1_000)
    ran = cadence.CadenceState(last_start_ms=0)
    assert cadence.due(ran, policy, 999).kind is None
    assert cadence.due(ran, policy, 1_000).kind == "refresh"
    paused = cadence.CadenceState(last_start_ms=0, paused_until_ms=5_000, paused_by="ann")
    assert "ann" in cadence.due(paused, policy, 2_000).reason
    asked = cadence.CadenceState(last_start_ms=0, paused_until_ms=5_000, paused_by="ann", asked=True)
    assert cadence.due(asked, policy, 2_000).kind == "refresh"
    cut_off = cadence.CadenceState(last_start_ms=0, cut_off=True)
    assert cadence.due(cut_off, policy, 1).reason == "the last one was cut off"


def test_texts_are_embedded_once_and_shared(tmp_path: Path) -> None:
    """Like texts lie closer than unlike ones; the same text gives the same vector."""
    words = texts.Texts(None, tmp_path, "w")
    a, b, c = words.vectors(["red running shoe", "red running shoes", "garden hose"])
    assert a @ b > 0.8 > a @ c
    assert np.array_equal(words.vectors(["red running shoe"])[0], a)


def test_no_feature_knows_the_future(shop: tuple[lake.Lake, texts.Texts, registry.Registry]) -> None:
    """With everything after an instant scrambled, the cases at the cuts before it are the same to the last bit."""
    _, words, _ = shop
    rows, rng = shop_rows(1_200), random.Random(5)
    later = [msgspec.structs.replace(r.event, item_id=f"i{rng.randrange(30)}", title="?") for r in rows[900:]]
    other = rows[:900] + [msgspec.structs.replace(r, event=e) for r, e in zip(rows[900:], later, strict=True)]
    made = []
    for number, told in enumerate((rows, other)):
        here = lake.Lake(words.shared / str(number), "w")
        here.write_rows(KEY, 0, told)
        found = window.examples(here.cover(), POLICY)
        rows_ = retrain.rows_of(found)
        early = np.flatnonzero(found.row < 600)
        net = retrain.network_of(found, rows_, early, words, None, NetworkSettings(epochs=1, first=1))
        arm = Predictor(memory.Memory(), words, trained=Trained(net, blend.Blend.flat()))
        wanted = np.flatnonzero((found.row >= 600) & (found.row < 690))
        made.append(replay(found, rows_, wanted, {"arm": arm})["arm"])
    assert made[0].keys() == made[1].keys()
    assert len(made[0]) == 90
    for i, case in made[0].items():
        assert np.array_equal(case.candidates, made[1][i].candidates)
        assert np.array_equal(case.session, made[1][i].session)
        assert np.array_equal(case.crossing.times, made[1][i].crossing.times)


def test_purchase_head_learns_from_the_whole_window(
    shop: tuple[lake.Lake, texts.Texts, registry.Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody has bought of late, what is known of earlier buyers is not lost."""
    the_lake, _, _ = shop
    bought = [
        msgspec.structs.replace(r, event=msgspec.structs.replace(r.event, type="purchase")) if n % 9 == 0 else r
        for n, r in enumerate(shop_rows(1_500))
    ]
    the_lake.write_rows(KEY, 0, bought + shop_rows(3_000)[1_500:])
    monkeypatch.setattr(retrain, "PURCHASE_CUTS", 600)
    policy = msgspec.structs.replace(POLICY, horizon_purchase_ms=5 * MINUTE)
    found = window.examples(the_lake.cover(), policy)
    assert (found.purchase[-700:] < 1).all()
    assert retrain.purchase_head(found, retrain.rows_of(found), policy) is not None


def test_hours_whose_purchases_were_lost_teach_nothing(
    shop: tuple[lake.Lake, texts.Texts, registry.Registry],
) -> None:
    """Half of those who come to a checkout buy, but for a third of the time none is told: still about half will."""
    the_lake, words, out = shop
    rows = []
    for n, row in enumerate(shop_rows(3_000)):
        kind = ("checkout", "purchase", "view")[n % 3]
        if kind == "purchase" and (600 < n < 1_600 or n % 2):
            kind = "view"
        rows.append(msgspec.structs.replace(row, event=msgspec.structs.replace(row.event, type=kind)))
    the_lake.write_rows(KEY, 0, rows)
    verdict = retrain.run(the_lake.cover(), None, retrain.Recipe(), POLICY, 0, texts=words, out=out)
    assert verdict.version is not None
    (said,) = verdict.warnings
    assert "no purchase from" in said
    assert said in (out.path(verdict.version) / "README.md").read_text()
    found = window.examples(the_lake.cover(), POLICY)
    seen, (lost,) = retrain.rows_of(found), found.outages
    known, meets = found.purchase >= 0, found.at_ms + POLICY.horizon_purchase_ms >= lost.from_ms
    assert not (known & meets & (found.at_ms < lost.to_ms)).any()
    head = retrain.purchase_head(found, seen, POLICY)
    assert head is not None
    x = np.array([heads.features(window_rows(found, seen, i), int(found.at_ms[i])) for i in np.flatnonzero(known)])
    assert head.of(x).mean() == pytest.approx(found.purchase[known].mean(), rel=0.1)


@pytest.mark.parametrize("ranker", [False, True])
def test_a_version_says_the_same_when_it_is_read_back(
    shop: tuple[lake.Lake, texts.Texts, registry.Registry], ranker: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved and loaded: the same interests, alone and in a batch; made for other features: refused."""
    monkeypatch.setattr(lambdarank, "FEWEST", 50)
    monkeypatch.setitem(lambdarank.SETTINGS, "min_data_in_leaf", 20)
    _, words, _ = shop
    rows = shop_rows(2_000)
    folder = champion(shop, rows, retrain.Recipe(ranker=ranker))
    one, two = (Predictor.load(folder, words) for _ in range(2))
    open_ = sessions.OpenSessions()
    sessions.restore(open_, rows[-200:], rows[-1].event.ts_ms, sessions.SessionSettings())
    asked = [s for user in {r.event.user_id for r in rows[-50:]} for s in open_.of(user)]
    at_ms = [rows[-1].event.ts_ms] * len(asked)
    together = one.predict(asked, at_ms)
    alone = [two.predict([s], t)[0] for s, t in zip(asked, [[t] for t in at_ms], strict=True)]
    for a, b in zip(together, alone, strict=True):
        assert dict(a.items) == pytest.approx(dict(b.items), rel=1e-4)
        assert a.none_probability == pytest.approx(b.none_probability, rel=1e-4)
        assert dict(a.categories) == pytest.approx(dict(b.categories), rel=1e-4)
    falling = all(sorted((p for _, p in a.items), reverse=True) == [p for _, p in a.items] for a in together)
    assert falling != ranker  # its order is not that of the probabilities
    config = folder / "config.json"
    config.write_bytes(config.read_bytes().replace(b'"follows"', b'"leads"'))
    with pytest.raises(ValueError, match="other features"):
        Predictor.load(folder, words)


def test_a_version_of_before_a_feature_weighs_it_nothing(
    shop: tuple[lake.Lake, texts.Texts, registry.Registry],
) -> None:
    """It says what today's says whose weights for it are 0, and is refreshed; one of more features is refused."""
    the_lake, words, out = shop
    rows = shop_rows(4_000)
    folder = champion(shop, rows[:2_000])
    config, older = folder / "config.json", blend.FEATURES.index("again")
    today, told = Predictor.load(folder, words), msgspec.json.decode(config.read_bytes())
    assert today.trained is not None
    fitted = today.trained.blend
    assert any(fitted.item[older:])
    zeroed = msgspec.structs.replace(fitted, item=fitted.item[:older] + [0.0] * (blend.WIDTH - older))
    today.trained = msgspec.structs.replace(today.trained, blend=zeroed)
    weights = told["weights"] | {"item": fitted.item[:older]}
    config.write_bytes(msgspec.json.encode(told | {"weights": weights, "features": blend.FEATURES[:older]}))
    asked = [sessions.Session("s", "u", 0, 0, rows[k : k + 3]) for k in range(1_500, 1_520)]
    at_ms = [session.rows[-1].event.ts_ms for session in asked]
    said, expected = (model.predict(asked, at_ms) for model in (Predictor.load(folder, words), today))
    assert said == expected
    the_lake.write_rows(KEY, 2_000, rows[2_000:])
    refreshed = retrain.run(the_lake.cover(), folder, retrain.Recipe(), POLICY, 0, texts=words, out=out)
    assert refreshed.metrics.keys() == {"candidate", "champion"}
    config.write_bytes(msgspec.json.encode(told | {"features": (*blend.FEATURES, "unheard of")}))
    with pytest.raises(ValueError, match="other features"):
        Predictor.load(folder, words)


def test_a_version_of_before_the_mixture_tells_categories_as_it_did(
    shop: tuple[lake.Lake, texts.Texts, registry.Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its items alone; its refresh has a mixture, whose memory counts from there on."""
    the_lake, words, out = shop
    rows = shop_rows(4_000)
    folder = champion(shop, rows[:2_000])
    assert Predictor.load(folder, words).memory.crossing(rows[:1]).times.sum() > 100
    config, counts = folder / "config.json", folder / "memory.safetensors"
    config.write_bytes(msgspec.json.encode({**msgspec.json.decode(config.read_bytes()), "categories": None}))
    save_file({k: v for k, v in load_file(counts).items() if not k.startswith("crossings")}, counts)
    model = Predictor.load(folder, words)
    assert model.memory.crossing(rows[:1]).times.sum() == 0
    one = rows[1_990]
    (interest,) = model.predict([sessions.Session("s", "u", 0, 0, [one])], [one.event.ts_ms])
    (said, headings), at_ms = model.headings([[one]], [one.event.ts_ms]), one.event.ts_ms
    _, case = model.case([one], at_ms, headings[0], said.own[0])
    assert model.trained is not None
    each, none, _ = model.trained.blend.probabilities(case)
    shelves, shares = blend.by_category(case.shelves, each)
    by_items = {
        model.memory.names[w][2:]: s * (1 - none) for w, s in zip(shelves.tolist(), shares.tolist(), strict=True)
    }
    assert dict(interest.categories) == pytest.approx(by_items, rel=1e-4)
    the_lake.write_rows(KEY, 2_000, rows[2_000:])
    monkeypatch.setattr(judge, "refresh_gate", lambda *_: (True, "whatever it is worth", {}))
    refreshed = retrain.run(the_lake.cover(), folder, retrain.Recipe(), POLICY, 0, texts=words, out=out).version
    again = Predictor.load(out.path(str(refreshed)), words)
    assert again.trained is not None
    assert again.trained.categories is not None
    assert again.memory.crossing(rows[:1]).times.sum() > 100


def test_each_minute_brings_cuts_that_no_version_has_seen(
    shop: tuple[lake.Lake, texts.Texts, registry.Registry],
) -> None:
    """A version's memory ends where labels are immature, so the next one need not wait for a whole horizon."""
    the_lake, words, out = shop
    rows = shop_rows(3_000)
    the_lake.write_rows(KEY, 0, rows[:2_700], lake.LakeProgress(next=2_700, watermark_ms=rows[2_699].event.ts_ms))
    first = retrain.run(the_lake.cover(), None, retrain.Recipe(), POLICY, 0, texts=words, out=out)
    ((name, seen),) = first.data_offsets.items()
    assert name == "events@log|0"
    assert rows[2_699].event.ts_ms - rows[seen].event.ts_ms <= POLICY.horizon_next_ms
    model = Predictor.load(out.path(str(first.version)), words)
    assert model.memory.seen == {("events@log", 0): seen}
    assert model.learn(rows[:2_700]) == 2_700 - seen
    the_lake.write_rows(KEY, 2_700, rows[2_700:], lake.LakeProgress(next=3_000, watermark_ms=rows[-1].event.ts_ms))
    newer = msgspec.structs.replace(POLICY, since={KEY: seen})
    second = retrain.run(
        the_lake.cover(), out.path(str(first.version)), retrain.Recipe(), newer, 0, texts=words, out=out
    )
    assert second.n >= 100
