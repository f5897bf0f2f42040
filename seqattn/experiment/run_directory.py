"""The folder of one run, and files that are either whole or absent."""

import contextlib
import errno
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar

import yaml
from pydantic import BaseModel

from seqattn.errors import SeqattnError
from seqattn.experiment.environment import describe_environment
from seqattn.experiment.loading import parse_config, read_yaml

Schema = TypeVar("Schema", bound=BaseModel)
RUN_VARIABLE = "SEQATTN_RUN_DIRECTORY"


class RunDirectory:
    """One run: config.yaml, metrics.csv, results.json, checkpoints/, model.safetensors, predictions.csv, figures/.

    Only the first of several distributed processes writes; `write_config` and `write_results` do nothing in the others.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.csv"
        self.results = self.path / "results.json"
        self.checkpoints = self.path / "checkpoints"
        self.best = self.checkpoints / "best.ckpt"
        self.last = self.checkpoints / "last.ckpt"
        self.weights = self.path / "model.safetensors"
        self.predictions = self.path / "predictions.csv"
        self.figures = self.path / "figures"

    @classmethod
    def create(cls, out: Path | None, task: str, name: str) -> Self:
        """Make the folder `out` (default runs/<task>/<name>), or `out`-2, -3, ... where it already holds something.

        In the other processes of a distributed run it returns the folder the first process chose.

        Raises:
            SeqattnError: the folder cannot be made.
        """
        wanted = Path(out) if out else Path("runs") / task / name
        if not is_first_process():
            return cls(Path(os.environ.get(RUN_VARIABLE, wanted)))
        number, path = 1, wanted
        while not _claim(path):
            number += 1
            path = wanted.with_name(f"{wanted.name}-{number}")
        os.environ[RUN_VARIABLE] = str(path.resolve())
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Return an existing run.

        Raises:
            SeqattnError: the folder does not exist or holds no config.yaml.
        """
        run = cls(path)
        if not run.path.is_dir():
            raise SeqattnError(f"there is no run directory {path}: pass a folder that 'seqattn train' wrote")
        if not run.config.is_file():
            raise SeqattnError(f"{path} is not a run directory, it has no config.yaml: pass one 'seqattn train' wrote")
        return run

    def write_config(self, config: BaseModel) -> None:
        """Write the resolved configuration, with the versions and the commit under the key `environment`."""
        if is_first_process():
            data = {**config.model_dump(mode="json"), "environment": describe_environment()}
            text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
            try:
                atomic_write_text(self.config, text)
            except SeqattnError:  # a folder without configuration is no run: leave none behind
                self.checkpoints.rmdir()
                self.path.rmdir()
                raise

    def read_config(self, schema: type[Schema], overrides: Sequence[str] = ()) -> Schema:
        """Return the configuration of the run, with `key.path=value` overrides applied.

        Raises:
            SeqattnError: config.yaml is unreadable, of another task or not valid.
        """
        data = read_yaml(self.config)
        data.pop("environment", None)
        wanted = schema.model_fields["task"].default if "task" in schema.model_fields else None
        if data.get("task", wanted) != wanted:
            raise SeqattnError(
                f"{self.path} is a run of {data['task']}, not of {wanted}: use the commands of that task"
            )
        return parse_config(schema, data, self.config, overrides)

    def task(self) -> str:
        """Return the task of the run's configuration.

        Raises:
            SeqattnError: config.yaml is unreadable.
        """
        return str(read_yaml(self.config).get("task"))

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write results.json; non-finite numbers are refused with ValueError."""
        if is_first_process():
            atomic_write_text(self.results, json.dumps(results, indent=2, allow_nan=False) + "\n")

    def read_results(self) -> dict[str, Any]:
        """Return results.json.

        Raises:
            SeqattnError: the run has not finished, or the file is unreadable or damaged.
        """
        try:
            results = json.loads(self.results.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise SeqattnError(f"{self.path} has no results.json: finish the run with --resume {self.path}") from None
        except OSError as error:
            raise SeqattnError(f"cannot read {self.results}: {error.strerror}; check its permissions") from None
        except ValueError:
            results = None
        if not isinstance(results, dict):
            raise SeqattnError(
                f"{self.results} is damaged (no JSON object): delete it, and 'seqattn train {self.task()} --resume "
                f"{self.path}' writes it again from the checkpoints"
            )
        return results


def is_first_process() -> bool:
    """Whether this is the only process of the run, or rank 0 of a distributed one."""
    return all(os.environ.get(variable, "0") == "0" for variable in ("RANK", "LOCAL_RANK", "NODE_RANK"))


def atomic_write(path: Path, writer: Callable[[BinaryIO], object]) -> None:
    """Call `writer` with an open binary file that becomes `path` once it is complete and on the disk.

    Missing folders are made. On any failure `path` is what it was before and no other file is left behind.

    Raises:
        SeqattnError: the disk is full, a size limit is reached, or the place may not be written.
    """
    partial = path.parent / f".{path.name}.{os.getpid()}.partial"
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            writer(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if cause := _disk_error(error):
            raise SeqattnError(disk_sentence(path, cause)) from error
        raise


def atomic_write_text(path: Path, text: str) -> None:
    """Write UTF-8 text through `atomic_write`."""
    atomic_write(path, lambda file: file.write(text.encode()))


def _claim(path: Path) -> bool:
    """Make `path` ours; False where it holds something or another process was faster."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            return False
        (path / "checkpoints").mkdir()
    except FileExistsError:
        if path.is_dir():
            return False
        raise SeqattnError(f"{path} is a file, not a folder: choose another --out") from None
    except OSError as error:
        raise SeqattnError(disk_sentence(path, error)) from error
    return True


def _disk_error(error: BaseException | None) -> OSError | None:
    """The OSError behind `error`: torch.save wraps what the file raised."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return None


def disk_sentence(path: Path, error: OSError) -> str:
    """What to tell a user whose file could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"cannot write {path}: no space left on the disk; free some and run again (an interrupted run resumes)"
    if error.errno == errno.EFBIG:
        return f"cannot write {path}: the file size limit is reached; raise it (ulimit -f) and run again"
    return f"cannot write {path}: {error.strerror}; choose a folder you may write to, with --out or -o"
