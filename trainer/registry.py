"""Immutable model versions: a directory each, its digest written last, its name never a path out of the folder."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import msgspec

from featurestore import disk
from trainer import card, shards

NAME = re.compile(r"v\d{6}-[0-9a-f]{6}")
DIGEST = "digest"


class CorruptVersion(RuntimeError):
    """A version's files are not what its digest says; the champion goes on. Retrain, or copy the version again."""


class UnknownVersion(LookupError):
    """There is no such version; `nextclick models list` names those there are."""


class Registry:
    """The versions below one shared folder."""

    def __init__(self, shared: Path) -> None:
        self.root = shared / "versions"

    def publish(self, build: Callable[[Path], None], meta: dict[str, Any]) -> str:
        """Let `build` fill a directory, then name it by its digest; nobody sees it half-written.

        `encoder` in it leads to the encoder of its configuration, where that lies in the shared folder.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        temporary = self.root / f".{uuid.uuid4().hex}.tmp"
        temporary.mkdir()
        try:
            build(temporary)
            (temporary / "meta.json").write_bytes(msgspec.json.format(msgspec.json.encode(meta), indent=2))
            (temporary / "README.md").write_text(card.text(meta), encoding="utf-8")
            self._link(temporary)
            content = digest_of(temporary)
            (temporary / DIGEST).write_text(content + "\n", encoding="ascii")
            version = f"v{self._next():06d}-{content[:6]}"
            settle(temporary, self.root / version)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return version

    def _link(self, directory: Path) -> None:
        with contextlib.suppress(OSError, KeyError, msgspec.MsgspecError):  # a version of something else
            name = Path(msgspec.json.decode((directory / "config.json").read_bytes())["encoder"]).name
            if (self.root.parent / "encoders" / name).is_dir():
                (directory / "encoder").symlink_to(Path("../../encoders") / name)

    def path(self, version: str) -> Path:
        """Where a version lies; a name that is none is refused before it touches the disk."""
        if not NAME.fullmatch(version):
            raise UnknownVersion(f"{version!r} is no version's name; `nextclick models list` names those there are")
        path = self.root / version
        if not path.is_dir() or path.is_symlink():
            raise UnknownVersion(f"{version} is not in {self.root}; `nextclick models list` names those there are")
        return path

    def verify(self, version: str) -> Path:
        """Where a version lies; raises CorruptVersion unless every byte is what was published."""
        path = self.path(version)
        try:
            if (path / DIGEST).read_text(encoding="ascii").strip() == digest_of(path):
                return path
        except FileNotFoundError:
            pass
        self.path(version)  # removed meanwhile: not there, which is no damage
        raise CorruptVersion(f"{version}: its files are not what its digest says")

    def meta(self, version: str) -> dict[str, Any]:
        """What was said of a version when it was published."""
        made: dict[str, Any] = msgspec.json.decode((self.path(version) / "meta.json").read_bytes())
        return made

    def names(self) -> list[str]:
        """All versions, oldest first."""
        return sorted(p.name for p in self.root.glob("v*") if NAME.fullmatch(p.name)) if self.root.is_dir() else []

    def prune(self, keep: int, pinned: Collection[str]) -> tuple[str, ...]:
        """Remove all but the newest `keep` and the pinned; says which went."""
        gone = [v for v in self.names()[: -keep or None] if v not in pinned]
        for version in gone:
            _remove(self.root / version)
        return tuple(gone)

    def sweep(self, kept: Collection[str], older_than_ms: int, now_ms: int) -> tuple[str, ...]:
        """Remove encoders and vectors whose digest no version names, old shards and what a killed process left.

        `kept` are digests that are used without a version. What changed within `older_than_ms` (wall clock) stays: it
        may belong to a version that is being made. Nothing goes where a version does not tell its encoder.
        """
        shared, gone = self.root.parent, []
        try:
            named = self._encoders() | set(kept)
        except (OSError, KeyError, msgspec.MsgspecError):
            return ()
        for folder in ("versions", "encoders", "vectors"):
            for path in sorted((shared / folder).glob("*")):
                left = path.name.startswith(".")
                if left or (folder != "versions" and path.name not in named):
                    try:
                        if now_ms - path.stat().st_mtime * 1000 < older_than_ms:
                            continue
                        _remove(path)
                    except FileNotFoundError:  # another one was first
                        continue
                    gone.append(f"{folder}/{path.name}")
                elif folder == "vectors":
                    gone += [f"{folder}/{path.name}/{old.name}" for old in shards.prune(path, older_than_ms, now_ms)]
        return tuple(gone)

    def discard(self, encoder: str) -> None:
        """Remove one encoder, unless a version names it."""
        if encoder not in self._encoders():
            _remove(self.root.parent / "encoders" / encoder)

    def _encoders(self) -> set[str]:
        return {self._encoder(version) for version in self.names()}

    def _encoder(self, version: str) -> str:
        config: dict[str, Any] = msgspec.json.decode((self.root / version / "config.json").read_bytes())
        return Path(config["encoder"]).name

    def _next(self) -> int:
        return max((int(v[1:7]) for v in self.names()), default=0) + 1


def digest_of(path: Path) -> str:
    """A hash over the names and bytes of a version's files."""
    made = hashlib.blake2b(digest_size=16)
    for file in sorted(p for p in path.iterdir() if p.is_file() and p.name != DIGEST):
        made.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        made.update(file.read_bytes())
    return made.hexdigest()


def settle(temporary: Path, path: Path) -> None:
    """Give a finished folder its name once all of it is on the disk: after a power cut it is whole or not there."""
    for inner in [*temporary.rglob("*"), temporary]:
        disk.sync(inner)
    temporary.rename(path)
    disk.sync(path.parent)


def _remove(path: Path) -> None:
    """Take a folder out of sight in one step, then delete it: who reads it has it open or does not find it."""
    hidden = path.with_name(f".{uuid.uuid4().hex}.gone")
    path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)
