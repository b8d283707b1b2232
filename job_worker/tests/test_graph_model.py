# pylint: disable=invalid-commit
# sessions of their own, which commit as workers and users do
import os
import unittest
from types import SimpleNamespace

from .case import JobCase
from .common import external_env
from odoo.addons.job_worker import attempts, graph, queries
from odoo.addons.job_worker.delay import group
from odoo.addons.job_worker.lifecycle import move

try:
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st
except ImportError:
    given = None

LIVE = ("waiting", "pending", "started")


class Model:
    """The rules of section 1.2, derived anew from what happened to each job: no state is remembered but its own.

    A job's *fate* is what happened to the job itself: it began (``started``) or ended, by running or by hand. Without a
    fate, its parents decide, unless it was *released*: requeued by hand when all its parents had ended.
    """

    def __init__(self, parents, on_error):
        self.parents, self.on_error = parents, on_error
        self.fate = dict.fromkeys(parents)
        self.released = set()

    def children(self, node):
        return [child for child, parents in self.parents.items() if node in parents]

    def state(self, node):
        """The state of a job once everything that follows from its parents has been done."""
        if self.fate[node]:
            return self.fate[node]
        if node in self.released:
            return "pending"
        states = {self.state(parent) for parent in self.parents[node]}
        if "cancelled" in states:
            return "cancelled"
        if self.on_error[node]:
            if states & set(LIVE):
                return "waiting"
            return "pending" if "failed" in states else "cancelled"
        if "failed" in states:
            return "failed"
        return "pending" if states <= {"done"} else "waiting"

    def reopen(self, node):
        """What the parents had decided for the jobs after ``node`` is to be decided anew."""
        for child in self.children(node):
            if self.fate[child] is None:
                self.released.discard(child)
                self.reopen(child)


def read_committed(cr):
    """Let each statement of this transaction see what was committed before it, as those of workers do."""
    cr.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")


