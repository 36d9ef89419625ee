"""Signals that are meant for the process that trains, in its data workers."""

import os
import signal
import threading


def leave_sigterm_to_parent(worker_id: int) -> None:
    """End this worker on its parent's SIGTERM alone; a ``worker_init_fn``.

    A scheduler sends SIGTERM to all processes of a job. A worker that died of it would take the training process
    along, which has a step to finish and a checkpoint to save.
    """
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_sigterm, args=(parent,), name="sigterm", daemon=True).start()


def _wait_for_sigterm(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)  # as PyTorch's own handler does: the parent takes any other code for a failure
