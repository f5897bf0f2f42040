"""From a YAML file and `--set` to a configuration, with errors a user can act on."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from seqattn.errors import SeqattnError, nearest

Schema = TypeVar("Schema", bound=BaseModel)


def config_folder() -> Path:
    """Return the folder of the shipped configurations, of an installed package or of a checkout."""
    package = Path(__file__).resolve().parents[1]
    shipped = package / "configs"
    return shipped if shipped.is_dir() else package.parent / "configs"


def list_configs(task: str | None = None) -> list[tuple[str, str]]:
    """Return (task, name) of every shipped configuration, or of those of one task."""
    found = sorted((path.parent.name, path.stem) for path in config_folder().glob("*/*.yaml"))
    return [entry for entry in found if task in (None, entry[0])]


def load_config(schema: type[Schema], source: str, overrides: Sequence[str], task: str) -> Schema:
    """Read a configuration by its shipped name or file path and apply `key.path=value` overrides in order.

    The value of an override is YAML. `name` defaults to the file's name without its ending.

    Raises:
        SeqattnError: the source does not exist or is not YAML, or a key or value is wrong.
    """
    path = _find(source, task)
    return parse_config(schema, {"name": path.stem, **read_yaml(path)}, path, overrides)


def parse_config(
    schema: type[Schema], data: Mapping[str, Any], path: Path | str, overrides: Sequence[str] = ()
) -> Schema:
    """Validate `data`, which came from `path`, after applying `key.path=value` overrides in order.

    Raises:
        SeqattnError: naming the first wrong key, unknown keys before wrong values.
    """
    resolved = _with_sections(schema, data)
    assigned = [_assign(resolved, override) for override in overrides]
    try:
        return schema.model_validate(resolved)
    except ValidationError as error:
        failures = [_named(failure) for failure in error.errors(include_url=False)]
    failures.sort(key=lambda failure: failure["type"] != "extra_forbidden")
    dotted = _dotted(failures[0]["loc"], resolved)
    where = "on the command line" if any(_related(key, dotted) for key in assigned) else f"in {path}"
    if failures[0]["type"] == "extra_forbidden":
        if "model.name" in assigned and where == f"in {path}" and dotted in _keys(schema, {}):
            name = resolved["model"]["name"]
            raise SeqattnError(
                f"the model {name!r} asked for on the command line does not go with {path}, which configures another "
                f"one ({dotted} is no key of {name}): leave out --model, or choose another --config"
            ) from None
        known = list(_keys(schema, resolved))
        raise SeqattnError(f"unknown configuration key {dotted!r} {where}{_suggestion(dotted, known)}") from None
    if failures[0]["type"] == "missing":
        raise SeqattnError(f"{dotted} is missing {where}: set it there or with --set {dotted}=VALUE") from None
    same = [failure for failure in failures if _dotted(failure["loc"], resolved) == dotted]
    said = [failure["msg"].removeprefix("Value error, ") for failure in same]
    complaint = " or ".join(dict.fromkeys(message[0].lower() + message[1:] for message in said))
    raise SeqattnError(f"{dotted} = {failures[0]['input']!r} {where}: {complaint}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        SeqattnError: the file is missing, unreadable, not YAML (with the line), or not a mapping.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SeqattnError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SeqattnError(f"{path} is not UTF-8 text: pass a YAML configuration") from None
    except yaml.YAMLError as error:
        raise SeqattnError(f"{path}{_line(error)} is not valid YAML: {_problem(error)}") from None
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise SeqattnError(f"{path} must hold 'key: value' lines, as the shipped configurations do")
    return data


def model_names(schema: type[BaseModel]) -> list[str]:
    """Return the names that `model.name` of a task's configuration may take."""
    return [name for member in _models(schema.model_fields["model"].annotation) for name in _names(member)]


def is_file_name(source: str) -> bool:
    """Whether a configuration is meant by its path and not by its shipped name."""
    path = Path(source)
    return path.suffix in (".yaml", ".yml") or len(path.parts) > 1


def _find(source: str, task: str) -> Path:
    if is_file_name(source):
        return Path(source)
    shipped = config_folder() / task / f"{source}.yaml"
    if not shipped.is_file():
        names = [name for _, name in list_configs(task)]
        advice = nearest(source, names) or f"; choose one of {', '.join(names)} or pass a .yaml file"
        raise SeqattnError(f"no {task} configuration is named {source!r}{advice}")
    return shipped


def _with_sections(schema: type[BaseModel], data: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with an empty section for each that must be there, so that what it lacks is named and not the section."""
    resolved = copy.deepcopy(dict(data))
    for name, field in schema.model_fields.items():
        section = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        if section and field.is_required() and resolved.get(name) is None:
            resolved[name] = {}
    return resolved


def _assign(data: dict[str, Any], override: str) -> str:
    """Apply one `key.path=value` to `data` in place and return the dotted key."""
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise SeqattnError(f"--set {override!r} must have the form key.path=value, such as trainer.max_epochs=10")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SeqattnError(f"the value in --set {override!r} is not valid YAML: {_problem(error)}") from None
    node = data
    for key in keys[:-1]:
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            raise SeqattnError(f"--set {override!r}: {key} is a single value and has no keys below it")
    node[keys[-1]] = value
    return ".".join(keys)


def _related(first: str, second: str) -> bool:
    return f"{first}.".startswith(f"{second}.") or f"{second}.".startswith(f"{first}.")


def _named(failure: ErrorDetails) -> ErrorDetails:
    """A name that is no member of a union, as a failure of the name and not of all that stands beside it."""
    if failure["type"] != "union_tag_invalid":
        return failure
    tag, known = failure["ctx"]["tag"], failure["ctx"]["expected_tags"].replace("'", "").split(", ")
    advice = nearest(tag, known)
    names = ", ".join(f"'{name}'" for name in known[:-1]) + f" or '{known[-1]}'"
    location = (*failure["loc"], failure["ctx"]["discriminator"].strip("'"))
    return {"type": "literal_error", "loc": location, "input": tag, "msg": f"Input should be {names}{advice}"}


def _dotted(location: Sequence[int | str], data: Any) -> str:
    """Turn pydantic's location into the user's dotted key, without union tags, which the data do not hold."""
    parts: list[str] = []
    for position, part in enumerate(location):
        last = position == len(location) - 1
        if isinstance(data, Mapping) and (part in data or last):
            parts.append(str(part))
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int):
            parts.append(str(part))
            data = data[part]
    return ".".join(parts) or "the configuration"


def _keys(schema: type[BaseModel], data: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key the schema takes, of a union only the member that `data` names."""
    for name, field in schema.model_fields.items():
        yield f"{prefix}{name}"
        below = data.get(name) if isinstance(data, Mapping) else None
        tag = below.get("name") if isinstance(below, Mapping) else None
        members = list(_models(field.annotation))
        for member in [member for member in members if tag in _names(member)] or members:
            yield from _keys(member, below, f"{prefix}{name}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _names(schema: type[BaseModel]) -> tuple[str, ...]:
    field = schema.model_fields.get("name")
    return get_args(field.annotation) if field else ()


def _suggestion(dotted: str, known: list[str]) -> str:
    leaf = dotted.rpartition(".")[2]
    moved = [key for key in known if key.rpartition(".")[2] == leaf]
    close = [key for key in known if nearest(leaf, [key.rpartition(".")[2]])]
    return f"; did you mean {moved[0]}?" if moved else nearest(dotted, close, count=1)


def _line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f", line {mark.line + 1}," if mark else ""


def _problem(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error).replace("\n", " ")
