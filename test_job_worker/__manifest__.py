{
    "name": "Job Worker: Test Jobs",
    "summary": "Models and jobs that exist to be tested and measured with; not needed to use job_worker",
    "version": "19.0.1.2.0",
    "category": "Hidden/Tests",
    "license": "LGPL-3",
    "author": "job_worker contributors",
    "depends": ["job_worker"],
    "data": ["security/ir.model.access.csv", "data/queue_limit_data.xml", "data/demo_channels.xml"],
}
