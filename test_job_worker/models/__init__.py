from . import demo_partner, job_ledger, queue_job, test_job_target
