"""From a stored payload back to a call: shared by workers and ``run_now()``."""

from odoo import api
from odoo.exceptions import MissingError

from . import queries
from .delay import check_method_name
from .exception import CallerGoneError
from .models.job_serialization import ModelNotFoundError, in_active_language, load_call

# not translated: the words "not found" are what code out there looks for
_USER_GONE = "The user of the job was not found: it was deleted."
_COMPANY_GONE = "Company %s of the job was not found: it was deleted."


def perform(cr, job_uuid, user_id, payload, more_context=None):
    """Call the method of a job as its user, in the caller's company, language and time zone.

    :param cr: Odoo cursor of the transaction to run in
    :param str job_uuid: goes into the context
    :param int user_id: user to run as; ``su`` holds only if it is the one who enqueued the job
    :param dict payload: the job's payload
    :param dict more_context: context keys of the run, beyond those of the caller
    :return: what the method returned
    :raise CallerGoneError: the user was deleted
    :raise ModelNotFoundError: the registry has no such model, or not that of an argument
    :raise MissingError: a record is gone
    :raise ValueError: the payload is damaged
    """
    if not isinstance(payload, dict):
        raise ValueError(f"damaged payload of a job: {payload!r:.100}")
    try:
        model_name, method_name, ids = payload["model"], payload["method"], payload["ids"]
        enqueuer, su, args, kwargs = payload["uid"], payload["su"], payload["args"], payload["kwargs"]
        context = payload["context"]
    except KeyError as error:
        raise ValueError(f"damaged payload of a job: {error} is missing") from error
    if not (isinstance(ids, list) and all(type(record_id) is int for record_id in ids) and isinstance(context, dict)):
        raise ValueError(f"damaged payload of a job: ids {ids!r:.100}, context {context!r:.100}")
    check_method_name(method_name)
    if not user_id:
        raise CallerGoneError(_USER_GONE)
    foreign_uid = None if user_id == enqueuer else enqueuer
    su = bool(su) and foreign_uid is None
    if any(type(value) is dict for value in context.values()):  # packed values, which may need an environment
        _args, context = load_call([], context, api.Environment(cr, user_id, {}, su))
    companies = [payload["company_id"]] if payload.get("company_id") else []
    context = {"allowed_company_ids": companies, **context, **(more_context or {}), "job_uuid": job_uuid}
    env = in_active_language(api.Environment(cr, user_id, context, su))
    env.transaction.default_env = env
    if not isinstance(model_name, str) or model_name not in env:
        raise ModelNotFoundError(f"model {model_name!r} not found")
    records = env[model_name].browse(ids)
    if ids and len(found := records.exists()) != len(records):
        missing = sorted(set(ids) - set(found.ids))
        text = f"Record {model_name}{tuple(missing[:10])} not found: it was deleted."
        raise MissingError(text)
    args, kwargs = load_call(args, kwargs, env, foreign_uid)
    return getattr(records, method_name)(*args, **kwargs)


def find_caller_gone(cr, user_id, payload):
    """Whether what the job runs for is gone, asked once it has failed: while it has not, nobody needs to know.

    :param cr: cursor at READ COMMITTED
    :param int user_id: user that it ran as
    :param dict payload: the job's payload
    :rtype: CallerGoneError or None
    """
    payload = payload if isinstance(payload, dict) else {}
    context = payload.get("context")
    allowed = context.get("allowed_company_ids") if isinstance(context, dict) else None
    companies = [payload.get("company_id"), *(allowed if isinstance(allowed, list) else ())]
    user_gone, companies_gone = queries.find_gone(cr, user_id, [rid for rid in companies if type(rid) is int])
    if user_gone:
        return CallerGoneError(_USER_GONE)
    return CallerGoneError(_COMPANY_GONE % companies_gone[0]) if companies_gone else None
