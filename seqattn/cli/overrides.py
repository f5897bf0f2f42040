"""From options to overrides of a configuration."""

import json
from typing import Any


def assign(values: dict[str, Any]) -> list[str]:
    """Turn the options that were given into overrides; JSON keeps a text like 1e3 a text."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items() if value is not None]
