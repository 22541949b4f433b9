"""A folder that a run is writing to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from internvl.errors import TrainingError
from internvl.training.lock import held
from internvl.training.world import World

HOLDER = """
import sys, time
from pathlib import Path
from internvl.training.lock import held
from internvl.training.world import World
with held(Path(sys.argv[1]), World()):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_run_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    with held(folder, World()):
        with pytest.raises(TrainingError, match="another run is writing to"), held(folder, World()):
            pass
        with held(tmp_path / "runs" / "b", World()):
            pass
    with held(folder, World()):
        assert not any(folder.iterdir())


def test_a_process_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(TrainingError, match="another run"), held(tmp_path, World()):
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with held(tmp_path, World()):
        pass


def test_the_main_process_locks_for_all(tmp_path: Path) -> None:
    with held(tmp_path, World()):
        entered = False
        with held(tmp_path, World(rank=1)):
            entered = True
    assert entered
