"""Benchmarks, with the peers beside us in one run: `make bench`, narrowed by `make bench ARGS=drain`.

Every queue is worked through an *driver*, a process that stores its jobs, so that this process needs no Odoo and two
addons that both define `queue.job` never meet.
"""
