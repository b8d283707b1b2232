import { registry } from "@web/core/registry";
import { useService } from "@web/core/utils/hooks";
import { Layout } from "@web/search/layout";
import { standardActionServiceProps } from "@web/webclient/actions/action_service";
import { ChannelTable } from "./channel_table";
import { usePolling } from "./polling";

import { Component, useState } from "@odoo/owl";

const REFRESH_MS = 3000;

/** Every channel in use: what it does, and what may be done about it. */
export class JobChannels extends Component {
    static template = "job_worker.Channels";
    static components = { ChannelTable, Layout };
    static props = { ...standardActionServiceProps };

    setup() {
        this.orm = useService("orm");
        this.display = { controlPanel: {} };
        this.state = useState({ channels: [] });
        this.polling = usePolling(async () => {
            this.state.channels = await this.orm.silent.call("queue.channel", "get_channels", []);
        }, REFRESH_MS);
        this.operate = {
            pause: (name) => this.change("pause", name),
            resume: (name) => this.change("resume", name),
            setLimit: (name, values) => this.change("set_limit", name, values),
        };
    }

    async change(method, name, values = {}) {
        try {
            await this.orm.call("queue.channel", method, [name], values);
        } finally {
            await this.polling.refresh();
        }
    }
}

registry.category("actions").add("job_worker.channels", JobChannels);
