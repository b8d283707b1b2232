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


@pytest.fixture
def db(database: str) -> Iterator[Database]:
    """The same, to enqueue in and to count in."""
    handle = Database(database)
    yield handle
    handle.close()
