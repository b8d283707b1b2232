"""A few thousand jobs as an Odoo of some years would have them, to look at the screens with.

The rows are written as they are, past the engine: only a development database may get them. What is pending waits for
its time, in a paused channel, or does what any database can do, so that a worker beside it has something to show.
"""

import json
import random
import uuid
from datetime import datetime, timedelta
from typing import Any

SECONDS_PER_WEEK = 7 * 86400
# model, method, channel, description, median run time in seconds, how often of a hundred, exceptions it dies of
KINDS = [
    ("sale.order", "action_export_to_erp", "export", "Export order S%05d", 2.0, 22, ["ConnectionError", "ValueError"]),
    ("sale.order", "_send_confirmation_mail", "mail", "Confirm order S%05d by mail", 0.6, 18, ["SMTPException"]),
    ("account.move", "_generate_pdf_documents", "invoice", "Print invoice INV/2026/%05d", 3.5, 16, ["MemoryError"]),
    ("account.move", "_send_to_peppol", "peppol", "Send invoice INV/2026/%05d over Peppol", 5.0, 9, ["ReadTimeout"]),
    ("stock.picking", "_request_shipping_label", "shipping", "Label for WH/OUT/%05d", 1.4, 13, ["UserError"]),
    ("stock.quant", "_sync_availability", "export", "Availability of product %05d", 0.3, 10, ["ConnectionError"]),
    ("account.bank.statement", "_fetch_transactions", "bank", "Fetch from journal %d", 20.0, 4, ["ReadTimeout"]),
    ("mrp.production", "_recompute_costs", "root", "Recompute the costs of MO/%05d", 45.0, 4, ["KeyError"]),
    ("crm.lead", "_score_leads", "root", "Score leads, batch %d", 90.0, 4, ["ZeroDivisionError"]),
]  # fmt: skip
ERRORS = {
    "ConnectionError": ("requests.exceptions.ConnectionError", "erp.example.com: connection refused"),
    "ReadTimeout": ("requests.exceptions.ReadTimeout", "Read timed out. (read timeout=30)"),
    "SMTPException": ("smtplib.SMTPRecipientsRefused", "{'jo@example.com': (550, b'No such user here')}"),
    "UserError": ("odoo.exceptions.UserError", "The delivery address has no zip code."),
    "MemoryError": ("MemoryError", ""),
    "KeyError": ("KeyError", "'bom_line_id'"),
    "ValueError": ("ValueError", "could not convert string to float: '12,50'"),
    "ZeroDivisionError": ("ZeroDivisionError", "division by zero"),
}
LIMITS = {
    "export": (4, 10), "mail": (3, 5), "invoice": (2, 0), "shipping": (0, 0), "crm": (1, 0.2),
    "closing": (0, 0),
}  # fmt: skip
KWARGS = {
    "action_export_to_erp": {"endpoint": "https://erp.example.com/orders", "options": {"lines": True, "draft": False}},
    "_send_to_peppol": {"format": "ubl_bis3"},
}
USERS = {"sales": "Marie Dubois", "warehouse": "Jonas Keller", "accounting": "Ines Almeida"}
CUSTOMERS = ("Birch Joinery", "Harbour Foods", "Lumen Optics", "Northgate Cycles", "Vela Textiles")
STATES = {"done": 80, "failed": 5, "cancelled": 2, "pending": 10, "waiting": 3}


def fill(env: Any, jobs: int = 3000, running: bool = False) -> None:
    """Add jobs in all states to a database, limits of their channels, a few users and customers.

    :param env: environment of a database with the addon; what is written is not committed
    :param jobs: how many
    :param running: some jobs look as if they were running, on workers that don't exist; a real worker buries them
    """
    env.flush_all()
    chance = random.Random(19)
    for login, name in USERS.items():
        if not env["res.users"].search([("login", "=", login)]):
            groups = env.ref("base.group_user") | env.ref("base.group_partner_manager")
            env["res.users"].create({"login": login, "name": name, "group_ids": groups.ids})
    rows = _Rows(env, chance)
    for channel, (limit, rate) in LIMITS.items():
        if not env["queue.limit"].search([("name", "=", channel)]):
            before = {} if limit else {"limit_before_pause": 2}
            env["queue.limit"].create({"name": channel, "limit": limit, "rate_limit": rate, **before})
    for state in chance.choices(list(STATES), list(STATES.values()), k=jobs):
        getattr(rows, f"add_{state}")()
    rows.add_graph(running)
    if running:
        rows.add_workers()
    rows.insert()


