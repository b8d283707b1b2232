"""What follows the end of a parent, whoever else is ending or requeueing parents at the same moment."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from odoo.service.model import retrying

from tests.harness import Worker, wait_until  # first: it puts the addons on the path

from odoo.addons.job_worker import graph, queries  # isort: skip
from odoo.addons.job_worker.delay import chain, group  # isort: skip
from odoo.addons.job_worker.lifecycle import move  # isort: skip
from odoo.addons.job_worker.worker.connection import Connection  # isort: skip

BARRIERS = 60


def test_parents_ending_together_release_their_barrier_once(db):
    with db.env() as env:
        target = env["test.job.target"]
        group(
            *(
                chain(
                    group(*(target.delayable().job_ledger(f"{number}:parent {side}") for side in range(4))),
                    target.delayable().job_ledger(f"{number}:barrier"),
                )
                for number in range(BARRIERS)
            )
        ).delay()
    with Worker(db, processes=2, concurrency=2) as worker:
        db.wait_until_drained(60)
        assert worker.stop() == 0
    names = [
        f"{number}:{part}" for number in range(BARRIERS) for part in (*(f"parent {s}" for s in range(4)), "barrier")
    ]
    db.count(names).check()
    assert db.value("SELECT max(attempts) FROM queue_job") == 0
    early = db.value(
        "SELECT count(*) FROM test_job_ledger barrier JOIN test_job_ledger parent"
        " ON split_part(parent.key, ':', 1) = split_part(barrier.key, ':', 1) AND parent.key LIKE '%%:parent%%'"
        " WHERE barrier.key LIKE '%%:barrier' AND barrier.began_at < parent.ended_at"
    )
    assert not early


@pytest.fixture
def done_parent(db):
    """``(parent, child)``: a job that is done, and one that waits for it and has not been promoted yet."""
    with db.env() as env:
        target = env["test.job.target"]
        parent, child = (
            job.id for job in chain(target.delayable().job_nothing(), target.delayable().job_nothing()).delay()
        )
        move(env.cr, "run_now", [parent])
        move(env.cr, "finish", [parent], duration=0, result=None)
    return parent, child


@pytest.fixture
def settler(db):
    """The connection of a worker that promotes."""
    connection = Connection(db.name)
    yield connection
    connection.close()


def test_a_parent_requeued_while_its_child_is_being_promoted_is_waited_for(db, done_parent, settler, monkeypatch):
    """The requeue commits between the look at the parents and the promotion."""
    parent, child = done_parent
    look = queries.undecided_with_parents

    def look_then_let_requeue(cr, ids):
        found = look(cr, ids)
        monkeypatch.setattr(queries, "undecided_with_parents", look)
        requeue(db, parent)
        return found

    monkeypatch.setattr(queries, "undecided_with_parents", look_then_let_requeue)
    with settler.transaction() as cr:
        graph.settle_children(cr, [parent])
    assert (db.job(parent)["state"], db.job(child)["state"]) == ("pending", "waiting")


def test_a_child_being_promoted_while_its_parent_is_requeued_is_taken_back(db, done_parent, settler):
    """The requeue begins after the promotion and before its commit."""
    parent, child = done_parent
    with ThreadPoolExecutor() as executor:
        with settler.transaction() as cr:
            graph.settle_children(cr, [parent])
            requeued = executor.submit(requeue, db, parent)
            wait_until(lambda: db.sessions("wait_event_type = 'Lock'"), what="the requeue waits")
        requeued.result()
    assert (db.job(parent)["state"], db.job(child)["state"]) == ("pending", "waiting")


def test_a_parent_being_requeued_while_its_child_is_promoted_is_waited_for(db, done_parent, settler):
    """The promotion begins after the requeue and before its commit."""
    parent, child = done_parent

    def settle():
        with settler.transaction() as cr:
            graph.settle_children(cr, [parent])

    with ThreadPoolExecutor() as executor:
        with db.env() as env:
            env["queue.job"].browse(parent).button_requeue()
            settled = executor.submit(settle)
            wait_until(lambda: db.sessions("wait_event_type = 'Lock'"), what="the promotion waits")
        settled.result()
    assert (db.job(parent)["state"], db.job(child)["state"]) == ("pending", "waiting")


def requeue(db, job_id):
    """As the button does; tried again after a conflict, as Odoo does with requests."""
    with db.env() as env:
        retrying(lambda: env["queue.job"].browse(job_id).button_requeue(), env)
