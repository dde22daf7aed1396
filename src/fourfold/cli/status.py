"""What an exit status says; `docs/cli.md` tells it to people."""

import signal
from collections.abc import Collection
from typing import Final

from fourfold.errors import ClientError, ConfigError, FourfoldError
from fourfold.processes.role import CONFIG_EXIT_STATUS

#: The work could not be done; the message says why.
FAILED_STATUS: Final = 1
#: The picture or an argument is at fault; trying again changes nothing.
INPUT_STATUS: Final = 65
#: Ended by Ctrl-C.
INTERRUPTED_STATUS: Final = 128 + signal.SIGINT


def status_of(errors: Collection[FourfoldError]) -> int:
    """Return the exit status that stands for *errors*: the input's only if every one of them is the input's fault."""
    if not errors:
        return 0
    if any(isinstance(error, ConfigError) for error in errors):
        return CONFIG_EXIT_STATUS
    return INPUT_STATUS if all(isinstance(error, ClientError) for error in errors) else FAILED_STATUS
