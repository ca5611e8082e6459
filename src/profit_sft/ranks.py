"""What the ranks of a command must agree on before they go on together."""

from collections.abc import Callable
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from profit_sft.errors import ProFitError

_T = TypeVar("_T")


def first_decides(decide: Callable[[], _T]) -> _T:
    """Let the first rank decide; every rank gets the result, or raises the error.

    Args:
        decide: Called on the first rank alone. Its result must be picklable.

    Raises:
        ProFitError: `decide` did.
        OSError: `decide` did.
    """
    found: list[object] = [None, None]
    if PartialState().is_main_process:
        try:
            found[0] = decide()
        except (ProFitError, OSError) as error:
            found[1] = error
    broadcast_object_list(found)
    if isinstance(found[1], Exception):
        raise found[1]
    return found[0]  # type: ignore[return-value]  # what the first rank's `decide` returned
