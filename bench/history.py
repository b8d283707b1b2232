"""A table of jobs as a busy Odoo of three companies would have it after a month, made by SQL: a million in a minute."""

# Of a thousand jobs; those that ended lie in the last 30 days, the others in the last hours.
_SHARES = {"done": 881, "failed": 49, "cancelled": 9, "pending": 60, "waiting": 1}
_STARTED = 100
_SECONDS_PER_MONTH = 30 * 86400

_JOBS = """
WITH kind(model, method, channel, title, seconds, number) AS (VALUES
    ('sale.order', 'action_export_to_erp', 'export', 'Export order S', 2.0, 0),
    ('sale.order', '_send_confirmation_mail', 'mail', 'Confirm by mail order S', 0.6, 1),
    ('account.move', '_generate_pdf_documents', 'invoice', 'Print invoice INV/', 3.5, 2),
    ('account.move', '_send_to_peppol', 'peppol', 'Send over Peppol invoice INV/', 5.0, 3),
    ('stock.picking', '_request_shipping_label', 'shipping', 'Label for WH/OUT/', 1.4, 4),
    ('stock.quant', '_sync_availability', 'export', 'Availability of product ', 0.3, 5),
    ('res.partner', '_check_vat', 'crm', 'Check the VAT number of customer ', 1.1, 6),
    ('mrp.production', '_recompute_costs', 'root', 'Recompute the costs of MO/', 90.0, 7)
), chance AS (
    SELECT n, random() AS kind, random() AS fate, random() AS luck, random() AS spread,
           now() AT TIME ZONE 'UTC' - make_interval(
               secs => %(seconds)s * greatest(1 - n / (%(jobs)s * %(ended)s), random() / 400) ^ 1.3) AS moment
      FROM generate_series(1, %(jobs)s) n
), job AS (
    SELECT chance.*, kind.model, kind.method, kind.channel, kind.title, kind.number, 1 + n %% 20000 AS record,
           kind.seconds * exp(chance.spread * 3 - 1.5) AS took,
           CASE WHEN n <= %(jobs)s * %(ended)s
                THEN CASE WHEN fate < %(done)s THEN 'done' WHEN fate < %(failed)s THEN 'failed' ELSE 'cancelled' END
                WHEN n > %(jobs)s - %(started)s THEN 'started'
                WHEN fate < %(waiting)s THEN 'waiting' ELSE 'pending' END AS state,
           now() AT TIME ZONE 'UTC' AS now
      FROM chance JOIN kind ON kind.number = floor(chance.kind * 8)
)
INSERT INTO queue_job (
    id, uuid, name, state, model_name, method_name, record_id, channel, priority, user_id, company_id, payload,
    create_date, write_date, create_uid, write_uid, scheduled_at, is_due, started_at, completed_at, cancelled_at,
    duration, attempts, max_retries, timeout, run_on_failure, cancel_requested, database_failures, claim_seq, worker_id,
    identity_key, graph_uuid, error_class, error_place, exc_info)
SELECT nextval('queue_job_id_seq'), gen_random_uuid()::text, title || record, state, model, method, record, channel,
       (ARRAY[5, 10, 10, 10, 20])[1 + n %% 5], (%(users)s::int[])[1 + n %% %(user_count)s],
       (%(companies)s::int[])[1 + n %% %(company_count)s],
       jsonb_build_object('model', model, 'method', method, 'ids', jsonb_build_array(record), 'args', '[]'::jsonb,
           'kwargs', jsonb_build_object('endpoint', 'https://erp.example.com/orders', 'draft', false), 'uid', 2,
           'su', false, 'company_id', 1, 'context', '{"lang": "en_US", "tz": "UTC"}'::jsonb),
       moment - make_interval(secs => took + 5), moment, 1, 1,
       CASE WHEN state = 'pending' AND luck < 0.3 THEN now + make_interval(secs => 604800 * spread) END,
       state = 'pending' AND luck >= 0.3,
       CASE WHEN state IN ('done', 'failed', 'started') THEN moment - make_interval(secs => took) END,
       CASE WHEN state IN ('done', 'failed') THEN moment END, CASE WHEN state = 'cancelled' THEN moment END,
       CASE WHEN state IN ('done', 'failed') THEN took END,
       CASE WHEN state = 'failed' THEN 6 WHEN state = 'done' AND luck < 0.05 THEN 1 ELSE 0 END, 5, 0, false, false, 0,
       CASE WHEN state = 'started' THEN n END, CASE WHEN state IN ('done', 'failed', 'started') THEN 'host-1-4001' END,
       CASE WHEN n %% 3 = 0 THEN md5(n::text) END, CASE WHEN n %% 50 = 0 THEN md5((n / 5000)::text)::uuid::text END,
       CASE WHEN state = 'failed' THEN class END, CASE WHEN state = 'failed' THEN place END,
       CASE WHEN state = 'failed' OR (state = 'pending' AND luck < 0.02) THEN
           'Traceback (most recent call last):' || repeat(
               E'\n  File "/opt/odoo/addons/' || place || E'", line 1, in _process\n    return client.post(values)', 12)
           || E'\n' || class || ': the reply to record ' || record || ' was not understood' END
  FROM job CROSS JOIN LATERAL (SELECT
       (ARRAY['requests.exceptions.ConnectionError', 'KeyError', 'odoo.exceptions.UserError'])[1 + n %% 3] AS class,
       replace(model, '.', '_') || '.py:' || 100 + n %% 5 || ' in _process' AS place) error
 ORDER BY n
"""
_EDGES = """
UPDATE queue_job SET parent_id = (SELECT min(id) FROM queue_job WHERE state = 'pending'), graph_uuid = %s
 WHERE state = 'waiting'
"""
_ATTEMPTS = """
INSERT INTO queue_job_attempt (job_id, started_at, ended_at, worker_id, outcome, counted, error)
SELECT id, started_at, started_at + interval '1 second', worker_id,
       CASE WHEN id %% 5000 = 0 THEN 'died' ELSE 'failed' END, true, exc_info
  FROM queue_job CROSS JOIN generate_series(1, attempts) WHERE attempts > 0
"""
_GROUPS = """
UPDATE queue_job
   SET error_group = hashtextextended(concat_ws(' ', model_name, method_name, error_class, error_place), 0)
                     & 4503599627370495
 WHERE state = 'failed'
"""
_WORKER = """
INSERT INTO queue_worker (name, hostname, pid, version, state, slots, running_jobs, started_at, last_heartbeat)
VALUES ('host-1-4001', 'host-1', 4001, '19.0.1.0.0', 'running', 100, 100, now() AT TIME ZONE 'UTC', 'infinity')
"""


def fill(cursor, jobs: int, users: list[int], companies: list[int]) -> None:
    """Insert `jobs` jobs of these users in these companies, with attempts, a graph and a worker that lives for ever."""
    of_ended = sum(_SHARES[state] for state in ("done", "failed", "cancelled"))
    parameters = {
        "jobs": jobs,
        "seconds": _SECONDS_PER_MONTH,
        "ended": of_ended / 1000,
        "done": _SHARES["done"] / of_ended,
        "failed": (_SHARES["done"] + _SHARES["failed"]) / of_ended,
        "waiting": _SHARES["waiting"] / (1000 - of_ended),
        "started": _STARTED,
        "users": users,
        "user_count": len(users),
        "companies": companies,
        "company_count": len(companies),
    }
    cursor.execute("SELECT setseed(0.19)")
    cursor.execute(_JOBS, parameters)
    cursor.execute(_EDGES, ["7a6f4bd2-3c0e-4f0e-9d0c-5a5a11f0c001"])
    cursor.execute(_ATTEMPTS, [])
    cursor.execute(_GROUPS)
    cursor.execute(_WORKER)
    cursor.execute("VACUUM ANALYZE queue_job, queue_job_attempt, queue_worker")
