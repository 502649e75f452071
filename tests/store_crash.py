"""Kills processes in the midst of writing to one store, and checks that nothing they were told is safe is lost.

    python tests/store_crash.py [KILLS] [FOLDER]

Two writers at a time add rollouts, flush, and say how many are safe; each is killed by SIGKILL after a random number of
those messages, some while they still open the file. No sleeps and no clock: a kill lands wherever the writer then is.
Writers are forked from this process, which never has the store open while they run.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from rolltree import RolloutStore
from rolltree.store import compact, verify

CHECKED = 50  # kills between two checks of the whole file
MOST_WAITED = 6  # messages after which a writer is killed at the latest


@dataclass
class Writer:
    """A process that adds [life, 0], [life, 1], ... under the prompt [life]."""

    life: int
    pid: int
    said: int  # the pipe's end to read
    kill_after: int
    safe: int = 0

    def wait(self) -> None:
        """Read so many messages, kill, and read what it said before it died."""
        for _ in range(self.kill_after):
            self.safe = self._read() or self.safe
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        while message := self._read():
            self.safe = message
        os.close(self.said)

    def _read(self) -> int:
        data = os.read(self.said, 4)
        return int.from_bytes(data, "little") if len(data) == 4 else 0


@dataclass
class Crash:
    """Everything that was killed, and what is known to be safe."""

    path: Path
    random: random.Random
    kills: int = 0
    acknowledged: dict[int, int] = field(default_factory=dict)
    """Life -> rollouts that it was told are safe."""

    def start(self, life: int) -> Writer:
        """Fork a writer."""
        read, write = os.pipe()
        kill_after, every = self.random.randrange(MOST_WAITED), self.random.choice((1, 3, 40))
        pid = os.fork()
        if not pid:
            os.close(read)
            try:
                write_until_killed(self.path, life, every, write)
            finally:
                os._exit(1)
        os.close(write)
        return Writer(life, pid, read, kill_after)

    def run(self, kills: int) -> None:
        """Kill so many writers, two at a time; raise AssertionError for anything lost."""
        while self.kills < kills:
            pair = [self.start(self.kills), self.start(self.kills + 1)]
            for writer in pair:
                writer.wait()
                self.acknowledged[writer.life] = writer.safe
            self.kills += 2
            if self.kills % CHECKED < 2:
                self.check()
        self.check()

    def check(self) -> None:
        """Look at the file as a process that starts anew."""
        assert verify(self.path) == [] or not any(self.acknowledged.values())
        with RolloutStore(self.path) as store:
            for life, safe in self.acknowledged.items():
                found = [int(one.token_ids[1]) for one in store.rollouts([life])]
                assert len(found) >= safe, f"writer {life}: {safe} were acknowledged, {len(found)} are there"
                assert found == list(range(len(found))), f"writer {life}: a hole, or out of order"
        if self.random.random() < 0.3:
            compact(self.path)


def write_until_killed(path: Path, life: int, every: int, said: int) -> None:
    """Add without end; a message for each flush that returned."""
    store = RolloutStore(path)
    number = 0
    while True:
        for _ in range(every):
            store.add([life], [life, number] + [number % 50] * 200, version=number)
            number += 1
        store.flush()
        os.write(said, number.to_bytes(4, "little"))


def main(kills: int = 500, folder: str | None = None) -> None:
    """Run, and print one line."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        crash = Crash(Path(made) / "rollouts.db", random.Random(kills))
        crash.run(kills)
        safe = sum(crash.acknowledged.values())
        print(f"{crash.kills} writers killed, 2 at a time; {safe} acknowledged rollouts, none lost; the file is sound")


if __name__ == "__main__":
    main(*[int(argument) for argument in sys.argv[1:2]], *sys.argv[2:3])
