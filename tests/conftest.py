"""What every system test may ask for."""

import os
from collections.abc import Iterator

import pytest

from tests.harness import Database
from tools import databases


@pytest.fixture
def odoo_env_vars() -> dict[str, str]:
    """The environment for processes of a test: leads them to Odoo, its configuration and the PostgreSQL server."""
    return dict(os.environ)


@pytest.fixture
def database() -> Iterator[str]:
    """The name of a fresh database with both addons installed, dropped afterwards."""
    name = databases.clone()
    yield name
    databases.drop(name)


@pytest.fixture(scope="session")
def shared_db() -> Iterator[Database]:
    name = databases.clone()
    yield from opened(name)
    databases.drop(name)


@pytest.fixture
def db(shared_db: Database) -> Iterator[Database]:
    """A database with both addons, empty of jobs; one for all tests, because to load its registry takes a second."""
    yield shared_db
    shared_db.empty()


@pytest.fixture
def fresh_db(database: str) -> Iterator[Database]:
    """A database of the test's own, for tests that change more than rows."""
    yield from opened(database)


def opened(name: str) -> Iterator[Database]:
    handle = Database(name)
    yield handle
    handle.close()
