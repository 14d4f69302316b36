"""The table of settings: each with its default, its clock and what it takes."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from deploy import logs, notation
from deploy.notation import (
    brokers,
    count,
    duration,
    every,
    file,
    folder,
    listen,
    name,
    number,
    number_or_auto,
    one_of,
    path,
    plain,
    positive,
    replicas,
    topic,
    topics,
    whole,
    words,
)  # fmt: skip
from streams.connection import MECHANISMS, PROTOCOLS

Clock = Literal["event", "wall", ""]
Source = Literal["control", "option", "env", "file", "default"]
ENV_PREFIX = "NEXTCLICK_"
TUNE_MODES = ("frozen", "lora", "adalora", "top", "full", "off")


class SettingsError(ValueError):
    """A setting cannot be used; the message names the key, the value and the remedy."""


class Dial(msgspec.Struct, frozen=True, kw_only=True):
    """One setting; `parse` turns what people write into what the code uses and raises ValueError with the remedy."""

    name: str
    default: str
    parse: Callable[[str], Any]
    help: str
    clock: Clock = ""
    secret: bool = False  # never shown, and never among a process's arguments
    live: bool = False  # may be changed by the control log while everything runs

    @property
    def env(self) -> str:
        """The environment variable that sets it."""
        return ENV_PREFIX + self.name.replace(".", "_").upper()

    def shown(self, text: str) -> str:
        """A value as it may be shown."""
        return "***" if self.secret and text else text


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """What a dial stands at: as written, as parsed, and who said so."""

    text: str
    value: Any
    source: Source
    by: str | None = None  # who set it, for control
    at_ms: int | None = None  # when

    @property
    def told(self) -> str:
        """The source with who and when, where they are known.

        >>> Value(text="30s", value=30_000, source="control", by="ann", at_ms=0).told
        'control (ann, 1970-01-01T00:00:00Z)'
        """
        who = [self.by, None if self.at_ms is None else notation.instant(self.at_ms)]
        named = ", ".join(w for w in who if w)
        return f"{self.source} ({named})" if named else self.source


DIALS: tuple[Dial, ...] = (
    Dial(name="session.gap", default="30m", parse=positive, clock="event", help="inactivity that ends a session"),
    Dial(name="session.lateness", default="2m", parse=duration, clock="event", help="how late an event may come"),
    Dial(
        name="bots.pace",
        default="2s",
        parse=duration,
        clock="event",
        help="time that an act takes a person on average; 0s: no session is told by its rate",
    ),
    Dial(
        name="bots.burst",
        default="30",
        parse=whole(0, 10**6, "30"),
        help="acts ahead of that pace from which a session is a program's",
    ),
    Dial(
        name="bots.length",
        default="1000",
        parse=whole(0, 10**9, "1000"),
        help="acts in one session beyond which it is a program's; 0: however many",
    ),
    Dial(name="horizon.next", default="30m", parse=positive, clock="event", help="how far ahead the next item may be"),
    Dial(name="horizon.purchase", default="24h", parse=positive, clock="event", help="how far off a purchase may be"),
    Dial(name="cadence", default="60s", parse=positive, clock="wall", live=True, help="time between retrains"),
    Dial(
        name="cadence.volume",
        default="0",
        parse=whole(0, 10**9, "2000"),
        live=True,
        help="new labels that make a retrain due before the cadence has passed; 0: none do",
    ),
    Dial(
        name="cadence.drift",
        default="0",
        parse=number(0, 100, "0.1"),
        live=True,
        help="nats of the champion's log loss above its own at promotion that do so; 0: none do",
    ),
    Dial(
        name="cadence.cpu",
        default="0",
        parse=number(0, 1e7, "600"),
        clock="wall",
        live=True,
        help="CPU seconds an hour that retrains may take; 0: as many as they need",
    ),
    Dial(name="window", default="200000", parse=count, clock="event", live=True, help="the newest cuts trained on"),
    Dial(name="window.age", default="14d", parse=positive, clock="event", live=True, help="the oldest cut trained on"),
    Dial(
        name="tune",
        default="lora",
        parse=one_of(TUNE_MODES),
        clock="wall",
        live=True,
        help="how the language model is tuned",
    ),
    Dial(
        name="tune.every",
        default="auto",
        parse=every,
        clock="wall",
        live=True,
        help="time between tunings; auto: every cadence on a GPU, else 6h",
    ),
    Dial(name="tune.budget", default="10m", parse=positive, clock="wall", live=True, help="time one tuning may take"),
    Dial(name="tune.optimiser", default="adamw", parse=one_of(("adamw", "sgd")), help="adamw, or sgd with momentum"),
    Dial(
        name="tune.learning_rate",
        default="auto",
        parse=number_or_auto(1e-7, 1.0, "5e-4"),
        help="auto: lora 5e-4, adalora 2e-3, top and full 5e-5; ten times that for sgd",
    ),
    Dial(name="tune.schedule", default="linear", parse=one_of(("linear", "cosine", "constant")), help="of that rate"),
    Dial(
        name="tune.warmup", default="0.05", parse=number(0, 0.9, "0.05"), help="share of the steps that it rises over"
    ),
    Dial(
        name="tune.batch", default="32", parse=whole(2, 65_536, "32"), help="pairs told apart from each other in a step"
    ),
    Dial(name="tune.epochs", default="4", parse=count, help="passes at most; the budget may end them earlier"),
    Dial(name="tune.weight_decay", default="0.01", parse=number(0, 1, "0.01"), help="of the weights that are trained"),
    Dial(
        name="tune.dropout", default="0.05", parse=number(0, 0.9, "0.05"), help="of adapters, or of the trained model"
    ),
    Dial(name="tune.rank", default="8", parse=whole(1, 1_024, "8"), help="of lora and adalora"),
    Dial(name="tune.layers", default="2", parse=whole(1, 1_000, "2"), help="how many of the last layers `top` trains"),
    Dial(name="tune.frozen", default="", parse=words, help="parts of the names of weights that are not trained"),
    Dial(name="tune.temperature", default="0.05", parse=number(0.001, 10, "0.05"), help="of the contrastive loss"),
    Dial(
        name="tune.validation",
        default="0.1",
        parse=number(0, 0.5, "0.1"),
        help="share of the pairs, the newest, on which early stopping looks",
    ),
    Dial(
        name="tune.patience", default="3", parse=whole(0, 100, "3"), help="looks without gain until it stops; 0: never"
    ),
    Dial(
        name="tune.masked",
        default="0",
        parse=number(0, 0.9, "0.2"),
        help="share of the budget for masked-language warm-up on the window's own texts",
    ),
    Dial(name="tune.proximal", default="0", parse=number(0, 1e6, "0.1"), help="pull to what the last tuning made"),
    Dial(name="tune.replay", default="1", parse=number(0, 100, "1"), help="pairs of before the last tuning a new one"),
    Dial(name="tune.compile", default="auto", parse=one_of(("auto", "on", "off")), help="auto: on a GPU where it pays"),
    Dial(name="n_min", default="500", parse=count, help="held-out labels a verdict needs"),
    Dial(
        name="epochs",
        default="2",
        parse=count,
        help="passes over what is new in one retrain; four times as many in the first",
    ),
    Dial(
        name="network.learning_rate",
        default="0.003",
        parse=number(1e-6, 1, "0.003"),
        help="of the network above the text vectors",
    ),
    Dial(name="network.dropout", default="0.3", parse=number(0, 0.9, "0.3"), help="of its tokens"),
    Dial(name="network.replay", default="2", parse=number(0, 100, "2"), help="old cuts a new one in one retrain"),
    Dial(
        name="ranker",
        default="off",
        parse=one_of(("off", "lambdarank")),
        help="lambdarank: LightGBM orders the items, needs nextclick[ranking]; probabilities stay the blend's",
    ),
    Dial(name="experiments.tensorboard", default="", parse=folder, help="a folder for TensorBoard events; empty: none"),
    Dial(name="experiments.mlflow", default="", parse=plain, help="an MLflow tracking URI; empty: none"),
    Dial(
        name="encoder",
        default="auto",
        parse=plain,
        help="a Hugging Face encoder by path or name; auto: MiniLM where installed; none: hashed character n-grams",
    ),
    Dial(
        name="holdback",
        default="0",
        parse=number(0, 1, "0.05"),
        help="share of the users who get the memory's answer alone, to compare with; the same on every worker",
    ),
    Dial(
        name="outcomes.share",
        default="1",
        parse=number(0, 1, "0.1"),
        help="share of the predictions whose outcome is waited for; less where 50,000 wait",
    ),
    Dial(name="store.keep", default="24h", parse=positive, clock="event", help="how long the store keeps rows"),
    Dial(name="store.folder", default="nextclick-store", parse=path, help="where <worker>.duckdb lies"),
    Dial(name="lake.keep", default="30d", parse=positive, clock="event", help="how long the lake keeps rows"),
    Dial(name="models.keep", default="50", parse=count, help="how many versions are kept beside the pinned"),
    Dial(name="kafka", default="127.0.0.1:9092", parse=brokers, help="the brokers, HOST:PORT"),
    Dial(name="kafka.protocol", default="PLAINTEXT", parse=one_of(PROTOCOLS), help=", ".join(PROTOCOLS)),
    Dial(name="kafka.mechanism", default="SCRAM-SHA-512", parse=one_of(MECHANISMS), help="how SASL proves the user"),
    Dial(name="kafka.user", default="", parse=plain, help="the user that SASL_SSL logs in"),
    Dial(name="kafka.password", default="", parse=plain, secret=True, help="its password; better in a file"),
    Dial(name="kafka.password.file", default="", parse=file, help="a file that holds the password alone"),
    Dial(name="kafka.ca", default="", parse=file, help="PEM of who signed the brokers' certificates"),
    Dial(name="kafka.cert", default="", parse=file, help="PEM of our own certificate, for brokers that ask for it"),
    Dial(name="kafka.key", default="", parse=file, help="PEM of its key"),
    Dial(name="topics.events", default="clickstream.events", parse=topics, help="event topics, comma separated"),
    Dial(name="personal.keep", default="", parse=words, help="fields of other systems' events kept though personal"),
    Dial(name="topics.items", default="clickstream.items", parse=topic, help="item texts"),
    Dial(name="topics.dead_letters", default="clickstream.dead-letters", parse=topic, help="what could not be read"),
    Dial(name="topics.predictions", default="interest.predictions", parse=topic, help="the predictions"),
    Dial(name="topics.control", default="interest.control", parse=topic, help="commands and facts"),
    Dial(name="topics.state", default="interest.state", parse=topic, help="the workers' beats"),
    Dial(name="topics.partitions", default="8", parse=count, help="of events, items and predictions, where made here"),
    Dial(name="topics.replication", default="1", parse=replicas, help="of topics made here; broker: as it has it"),
    Dial(name="group", default="nextclick", parse=topic, help="the workers' consumer group: who shares the events"),
    Dial(name="shared", default="nextclick-data", parse=path, help="the shared folder: lake, versions, encoders"),
    Dial(name="worker", default="", parse=name, help="this worker's name, of its store file and its beats"),
    Dial(
        name="logs",
        default="text",
        parse=one_of(("text", "json")),
        help="how processes log: text, or json: one object a line",
    ),
    Dial(name="http", default="", parse=listen, help="HOST:PORT of /live, /ready, /metrics, /status; empty: none"),
    Dial(name="http.token", default="", parse=plain, secret=True, help="what a reader must show; better in a file"),
    Dial(name="http.token.file", default="", parse=file, help="a file that holds the token alone"),
)
BY_NAME: Mapping[str, Dial] = {d.name: d for d in DIALS}


def parsed(dial: Dial, raw: Any, source: str) -> Any:
    """The value of a dial, or SettingsError that names key, value, where it was said and the remedy."""
    text = as_text(raw)
    try:
        return dial.parse(text)
    except ValueError as error:
        raise SettingsError(f"{dial.name} = {dial.shown(text)!r} (from {source}) cannot be used: {error}") from error


def value_of(dial: Dial, raw: Any, source: Source) -> Value:
    """What was said of a dial, plain or as {value, by, at_ms}."""
    who: Mapping[str, Any] = raw if isinstance(raw, Mapping) else {"value": raw}
    text = who.get("value")
    return Value(
        text=as_text(text), value=parsed(dial, text, source), source=source, by=who.get("by"), at_ms=who.get("at_ms")
    )


def pairs(assignments: list[str]) -> dict[str, str]:
    """`--set` arguments as a mapping.

    >>> pairs(["cadence=30s"])
    {'cadence': '30s'}
    """
    out = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise SettingsError(f"--set {text!r} cannot be used: write NAME=VALUE, like --set cadence=60s")
        out[name.strip()] = value.strip()
    return known(out, "--set")


def known(said: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The same, where every name is a setting's; else the nearest one is suggested."""
    for key in said:
        if key not in BY_NAME:
            near = difflib.get_close_matches(key, BY_NAME, n=1)
            hint = f"did you mean {near[0]}?" if near else "`nextclick config show` lists all settings"
            text = "***" if logs.SECRET.search(key) else as_text(said[key])
            raise SettingsError(f"{key} = {text!r} (from {where}) is no setting: {hint}")
    return dict(said)


def read(file: Path | None) -> dict[str, Any]:
    """A TOML file's values under dotted names; nested tables and quoted dotted keys mean the same."""
    if file is None:
        return {}
    try:
        return _flat(tomllib.loads(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the settings file {file} cannot be read ({error}): check --config") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(
            f'the settings file {file} is not TOML ({error}): write lines like cadence = "60s"'
        ) from error


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in table.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return out


def as_text(raw: Any) -> str:
    """A value as it would be written."""
    return ",".join(map(str, raw)) if isinstance(raw, list | tuple) else str(raw)
