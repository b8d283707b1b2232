import { browser } from "@web/core/browser/browser";
import { registry } from "@web/core/registry";
import { formView } from "@web/views/form/form_view";
import { kanbanView } from "@web/views/kanban/kanban_view";
import { listView } from "@web/views/list/list_view";

import { onMounted, onWillUnmount } from "@odoo/owl";

const RUNNING_MS = 2000;
const WAITING_MS = 4000;
const ENDED_MS = 10000;

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
    const plan = () => {
        const states = getRecords().map((record) => record.data.state);
        timer = browser.setTimeout(async () => {
            if (!document.hidden) {
                // offline, or the job is gone: the view stays as it is until the next time
                await reload().catch(() => {});
            }
            if (mounted) {
                plan();
            }
        }, reloadDelay(states));
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

registry.category("views").add("job_worker_live_list", { ...listView, Controller: JobLiveListController });
registry.category("views").add("job_worker_live_kanban", { ...kanbanView, Controller: JobLiveKanbanController });
registry.category("views").add("job_worker_live_form", { ...formView, Controller: JobLiveFormController });
