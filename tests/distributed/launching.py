"""Real processes under `accelerate launch`, as a user's shell starts them."""

from __future__ import annotations

import os
import subprocess
import sys

from support import ROOT


def launch(
    config: str, script: str, *words: str, timeout: float = 240, processes: int | None = None, **variables: str
) -> subprocess.CompletedProcess:
    """Run a script of the repository, and return what it printed.

    Args:
        config: File in configs/accelerate.
        script: Path below the repository's root.
        *words: The script's command line.
        timeout: Seconds until a hang is taken for one.
        processes: How many, where it is not what the file in configs/accelerate says.
        **variables: Of the environment.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
    command += ["--config_file", str(ROOT / "configs" / "accelerate" / config), str(ROOT / script)]
    if processes is not None:
        command[-1:-1] = ["--num_processes", str(processes)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", **variables}
    environment.pop("OMP_NUM_THREADS", None)  # as a user's shell is
    return subprocess.run([*command, *words], capture_output=True, text=True, env=environment, timeout=timeout)
