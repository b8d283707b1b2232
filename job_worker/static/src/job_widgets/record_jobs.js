import { _t } from "@web/core/l10n/translation";
import { registry } from "@web/core/registry";
import { useService } from "@web/core/utils/hooks";
import { standardWidgetProps } from "@web/views/widgets/standard_widget_props";

import { Component, onWillStart, onWillUpdateProps, useState } from "@odoo/owl";

/**
 * Button on the form of any model that counts and opens the jobs of the record, for those who may see jobs:
 * `<widget name="job_worker_jobs"/>` in its button box.
 */
export class RecordJobs extends Component {
    static template = "job_worker.RecordJobs";
    static props = { ...standardWidgetProps };

    setup() {
        this.orm = useService("orm");
        this.action = useService("action");
        this.state = useState({ counts: {} });
        onWillStart(() => this.load(this.props.record));
        onWillUpdateProps((props) => this.load(props.record));
    }

    async load(record) {
        if (record.resId) {
            const args = [record.resModel, record.resId];
            this.state.counts = await this.orm.silent.call("queue.job", "record_jobs_summary", args);
        } else {
            this.state.counts = {};
        }
    }

    get total() {
        return Object.values(this.state.counts).reduce((sum, count) => sum + count, 0);
    }

    get text() {
        const { started, failed, pending = 0, waiting = 0 } = this.state.counts;
        const parts = [
            started && _t("%s running", started),
            failed && _t("%s failed", failed),
            pending + waiting && _t("%s to run", pending + waiting),
        ].filter(Boolean);
        return parts.join(", ") || _t("%s ended", this.total);
    }

    async open() {
        const { resModel, resId } = this.props.record;
        this.action.doAction(await this.orm.call("queue.job", "record_jobs_action", [resModel, resId]));
    }
}

registry.category("view_widgets").add("job_worker_jobs", { component: RecordJobs });