class Run:
    """The jobs of a graph in the database, handled by two workers and a user in sessions of their own."""

    def __init__(self, workers, user, parents, on_error):
        self.model = Model(parents, on_error)
        self.workers, self.user = workers, user
        calls = {node: user["res.partner"].delayable(channel="test.paused").anything(node) for node in parents}
        for node in parents:
            for parent in parents[node]:
                (calls[parent].on_error if on_error[node] else calls[parent].on_done)(calls[node])
        jobs = group(*calls.values()).delay()
        user.cr.commit()
        self.jobs = {job.payload["args"][0]: job.id for job in jobs}
        self.nodes = {job_id: node for node, job_id in self.jobs.items()}
        self.claims = {}
        self.open = {}  # by worker: a job whose end is not committed yet
        self.to_settle = [[], []]  # by worker: ended jobs whose children are to be settled

    def states(self):
        self.user.cr.execute("SELECT id, state FROM queue_job WHERE id = ANY(%s)", (list(self.nodes),))
        found = {self.nodes[job_id]: state for job_id, state in self.user.cr.fetchall()}
        self.user.cr.commit()
        return found

    # --- what workers do, one transaction each -----------------------------------------------------------------------

    def claim(self, worker, node):
        cr = self.workers[worker].cr
        read_committed(cr)
        if move(cr, "claim", [self.jobs[node]], worker_id=f"worker {worker}"):
            cr.execute("SELECT claim_seq FROM queue_job WHERE id = %s", (self.jobs[node],))
            self.claims[node] = cr.fetchone()[0]
            self.model.fate[node] = "started"
        cr.commit()

    def end(self, worker, node, outcome):
        """End an attempt and leave the transaction open."""
        cr = self.workers[worker].cr
        read_committed(cr)
        claim = SimpleNamespace(id=self.jobs[node], claim_seq=self.claims[node], attempts=5, max_retries=5)
        if outcome == "failed":
            following = attempts.fail(cr, claim, "boom")
            if following.transition == "stop":  # the user had asked to cancel it
                outcome = "cancelled"
        elif outcome == "cancelled":
            attempts.stop(cr, claim)
        else:
            move(cr, "finish", [claim.id], claim_seqs=[claim.claim_seq], result=None, duration=0)
        self.open[worker] = (node, outcome)

    def commit(self, worker):
        node, outcome = self.open.pop(worker)
        self.workers[worker].cr.commit()
        self.model.fate[node] = outcome
        self.to_settle[worker].append(node)

    def settle(self, worker):
        """Promote what follows, in a transaction of its own, some time after the commit."""
        node = self.to_settle[worker].pop(0)
        states = self.states()
        for child in self.model.children(node):
            # a job requeued by hand in spite of a cancelled parent is not safe from the settling of another one
            if states[child] == "pending" and any(
                states[parent] == "cancelled" for parent in self.model.parents[child]
            ):
                self.model.released.discard(child)
        cr = self.workers[worker].cr
        read_committed(cr)
        graph.settle_children(cr, [self.jobs[node]])
        cr.commit()

    def crash(self, worker):
        """A worker dies between commit and promotion.

        The sweep makes up for jobs that wait. One that another parent has failed already stays failed then when this
        parent is cancelled, which docs/interleavings.md has among what is not prevented: such jobs are settled here.
        """
        states = self.states()
        cancelled = [node for node in self.to_settle[worker] if self.model.fate[node] == "cancelled"]
        failed = {child for node in cancelled for child in self.model.children(node) if states[child] == "failed"}
        self.to_settle[worker].clear()
        if failed:
            cr = self.workers[worker].cr
            read_committed(cr)
            graph.settle(cr, [self.jobs[child] for child in failed])
            cr.commit()

    def sweep(self):
        cr = self.workers[0].cr
        read_committed(cr)
        graph.settle(cr, queries.waiting_jobs(cr, min(self.nodes) - 1, 5000))
        cr.commit()

    # --- what the user does ------------------------------------------------------------------------------------------

    def press(self, button, node):
        before = self.states()
        unfinished = any(before[parent] in LIVE for parent in self.model.parents[node])
        job = self.user["queue.job"].browse(self.jobs[node])
        changed = getattr(job, button)() is True
        self.user.cr.commit()
        if not changed or before[node] == "started":
            return
        self.model.released.discard(node)
        if button == "button_requeue":
            self.model.fate[node] = None
            if not unfinished:
                self.model.released.add(node)
        else:
            self.model.fate[node] = {
                "button_cancelled": "cancelled",
                "button_set_to_done": "done",
                "button_set_to_failed": "failed",
            }[button]
        self.model.reopen(node)

    # --- one random step, whatever is possible -----------------------------------------------------------------------

    def step(self, data):
        worker = data.draw(st.integers(0, 1), "worker")
        if worker in self.open and data.draw(st.booleans(), "commit"):
            return self.commit(worker)
        states = self.states()
        busy = {node for node, _outcome in self.open.values()}
        actions = {
            "claim": sorted(node for node, state in states.items() if state == "pending"),
            "end": sorted(node for node, state in states.items() if state == "started" and node not in busy),
            "press": sorted(node for node in states if node not in busy),
            "settle": self.to_settle[worker],
            "crash": self.to_settle[worker],
        }
        if worker in self.open:
            actions = {"press": actions["press"]}
        action = data.draw(
            st.sampled_from(
                [
                    name
                    for name in ("claim", "claim", "end", "end", "settle", "settle", "press", "crash")
                    if actions.get(name)
                ]
                or ["none"]
            ),
            "action",
        )
        if action in ("settle", "crash"):
            return getattr(self, action)(worker)
        if action == "none":
            return None
        node = data.draw(st.sampled_from(actions[action]), "node")
        if action == "claim":
            return self.claim(worker, node)
        if action == "end":
            return self.end(
                worker, node, data.draw(st.sampled_from(["done", "done", "failed", "cancelled"]), "outcome")
            )
        button = data.draw(
            st.sampled_from(["button_requeue", "button_requeue", "button_cancelled", "button_set_to_done",
                             "button_set_to_failed"]),
            "button",
        )  # fmt: skip
        return self.press(button, node)

    def work_to_the_end(self):
        """All that is pending runs, and succeeds, until nothing is left to do."""
        for worker in list(self.open):
            self.commit(worker)
        for node in sorted(node for node, state in self.states().items() if state == "started"):
            self.end(0, node, "done")
            self.commit(0)
        while True:
            for worker in range(2):
                while self.to_settle[worker]:
                    self.settle(worker)
            self.sweep()
            yield
            pending = sorted(node for node, state in self.states().items() if state == "pending")
            if not pending:
                return
            for index, node in enumerate(pending):
                self.claim(index % 2, node)
                self.end(index % 2, node, "done")
                self.commit(index % 2)

    def delete(self):
        for env in (*self.workers, self.user):
            env.cr.rollback()
        self.user.cr.execute("DELETE FROM queue_job WHERE id = ANY(%s)", (list(self.nodes),))
        self.user.cr.commit()


