"""Spec 7 as a client over HTTP meets it: every attack goes through the real endpoints, as every kind of user."""

import json
import math
from contextlib import suppress
from datetime import datetime, timedelta

from odoo import Command
from odoo.exceptions import AccessError
from odoo.service.model import get_public_method
from odoo.tests import HttpCase, new_test_user, tagged
from odoo.tools import mute_logger

from .case import JobCase

SECRET = "a secret of somebody else"
PASSWORD = "a password for tests"
ENDPOINTS = ("call_kw", "call_button", "jsonrpc", "json2")
ENGINE_FIELDS = {
    "uuid": "11111111-1111-4111-8111-111111111111",
    "name": "renamed",
    "state": "pending",
    "payload": {"model": "res.users", "method": "unlink", "ids": [1], "args": [], "kwargs": {}, "uid": 1, "su": True},
    "result": "forged",
    "identity_key": "taken",
    "user_id": 1,
    "company_id": 1,
    "started_at": "2026-01-01 00:00:00",
    "completed_at": "2026-01-01 00:00:00",
    "cancelled_at": "2026-01-01 00:00:00",
    "duration": 1.0,
    "attempts": 0,
    "retry": 0,
    "max_retries": 1000,
    "timeout": 1000,
    "exc_info": "forged",
    "worker_id": "forged",
    "parent_id": False,
    "graph_uuid": "forged",
    "run_on_failure": True,
    "model_name": "res.users",
    "method_name": "unlink",
    "is_due": True,
    "claim_seq": 1,
    "cancel_requested": True,
    "ended_by_id": 1,
    "database_failures": -100,
    "date_created": "2026-01-01 00:00:00",
    "date_done": "2026-01-01 00:00:00",
    "create_uid": 1,
}
CALL = {"model_name": "res.users", "method_name": "unlink", "record_ids": [1]}


class RefusedError(Exception):
    """The server answered with an error, whose name this is."""


