"""The worker: processes that claim jobs and run them."""

from .queue_worker import QueueWorker
from .runner import QueueJobRunner

__all__ = ["QueueJobRunner", "QueueWorker"]
