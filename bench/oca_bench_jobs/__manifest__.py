{
    "name": "Jobs to compare queue_job with",
    "summary": "The jobs of test_job_worker, for OCA queue_job",
    "version": "19.0.1.0.0",
    "author": "job_worker contributors",
    "license": "LGPL-3",
    "category": "Hidden",
    "depends": ["queue_job"],
    "installable": True,
}
