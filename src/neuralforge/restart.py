# SPDX-License-Identifier: Apache-2.0
"""The command goes on in a new image of its own process: same process id, same pipes, nothing of the old memory.

A process compiles a limited number of programs for the Neural Engine. What a run needs to go on is in its checkpoint, and what
was compiled in the cache, so the same words are enough. A new image must come further than the one before, or it would not end.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from .errors import BackendError, RestartNeeded
from .interrupt import SIGNALS

# where the last image stopped: micro-steps, last evaluation, programs that were loaded
PLACE = "NEURALFORGE_RESTARTED_AT"


def restart(needed: RestartNeeded, words: Sequence[str]) -> NoReturn:
    """Start the command again in this process; signals that come meanwhile wait for the run.

    Args:
        needed: why; its `saved` says whether the run has begun.
        words: of the command.

    Raises:
        BackendError: it would come no further, or the system refuses.
    """
    before = tuple(int(n) for n in os.environ.get(PLACE, "").split(",") if n)
    place = (*(needed.saved or before[:2] or (0, 0)), needed.opened)
    if place <= before:
        raise BackendError(
            f"a process may compile {needed.compiles} programs for the Neural Engine, which is too few even for a new one",
            hint="compiled programs are not kept, or the limit is set too low; use --backend cpu",
        ) from needed
    if needed.saved:
        words = [word for word in words if word != "--no-resume"]
    os.environ[PLACE] = ",".join(map(str, place))
    interpreter = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execv(sys.executable, [sys.executable, *interpreter, *words])
    except OSError as error:
        raise BackendError(f"the process cannot start itself again: {error}", hint="the same command goes on") from error
