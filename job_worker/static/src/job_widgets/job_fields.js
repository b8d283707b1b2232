import { browser } from "@web/core/browser/browser";
import { CopyButton } from "@web/core/copy_button/copy_button";
import { deserializeDateTime, formatDateTime } from "@web/core/l10n/dates";
import { _t } from "@web/core/l10n/translation";
import { registry } from "@web/core/registry";
import { formatFloat } from "@web/core/utils/numbers";
import { standardFieldProps } from "@web/views/fields/standard_field_props";

import { Component, onWillDestroy, useState } from "@odoo/owl";

/**
 * @param {number} seconds
 * @returns {string} a duration as people say it
 */
export function formatSeconds(seconds) {
    if (seconds < 10) {
        return _t("%s s", formatFloat(seconds, { digits: [16, 1] }));
    }
    const whole = Math.round(seconds);
    if (whole < 60) {
        return _t("%s s", whole);
    }
    if (whole < 3600) {
        return _t("%(minutes)s min %(seconds)s s", { minutes: Math.floor(whole / 60), seconds: whole % 60 });
    }
    return _t("%(hours)s h %(minutes)s min", {
        hours: Math.floor(whole / 3600),
        minutes: Math.floor((whole % 3600) / 60),
    });
}

/** Run time of a job; that of a running one goes on by itself. */
export class JobRunTimeField extends Component {
    static template = "job_worker.JobRunTimeField";
    static props = { ...standardFieldProps };

    setup() {
        this.clock = useState({ now: Date.now() });
        const timer = browser.setInterval(() => {
            if (this.running) {
                this.clock.now = Date.now();
            }
        }, 1000);
        onWillDestroy(() => browser.clearInterval(timer));
    }

    get running() {
        return this.props.record.data.state === "started";
    }

    get text() {
        const loaded = this.props.record.data[this.props.name];
        if (loaded !== this.loaded) {
            this.loaded = loaded;
            this.loadedAt = Date.now();
        }
        const since = this.running ? Math.max(this.clock.now - this.loadedAt, 0) / 1000 : 0;
        const ran = loaded || ["started", "done"].includes(this.props.record.data.state);
        return ran ? formatSeconds(loaded + since) : "";
    }
}

/** How far a job has come: a bar where the total is known, else what is known. */
export class JobProgressField extends Component {
    static template = "job_worker.JobProgressField";
    static props = { ...standardFieldProps };

    get percentage() {
        return Math.floor(this.props.record.data[this.props.name]);
    }

    get steps() {
        const { progress_done: done, progress_total: total } = this.props.record.data;
        const format = (value) => formatFloat(value, { digits: [16, Number.isInteger(value) ? 0 : 1] });
        if (total) {
            return _t("%(done)s of %(total)s", { done: format(done), total: format(total) });
        }
        return done ? format(done) : "";
    }

    get text() {
        return [this.steps, this.props.record.data.progress_message].filter(Boolean).join(" · ");
    }
}

/** Why a job failed: the exception first, its traceback folded below. */
export class JobTracebackField extends Component {
    static template = "job_worker.JobTracebackField";
    static components = { CopyButton };
    static props = { ...standardFieldProps };

    get text() {
        return (this.props.record.data[this.props.name] || "").trim();
    }

    get reason() {
        return this.props.record.data.error_line || this.text;
    }

    get copied() {
        return _t("Copied");
    }
}

/** Text as it stands, in a typewriter's letters. */
export class JobCodeField extends Component {
    static template = "job_worker.JobCodeField";
    static props = { ...standardFieldProps };

    get text() {
        return this.props.record.data[this.props.name] || "";
    }
}

const OUTCOME_ICONS = {
    done: "fa-check text-success",
    started: "fa-cog text-info",
    failed: "fa-times text-danger",
    timeout: "fa-clock-o text-danger",
    died: "fa-bolt text-danger",
    cancelled: "fa-ban text-muted",
    given_back: "fa-undo text-muted",
    omitted: "fa-ellipsis-v text-muted",
};

/** Every attempt at a job, the latest first. */
export class JobTimelineField extends Component {
    static template = "job_worker.JobTimelineField";
    static props = { ...standardFieldProps };

    get attempts() {
        return (this.props.record.data[this.props.name] || []).map((attempt) => ({
            ...attempt,
            icon: OUTCOME_ICONS[attempt.outcome],
            moment: attempt.started_at ? formatDateTime(deserializeDateTime(attempt.started_at)) : "",
        }));
    }
}

const STATE = { name: "state", type: "selection" };

registry.category("fields").add("job_worker_run_time", {
    component: JobRunTimeField,
    displayName: _t("Run time of a job"),
    supportedTypes: ["float"],
    fieldDependencies: [STATE],
});
registry.category("fields").add("job_worker_progress", {
    component: JobProgressField,
    displayName: _t("Progress of a job"),
    supportedTypes: ["float"],
    fieldDependencies: [
        { name: "progress_done", type: "float" },
        { name: "progress_total", type: "float" },
        { name: "progress_message", type: "char" },
    ],
});
registry.category("fields").add("job_worker_traceback", {
    component: JobTracebackField,
    displayName: _t("Traceback"),
    supportedTypes: ["text"],
    fieldDependencies: [STATE, { name: "error_line", type: "char" }],
});
registry.category("fields").add("job_worker_code", {
    component: JobCodeField,
    displayName: _t("Code"),
    supportedTypes: ["text"],
});
registry.category("fields").add("job_worker_timeline", {
    component: JobTimelineField,
    displayName: _t("Attempts of a job"),
    supportedTypes: ["json"],
});
