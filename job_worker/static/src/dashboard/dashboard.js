import { _t } from "@web/core/l10n/translation";
import { ConfirmationDialog } from "@web/core/confirmation_dialog/confirmation_dialog";
import { registry } from "@web/core/registry";
import { useService } from "@web/core/utils/hooks";
import { Layout } from "@web/search/layout";
import { standardActionServiceProps } from "@web/webclient/actions/action_service";
import { ChannelTable } from "./channel_table";
import { formatCount, formatDuration } from "./format";
import { useOpenJobs } from "./open_jobs";
import { usePolling } from "./polling";
import { ThroughputChart } from "./throughput_chart";

import { Component, useState } from "@odoo/owl";

const REFRESH_MS = 3000;
// The further back, the more there is to count, and the less a moment changes.
const HISTORY_REFRESH_MS = { hour: 6000, day: 30000, week: 60000 };

/** What the queue does, how it has done lately, and what needs somebody. */
export class JobDashboard extends Component {
    static template = "job_worker.Dashboard";
    static components = { ChannelTable, Layout, ThroughputChart };
    static props = { ...standardActionServiceProps };

    setup() {
        this.orm = useService("orm");
        this.action = useService("action");
        this.dialog = useService("dialog");
        this.openJobs = useOpenJobs();
        this.formatCount = formatCount;
        this.formatDuration = formatDuration;
        this.display = { controlPanel: {} };
        this.state = useState({ period: "hour", now: null, history: null });
        this.historyLoadedAt = 0;
        this.polling = usePolling(() => this.load(), REFRESH_MS);
    }

    async load() {
        const { period } = this.state;
        const isHistoryOld = Date.now() - this.historyLoadedAt >= HISTORY_REFRESH_MS[period];
        const [now, history] = await Promise.all([
            this.orm.silent.call("queue.dashboard", "get_now", []),
            isHistoryOld && this.orm.silent.call("queue.dashboard", "get_history", [period]),
        ]);
        this.state.now = now;
        if (history && period === this.state.period) {
            this.state.history = history;
            this.historyLoadedAt = Date.now();
        }
    }

    async showPeriod(period) {
        this.state.period = period;
        this.historyLoadedAt = 0;
        await this.polling.refresh();
    }

    /** What becomes of the jobs in a database that was copied or moved. */
    settleCopy(isCopy) {
        this.dialog.add(ConfirmationDialog, {
            body: isCopy
                ? _t("All jobs that have not ended are cancelled in this database. The original is not touched.")
                : _t("Workers will run the jobs of this database. If the original is still in use, they run twice."),
            confirmLabel: isCopy ? _t("Cancel the jobs") : _t("Run the jobs"),
            confirm: async () => {
                await this.orm.call("queue.dashboard", "settle_copy", [isCopy]);
                await this.polling.refresh();
            },
            cancel: () => {},
        });
    }

    get periods() {
        return [
            { key: "hour", label: _t("Hour"), title: _t("Last hour") },
            { key: "day", label: _t("Day"), title: _t("Last day") },
            { key: "week", label: _t("Week"), title: _t("Last week") },
        ];
    }

    get periodTitle() {
        return this.periods.find(({ key }) => key === this.state.period).title;
    }

    get tiles() {
        const { numbers, workers } = this.state.now;
        const { done, failed } = this.state.history;
        const oldest = Math.max(...this.state.now.channels.map((channel) => channel.oldest || 0), 0);
        const jobs = (key, label, number, hint, className = "") => ({
            key,
            label,
            value: formatCount(number.count, number.more),
            hint,
            className: number.count ? className : "text-muted",
            open: () => this.openJobs(label, number.domain),
        });
        return [
            jobs("running", _t("Running"), numbers.running, this.slotsText(workers), "text-info"),
            jobs(
                "pending",
                _t("Pending"),
                numbers.pending,
                numbers.pending.count ? _t("oldest for %s", formatDuration(oldest)) : _t("nothing waits"),
                "text-warning"
            ),
            jobs("scheduled", _t("Scheduled"), numbers.scheduled, _t("to run later")),
            jobs("waiting", _t("Waiting"), numbers.waiting, _t("for other jobs")),
            jobs("done", _t("Done"), done, this.periodTitle, "text-success"),
            jobs("ended-failed", _t("Failed"), failed, this.periodTitle, "text-danger"),
        ];
    }

