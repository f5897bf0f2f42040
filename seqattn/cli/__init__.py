"""The command line."""

import sys

from seqattn.errors import SeqattnError


def main() -> None:
    """Run the `seqattn` program: a user's mistake is one sentence on stderr and exit code 2, Ctrl-C exit code 130."""
    from seqattn.cli.app import app

    try:
        app()
    except SeqattnError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
