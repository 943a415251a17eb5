# SPDX-License-Identifier: Apache-2.0
"""Every error that the library raises on purpose.

Each is a `NeuralForgeError` and also the builtin that a caller would expect, carries a `hint` (the way out), and has
the exit code of the command as `exit_code`.
"""

from __future__ import annotations

from typing import ClassVar


class NeuralForgeError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: what is wrong and where (file, line or row, value), one line.
        hint: what the reader can do about it; empty when there is nothing to say.
    """

    exit_code: ClassVar[int] = 6

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(NeuralForgeError, ValueError):
    """An option or setting has a value that cannot be used."""

    exit_code = 2


class WontFitError(NeuralForgeError, MemoryError):
    """The job needs more memory or disk than there is."""

    exit_code = 3


class DataError(NeuralForgeError, ValueError):
    """Training or evaluation data is missing, damaged or unusable."""

    exit_code = 4


class OverflowRowError(DataError):
    """A row is longer than `max_length` and `on_overflow="error"`."""


class ModelError(NeuralForgeError, ValueError):
    """A model folder or file is missing, damaged or of a kind that is not supported."""

    exit_code = 5


class TokenizerError(ModelError):
    """A tokenizer file is missing, damaged, unsupported or does not belong to the model."""


class NetworkError(NeuralForgeError, ConnectionError):
    """Something could not be fetched from another machine."""

    exit_code = 5
    # OSError.__str__ would drop the message of a one-argument error's hint.
    __str__ = NeuralForgeError.__str__


class OfflineError(NetworkError):
    """The network is needed, and nobody has allowed it."""

    exit_code = 2


class AdapterError(ModelError):
    """An adapter is missing, damaged or incomplete."""


class AdapterMismatchError(AdapterError):
    """An adapter does not belong to this base model."""


class TrainingError(NeuralForgeError, RuntimeError):
    """Training cannot go on."""

    exit_code = 6


class NonFiniteLossError(TrainingError):
    """The loss or a gradient was NaN or infinite again after three roll-backs."""


class OutputError(TrainingError, OSError):
    """A file of the run cannot be written or read: folder not writable, disk full, damaged checkpoint."""

    # OSError.__str__ would drop the message of a one-argument error's hint.
    __str__ = NeuralForgeError.__str__


class ExportError(NeuralForgeError, RuntimeError):
    """An exported file does not say the same as the trained model, or could not be checked."""

    exit_code = 7


class BackendError(NeuralForgeError, RuntimeError):
    """A backend is not available or failed inside the C core."""


class RestartNeeded(BackendError):
    """This process may compile no more programs for the Neural Engine; a new one can.

    Attributes:
        compiles: programs that it has compiled.
        opened: programs that the session had by then.
        saved: (micro-steps, step of the last evaluation) of a run, once its state is on disk.
    """

    def __init__(self, *, compiles: int, opened: int) -> None:
        super().__init__(
            f"this process has compiled {compiles} programs for the Neural Engine and may compile no more",
            hint="neuralforge train goes on by itself; elsewhere do the same in a new process or kernel, it goes on there",
        )
        self.compiles, self.opened = compiles, opened
        self.saved: tuple[int, int] | None = None
