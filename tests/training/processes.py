"""Several processes as `torchrun` starts them: the same command, with its environment."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0


def start(count: int, module: str, *arguments: str | Path) -> list[subprocess.Popen[str]]:
    """`python -m module arguments` in each of `count` processes; one is started as without torchrun."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    command = [sys.executable, "-m", module, *map(str, arguments)]
    common = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    processes = []
    for rank in range(count):
        env = common
        if count > 1:
            env = common | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
        processes.append(subprocess.Popen(command, env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True))
    return processes


def finish(processes: list[subprocess.Popen[str]]) -> list[int]:
    """Exit statuses (-N for signal N); what did not end with 0 shows its errors. None is left running."""
    try:
        errors = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, errors, strict=True):
        if process.returncode:
            sys.stderr.write(f"exit status {process.returncode}:\n{text}\n")
    return [process.returncode for process in processes]


def run(count: int, module: str, *arguments: str | Path) -> None:
    assert finish(start(count, module, *arguments)) == [0] * count
