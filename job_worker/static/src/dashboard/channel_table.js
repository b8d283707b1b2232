import { _t } from "@web/core/l10n/translation";
import { formatFloat } from "@web/views/fields/formatters";
import { formatCount, formatDuration, formatShare } from "./format";
import { useOpenJobs } from "./open_jobs";

import { Component } from "@odoo/owl";

/** Channels, one a row; with what operates them if `operate` is given. */
export class ChannelTable extends Component {
    static template = "job_worker.ChannelTable";
    static props = {
        channels: Array,
        operate: {
            type: Object,
            shape: { pause: Function, resume: Function, setLimit: Function },
            optional: true,
        },
    };

    setup() {
        this.openJobs = useOpenJobs();
        this.formatCount = formatCount;
        this.formatDuration = formatDuration;
    }

    isPaused(channel) {
        return channel.limit === 0;
    }

    used(channel) {
        return channel.limit ? Math.min(Math.round((100 * channel.running) / channel.limit), 100) : 0;
    }

    rateText(channel) {
        return channel.rate_limit
            ? _t("%s per second", formatFloat(channel.rate_limit, { digits: [16, 2], trailingZeros: false }))
            : _t("no limit");
    }

    failureShare(channel) {
        return formatShare(channel.failed, channel.done + channel.failed);
    }

    open(channel, key, label) {
        this.openJobs(`${channel.name}: ${label}`, channel.domains[key]);
    }

    get labels() {
        return {
            channel: _t("Channel"),
            running: _t("Running"),
            pending: _t("Pending"),
            oldest: _t("Oldest wait"),
            scheduled: _t("Scheduled"),
            limit: _t("Limit"),
            rate: _t("Rate"),
            starts: _t("Started in the last second"),
            failures: _t("Failed in the last hour"),
        };
    }

    limitLabel(channel) {
        return _t("Limit of %s", channel.name);
    }

    rateLabel(channel) {
        return _t("Starts per second of %s, 0 for no limit", channel.name);
    }

    /** What was typed, if it is a number of that kind; else the field goes back to what holds. */
    onChange(channel, field, event) {
        const { valueAsNumber } = event.target;
        if (event.target.validity.valid && !Number.isNaN(valueAsNumber)) {
            this.props.operate.setLimit(channel.name, { [field]: valueAsNumber });
        } else {
            event.target.value = channel[field];
        }
    }
}
