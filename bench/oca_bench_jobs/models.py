import time

from odoo import fields, models


class BenchTarget(models.Model):
    """The methods that are measured, line by line those of `test.job.target`."""

    _name = "bench.target"
    _description = "Target of Benchmarks"

    name = fields.Char()
    counter = fields.Integer()

    def job_nothing(self):
        """Nothing at all: what is left is the queue's own cost."""

    def job_read(self):
        return self.name

    def job_write(self, value=1):
        self.counter += value

    def job_sleep(self, seconds):
        time.sleep(seconds)

    def job_burn(self, seconds):
        until = time.thread_time() + seconds
        rounds = 0
        while time.thread_time() < until:
            rounds += 1
        return rounds