def graphs():
    """Random DAGs: ``(parents, on_error)`` by node, edges from lower to higher numbers."""

    @st.composite
    def build(draw):
        size = draw(st.integers(1, 30), "size")
        parents = {
            node: frozenset(draw(st.sets(st.integers(0, node - 1), max_size=4))) if node else frozenset()
            for node in range(size)
        }
        on_error = {node: bool(parents[node]) and draw(st.integers(0, 3)) == 0 for node in parents}
        return parents, on_error

    return build()


@unittest.skipUnless(given, "hypothesis is not installed")
class TestGraphModel(JobCase):
    """Section 1.2: any graph ends as the rules say, whatever happens to its jobs and in whatever order.

    ``JOB_WORKER_EXAMPLES`` in the environment sets how many graphs are tried.
    """

    EXAMPLES = int(os.environ.get("JOB_WORKER_EXAMPLES", 40))
    STEPS = (10, 80)

    def test_any_graph_in_any_order_ends_as_the_model_predicts(self):
        @settings(max_examples=self.EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(graphs(), st.integers(*self.STEPS), st.data())
        def check(shape, steps, data):
            run = Run((env1, env2), user, *shape)
            try:
                for _step in range(steps):
                    run.step(data)
                for _round in run.work_to_the_end():
                    self.assertEqual(run.states(), {node: run.model.state(node) for node in run.jobs})
                self.assertFalse(set(run.states().values()) & set(LIVE), "a job waits for ever")
            finally:
                run.delete()

        with (
            external_env(self.env) as (_cr1, env1),
            external_env(self.env) as (_cr2, env2),
            external_env(self.env) as (_cr3, user),
        ):
            check()


class TestTwoWorkers(JobCase):
    """Section 1.2: promotion between transactions of two workers."""

    def setUp(self):
        super().setUp()
        sessions = [self.enterContext(external_env(self.env)) for _index in range(3)]
        env1, env2, user = (env for _cr, env in sessions)
        # 0 and 1 run in parallel, 2 waits for both
        self.jobs = Run((env1, env2), user, {0: (), 1: (), 2: (0, 1)}, dict.fromkeys(range(3), False))
        self.addCleanup(self.jobs.delete)
        for worker in range(2):
            self.jobs.claim(worker, worker)

    def test_two_parents_that_end_at_the_same_instant_promote_their_child(self):
        for worker in range(2):
            self.jobs.end(worker, worker, "done")  # neither blocks the other
        self.jobs.commit(0)
        self.jobs.settle(0)
        self.assertEqual(self.jobs.states()[2], "waiting")
        self.jobs.commit(1)
        self.jobs.settle(1)
        self.assertEqual(self.jobs.states()[2], "pending")

    def test_both_workers_may_settle_the_same_child(self):
        for worker in range(2):
            self.jobs.end(worker, worker, "done")
        for worker in range(2):
            self.jobs.commit(worker)
        for worker in range(2):
            self.jobs.settle(worker)
        self.assertEqual(self.jobs.states()[2], "pending")

    def test_a_late_promotion_does_not_start_a_child_whose_parent_was_requeued_meanwhile(self):
        for worker in range(2):
            self.jobs.end(worker, worker, "done")
            self.jobs.commit(worker)
        self.jobs.press("button_requeue", 0)
        for worker in range(2):
            self.jobs.settle(worker)
        self.assertEqual(self.jobs.states(), {0: "pending", 1: "done", 2: "waiting"})

    def test_a_worker_killed_between_commit_and_promotion_is_made_up_for_by_the_sweep(self):
        for worker in range(2):
            self.jobs.end(worker, worker, "done")
            self.jobs.commit(worker)
            self.jobs.crash(worker)
        self.assertEqual(self.jobs.states()[2], "waiting")
        self.jobs.sweep()
        self.assertEqual(self.jobs.states()[2], "pending")
