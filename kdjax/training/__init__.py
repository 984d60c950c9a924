"""Batches, steps, the fit loop, checkpoints, populations, devices and hosts."""

from kdjax.io.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "kdjax.training.batching": "Batch WindowDataset batches memory_batches",
        "kdjax.training.steps": "TrainState init_state make_optimizer make_student_step make_teacher_step",
        "kdjax.training.loop": "fit resume",
        "kdjax.training.sharding": "use_all_cores",
    },
)