    slotsText({ alive, slots, busy }) {
        return alive ? _t("%(busy)s of %(slots)s slots in use", { busy, slots }) : _t("no worker");
    }

    get attention() {
        const { numbers, workers } = this.state.now;
        const jobs = (key, icon, level, label, hint, number, open) => ({
            key,
            icon,
            level,
            label,
            hint,
            count: number.count,
            value: formatCount(number.count, number.more),
            open: open || (() => this.openJobs(label, number.domain)),
        });
        return [
            workers.alive > 0 &&
                workers.idle === workers.alive && {
                    key: "idle",
                    icon: "fa-pause",
                    level: "warning",
                    label: _t("All workers are paused"),
                    hint: _t("They start no jobs until somebody resumes them."),
                    count: workers.idle,
                    value: formatCount(workers.idle),
                    open: () => this.openWorkers(),
                },
            jobs(
                "poison",
                "fa-bomb",
                "danger",
                _t("Took their worker down"),
                _t("A worker died while it ran these jobs."),
                numbers.poison
            ),
            jobs(
                "stuck",
                "fa-chain-broken",
                "danger",
                _t("Stuck"),
                _t("Their worker is silent, or they are past their timeout."),
                numbers.stuck
            ),
            jobs(
                "failed",
                "fa-exclamation-circle",
                "danger",
                _t("Failed"),
                _t("Out of tries. Opens them by error."),
                numbers.failed,
                () => this.openErrors()
            ),
            jobs(
                "paused",
                "fa-pause",
                "warning",
                _t("Held by paused channels"),
                _t("They wait until the channel is resumed."),
                numbers.paused
            ),
            jobs(
                "overdue",
                "fa-clock-o",
                "warning",
                _t("Overdue"),
                _t("Could have started more than 5 minutes ago."),
                numbers.overdue
            ),
        ].filter((item) => item && item.count);
    }

    get idsUsed() {
        return Object.entries(this.state.now.ids_used).map(([table, share]) => ({
            table,
            text: _t("%(share)s of the ids of %(table)s are used up.", { share: `${Math.floor(100 * share)} %`, table }),
        }));
    }

    get latencies() {
        const { wait, run } = this.state.history;
        return [
            { key: "wait", label: _t("Wait for a worker"), ...wait },
            { key: "run", label: _t("Run time"), ...run },
        ];
    }

    get chartLabel() {
        const { done, failed } = this.state.history;
        return _t("%(period)s: %(done)s jobs done, %(failed)s failed", {
            period: this.periodTitle,
            done: formatCount(done.count),
            failed: formatCount(failed.count),
        });
    }

    get busyChannels() {
        return this.state.now.channels.filter((channel) => channel.running || channel.pending || channel.scheduled);
    }

    get allRunningText() {
        return _t("All %s running jobs", formatCount(this.state.now.numbers.running.count));
    }

    percentage(job) {
        return Math.round(job.progress);
    }

    openJob(job) {
        this.action.doAction({
            type: "ir.actions.act_window",
            res_model: "queue.job",
            res_id: job.id,
            views: [[false, "form"]],
        });
    }

    openBar(bucket, key) {
        this.openJobs(key === "done" ? _t("Done") : _t("Failed"), bucket[`domain_${key}`]);
    }

    openErrors() {
        this.action.doAction("job_worker.queue_error_group_action");
    }

    openWorkers() {
        this.action.doAction("job_worker.queue_worker_action");
    }

    openChannels() {
        this.action.doAction("job_worker.queue_channel_action");
    }
}

registry.category("actions").add("job_worker.dashboard", JobDashboard);
