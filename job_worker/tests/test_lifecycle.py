import ast
import re
from itertools import product
from pathlib import Path

from odoo.tests import BaseCase, tagged
from odoo.tools import mute_logger
from psycopg2.errors import CheckViolation

from .. import lifecycle
from ..job import STATES
from ..lifecycle import ENDED, TRANSITIONS, after_failure, move
from .case import JobCase

ADDON = Path(lifecycle.__file__).parent
DIAGRAM = ADDON.parent / "docs" / "job-lifecycle.md"
PARAMS = {
    "worker_id": "a worker",
    "duration": 1.5,
    "result": '"a result"',
    "attempts": 3,
    "delay": 60,
    "exc_info": "an error",
    "worker_died": False,
    "error_class": "ValueError",
    "error_place": "a_file.py in a_function",
    "parent_id": 1,
    "database_failure": 1,
}


class TestTransitions(JobCase):
    def test_a_transition_takes_a_job_from_its_source_states_only(self):
        for name, (state, _label) in product(TRANSITIONS, STATES):
            with self.subTest(transition=name, state=state):
                job = self.in_state(state)
                moved = move(self.cr, name, job.ids, **PARAMS)
                allowed = state in TRANSITIONS[name].sources
                self.assertEqual(moved, job.ids if allowed else [])
                self.assertEqual(self.state(job), TRANSITIONS[name].target if allowed else state)

    def test_a_move_says_which_jobs_moved(self):
        pending, done = self.in_state("pending"), self.in_state("done")
        self.assertEqual(move(self.cr, "cancel", (pending | done).ids), pending.ids)

    def test_a_move_of_no_jobs_moves_none(self):
        self.assertEqual(move(self.cr, "cancel", []), [])

    def test_an_attempt_ends_only_while_its_claim_owns_the_job(self):
        for name in ("finish", "retry", "fail", "give_back", "put_off", "postpone", "stop"):
            with self.subTest(name):
                job = self.in_state("pending")
                lost = self.start(job)
                self.take(job, "give_back")
                current = self.start(job)
                self.assertEqual(move(self.cr, name, job.ids, claim_seqs=[lost.claim_seq], **PARAMS), [])
                self.assertEqual(self.state(job), "started")
                self.assertEqual(move(self.cr, name, job.ids, claim_seqs=[current.claim_seq], **PARAMS), job.ids)

    def test_a_job_that_can_be_claimed_again_has_forgotten_its_attempt(self):
        for name in ("retry", "give_back", "put_off", "postpone"):
            with self.subTest(name):
                job = self.in_state("started")
                self.take(job, name, **PARAMS)
                self.assertFalse(job.worker_id or job.started_at or job.completed_at or job.cancel_requested)

    def test_a_requeued_job_is_as_good_as_new(self):
        for name in ("requeue", "requeue_waiting"):
            with self.subTest(name):
                job = self.in_state("started")
                self.take(job, "fail", **PARAMS)
                self.take(job, name)
                self.assertFalse(
                    job.attempts or job.exc_info or job.duration or job.completed_at or job.result or job.scheduled_at
                )

    def test_a_job_is_due_exactly_when_it_is_pending_and_its_time_has_come(self):
        for name in TRANSITIONS:
            target = TRANSITIONS[name].target
            for source in TRANSITIONS[name].sources:
                job = self.in_state(source)
                self.take(job, name, **PARAMS)
                if target == "pending":
                    with self.subTest(transition=name, source=source):
                        self.assertEqual(job.is_due, not job.scheduled_at)

    def test_the_database_refuses_an_end_without_its_date_and_a_date_without_its_end(self):
        for state, column in product(("waiting", "pending", "started"), ("completed_at", "cancelled_at")):
            with (
                self.subTest(state=state, column=column),
                self.assertRaises(CheckViolation),
                mute_logger("odoo.sql_db"),
            ):
                self.set_column(self.in_state(state), column, "2026-01-01")
        for state, column in (("done", "completed_at"), ("failed", "completed_at"), ("cancelled", "cancelled_at")):
            with (
                self.subTest(state=state, column=column),
                self.assertRaises(CheckViolation),
                mute_logger("odoo.sql_db"),
            ):
                self.set_column(self.in_state(state), column, None)
        for state, column in (("done", "cancelled_at"), ("cancelled", "completed_at")):
            with (
                self.subTest(state=state, column=column),
                self.assertRaises(CheckViolation),
                mute_logger("odoo.sql_db"),
            ):
                self.set_column(self.in_state(state), column, "2026-01-01")


