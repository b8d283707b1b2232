from . import (
    base,
    queue_job,
    queue_job_actions,
    queue_job_attempt,
    queue_job_display,
    queue_job_progress,
    queue_job_store,
    queue_channel,
    queue_dashboard,
    queue_error_group,
    queue_limit,
    queue_worker,
)
