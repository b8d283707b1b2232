from . import job_ledger, test_job_target
