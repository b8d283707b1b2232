from odoo.exceptions import UserError

from .case import JobCase
from odoo.addons.job_worker import queries
from odoo.addons.job_worker.delay import chain, group
from odoo.addons.job_worker.graph import settle
from odoo.addons.job_worker.lifecycle import move


class GraphCase(JobCase):
    def call(self, name, **options):
        return self.target.delayable(**options).job_echo(name)

    def calls(self, names):
        return [self.call(name) for name in names]

    def delay(self, part):
        """Delay a part; the jobs by name."""
        return {job.payload["args"][0]: job for job in part.delay()}

    def edges(self, jobs):
        """Who waits for whom, ``{"ab"}`` for b that waits for a; ``"a!b"`` where b follows a failure."""
        names = {job.id: name for name, job in jobs.items()}
        return {
            f"{names[parent.id]}{'!' if job.run_on_failure else ''}{name}"
            for name, job in jobs.items()
            for parent in job.parent_id | job.dependency_job_ids
        }


class TestShape(GraphCase):
    """Section 1.2: what chain, group, on_done, on_error and split mean, in every nesting."""

    def assert_edges(self, part, expected, names=None):
        jobs = self.delay(part)
        self.assertEqual(self.edges(jobs), set(expected.split()))
        if names:
            self.assertEqual(set(jobs), set(names))
        for job in jobs.values():
            self.assertEqual(job.state, "waiting" if job.parent_id or job.dependency_job_ids else "pending")
        return jobs

    def test_chain_runs_its_parts_one_after_the_other(self):
        self.assert_edges(chain(*self.calls("abc")), "ab bc")

    def test_group_runs_its_parts_in_parallel(self):
        self.assert_edges(group(*self.calls("abc")), "", "abc")

    def test_what_follows_a_group_waits_for_all_of_it(self):
        a, b, c = self.calls("abc")
        self.assert_edges(group(a, b).on_done(c), "ac bc")

    def test_a_group_after_a_group_waits_for_all_of_it(self):
        a, b, c, d = self.calls("abcd")
        self.assert_edges(chain(group(a, b), group(c, d)), "ac ad bc bd")

    def test_a_chain_in_a_chain(self):
        a, b, c, d = self.calls("abcd")
        self.assert_edges(chain(a, chain(b, c), d), "ab bc cd")

    def test_a_group_in_a_group(self):
        a, b, c, d = self.calls("abcd")
        self.assert_edges(group(a, group(b, group(c))).on_done(d), "ad bd cd")

    def test_chains_in_a_group(self):
        a, b, c, d, e = self.calls("abcde")
        self.assert_edges(chain(group(chain(a, b), chain(c, d)), e), "ab cd be de")

    def test_groups_in_chains_in_groups_in_chains(self):
        a, b, c, d, e, f = self.calls("abcdef")
        self.assert_edges(chain(a, group(chain(b, group(c, d)), e), f), "ab ae bc bd cf df ef")

    def test_on_done_of_a_delayable(self):
        a, b, c = self.calls("abc")
        self.assert_edges(a.on_done(b, c), "ab ac")

    def test_on_done_with_a_group_a_chain_and_a_delayable(self):
        a, b, c, d, e, f = self.calls("abcdef")
        self.assert_edges(a.on_done(group(b, c), chain(d, e), f), "ab ac ad de af")

    def test_on_done_of_a_chain_follows_its_end(self):
        a, b, c, d = self.calls("abcd")
        self.assert_edges(chain(a, group(b, c)).on_done(d), "ab ac bd cd")

    def test_on_done_of_a_part_of_a_chain(self):
        a, b, c, d = self.calls("abcd")
        self.assert_edges(chain(a, b.on_done(d), c), "ab bc bd")

    def test_on_error_of_a_delayable_a_group_and_a_chain(self):
        a, b = self.calls("ab")
        self.assert_edges(a.on_error(b), "a!b")
        a, b, c = self.calls("abc")
        self.assert_edges(group(a, b).on_error(c), "a!c b!c")
        a, b, c = self.calls("abc")
        self.assert_edges(chain(a, b).on_error(c), "ab b!c")

    def test_on_error_with_a_group_and_a_chain(self):
        a, b, c, d, e = self.calls("abcde")
        self.assert_edges(a.on_error(group(b, c), chain(d, e)), "a!b a!c a!d de")

    def test_on_done_and_on_error_of_the_same_part(self):
        a, b, c = self.calls("abc")
        self.assert_edges(a.on_done(b).on_error(c), "ab a!c")

    def test_a_node_cant_wait_for_both_success_and_failure(self):
        a, b, c = self.calls("abc")
        a.on_done(c)
        with self.assertRaisesRegex(ValueError, "both success and failure"):
            b.on_error(c)
        group(a, b).delay()

    def test_split_in_a_chain(self):
        targets = self.env["test.job.target"].create([{}, {}, {}])
        a, c = self.calls("ac")
        jobs = chain(a, targets.delayable().job_echo("b").split(2), c).delay()
        self.assertEqual(jobs[1:3].mapped("parent_id"), jobs[0])
        self.assertEqual(jobs[3].dependency_job_ids, jobs[1:3])

    def test_split_as_a_chain_in_a_group(self):
        targets = self.env["test.job.target"].create([{}, {}, {}])
        a, c = self.calls("ac")
        jobs = chain(group(targets.delayable().job_echo("b").split(1, chain=True), a), c).delay()
        last = jobs.filtered(lambda job: job.payload["args"] == ["c"])
        self.assertEqual(len(jobs), 5)
        self.assertEqual(len(last.dependency_job_ids), 2)

    def test_one_delayable_reached_by_two_paths_is_one_job(self):
        a, b, c, d = self.calls("abcd")
        self.assert_edges(group(chain(a, b, d), chain(a, c, d)), "ab ac bd cd", "abcd")
        a, b = self.calls("ab")
        self.assert_edges(group(a, a, chain(a, b)), "ab", "ab")

    def test_a_diamond_by_on_done(self):
        a, b, c, d = self.calls("abcd")
        a.on_done(b, c)
        b.on_done(d)
        c.on_done(d)
        self.assert_edges(a, "ab ac bd cd")

    def test_delay_of_any_part_stores_the_whole_graph(self):
        for index in range(3):
            parts = self.calls("abc")
            chain(*parts)
            self.assert_edges(parts[index], "ab bc", "abc")

    def test_an_empty_group_or_chain_in_a_chain_takes_no_time(self):
        for empty in (group(), chain(), group(group(), chain()), chain(group())):
            a, b = self.calls("ab")
            self.assert_edges(chain(a, empty, b), "ab")
        a, b = self.calls("ab")
        self.assert_edges(chain(group(), a, chain(), b, group()), "ab")

    def test_what_follows_an_empty_group_follows_what_comes_before_it(self):
        a, b, c = self.calls("abc")
        self.assert_edges(chain(a, group().on_done(b), c), "ab ac")

    def test_what_follows_an_empty_group_alone_runs_at_once(self):
        self.assert_edges(group().on_done(self.call("a")), "", "a")
        self.assert_edges(chain(group()).on_done(chain(*self.calls("ab"))), "ab", "ab")
        empty = self.target.browse().delayable().job_echo("x").split(10)
        self.assert_edges(empty.on_done(self.call("a")), "", "a")

    def test_what_follows_the_failure_of_an_empty_group_is_not_stored(self):
        with self.assertNoLogs("odoo.addons.job_worker.delay", "WARNING"):
            self.assertFalse(group().on_error(self.call("a")).delay())

    def test_delaying_nothing_stores_nothing(self):
        self.assertFalse(group().delay())
        self.assertFalse(chain(group(), chain()).delay())

    def test_what_is_no_part_of_a_graph_is_a_type_error(self):
        with self.assertRaises(TypeError):
            group(self.target)
        a = self.call("a")
        with self.assertRaises(TypeError):
            a.on_done(self.target)
        a.delay()

    def test_a_cycle_is_a_value_error_at_delay_and_stores_nothing(self):
        before = self.env["queue.job"].search_count([])
        a, b, c = self.calls("abc")
        chain(a, b, c, a)
        with self.assertRaisesRegex(ValueError, "cycle"):
            b.delay()
        a = self.call("a")
        with self.assertRaisesRegex(ValueError, "cycle"):
            a.on_done(a).delay()
        self.assertEqual(self.env["queue.job"].search_count([]), before)

    def test_delay_of_a_graph_returns_the_jobs_parents_first(self):
        a, b, c = self.calls("abc")
        jobs = group(c, chain(a, b, c)).delay()
        self.assertEqual([job.payload["args"][0] for job in jobs], ["a", "b", "c"])

    def test_a_single_parent_is_parent_id_and_several_are_dependencies(self):
        a, b, c, d = self.calls("abcd")
        jobs = self.delay(chain(a, group(b, c), d))
        self.assertEqual((jobs["b"].parent_id, jobs["b"].dependency_job_ids.ids), (jobs["a"], []))
        self.assertEqual(jobs["a"].child_ids, jobs["b"] | jobs["c"])
        self.assertFalse(jobs["d"].parent_id)
        self.assertEqual(jobs["d"].dependency_job_ids, jobs["b"] | jobs["c"])
        self.assertEqual(jobs["d"].pending_dependency_count, 2)

    def test_all_jobs_of_one_delay_share_graph_uuid_and_a_lone_job_has_none(self):
        jobs = group(*self.calls("abc")).delay()
        other = group(*self.calls("de")).delay()
        self.assertEqual(len(set(jobs.mapped("graph_uuid"))), 1)
        self.assertNotEqual(jobs[0].graph_uuid, other[0].graph_uuid)
        self.assertTrue(jobs[0].graph_uuid)
        self.assertFalse(self.call("a").delay().graph_uuid)
        self.assertFalse(group(self.call("a")).delay().graph_uuid)


