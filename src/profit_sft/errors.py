"""The exceptions a user can meet.

    ProFitError                 everything below; the command line prints its text without a traceback
    ├── DataError               a row, a file or a data set cannot be used; names file, row and field
    ├── ConfigurationError      settings that contradict each other or name something that does not exist
    │   └── MissingExtraError   a library is not installed; names the extra that brings it
    ├── UnsupportedModelError   a model whose head this library would not reproduce exactly
    ├── LossBypassedError       a training step that would be on another loss than the installed one
    └── DownloadError           a file could not be fetched, or is not the expected one

Wrong values and types handed to a function are plain `ValueError` and `TypeError`.
"""


class ProFitError(Exception):
    """Base of every exception this library raises for a user to read."""


class DataError(ProFitError):
    """A row, a file or a data set cannot be used. The message names file, row, field and the fix."""


class ConfigurationError(ProFitError):
    """Settings contradict each other or name something that does not exist."""


class MissingExtraError(ConfigurationError, ImportError):
    """A library that an extra brings is not installed. The message names the extra."""


class UnsupportedModelError(ProFitError):
    """The model computes its logits in a way the selective head would not reproduce exactly."""


class LossBypassedError(ProFitError):
    """A training step would leave the selective loss that was installed, and train something else."""


class DownloadError(ProFitError):
    """A file could not be fetched, or its checksum is not the expected one."""