class SecurityCase(JobCase, HttpCase):
    """Jobs of several users in two companies, and a client."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.company, cls.other_company = cls.env["res.company"].create([{"name": "one"}, {"name": "two"}])
        groups = {
            "portal": "base.group_portal,base.group_allow_export",
            "internal": "base.group_user,base.group_allow_export",
            "user": "job_worker.group_queue_job_user,base.group_allow_export",
            "manager": "job_worker.group_queue_job_manager,base.group_allow_export",
            "other": "job_worker.group_queue_job_user",
        }
        cls.users = {
            role: new_test_user(
                cls.env,
                f"jobs {role}",
                groups=group,
                password=PASSWORD,
                company_id=cls.company.id,
                company_ids=[Command.set(cls.company.ids)],
            )
            for role, group in groups.items()
        }
        cls.keys = {
            role: cls.env["res.users.apikeys"].with_user(user).sudo()._generate(
                "rpc", "a key for tests", datetime.now() + timedelta(days=1)
            )
            for role, user in cls.users.items()
        }  # fmt: skip
        cls.own = cls.job_of("user", max_retries=1)
        cls.own_failed = cls.job_of("user")
        cls.others = cls.job_of("other", SECRET, description=SECRET, max_retries=1)
        cls.elsewhere = cls.job_of("user", SECRET, description=SECRET)
        for job in (cls.own_failed, cls.others):
            job.button_set_to_failed()
        cls.cr.execute(
            "UPDATE queue_job SET exc_info = %(secret)s, result = to_jsonb(%(secret)s::text), worker_id = %(secret)s"
            " WHERE id = ANY(%(ids)s)",
            {"secret": SECRET, "ids": (cls.others | cls.elsewhere).ids},
        )
        cls.cr.execute("UPDATE queue_job SET company_id = %s WHERE id = %s", (cls.other_company.id, cls.elsewhere.id))
        # the user's own job stands between two of another user
        cls.cr.execute("UPDATE queue_job SET parent_id = %s WHERE id = %s", (cls.others.id, cls.own.id))
        cls.child = cls.job_of("other", SECRET, description=SECRET)
        cls.cr.execute("UPDATE queue_job SET parent_id = %s WHERE id = %s", (cls.own.id, cls.child.id))
        cls.cr.execute(
            "INSERT INTO queue_job_dependency_rel (job_id, dependency_id) VALUES (%s, %s)", (cls.own.id, cls.others.id)
        )
        cls.env.invalidate_all()
        cls.attempt = cls.env["queue.job.attempt"].create(
            {"job_id": cls.others.id, "outcome": "failed", "error": SECRET, "worker_id": SECRET,
             "started_at": datetime.now(), "ended_at": datetime.now()}
        )  # fmt: skip
        cls.worker = cls.env["queue.worker"].create(
            {"name": SECRET, "last_heartbeat": datetime.now(), "slots": 1, "state": "running"}
        )
        cls.limit = cls.env["queue.limit"].create({"name": "limited", "limit": 2})
        cls.env.flush_all()

    @classmethod
    def job_of(cls, role, *args, **options):
        user = cls.users[role]
        return cls.target.with_user(user).with_company(cls.company).with_delay(**options).job_echo(*args)

    def setUp(self):
        super().setUp()
        self.role = None

    def log_in(self, role):
        self.role = role
        self.authenticate(self.users[role].login, PASSWORD)

    def rpc(self, model, method, ids=None, endpoint="call_kw", **kwargs):
        """Call a method as the user who is logged in.

        :param ids: for a method of records
        :raise RefusedError: the server answered with an error
        """
        self.env.flush_all()
        self.env.invalidate_all()
        with mute_logger("odoo.http", "odoo.sql_db", "odoo.addons.rpc.controllers.jsonrpc", "py.warnings"):
            return getattr(self, f"_{endpoint}")(model, method, ids, kwargs)

    def _call_kw(self, model, method, ids, kwargs, route="call_kw"):
        args = [] if ids is None else [ids]
        params = {"model": model, "method": method, "args": args, "kwargs": kwargs}
        return self._post(f"/web/dataset/{route}", params)

    def _call_button(self, *call):
        return self._call_kw(*call, route="call_button")

    def _jsonrpc(self, model, method, ids, kwargs):
        call = [self.cr.dbname, self.users[self.role].id, PASSWORD, model, method, [] if ids is None else [ids], kwargs]
        return self._post("/jsonrpc", {"service": "object", "method": "execute_kw", "args": call})

    def _post(self, route, params):
        """Like ``make_jsonrpc_request()``, for NaN as well, with the server's message."""
        body = json.dumps({"id": 0, "jsonrpc": "2.0", "method": "call", "params": params})
        answer = self.url_open(route, data=body, headers={"Content-Type": "application/json"}).json()
        if "error" in answer:
            data = answer["error"]["data"]
            if SECRET not in body:
                self.assertNotIn(SECRET, data["message"])
            raise RefusedError(f"{data['name']}: {data['message']}")
        return answer.get("result")

    def _json2(self, model, method, ids, kwargs):
        body = {**kwargs, **({} if ids is None else {"ids": ids})}
        headers = {"Authorization": f"Bearer {self.keys[self.role]}"}
        response = self.url_open(f"/json/2/{model}/{method}", json=body, headers=headers)
        if response.status_code != 200:
            raise RefusedError(f"{response.status_code}: {response.json().get('name')}")
        return response.json()

    def rows(self):
        """All that the tables hold."""
        self.env.flush_all()
        held = []
        for table in ("queue_job", "queue_job_attempt", "queue_limit", "queue_worker", "queue_job_dependency_rel"):
            self.cr.execute(f"SELECT to_jsonb(t) FROM {table} t ORDER BY to_jsonb(t)::text")
            held += [(table, row[0]) for row in self.cr.fetchall()]
        self.cr.execute("SELECT count(*) FROM test_job_ledger")
        return [*held, self.cr.fetchone()]

    def assert_refused(self, model, method, ids=None, endpoint="call_kw", because="AccessError", **kwargs):
        """The call ends with an error, that of ``because``, which tells no secret, and has changed nothing."""
        before = self.rows()
        with self.subTest(role=self.role, call=f"{model}.{method}({ids}, {kwargs})", endpoint=endpoint):
            with self.assertRaises(RefusedError) as caught:
                self.rpc(model, method, ids, endpoint, **kwargs)
            self.assertIn(because, str(caught.exception))
        with self.subTest(role=self.role, changed_by=f"{model}.{method}({ids}, {kwargs})", endpoint=endpoint):
            self.assertEqual(self.rows(), before)