class TestReadiness(GraphCase):
    """Section 1.2: how the end of a job decides those after it."""

    def assert_states(self, jobs, **expected):
        self.assertEqual({name: self.state(jobs[name]) for name in expected}, expected)

    def test_all_parents_done_pending(self):
        a, b, c = self.calls("abc")
        jobs = self.delay(chain(group(a, b), c))
        self.work(jobs["a"])
        self.assert_states(jobs, c="waiting")
        self.work(jobs["b"])
        self.assert_states(jobs, c="pending")
        self.assertTrue(jobs["c"].is_due)

    def test_a_promoted_job_keeps_its_eta(self):
        jobs = self.delay(chain(self.call("a"), self.call("b", eta=3600)))
        self.work(jobs["a"])
        self.assert_states(jobs, b="pending")
        self.assertFalse(jobs["b"].is_due)

    def test_a_parent_failed_for_good_fails_the_nodes_after_it(self):
        jobs = self.delay(chain(*self.calls("abc")))
        self.work(jobs["a"], "boom")
        self.assert_states(jobs, a="failed", b="failed", c="failed")
        self.assertEqual(jobs["b"].exc_info, f"Parent job {jobs['a'].id} failed")
        self.assertEqual(jobs["c"].exc_info, f"Parent job {jobs['b'].id} failed")
        self.assertTrue(jobs["b"].completed_at)

    def test_one_failed_parent_of_several_is_enough_and_the_others_need_not_have_ended(self):
        a, b, c = self.calls("abc")
        jobs = self.delay(chain(group(a, b), c))
        self.work(jobs["a"], "boom")
        self.assert_states(jobs, b="pending", c="failed")
        self.work(jobs["b"])
        self.assert_states(jobs, c="failed")

    def test_on_error_nodes_become_pending_when_a_parent_failed(self):
        a, b, c = self.calls("abc")
        jobs = self.delay(a.on_error(b).on_done(c))
        self.work(jobs["a"], "boom")
        self.assert_states(jobs, b="pending", c="failed")

    def test_on_error_nodes_are_cancelled_on_success(self):
        a, b, c = self.calls("abc")
        jobs = self.delay(a.on_error(b.on_done(c)))
        self.work(jobs["a"])
        self.assert_states(jobs, b="cancelled", c="cancelled")

    def test_on_error_of_a_group_waits_for_all_of_it(self):
        a, b, c = self.calls("abc")
        jobs = self.delay(group(a, b).on_error(c))
        self.work(jobs["a"], "boom")
        self.assert_states(jobs, c="waiting")
        self.work(jobs["b"])
        self.assert_states(jobs, c="pending")

    def test_on_error_of_a_chain_runs_when_any_of_it_failed(self):
        jobs = self.delay(chain(*self.calls("abc")).on_error(self.call("d")))
        self.work(jobs["a"], "boom")
        self.assert_states(jobs, c="failed", d="pending")

    def test_what_follows_an_on_error_node_runs_after_it(self):
        a, b, c = self.calls("abc")
        jobs = self.delay(a.on_error(chain(b, c)))
        self.work(jobs["a"], "boom")
        self.work(jobs["b"])
        self.assert_states(jobs, c="pending")

    def test_a_parent_cancelled_cancels_everything_after_it_through_both_kinds_of_edge(self):
        a, b, c, d, e, f = self.calls("abcdef")
        jobs = self.delay(chain(a, group(b, c), d).on_error(e).on_done(f))
        jobs["b"].button_cancelled()
        self.assert_states(jobs, a="pending", b="cancelled", c="waiting", d="cancelled", e="cancelled", f="cancelled")
        self.assertTrue(jobs["d"].cancelled_at)

    def test_cancelled_beats_failed_whichever_came_first(self):
        for order in ("ab", "ba"):
            a, b, c = self.calls("abc")
            jobs = self.delay(chain(group(a, b), c))
            for name in order:
                if name == "a":
                    self.work(jobs["a"], "boom")
                else:
                    jobs["b"].button_cancelled()
            self.assert_states(jobs, c="cancelled")

    def test_a_diamond_runs_its_end_once_both_sides_are_done(self):
        a, b, c, d = self.calls("abcd")
        jobs = self.delay(chain(a, group(b, c), d))
        for name in "abc":
            self.assert_states(jobs, d="waiting")
            self.work(jobs[name])
        self.assert_states(jobs, d="pending")

    def test_a_parent_set_to_done_by_hand_promotes(self):
        for prepare in (lambda job: None, lambda job: self.work(job, "boom"), lambda job: job.button_cancelled()):
            a, b, c, d = self.calls("abcd")
            jobs = self.delay(chain(a, b, c).on_error(d))
            prepare(jobs["a"])
            jobs["a"].button_set_to_done()
            self.assert_states(jobs, a="done", b="pending", c="waiting", d="waiting")

    def test_a_failed_parent_set_to_done_by_hand_calls_its_on_error_node_off(self):
        a, b = self.calls("ab")
        jobs = self.delay(a.on_error(b))
        self.work(jobs["a"], "boom")
        jobs["a"].button_set_to_done()
        self.assert_states(jobs, b="cancelled")

    def test_a_parent_set_to_failed_by_hand_fails_what_follows(self):
        a, b, c = self.calls("abc")
        jobs = self.delay(a.on_done(b).on_error(c))
        jobs["a"].button_set_to_failed()
        self.assert_states(jobs, a="failed", b="failed", c="pending")

    def test_a_cancelled_parent_set_to_failed_by_hand_fails_what_it_had_cancelled(self):
        a, b, c = self.calls("abc")
        jobs = self.delay(a.on_done(b).on_error(c))
        jobs["a"].button_cancelled()
        jobs["a"].button_set_to_failed()
        self.assert_states(jobs, b="failed", c="pending")

    def test_requeueing_a_failed_job_puts_those_that_failed_only_because_of_it_back_to_waiting(self):
        a, b, c, d = self.calls("abcd")
        jobs = self.delay(chain(a, group(b, c), d))
        self.work(jobs["a"], "boom")
        jobs["a"].button_requeue()
        self.assert_states(jobs, a="pending", b="waiting", c="waiting", d="waiting")
        self.assertFalse(jobs["d"].exc_info)
        self.assertFalse(jobs["d"].completed_at)
        for name in "abc":
            self.work(jobs[name])
        self.assert_states(jobs, d="pending")

    def test_requeueing_does_not_put_back_what_failed_by_itself(self):
        a, b, c = self.calls("abc")
        jobs = self.delay(chain(a, b, c))
        self.work(jobs["a"])
        self.work(jobs["b"], "boom")
        jobs["a"].button_requeue()
        self.assert_states(jobs, a="pending", b="failed", c="failed")

    def test_requeueing_one_of_two_failed_parents_leaves_the_child_failed_because_of_the_other(self):
        a, b, c = self.calls("abc")
        jobs = self.delay(chain(group(a, b), c))
        self.work(jobs["a"], "boom")
        self.work(jobs["b"], "boom")
        jobs["a"].button_requeue()
        self.assert_states(jobs, a="pending", b="failed", c="failed")
        self.assertEqual(jobs["c"].exc_info, f"Parent job {jobs['b'].id} failed")
        jobs["b"].button_requeue()
        self.assert_states(jobs, c="waiting")

    def test_requeueing_both_failed_parents_at_once(self):
        a, b, c = self.calls("abc")
        jobs = self.delay(chain(group(a, b), c))
        self.work(jobs["a"], "boom")
        self.work(jobs["b"], "boom")
        (jobs["a"] | jobs["b"]).button_requeue()
        self.assert_states(jobs, a="pending", b="pending", c="waiting")

    def test_requeueing_a_whole_failed_chain_at_once_keeps_its_order(self):
        jobs = self.delay(chain(*self.calls("abc")))
        self.work(jobs["a"], "boom")
        (jobs["c"] | jobs["a"] | jobs["b"]).button_requeue()
        self.assert_states(jobs, a="pending", b="waiting", c="waiting")

    def test_requeueing_a_failed_parent_puts_its_promoted_on_error_node_back(self):
        a, b = self.calls("ab")
        jobs = self.delay(a.on_error(b))
        self.work(jobs["a"], "boom")
        jobs["a"].button_requeue()
        self.assert_states(jobs, a="pending", b="waiting")
        self.work(jobs["a"])
        self.assert_states(jobs, b="cancelled")

    def test_requeueing_a_done_parent_puts_children_back_that_have_not_begun(self):
        jobs = self.delay(chain(*self.calls("ab")))
        self.work(jobs["a"])
        jobs["a"].button_requeue()
        self.assert_states(jobs, a="pending", b="waiting")

    def test_requeueing_a_job_whose_parent_is_unfinished_makes_it_wait(self):
        jobs = self.delay(chain(*self.calls("ab")))
        jobs["b"].button_cancelled()
        jobs["b"].button_requeue()
        self.assert_states(jobs, a="pending", b="waiting")

    def test_requeueing_a_cancelled_parent_puts_what_it_cancelled_back(self):
        jobs = self.delay(chain(*self.calls("abc")))
        jobs["a"].button_cancelled()
        self.assert_states(jobs, c="cancelled")
        jobs["a"].button_requeue()
        self.assert_states(jobs, a="pending", b="waiting", c="waiting")

    def test_cancelling_a_job_that_runs_asks_it_to_stop(self):
        job = self.call("a").delay()
        move(self.cr, "claim", job.ids, worker_id="w")
        job.invalidate_recordset()
        job.button_cancelled()
        self.assertEqual((self.state(job), job.cancel_requested), ("started", True))


