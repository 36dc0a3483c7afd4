"""A corpus of several files, each a piece of the plan, and a plan of it in a process of its own.

python pieces.py CORPUS CACHE [KILL_AT]: at its KILL_AT-th piece the process kills itself.
"""

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siglip2_cache.precompute.planning import source_names
from siglip2_cache.precompute.planning.config import PlanConfig
from siglip2_cache.precompute.planning.plan import Plan, make_plan
from siglip2_cache.precompute.sources import Caption, CorpusPart, Problem, Sample
from siglip2_cache.store.format.records import sha256_hex
from siglip2_cache.store.io.local import LocalStorage


@dataclass(frozen=True)
class PieceSource:
    """Each .list file of a folder is a piece, each line of it a sample; ``!`` makes it a problem."""

    location: Path
    kill_at: int = 0
    """Number from 1 of the scan at whose second line the process kills itself; 0: never."""

    kind: str = "lists"

    @property
    def root(self) -> Path:
        return self.location

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    @property
    def scanned(self) -> list[str]:
        """The pieces that were scanned so far, by any process."""
        log = self.location / "scanned.log"
        return log.read_text().split() if log.exists() else []

    def fingerprint(self) -> str:
        return sha256_hex(b"".join(path.read_bytes() for path in self._files()))

    def parts(self) -> Iterator[CorpusPart]:
        for path in self._files():
            yield CorpusPart(
                path.name, lambda path=path: self._scan(path), sha256_hex(path.read_bytes())
            )

    def _files(self) -> list[Path]:
        return sorted(self.location.glob("*.list"))

    def _scan(self, path: Path) -> Iterator[Sample | Problem]:
        with open(self.location / "scanned.log", "a") as log:
            log.write(f"{path.name}\n")
        is_last = self.kill_at == len(self.scanned)
        for number, line in enumerate(path.read_text().split(), 1):
            if is_last and number == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            place = f"{path} line {number}"
            if line.startswith("!"):
                yield Problem(place=place, reason=f"{line} is no sample")
                continue
            caption = Caption(f"of {line}", "en")
            yield Sample(key=line, path=f"{line}.png", captions=(caption,), place=place)


def plan_pieces(source: PieceSource, cache: Path, *, is_dry_run: bool = False) -> Plan:
    """Plan one source that no path would open."""
    opened = source_names.open_source
    source_names.open_source = lambda *_, **__: source
    try:
        config = PlanConfig(sources=(str(source.location),))
        return make_plan(config, LocalStorage(cache), is_dry_run=is_dry_run)
    finally:
        source_names.open_source = opened


if __name__ == "__main__":
    corpus, cache, *kill_at = sys.argv[1:]
    plan_pieces(PieceSource(Path(corpus), *map(int, kill_at)), Path(cache))
