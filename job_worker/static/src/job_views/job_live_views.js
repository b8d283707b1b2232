import { browser } from "@web/core/browser/browser";
import { _t } from "@web/core/l10n/translation";
import { registry } from "@web/core/registry";
import { calendarView } from "@web/views/calendar/calendar_view";
import { formView } from "@web/views/form/form_view";
import { kanbanView } from "@web/views/kanban/kanban_view";
import { listView } from "@web/views/list/list_view";

import { onMounted, onWillUnmount } from "@odoo/owl";

const RUNNING_MS = 2000;
const WAITING_MS = 4000;
const ENDED_MS = 10000;
/** What a reload takes the server, it rests this many times as long. */
const REST = 20;

const CALENDAR_LIMIT = 500;

/** How soon jobs in these states are worth another look. */
function reloadDelay(states) {
    if (states.includes("started")) {
        return RUNNING_MS;
    }
    return states.includes("pending") || states.includes("waiting") ? WAITING_MS : ENDED_MS;
}

/**
 * Loads the records of a view again and again, without getting in anybody's way.
 *
 * @param {() => Object[]} getRecords records on the screen
 * @param {() => Promise<any>} reload loads them; does nothing while somebody edits or selects
 */
function useLiveRecords(getRecords, reload) {
    let timer;
    let mounted = false;
    let took = 0;
    const plan = () => {
        const states = getRecords().map((record) => record.data.state);
        timer = browser.setTimeout(
            async () => {
                if (!document.hidden) {
                    const begin = performance.now();
                    // offline, or the job is gone: the view stays as it is until the next time
                    await reload().catch(() => {});
                    took = performance.now() - begin;
                }
                if (mounted) {
                    plan();
                }
            },
            Math.max(reloadDelay(states), REST * took)
        );
    };
    onMounted(() => {
        mounted = true;
        plan();
    });
    onWillUnmount(() => {
        mounted = false;
        browser.clearTimeout(timer);
    });
}

async function reloadList(model) {
    const list = model.root;
    if (model.isReady && !list.editedRecord && !list.selection?.length) {
        await list.load();
    }
}

export class JobLiveListController extends listView.Controller {
    setup() {
        super.setup();
        useLiveRecords(
            () => this.model.root.records || [],
            () => reloadList(this.model)
        );
    }
}

export class JobLiveKanbanController extends kanbanView.Controller {
    setup() {
        super.setup();
        useLiveRecords(
            () => this.model.root.records || [],
            () => reloadList(this.model)
        );
    }
}

export class JobLiveFormController extends formView.Controller {
    setup() {
        super.setup();
        useLiveRecords(
            () => [this.model.root],
            async () => {
                if (!(await this.model.root.isDirty())) {
                    await this.model.root.load();
                }
            }
        );
    }
}

export class JobCalendarModel extends calendarView.Model {
    /** The next jobs of the period, and word that there are more where there are: thousands may be due in an hour. */
    async fetchRecords(data) {
        const { context, fieldNames, resModel, activeFields } = this.meta;
        const names = [...new Set([...fieldNames, ...Object.keys(activeFields)])];
        const options = { context, limit: CALENDAR_LIMIT + 1, order: "scheduled_at, id" };
        const jobs = await this.orm.searchRead(resModel, this.computeDomain(data), names, options);
        if (jobs.length > CALENDAR_LIMIT) {
            this.notification.add(_t("Only the first %s jobs of this period are shown.", CALENDAR_LIMIT));
        }
        return jobs.slice(0, CALENDAR_LIMIT);
    }
}

registry.category("views").add("job_worker_calendar", { ...calendarView, Model: JobCalendarModel });
registry.category("views").add("job_worker_live_list", { ...listView, Controller: JobLiveListController });
registry.category("views").add("job_worker_live_kanban", { ...kanbanView, Controller: JobLiveKanbanController });
registry.category("views").add("job_worker_live_form", { ...formView, Controller: JobLiveFormController });
