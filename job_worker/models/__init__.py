from . import base, queue_job, queue_job_actions, queue_job_attempt, queue_job_store, queue_limit, queue_worker
