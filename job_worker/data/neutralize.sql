-- the jobs and the workers belong to the original (the step "disown" of lifecycle.py)
UPDATE queue_job
   SET state = 'cancelled',
       ended_by_id = NULL,
       completed_at = NULL,
       cancelled_at = (clock_timestamp() AT TIME ZONE 'UTC'),
       exc_info = 'Cancelled, not run: this database was neutralized or is a copy, and the job belongs to the original.'
 WHERE state IN ('waiting', 'pending', 'started');

-- a row that changes meanwhile is that of a worker that lives here, and must not make the neutralization fail
DO $$
BEGIN
    DELETE FROM queue_worker;
EXCEPTION
    WHEN serialization_failure THEN NULL;
END
$$;

-- what is stored from now on belongs to this database
UPDATE ir_config_parameter
   SET value = concat_ws(' ', '-', (SELECT oid FROM pg_database WHERE datname = current_database()),
                         (SELECT value FROM ir_config_parameter WHERE key = 'database.uuid'))
 WHERE key = 'job_worker.home';
