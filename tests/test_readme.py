"""The README's commands run as they stand."""

import os
import re
import shlex
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
FENCE = re.compile(r"^[ ]*```(?:bash|sh|shell|console)\b[^\n]*\n(.*?)^[ ]*```", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SEQATTN = re.compile(r"(?:\S*/)?seqattn (?=\S)")
MAKE = re.compile(r"make (?=\S)")


def commands(text: str) -> list[str]:
    """Lines of the bash blocks that begin with `seqattn ` or `make `; a backslash continues a line, "$ " prompts."""
    lines = [line.strip() for block in FENCE.findall(text) for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    lines = [line.removeprefix("$ ") for line in lines]
    return [SEQATTN.sub("seqattn ", line, count=1) for line in lines if SEQATTN.match(line) or MAKE.match(line)]


def shortened(command: str) -> str:
    """A training command for one epoch."""
    if "--resume" in command:
        return command
    command = re.sub(r"trainer\.max_epochs=\d+", "trainer.max_epochs=1", command)
    return re.sub(r"seqattn train \w+", r"\g<0> --set trainer.max_epochs=1", command)


@pytest.mark.timeout(1500)
def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    found = [line for line in commands(README.read_text(encoding="utf-8")) if line.startswith("seqattn ")]
    assert len(found) >= 3, found
    scripts = sysconfig.get_path("scripts")
    foreign = ("RANK", "LOCAL_RANK", "NODE_RANK", "SEQATTN_RUN_DIRECTORY")
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    seconds = np.arange(16_000) / 16_000
    soundfile.write(tmp_path / "noisy.wav", 0.1 * np.sin(2 * np.pi * 220 * seconds), 16_000)
    environment |= {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    for command in found:
        shell = ["bash", "-c", shortened(command)]
        done = subprocess.run(shell, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize(
    "page", ["README.md", "docs/kernels/selective_scan.md", "docs/kernels/wersa.md", "docs/kernels/time_attention.md"]
)
def test_the_python_of_the_pages_runs(page: str) -> None:
    blocks = PYTHON.findall((ROOT / page).read_text(encoding="utf-8"))
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})


def test_the_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    lines = [line for line in commands(README.read_text("utf-8")) if line.startswith("make ")]
    named = [shlex.split(line, comments=True)[1] for line in lines]
    assert named
    assert set(named) <= targets


def test_commands_are_found_in_every_spelling() -> None:
    text = """
```bash
$ make demo    # a minute
git clone x && cd x
.venv/bin/seqattn eval classification runs/a
seqattn train classification \\
    --set a=b  # a comment
```
```python
seqattn.train()
seqattn list configs
```
"""
    assert commands(text) == [
        "make demo    # a minute",
        "seqattn eval classification runs/a",
        "seqattn train classification  --set a=b  # a comment",
    ]
    one_epoch = "seqattn train classification --set trainer.max_epochs=1  --set a=b  # a comment"
    assert shortened(commands(text)[2]) == one_epoch
    assert shortened("seqattn eval classification a  # b") == "seqattn eval classification a  # b"