class _Rows:
    def __init__(self, env: Any, chance: random.Random) -> None:
        self.env = env
        self.chance = chance
        self.now: datetime = env.cr.now()
        self.jobs: list[dict] = []
        self.attempts: list[dict] = []
        self.dependencies: list[dict] = []
        self.progress: list[dict] = []
        self.workers: list[dict] = []
        env.cr.execute("SELECT COALESCE(max(id), 0) FROM queue_job")
        self.next_id = env.cr.fetchone()[0] + 1
        customers = env["res.partner"].search([("name", "in", CUSTOMERS)])
        self.partners = customers or env["res.partner"].create([{"name": name} for name in CUSTOMERS])
        self.users = env["res.users"].search([("share", "=", False)]).ids

    def add_done(self) -> None:
        job = self._job("done")
        self._ran(job, self._some_time_ago())
        if self.chance.random() < 0.05:
            self._attempts(job, self.chance.randint(1, 3), "failed")
        job["result"] = self.chance.choice([True, None, {"sent": 1}])

    def add_failed(self) -> None:
        job = self._job("failed")
        self._ran(job, self._some_time_ago())
        self._attempts(job, job["max_retries"] + 1, "died" if self.chance.random() < 0.02 else "failed")

    def add_cancelled(self) -> None:
        job = self._job("cancelled")
        self._ran(job, self._some_time_ago())
        job["cancelled_at"], job["completed_at"] = job["completed_at"], None

    def add_pending(self) -> None:
        if self.chance.random() < 0.3:
            partner = self.chance.choice(self.partners)
            call = ("res.partner", "write", "crm", f"Note on {partner.name}", [partner.id], [{"comment": "Called."}])
            job = self._job("pending", call=call)
            self._create(job, self.now - timedelta(seconds=self.chance.uniform(240, 900)))
            return
        job = self._job("pending")
        self._create(job, self.now - timedelta(seconds=self.chance.uniform(20, 7000)))
        if self.chance.random() < 0.5:
            job["channel"] = "shipping"
        else:
            job["scheduled_at"] = self.now + timedelta(seconds=self.chance.uniform(7200, SECONDS_PER_WEEK))
            job["is_due"] = False

    def add_waiting(self) -> None:
        parent = self._job("pending")
        self._create(parent, self.now - timedelta(seconds=600))
        parent["channel"], parent["graph_uuid"] = "shipping", str(uuid.UUID(int=self.chance.getrandbits(128)))
        child = self._job("waiting")
        self._create(child, self.now - timedelta(seconds=600))
        child["parent_id"], child["graph_uuid"] = parent["id"], parent["graph_uuid"]

    def add_graph(self, running: bool) -> None:
        """The closing of a month: some of it is done, the rest waits, in a paused channel."""
        graph = str(uuid.UUID(int=self.chance.getrandbits(128)))

        def add(name: str, method: str, state: str, *parents: dict) -> dict:
            job = self._job(state, call=("account.move", method, "closing", name, [1], []))
            job["graph_uuid"] = graph
            if state == "done":
                self._ran(job, self.now - timedelta(seconds=self.chance.uniform(60, 300)))
            else:
                self._create(job, self.now - timedelta(seconds=400))
            if state == "started":
                job.update(started_at=self.now - timedelta(seconds=50), worker_id="odoo-worker-1-4001")
                job["claim_seq"] = job["id"]
            if len(parents) == 1:
                job["parent_id"] = parents[0]["id"]
            elif parents:
                self.dependencies += [{"job_id": job["id"], "dependency_id": parent["id"]} for parent in parents]
            return job

        lock = add("Lock October 2026", "_lock_period", "done")
        states = {"sales": "done", "purchase": "done", "bank": "done", "cash": "done", "payroll": "pending"}
        if running:
            states["payroll"] = "started"
        journals = [
            add(f"Check the {name} journal", "_check_journal", state, lock)
            for name, state in {**states, "assets": "pending"}.items()
        ]
        balance = add("Draw up the trial balance", "_draw_up_balance", "waiting", *journals)
        add("File the VAT return", "_file_vat_return", "waiting", balance)
        add("Mail the reports", "_mail_reports", "waiting", balance)

    def add_workers(self) -> None:
        """Two workers, one of them draining, with a few jobs under way."""
        for number, (state, count) in enumerate([("running", 5), ("draining", 2)], start=1):
            name = f"odoo-worker-{number}-{4000 + number}"
            self.workers.append({
                "name": name, "hostname": f"odoo-worker-{number}", "pid": 4000 + number, "version": "19.0.1.0.0",
                "databases": self.env.cr.dbname, "slots": 6, "running_jobs": count, "memory": 190 + 30 * number,
                "started_at": self.now - timedelta(days=3), "last_heartbeat": self.now, "state": state,
                "stale_after": 60,
                "pause_requested": state == "draining", "create_date": self.now, "write_date": self.now,
            })  # fmt: skip
            for _job in range(count):
                self._add_started(name)

    def _add_started(self, worker: str) -> None:
        job = self._job("started")
        running = sum(other["state"] == "started" and other["channel"] == job["channel"] for other in self.jobs)
        if running > LIMITS.get(job["channel"], (1, 0))[0]:
            job["channel"] = "root"
        spent = timedelta(seconds=self.chance.uniform(2, 300))
        self._create(job, self.now - spent - timedelta(seconds=3))
        job.update(started_at=self.now - spent, worker_id=worker, claim_seq=job["id"])
        if self.chance.random() < 0.7:
            total = self.chance.choice([40, 120, 500])
            done = self.chance.randint(1, total)
            self.progress.append({
                "job_id": job["id"], "claim_seq": job["id"], "done": done, "total": total,
                "message": f"Record {self.chance.randint(1, 20_000):05d}", "updated_at": self.now,
            })  # fmt: skip

    def insert(self) -> None:
        self._number_by_age()
        self._insert("queue_worker", self.workers)
        self._insert("queue_job", self.jobs)
        self._insert("queue_job_dependency_rel", self.dependencies)
        self._insert("queue_job_attempt", self.attempts)
        self._insert("queue_job_progress", self.progress)
        self.env.cr.execute("SELECT setval('queue_job_id_seq', %s)", (self.next_id,))
        self.env.cr.execute(
            "UPDATE queue_job SET error_group = hashtextextended("
            " concat_ws(' ', model_name, method_name, error_class, error_place), 0) & 4503599627370495"
            " WHERE state = 'failed' AND error_group IS NULL"
        )
        self.env.invalidate_all()

    def _number_by_age(self) -> None:
        """Give the lower ids to the older jobs, as a sequence does."""
        ids = [job["id"] for job in self.jobs]
        self.jobs.sort(key=lambda job: (job["create_date"], job["id"]))
        new_ids = {job["id"]: new_id for job, new_id in zip(self.jobs, ids, strict=True)}
        for row in (*self.jobs, *self.attempts, *self.dependencies, *self.progress):
            for column in {"id", "parent_id", "job_id", "dependency_id"} & row.keys():
                row[column] = new_ids.get(row[column])

    def _insert(self, table: str, rows: list[dict]) -> None:
        if not rows:
            return
        columns = ", ".join(f'"{column}"' for column in rows[0])
        self.env.cr.execute(
            f"INSERT INTO {table} ({columns}) SELECT {columns} FROM jsonb_populate_recordset(NULL::{table}, %s::jsonb)",
            (json.dumps(rows, default=str),),
        )

    def _job(self, state: str, call: tuple | None = None) -> dict:
        if call:
            model, method, channel, name, ids, args = call
        else:
            kind = self.chance.choices(KINDS, [kind[5] for kind in KINDS])[0]
            ids, args = [self.chance.randint(1, 20_000)], []
            model, method, channel, name = kind[0], kind[1], kind[2], kind[3] % ids[0]
        user = self.chance.choice(self.users)
        company = self.env.company.id
        job = {
            "id": self.next_id, "uuid": str(uuid.UUID(int=self.chance.getrandbits(128), version=4)), "name": name,
            "state": state, "model_name": model, "method_name": method, "record_id": ids[0], "channel": channel,
            "payload": {
                "model": model, "method": method, "ids": ids, "args": args, "kwargs": KWARGS.get(method, {}),
                "uid": user, "su": False, "company_id": company,
                "context": {"lang": "en_US", "tz": "UTC", "allowed_company_ids": [company]},
            },
            "priority": self.chance.choice([5, 10, 10, 10, 20]), "user_id": user, "company_id": company,
            "create_uid": user, "write_uid": user, "create_date": None, "write_date": None, "scheduled_at": None,
            "is_due": state == "pending", "attempts": 0, "max_retries": 5, "timeout": 0, "parent_id": None,
            "graph_uuid": None, "run_on_failure": False, "cancel_requested": False, "database_failures": 0,
            "started_at": None, "completed_at": None, "cancelled_at": None, "duration": None, "worker_id": None,
            "claim_seq": None, "exc_info": None, "error_class": None, "error_place": None, "result": None,
        }  # fmt: skip
        self.next_id += 1
        self.jobs.append(job)
        return job

    def _some_time_ago(self) -> datetime:
        """Within a week, more by day than by night, and a little more of late."""
        while True:
            ago = SECONDS_PER_WEEK * self.chance.random() ** 1.6
            moment = self.now - timedelta(seconds=ago)
            if self.chance.random() < (1.0 if 7 <= moment.hour < 19 else 0.35):
                return moment

    def _ran(self, job: dict, ended: datetime) -> None:
        median = next((kind[4] for kind in KINDS if kind[1] == job["method_name"]), 1.0)
        duration = median * self.chance.lognormvariate(0, 0.6)
        started = ended - timedelta(seconds=duration)
        self._create(job, started - timedelta(seconds=self.chance.expovariate(1 / 4)))
        job.update(
            started_at=started,
            completed_at=ended,
            duration=duration,
            worker_id=f"odoo-worker-{self.chance.randint(1, 3)}",
        )

    @staticmethod
    def _create(job: dict, moment: datetime) -> None:
        job["create_date"] = job["write_date"] = moment

    def _attempts(self, job: dict, count: int, last_outcome: str) -> None:
        """Failed attempts before the job's end; for a failed job, the last one is its end."""
        module = job["model_name"].split(".")[0]
        kind = next(kind for kind in KINDS if kind[1] == job["method_name"])
        name, message = ERRORS[self.chance.choice(kind[6])]
        file = f"{module}/models/{job['model_name'].replace('.', '_')}.py"
        line = 100 + len(job["method_name"]) * 7 % 90
        error = (
            "Traceback (most recent call last):\n"
            f'  File "/opt/odoo/addons/{file}", line {line}, in {job["method_name"]}\n'
            "    self._process(record)\n"
            f'  File "/opt/odoo/addons/{file}", line {line + 31}, in _process\n'
            "    return client.post(values)\n"
            f"{name}: {message}".removesuffix(": ")
            + "\n"
        )
        for number in range(count, 0, -1):
            ended = job["completed_at"] - timedelta(seconds=10 * 2**number if number > 1 else 0)
            self.attempts.append({
                "job_id": job["id"], "started_at": ended - timedelta(seconds=job["duration"]), "ended_at": ended,
                "worker_id": job["worker_id"], "outcome": last_outcome if number == 1 else "failed", "counted": True,
                "error": error,
            })  # fmt: skip
        job["attempts"] = count
        if job["state"] == "failed":
            place = f"{file}:{line + 31} in _process"
            job.update(exc_info=error, error_class=name, error_place=place)
