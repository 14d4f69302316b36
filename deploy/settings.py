"""What all settings stand at, and where each value came from (control > option > env > file > default)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from deploy import machine, notation
from deploy.dials import (
    BY_NAME,
    DIALS,
    ENV_PREFIX,
    TUNE_MODES,
    Dial,
    SettingsError,
    Source,
    Value,
    known,
    pairs,
    parsed,
    read,
    value_of,
)
from deploy.notation import duration, instant, loopback, written
from streams.connection import Connection

if TYPE_CHECKING:
    from featurestore.sessions import SessionSettings
    from featurestore.window import WindowPolicy
    from streams.topics import Topics
    from trainer.cadence import CadencePolicy
    from trainer.knobs import TuneSettings

# What others write as settings.X: the table and the notation lie in files of their own.
__all__ = [
    "BY_NAME", "DIALS", "TUNE_MODES", "Dial", "Settings", "SettingsError", "Source", "Value", "duration",
    "from_arguments", "instant", "loopback", "pairs", "parsed", "written",
]  # fmt: skip
OTHER_ENV = {"NEXTCLICK_CACHE", "NEXTCLICK_REQUIRE_KAFKA", "NEXTCLICK_CONFIG"}  # read elsewhere
TUNED = (
    "optimiser", "learning_rate", "schedule", "warmup", "batch", "epochs", "weight_decay", "dropout", "rank", "layers",
    "frozen", "temperature", "validation", "patience", "masked", "proximal", "replay", "compile",
)  # fmt: skip
NETWORK = ("learning_rate", "dropout", "replay")
TOPIC_NAMES = ("items", "dead_letters", "predictions", "control", "state")


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
            ("option", known(options or {}, "option")),
            ("env", {d.name: env[d.env] for d in DIALS if d.env in env}),
            ("file", known(read(file), f"file {file}")),
        )
        values = {}
        for dial in DIALS:
            said = next(((source, layer[dial.name]) for source, layer in layers if dial.name in layer), None)
            default: tuple[Source, Any] = ("default", notation.host_name() if dial.name == "worker" else dial.default)
            source, raw = said if said is not None else default
            values[dial.name] = value_of(dial, raw, source)
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
        if not self.secret("http.token") and self["http"] and not notation.loopback(self["http"][0]):
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
                    new[dial.name] = value_of(dial, said[dial.name], "control")
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
        from featurestore.bots import Rule
        from featurestore.sessions import SessionSettings

        return SessionSettings(
            gap_ms=self["session.gap"],
            lateness_ms=self["session.lateness"],
            lake_keep_ms=self["lake.keep"],
            bots=Rule(pace_ms=self["bots.pace"], burst=self["bots.burst"], length=self["bots.length"]),
        )

    def window_policy(self) -> WindowPolicy:
        """Which cuts are trained on and judged."""
        from featurestore.window import WindowPolicy

        return WindowPolicy(
            horizon_next_ms=self["horizon.next"],
            horizon_purchase_ms=self["horizon.purchase"],
            lateness_ms=self["session.lateness"],
            cuts=self["window"],
            max_age_ms=self["window.age"],
            n_min=self["n_min"],
        )

    def topics(self) -> Topics:
        """The six topics' names, and how they are made."""
        from streams.topics import Topics

        names = {t: self[f"topics.{t}"] for t in TOPIC_NAMES}
        made = {"partitions": self["topics.partitions"], "replication": self["topics.replication"]}
        return Topics(events=self["topics.events"], **names, **made)

    def cadence_policy(self) -> CadencePolicy:
        """When to retrain and tune; without a language model there is nothing to tune."""
        from trainer.cadence import CadencePolicy

        tune = self["tune"] if self.encoder() is not None else "off"
        every = {} if tune == "off" else {"tune_every_ms": self.tune_every_ms()}
        return CadencePolicy(
            cadence_ms=self["cadence"], volume=self["cadence.volume"], drift_nats=self["cadence.drift"],
            cpu_seconds_an_hour=self["cadence.cpu"], tune=tune, tune_budget_ms=self["tune.budget"], **every,
        )  # fmt: skip

    def tuning(self) -> TuneSettings:
        """How a tuning goes about it."""
        from trainer.knobs import TuneSettings

        mode = {} if self["tune"] == "off" else {"mode": self["tune"]}
        said = {name: self[f"tune.{name}"] for name in TUNED}
        return TuneSettings(budget_ms=self["tune.budget"], alpha=2 * said["rank"], **mode, **said)

    def network(self) -> dict[str, Any]:
        """How the network above the text vectors is made and trained, as its settings' plain values."""
        return {"epochs": self["epochs"]} | {name: self[f"network.{name}"] for name in NETWORK}

    def tune_every_ms(self) -> int:
        """Time between tunings; auto: every cadence where torch sees a GPU, else six hours."""
        if self["tune.every"] is not None:
            return int(self["tune.every"])
        return int(self["cadence"]) if machine.has_gpu() else 6 * notation.UNITS_MS["h"]

    def encoder(self) -> str | None:
        """Path or name of the encoder, None for hashed n-grams."""
        text = self.text("encoder")
        if text == "none":
            return None
        return machine.minilm() if text == "auto" else text


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
