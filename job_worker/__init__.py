from . import delay, exception, job, models, queries


def uninstall_hook(env):
    """Leave nothing behind that Odoo does not know of."""
    queries.drop_own_objects(env.cr)
