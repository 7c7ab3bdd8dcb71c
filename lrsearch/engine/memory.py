"""A device whose memory is used up: said with the sizes, and given back."""

from __future__ import annotations

import torch

from lrsearch.engine.attempt import Attempt
from lrsearch.training.task import TrainingTask


def out_of_memory(error: Exception, task: TrainingTask, attempt: Attempt | None) -> Exception:
    """Return an error that names what did not fit, if that is what went wrong; else the same one.

    What torch has set aside on the device is given back, so that the next trial finds room.

    Args:
        error: that has ended a trial.
        task: that was trained.
        attempt: the trial's training; None if its model could not be built.
    """
    if not isinstance(error, torch.OutOfMemoryError):
        return error
    sizes = [f"batches of {task.batch_size or 'all'} rows"]
    if attempt is not None:
        count = sum(parameter.numel() for parameter in attempt.model.parameters())
        sizes.insert(0, f"{count:,} parameters")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    words = " ".join(str(error).split())
    return torch.OutOfMemoryError(
        f"out of memory with {', '.join(sizes)}: choose a smaller batch_size, or fewer workers per "
        f"device ({words})"
    )