@tagged("post_install", "-at_install")
class TestTransitionTable(BaseCase):
    def test_every_state_is_one_of_the_known_and_can_be_left_again(self):
        known = {state for state, _label in STATES}
        self.assertEqual({step.target for step in TRANSITIONS.values()}, known)
        self.assertEqual({source for step in TRANSITIONS.values() for source in step.sources}, known)

    def test_only_a_started_job_finishes(self):
        for name in ("finish", "fail", "retry", "stop"):
            self.assertEqual(TRANSITIONS[name].sources, ("started",))

    def test_only_a_pending_job_starts(self):
        starts = [step for step in TRANSITIONS.values() if step.target == "started"]
        self.assertEqual({step.sources for step in starts}, {("pending",)})

    def test_what_people_do_to_ended_jobs_starts_from_every_end(self):
        for name in ("requeue", "requeue_waiting"):
            self.assertEqual(set(TRANSITIONS[name].sources), set(ENDED))

    def test_the_diagram_shows_the_table(self):
        if not DIAGRAM.exists():
            self.skipTest("the addon stands alone, without the project's docs")
        drawn = re.findall(r"^ +(\w+) --> (\w+): (\w+)$", DIAGRAM.read_text(), re.MULTILINE)
        table = [(source, step.target, name) for name, step in TRANSITIONS.items() for source in step.sources]
        self.assertEqual(sorted(drawn), sorted(table))

    def test_the_diagram_explains_every_transition(self):
        if not DIAGRAM.exists():
            self.skipTest("the addon stands alone, without the project's docs")
        rows = re.findall(r"^\| (`.*?) \|", DIAGRAM.read_text(), re.MULTILINE)
        self.assertEqual(sorted(re.findall(r"`(\w+)`", " ".join(rows))), sorted(TRANSITIONS))

    def test_nothing_else_writes_the_state_of_a_job(self):
        for path in self.sources():
            for line, text in _texts(path):
                for clause in re.findall(
                    r"UPDATE\s+queue_job\b(?!_).*?\bSET\b(.*?)(?:\bWHERE\b|\bFROM\b|$)", text, re.DOTALL
                ):
                    written = re.search(r"\bstate\s*=", clause)
                    self.assertFalse(written, f"{path}:{line} writes the state of jobs past lifecycle.move(): {clause}")

    def test_sql_that_takes_a_transition_by_itself_takes_it_from_the_table_and_from_its_source(self):
        used = {}
        for path in self.sources():
            source = path.read_text()
            for name in re.findall(r"TRANSITIONS\[['\"](\w+)['\"]\]", source):
                used[name] = source
        self.assertLessEqual(set(used), {"claim", "finish"})
        for name, source in used.items():
            self.assertIn(f"state = '{TRANSITIONS[name].sources[0]}'", source)

    def test_no_python_assigns_the_state_of_a_job(self):
        for path in self.sources():
            if path.parent.name != "models" or not path.name.startswith("queue_job"):
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                targets = node.targets if isinstance(node, ast.Assign) else []
                for target in targets:
                    self.assertFalse(
                        isinstance(target, ast.Attribute) and target.attr == "state", f"{path}:{node.lineno}"
                    )

    def sources(self):
        return [path for path in sorted(ADDON.rglob("*.py")) if "tests" not in path.relative_to(ADDON).parts]


def _texts(path):
    """String constants of a module with their lines; the fields of f-strings are left out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


@tagged("post_install", "-at_install")
class TestRetryDecision(BaseCase):
    """The one place that decides what follows a failed attempt."""

    def test_while_attempts_do_not_exceed_max_retries_the_job_is_tried_again(self):
        decisions = [after_failure(attempts, 3) for attempts in range(5)]
        self.assertEqual([decision.transition for decision in decisions], ["retry", "retry", "retry", "fail", "fail"])
        self.assertEqual([decision.attempts for decision in decisions], [1, 2, 3, 4, 5])

    def test_max_retries_0_is_for_ever(self):
        self.assertEqual(after_failure(10_000, 0).transition, "retry")

    def test_the_back_off_doubles_from_ten_seconds_to_its_maximum(self):
        delays = [after_failure(attempts, 0).delay for attempts in range(11)]
        self.assertEqual(delays, [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600])
        self.assertEqual(after_failure(10**9, 0).delay, 3600)

    def test_the_maximum_of_the_back_off_can_be_set(self):
        self.assertEqual([after_failure(attempts, 0, max_backoff=15).delay for attempts in range(3)], [10, 15, 15])

    def test_seconds_take_the_place_of_the_back_off(self):
        for seconds in (0, 7, 0.5, 100_000):
            self.assertEqual(after_failure(4, 0, seconds=seconds).delay, seconds)

    def test_seconds_below_zero_mean_at_once(self):
        self.assertEqual(after_failure(0, 0, seconds=-5).delay, 0)

    def test_an_uncounted_attempt_never_exhausts_the_job(self):
        decision = after_failure(3, 3, ignore_retry=True)
        self.assertEqual((decision.transition, decision.attempts), ("retry", 3))
        self.assertEqual(after_failure(0, 1, ignore_retry=True).delay, 10)
