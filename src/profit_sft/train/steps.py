"""How many optimizer steps a run takes, before it is begun."""

import math


def planned_steps(
    batches: int, *, ranks: int = 1, micro_batches: int = 1, epochs: float = 3.0, max_steps: int = -1
) -> tuple[int, float]:
    """Return the optimizer steps and the epochs they are, as transformers' Trainer counts them.

    Args:
        batches: Of one device and epoch, all ranks' together.
        ranks: Processes that share them.
        micro_batches: Accumulated by each rank for a step.
        epochs: As `num_train_epochs`.
        max_steps: In place of the epochs, where it is positive.

    Example:
        >>> planned_steps(9, ranks=2, epochs=0.5)
        (3, 0.5)
    """
    a_epoch = max(1, math.ceil(math.ceil(batches / ranks) / micro_batches))
    if max_steps > 0:
        return max_steps, max_steps / a_epoch
    return math.ceil(epochs * a_epoch), epochs
