"""Parents of one barrier that end at the same moment in different workers."""

from tests.harness import Worker

from odoo.addons.job_worker.delay import chain, group

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