@tagged("post_install", "-at_install")
class TestSecurityRpc(SecurityCase):
    """Nobody reaches code through a job."""

    def each_role(self, *roles):
        for role in roles or ("portal", "internal", "user", "manager"):
            self.log_in(role)
            yield role

    def test_private_methods_are_out_of_reach_at_every_endpoint(self):
        for _role in self.each_role():
            for endpoint in ENDPOINTS:
                self.assert_refused("queue.job", "enqueue", endpoint=endpoint, **CALL)
                self.assert_refused("queue.job", "run_now", self.own.ids, endpoint)
                self.assert_refused("queue.job", "create", endpoint=endpoint, vals_list=[ENGINE_FIELDS])
                self.assert_refused("queue.job", "write", self.own.ids, endpoint, vals={"state": "done"})
                for model in ("queue.job", "res.partner", "res.users", "test.job.target"):
                    self.assert_refused(model, "with_delay", [1], endpoint)
                    self.assert_refused(model, "delayable", [1], endpoint)

    def test_no_other_private_method_is_reachable(self):
        private = {
            "queue.job": (
                "_store_graph", "_store", "_job_values", "_after_store", "_run_now", "_operate", "_end_by_hand",
                "_create", "_write", "_read", "set_progress", "track_progress", "sudo", "with_user", "with_context",
                "browse", "init", "_vacuum_ended_jobs", "_job_related_action", "_check_may_operate", "_hand_over",
                "_extra_values",
            ),
            "res.partner": ("_job_store_values", "_job_related_action", "_job_prepare_context_before_enqueue_keys"),
            "queue.worker": ("_request_pause", "_count_alive"),
            "queue.limit": ("_apply_at_commit", "init"),
        }  # fmt: skip
        for _role in self.each_role("internal", "manager"):
            for model, methods in private.items():
                for method in methods:
                    self.assert_refused(model, method, [1])

    def test_the_methods_within_reach_are_known(self):
        reachable = {
            "button_cancelled", "button_requeue", "button_run_next", "button_set_to_done", "button_set_to_failed",
            "graph_data", "open_related_action", "record_jobs_action", "record_jobs_summary",
        }  # fmt: skip
        jobs = self.env["queue.job"]
        ours = {
            name
            for cls in type(jobs).mro()
            if cls.__module__.startswith("odoo.addons.job_worker")
            for name, member in vars(cls).items()
            if callable(member) and not name.startswith("_")
        }
        public = set()
        for name in ours:
            with suppress(AccessError):
                get_public_method(jobs, name)
                public.add(name)
        self.assertEqual(
            public, reachable | {"create", "write"}, "whoever adds a method says here that clients may call it"
        )

    def test_jobs_are_not_created(self):
        vals = {name: value for name, value in ENGINE_FIELDS.items() if name != "payload"}
        for _role in self.each_role():
            for values in (ENGINE_FIELDS, vals, {"uuid": "x"}, {"channel": "root", "priority": 1}, {}):
                self.assert_refused("queue.job", "create", vals_list=[values])
                self.assert_refused("queue.job", "web_save", [], vals=values, specification={})
            self.assert_refused("queue.job", "name_create", name="forged")
            self.assert_refused("queue.job", "copy", self.own.ids)
            self.assert_refused("queue.job", "copy", self.own.ids, default={"user_id": 1})
            self.assert_refused("queue.job.attempt", "create", vals_list=[{"job_id": self.own.id, "outcome": "died"}])
            self.assert_refused("queue.worker", "create", vals_list=[{"name": "forged"}])

    def test_jobs_are_not_imported(self):
        for role in self.each_role():
            for fields, data in (
                (["uuid", "state", "channel"], [["forged", "pending", "root"]]),
                (["id", "state"], [["__import__.forged", "pending"]]),
                ([".id", "state"], [[str(self.own.id), "done"]]),
                ([".id", "child_ids/.id", "child_ids/state"], [[str(self.own.id), str(self.child.id), "done"]]),
            ):
                before = self.rows()
                with self.subTest(role=role, fields=fields):
                    try:
                        result = self.rpc("queue.job", "load", fields=fields, data=data)
                    except RefusedError:
                        result = {"ids": False}
                    self.assertFalse(result["ids"])
                    self.assertEqual(self.rows(), before)

    def test_fields_of_the_engine_are_not_written(self):
        for _role in self.each_role():
            for name, value in ENGINE_FIELDS.items():
                self.assert_refused("queue.job", "write", self.own.ids, vals={name: value})
            for name in ("state", "payload", "user_id"):
                mixed = {"priority": 1, name: ENGINE_FIELDS[name]}
                self.assert_refused("queue.job", "write", self.own.ids, vals=mixed)
                self.assert_refused("queue.job", "web_save", self.own.ids, vals=mixed, specification={})
                self.assert_refused("queue.job", "web_save_multi", self.own.ids, vals_list=[mixed], specification={})
            self.assert_refused("queue.job", "web_resequence", self.own.ids, specification={}, field_name="claim_seq")
            self.assert_refused("queue.job", "action_archive", self.own.ids, because="Error")

    def test_translations_are_no_way_around(self):
        for _role in self.each_role():
            for name in ("exc_info", "name", "payload"):
                before = self.rows()
                for method, kwargs in (
                    ("update_field_translations", {"field_name": name, "translations": {"en_US": "forged"}}),
                    ("web_override_translations", {"values": {name: "forged"}}),
                ):
                    try:
                        self.rpc("queue.job", method, self.own.ids, **kwargs)
                    except RefusedError:
                        continue
                    self.assertEqual(self.rows(), before)

    def test_commands_of_relations_are_no_way_around(self):
        forged = [
            [Command.CREATE, 0, ENGINE_FIELDS],
            [Command.UPDATE, self.own.id, {"state": "done"}],
            [Command.DELETE, self.own_failed.id, 0],
            [Command.LINK, self.others.id, 0],
            [Command.SET, 0, [self.others.id]],
        ]
        for _role in self.each_role():
            for command in forged:
                for field in ("child_ids", "dependency_job_ids", "attempt_ids"):
                    self.assert_refused("queue.job", "write", self.own.ids, vals={field: [command]})
                    self.assert_refused(
                        "queue.job", "web_save", self.own.ids, vals={field: [command]}, specification={}
                    )
                self.assert_refused("queue.worker", "write", self.worker.ids, vals={"job_ids": [command]})

    def test_ended_jobs_are_deleted_by_managers_only(self):
        for _role in self.each_role("portal", "internal", "user"):
            self.assert_refused("queue.job", "unlink", self.own_failed.ids)
        self.log_in("manager")
        self.assert_refused("queue.job", "unlink", self.own.ids, because="UserError")
        self.assert_refused("queue.job", "unlink", self.elsewhere.ids)
        self.assert_refused("queue.job", "unlink", self.others.ids, because="others wait for")
        self.rpc("queue.job", "unlink", self.own_failed.ids)
        self.assertFalse(self.own_failed.exists())

    def test_the_administrator_is_no_exception(self):
        self.users = {**self.users, "admin": self.env.ref("base.user_admin")}
        self.env.ref("base.user_admin").sudo().password = PASSWORD
        self.log_in("admin")
        self.assert_refused("queue.job", "create", vals_list=[ENGINE_FIELDS])
        self.assert_refused("queue.job", "enqueue", **CALL)
        for name in ("state", "payload", "user_id", "model_name"):
            self.assert_refused("queue.job", "write", self.own.ids, vals={name: ENGINE_FIELDS[name]})

    # --- the related record ------------------------------------------------------------------------------------------

    def test_the_related_action_opens_the_records_and_nothing_else(self):
        self.log_in("user")
        action = self.rpc(
            "queue.job",
            "open_related_action",
            self.own.ids,
            context={"related_action": {"func_name": "unlink"}, "active_model": "res.users", "job_uuid": "x"},
        )
        self.assertEqual(action["type"], "ir.actions.act_window")
        self.assertEqual((action["res_model"], action["res_id"]), ("test.job.target", self.target.id))

    def test_the_related_action_takes_no_arguments(self):
        self.log_in("manager")
        self.assert_refused("queue.job", "open_related_action", self.own.ids, because="TypeError", func_name="unlink")

    def test_the_related_action_is_for_who_sees_the_job(self):
        for _role in self.each_role("portal", "internal"):
            self.assert_refused("queue.job", "open_related_action", self.own.ids)
        self.log_in("user")
        self.assert_refused("queue.job", "open_related_action", self.others.ids)
        self.assert_refused("queue.job", "open_related_action", self.elsewhere.ids)

    # --- buttons -----------------------------------------------------------------------------------------------------

    def test_buttons_are_for_who_sees_the_job(self):
        buttons = ("requeue", "cancelled", "set_to_done", "set_to_failed", "run_next")
        hidden = {
            "portal": (self.own, self.others),
            "internal": (self.own, self.others),
            "user": (self.others, self.child, self.elsewhere, self.own | self.others),
            "manager": (self.elsewhere, self.own | self.elsewhere),
        }
        for role in self.each_role():
            for jobs in hidden[role]:
                for button in buttons:
                    self.assert_refused("queue.job", f"button_{button}", jobs.ids)
                    self.assert_refused("queue.job", f"button_{button}", jobs.ids, "call_button")

    def test_users_operate_their_own_jobs(self):
        self.log_in("user")
        for button, state in (("requeue", "pending"), ("cancelled", "cancelled"), ("set_to_done", "done")):
            self.rpc("queue.job", f"button_{button}", self.own_failed.ids)
            self.assertEqual(self.state(self.own_failed), state)

    def test_managers_operate_all_jobs_of_their_companies(self):
        self.log_in("manager")
        self.rpc("queue.job", "button_requeue", self.others.ids)
        self.assertEqual(self.state(self.others), "pending")
        self.rpc("queue.job", "button_cancelled", self.others.ids)
        self.assertEqual(self.state(self.others), "cancelled")

    def test_a_context_does_not_make_a_button_run_the_job(self):
        self.log_in("user")
        self.rpc(
            "queue.job", "button_requeue", self.own_failed.ids, context={"queue_job__no_delay": True, "job_uuid": "x"}
        )
        self.assertEqual(self.state(self.own_failed), "pending")

    def test_users_reschedule_their_own_jobs_only(self):
        job = self.job_of("user")
        self.log_in("user")
        self.rpc("queue.job", "write", job.ids, vals={"eta": "2030-01-01 00:00:00"})
        job.invalidate_recordset()
        self.assertEqual(job.scheduled_at, datetime(2030, 1, 1))
        self.assert_refused("queue.job", "write", self.others.ids, vals={"eta": False})
        self.assert_refused("queue.job", "write", self.elsewhere.ids, vals={"eta": False})

    def test_channel_and_priority_of_jobs_are_for_managers(self):
        job = self.job_of("user")
        before = (job.priority, job.channel, job.scheduled_at)
        self.log_in("user")
        for vals in ({"priority": 3}, {"channel": "slow"}, {"eta": "2030-01-01 00:00:00", "priority": 3}):
            self.assert_refused("queue.job", "write", job.ids, vals=vals)
            self.assert_refused("queue.job", "web_save", job.ids, vals=vals, specification={})
        self.assert_refused("queue.job", "button_run_next", job.ids)
        self.assert_refused("queue.job", "button_run_next", job.ids, "call_button")
        job.invalidate_recordset()
        self.assertEqual((job.priority, job.channel, job.scheduled_at), before)
        self.log_in("manager")
        self.rpc("queue.job", "button_run_next", job.ids)
        self.rpc("queue.job", "write", job.ids, vals={"priority": 3, "channel": "slow"})
        job.invalidate_recordset()
        self.assertEqual((job.priority, job.channel), (3, "slow"))
        self.assert_refused("queue.job", "write", self.elsewhere.ids, vals={"priority": 3})
        self.assert_refused("queue.job", "write", job.ids, because="ValidationError", vals={"channel": False})
        self.assert_refused("queue.job", "write", job.ids, because="ValueError", vals={"channel": "a\x00b"})
        self.assert_refused("queue.job", "write", job.ids, because="OutOfRange", vals={"priority": 2**40})

    # --- reading -----------------------------------------------------------------------------------------------------

    def test_users_outside_the_groups_see_nothing(self):
        for _role in self.each_role("portal", "internal"):
            for endpoint in ENDPOINTS:
                self.assert_refused("queue.job", "search", endpoint=endpoint, domain=[])
                self.assert_refused("queue.job", "read", self.own.ids, endpoint, fields=["name"])
            for model in ("queue.job", "queue.job.attempt", "queue.worker", "queue.limit", "queue.error.group"):
                self.assert_refused(model, "search_count", domain=[])
                self.assert_refused(model, "search_read", domain=[], fields=["id"])
                self.assert_refused(model, "web_search_read", domain=[], specification={"display_name": {}})
                self.assert_refused(model, "name_search", name="")
                self.assert_refused(model, "formatted_read_group", domain=[], groupby=[], aggregates=["__count"])
                self.assert_refused(
                    model, "web_read_group", domain=[], groupby=["display_name"], aggregates=["__count"]
                )
            self.assert_refused("queue.job", "export_data", self.own.ids, fields_to_export=["payload"])
            self.assert_refused("queue.job", "web_read", self.own.ids, specification={"payload": {}})
            self.assert_refused("queue.job", "read_group", domain=[], fields=["id"], groupby=["state"])
            self.assert_refused(
                "queue.job",
                "read_progress_bar",
                domain=[],
                group_by="state",
                progress_bar={"field": "state", "colors": {}},
            )
            self.assert_refused("queue.job", "search_panel_select_range", field_name="state")
            self.assert_refused("queue.job", "graph_data", self.own.ids)
            self.assert_refused("queue.job", "copy_data", self.own.ids)
            self.assert_refused("queue.job", "get_metadata", self.own.ids)
            self.assert_refused("queue.dashboard", "get_now")
            self.assert_refused("queue.dashboard", "get_history", period="day")
            self.assert_refused("queue.channel", "get_channels")
            self.assert_refused("queue.channel", "pause", name="root")
            self.assert_refused("queue.channel", "resume", name="root")
            self.assert_refused("queue.channel", "set_limit", name="root", limit=0)

    def test_a_summary_of_a_records_jobs_is_empty_outside_the_groups(self):
        for _role in self.each_role("portal", "internal"):
            try:
                summary = self.rpc(
                    "queue.job", "record_jobs_summary", model_name="test.job.target", record_id=self.target.id
                )
            except RefusedError:
                summary = {}
            self.assertFalse(summary)

    def seen(self, role):
        return {"user": self.own | self.own_failed, "manager": self.own | self.own_failed | self.others | self.child}[
            role
        ]

    def test_users_and_managers_find_the_jobs_they_may_see(self):
        ours = [("id", "in", (self.own | self.own_failed | self.others | self.child | self.elsewhere).ids)]
        for role in self.each_role("user", "manager"):
            seen = self.seen(role)
            for endpoint in ("call_kw", "jsonrpc", "json2"):
                self.assertEqual(set(self.rpc("queue.job", "search", endpoint=endpoint, domain=ours)), set(seen.ids))
            self.assertEqual(self.rpc("queue.job", "search_count", domain=ours), len(seen))
            found = self.rpc("queue.job", "web_search_read", domain=ours, specification={"payload": {}})
            self.assertEqual({job["id"] for job in found["records"]}, set(seen.ids))
            named = self.rpc("queue.job", "name_search", name="", domain=ours)
            self.assertEqual({job_id for job_id, _name in named}, set(seen.ids))
            groups = self.rpc(
                "queue.job", "formatted_read_group", domain=ours, groupby=["state"], aggregates=["__count"]
            )
            self.assertEqual(sum(group["__count"] for group in groups), len(seen))
            groups = self.rpc("queue.job", "read_group", domain=ours, fields=["id"], groupby=["state"], lazy=False)
            self.assertEqual(sum(group["__count"] for group in groups), len(seen))
            groups = self.rpc("queue.job", "web_read_group", domain=ours, groupby=["channel"], aggregates=["__count"])
            self.assertEqual(sum(group["__count"] for group in groups["groups"]), len(seen))

    def test_jobs_of_others_and_of_other_companies_are_not_read(self):
        for role, hidden in (
            ("user", self.others),
            ("user", self.child),
            ("user", self.elsewhere),
            ("manager", self.elsewhere),
        ):
            self.log_in(role)
            ids = hidden.ids
            for fields in (
                ["payload"],
                ["name"],
                ["exc_info"],
                ["payload_display"],
                ["result"],
                ["eta"],
                ["func_string"],
            ):
                self.assert_refused("queue.job", "read", ids, fields=fields)
                self.assert_refused("queue.job", "web_read", ids, specification={fields[0]: {}})
                self.assert_refused("queue.job", "export_data", ids, fields_to_export=fields)
            for endpoint in ("jsonrpc", "json2"):
                self.assert_refused("queue.job", "read", ids, endpoint, fields=["payload"])
            self.assert_refused("queue.job", "graph_data", ids)
            self.assert_refused("queue.job", "copy_data", ids)
            self.assert_refused("queue.job", "get_metadata", ids)

    def test_allowed_companies_in_the_context_open_no_other_company(self):
        for _role in self.each_role("user", "manager"):
            for companies in ([self.other_company.id], [self.company.id, self.other_company.id]):
                context = {"allowed_company_ids": companies}
                self.assert_refused("queue.job", "read", self.elsewhere.ids, fields=["name"], context=context)

    def test_relations_show_nothing_of_hidden_jobs(self):
        self.log_in("user")
        specification = {
            name: {"fields": {"payload": {}, "exc_info": {}, "result": {}, "worker_id": {}}}
            for name in ("child_ids", "dependency_job_ids", "parent_id")
        }
        for method, kwargs in (
            ("web_read", {"specification": specification}),
            ("web_read", {"specification": {"attempt_ids": {"fields": {"error": {}}}}}),
            ("read", {"fields": ["child_ids", "dependency_job_ids", "attempt_ids"]}),
            ("export_data", {"fields_to_export": ["child_ids/exc_info"]}),
            ("export_data", {"fields_to_export": ["child_ids/payload"]}),
            ("export_data", {"fields_to_export": ["dependency_job_ids/result"]}),
            ("export_data", {"fields_to_export": ["parent_id/exc_info"]}),
            ("export_data", {"fields_to_export": ["parent_id/result_display"]}),
            ("export_data", {"fields_to_export": ["parent_id/payload_display"]}),
            ("export_data", {"fields_to_export": ["parent_id/arguments_display"]}),
            ("graph_data", {}),
        ):
            with self.subTest(method=method, **kwargs):
                try:
                    answer = self.rpc("queue.job", method, self.own.ids, **kwargs)
                except RefusedError as error:
                    answer = str(error)
                self.assertNotIn(SECRET, repr(answer))

    def test_domains_do_not_probe_hidden_jobs(self):
        probes = [
            ("queue.job", [("exc_info", "like", SECRET)]),
            ("queue.job", [("name", "=", SECRET)]),
            ("queue.job", [("display_name", "like", SECRET)]),
            ("queue.job", [("worker_id", "=", SECRET)]),
            ("queue.job", ["|", ("exc_info", "like", SECRET), ("id", "=", 0)]),
            ("queue.job", [("parent_id.exc_info", "like", SECRET)]),
            ("queue.job", [("parent_id", "like", SECRET)]),
            ("queue.job", [("parent_id", "any", [("exc_info", "like", SECRET)])]),
            ("queue.job", [("child_ids.exc_info", "like", SECRET)]),
            ("queue.job", [("child_ids", "any", [("name", "like", SECRET)])]),
            ("queue.job", [("dependency_job_ids.exc_info", "like", SECRET)]),
            ("queue.job", [("attempt_ids.error", "like", SECRET)]),
            ("queue.job.attempt", [("error", "like", SECRET)]),
            ("queue.job.attempt", [("job_id.exc_info", "like", SECRET)]),
            ("queue.error.group", [("last_job_id.exc_info", "like", SECRET)]),
        ]
        self.log_in("user")
        for model, domain in probes:
            with self.subTest(model=model, domain=domain):
                self.assertEqual(self.rpc(model, "search_count", domain=domain), 0)
                self.assertFalse(self.rpc(model, "search", domain=domain))

    def test_domains_cannot_bypass_the_rules(self):
        self.log_in("user")
        for operator in ("any!", "not any!"):
            domain = [("parent_id", operator, [("exc_info", "like", SECRET)])]
            self.assert_refused("queue.job", "search_count", because="ValueError", domain=domain)

    def test_attempts_are_seen_by_who_sees_the_job(self):
        domain = [("id", "=", self.attempt.id)]
        self.log_in("user")
        self.assertEqual(self.rpc("queue.job.attempt", "search", domain=domain), [])
        self.assert_refused("queue.job.attempt", "read", self.attempt.ids, fields=["error"])
        self.log_in("manager")
        self.assertEqual(self.rpc("queue.job.attempt", "search", domain=domain), self.attempt.ids)
        self.set_column(self.others, "company_id", self.other_company.id)
        self.assertEqual(self.rpc("queue.job.attempt", "search", domain=domain), [])
        for _role in self.each_role():
            self.assert_refused("queue.job.attempt", "write", self.attempt.ids, vals={"error": "forged"})
            self.assert_refused("queue.job.attempt", "unlink", self.attempt.ids)

    def test_the_dashboard_counts_the_jobs_one_may_see(self):
        self.cr.execute(
            "UPDATE queue_job SET channel = %s WHERE id = ANY(%s)", (SECRET, (self.child | self.elsewhere).ids)
        )
        for role in self.each_role("user", "manager"):
            now = self.rpc("queue.dashboard", "get_now")
            names = [channel["name"] for channel in now["channels"]]
            self.assertEqual(SECRET in names, role == "manager")
            if role == "user":
                self.assertNotIn(SECRET, repr(now))
            else:
                [channel] = [channel for channel in now["channels"] if channel["name"] == SECRET]
                self.assertEqual(channel["pending"], 1)

    # --- limits and workers ------------------------------------------------------------------------------------------

    def test_limits_are_read_by_users_and_edited_by_managers(self):
        self.log_in("user")
        self.assertEqual(self.rpc("queue.limit", "search", domain=[("name", "=", "limited")]), self.limit.ids)
        for _role in self.each_role("portal", "internal", "user"):
            self.assert_refused("queue.limit", "create", vals_list=[{"name": "forged", "limit": 5}])
            self.assert_refused("queue.limit", "write", self.limit.ids, vals={"limit": 0})
            self.assert_refused("queue.limit", "web_save", self.limit.ids, vals={"limit": 0}, specification={})
            self.assert_refused("queue.limit", "unlink", self.limit.ids)
            self.assert_refused("queue.limit", "copy", self.limit.ids)
            for method in ("pause", "resume", "set_limit"):
                self.assert_refused("queue.channel", method, name="limited")
        self.log_in("manager")
        self.rpc("queue.limit", "write", self.limit.ids, vals={"limit": 7})
        self.limit.invalidate_recordset()
        self.assertEqual(self.limit.limit, 7)
        self.rpc("queue.channel", "pause", name="limited")
        self.limit.invalidate_recordset()
        self.assertEqual(self.limit.limit, 0)

    def test_a_manager_cannot_break_the_workers_with_a_limit(self):
        self.log_in("manager")
        refused = [{"limit": -1}, *({"rate_limit": rate} for rate in (-1, 1e300, 1e-300, math.nan, math.inf))]
        for values, error in (*((values, "ValidationError") for values in refused), ({"limit": 2**31}, "OutOfRange")):
            self.assert_refused("queue.limit", "write", self.limit.ids, because=error, vals=values)
            self.assert_refused("queue.limit", "create", because=error, vals_list=[{"name": "broken", **values}])
            self.assert_refused("queue.channel", "set_limit", because=error, name="limited", **values)

    def test_workers_are_for_managers(self):
        for _role in self.each_role("portal", "internal", "user"):
            self.assert_refused("queue.worker", "search_read", domain=[], fields=["name"])
            self.assert_refused("queue.worker", "read", self.worker.ids, fields=["hostname"])
            self.assert_refused("queue.worker", "button_drain", self.worker.ids)
            self.assert_refused("queue.worker", "button_resume", self.worker.ids)
        self.log_in("manager")
        for values in ({"name": "forged"}, {"state": "dead"}, {"last_heartbeat": False}, {"pause_requested": True}):
            self.assert_refused("queue.worker", "write", self.worker.ids, vals=values)
        self.assert_refused("queue.worker", "unlink", self.worker.ids)
        self.rpc("queue.worker", "button_drain", self.worker.ids)
        self.worker.invalidate_recordset()
        self.assertTrue(self.worker.pause_requested)
        self.rpc("queue.worker", "button_resume", self.worker.ids)
        self.worker.invalidate_recordset()
        self.assertFalse(self.worker.pause_requested)

    def test_progress_is_shown_through_jobs_only(self):
        for _role in self.each_role():
            self.assert_refused("queue.job.progress", "search_read", domain=[], fields=["message"])
            self.assert_refused("queue.job.progress", "create", vals_list=[{"job_id": self.own.id}])
