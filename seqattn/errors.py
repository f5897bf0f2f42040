"""The one exception that means "the user can mend this"."""

import difflib
from collections.abc import Iterable


class SeqattnError(ValueError):
    """A user's mistake in one sentence: what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return "; did you mean A or B?" for the known names closest to `name`, or "" if none is close."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), list(by_lower), n=count, cutoff=0.6)
    return f"; did you mean {' or '.join(by_lower[match] for match in matches)}?" if matches else ""
