"""The ways to make a copy of a database; each takes the original, the name of the copy and a folder for its files."""

import os
from contextlib import suppress

import psycopg2

from tests.harness import Database, run_odoo, wait_until
from tools import databases, postgres


def duplicate(original, name, folder):
    odoo_db("duplicate", original.name, name)


def duplicate_neutralised(original, name, folder):
    odoo_db("duplicate", "--neutralize", original.name, name)


def dump_and_load(original, name, folder):
    odoo_db("dump", original.name, folder / "dump.zip")
    odoo_db("load", name, folder / "dump.zip")


def dump_and_load_neutralised(original, name, folder):
    odoo_db("dump", original.name, folder / "dump.zip")
    odoo_db("load", "--neutralize", name, folder / "dump.zip")


def template(original, name, folder):
    """By hand; it works when nobody is connected to the original."""
    original.close()

    def made():
        with databases.connect() as cr:
            cr.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [original.name])
            with suppress(psycopg2.errors.ObjectInUse):
                cr.execute(f'CREATE DATABASE "{name}" TEMPLATE "{original.name}"')
                return True
        return False

    wait_until(made, 60, "a moment without sessions")


def template_neutralised(original, name, folder):
    template(original, name, folder)
    status, output = run_odoo(Database(name), "neutralize")
    assert status == 0, output


def odoo_db(*args):
    path = f"{postgres.Server.own().programs}:{os.environ['PATH']}"
    status, output = run_odoo(None, "db", *map(str, args), environment={"PATH": path})
    assert status == 0, output[-3000:]


WAYS = (
    duplicate,
    duplicate_neutralised,
    dump_and_load,
    dump_and_load_neutralised,
    template,
    template_neutralised,
)