class TestDeletion(GraphCase):
    """No job waits for ever because what it waits for was deleted."""

    def test_an_ended_job_that_others_wait_for_cant_be_deleted(self):
        a, b, c = self.calls("abc")
        jobs = self.delay(chain(group(a, b), c))
        self.work(jobs["a"])
        with self.assertRaisesRegex(UserError, "wait for"):
            jobs["a"].unlink()
        jobs["c"].button_cancelled()
        jobs["a"].unlink()
        self.assertEqual(self.state(jobs["c"]), "cancelled")


class TestSweep(GraphCase):
    """Section 1.2: the workers' sweep is the safety net of promotion."""

    def test_a_worker_killed_between_commit_and_promotion_is_made_up_for(self):
        a, b, c, d = self.calls("abcd")
        jobs = self.delay(a.on_done(b, chain(c, d)))
        move(self.cr, "claim", jobs["a"].ids, worker_id="w")
        move(self.cr, "finish", jobs["a"].ids, result=None, duration=0)
        self.assertEqual(self.state(jobs["b"]), "waiting")
        settle(self.cr, queries.waiting_jobs(self.cr, 0, 1000))
        self.assertEqual([self.state(jobs[name]) for name in "bcd"], ["pending", "pending", "waiting"])

    def test_a_job_whose_parents_were_deleted_by_sql_fails_and_can_be_requeued(self):
        a, b, c, error = self.calls("abce")
        jobs = self.delay(a.on_done(chain(b, c)).on_error(error))
        self.cr.execute("DELETE FROM queue_job WHERE id = %s", jobs["a"].ids)
        settle(self.cr, queries.waiting_jobs(self.cr, 0, 1000))
        self.assertEqual([self.state(jobs[name]) for name in "bce"], ["failed", "failed", "cancelled"])
        self.assertIn("deleted", jobs["b"].exc_info)
        self.assertEqual(jobs["c"].exc_info, f"Parent job {jobs['b'].id} failed")
        jobs["b"].button_requeue()
        self.assertEqual([self.state(jobs[name]) for name in "bc"], ["pending", "waiting"])

    def test_a_job_that_lost_some_of_its_parents_is_decided_by_the_others(self):
        a, b, c = self.calls("abc")
        jobs = self.delay(chain(group(a, b), c))
        self.cr.execute("DELETE FROM queue_job WHERE id = %s", jobs["a"].ids)
        settle(self.cr, jobs["c"].ids)
        self.assertEqual(self.state(jobs["c"]), "waiting")
