"""The jobs that are measured: the same methods in every queue."""

CPU_SECONDS = 0.02
WAIT_SECONDS = 0.05

TITLES = {
    "nothing": "nothing at all",
    "read": "one ORM read",
    "write": "one ORM write",
    "cpu": "20 ms of CPU",
    "wait": "50 ms of waiting",
}
METHODS = {
    "nothing": "job_nothing",
    "read": "job_read",
    "write": "job_write",
    "cpu": "job_burn",
    "wait": "job_sleep",
}
ARGUMENTS = {"cpu": [CPU_SECONDS], "wait": [WAIT_SECONDS]}
TARGET = {"ours": "test.job.target", "oca": "bench.target"}
"""Model with these methods."""
