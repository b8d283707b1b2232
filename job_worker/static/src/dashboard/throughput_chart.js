import { loadBundle } from "@web/core/assets";
import { cookie } from "@web/core/browser/cookie";
import { getCustomColor } from "@web/core/colors/colors";
import { deserializeDateTime } from "@web/core/l10n/dates";
import { _t } from "@web/core/l10n/translation";

import { Component, onWillStart, onWillUnmount, useEffect, useRef } from "@odoo/owl";

const DONE_COLOR = "#43C5B1";
const FAILED_COLOR = "#EA6175";

/** Jobs done and failed over time. What it shows is in the tiles above it, too: it adds the shape. */
export class ThroughputChart extends Component {
    static template = "job_worker.ThroughputChart";
    static props = {
        buckets: Array,
        period: String,
        label: String,
        onClickBar: Function,
    };

    setup() {
        this.canvasRef = useRef("canvas");
        this.chart = null;
        onWillStart(() => loadBundle("web.chartjs_lib"));
        useEffect(
            () => this.draw(),
            () => [this.props.buckets]
        );
        onWillUnmount(() => this.chart?.destroy());
    }

    draw() {
        const data = this.data;
        if (this.chart) {
            this.chart.data.labels = data.labels;
            this.chart.data.datasets.forEach((dataset, index) => {
                dataset.data = data.datasets[index].data;
            });
            this.chart.update("none");
        } else {
            this.chart = new Chart(this.canvasRef.el, { type: "bar", data, options: this.options });
        }
    }

    get data() {
        const series = (label, key, color) => ({
            label,
            data: this.props.buckets.map((bucket) => bucket[key]),
            backgroundColor: color,
            categoryPercentage: 0.9,
            barPercentage: 0.9,
        });
        return {
            labels: this.props.buckets.map((bucket) => this.formatMoment(bucket.begin)),
            datasets: [
                series(_t("Done"), "done", DONE_COLOR),
                series(_t("Failed"), "failed", FAILED_COLOR),
            ],
        };
    }

    get options() {
        const scheme = cookie.get("color_scheme");
        const textColor = getCustomColor(scheme, "#374151", "#E4E4E4");
        const gridColor = getCustomColor(scheme, "rgba(0,0,0,.08)", "rgba(255,255,255,.15)");
        return {
            maintainAspectRatio: false,
            animation: false,
            interaction: { mode: "index", intersect: false },
            onClick: (event) => this.onClick(event),
            onHover: (event, elements) => {
                event.native.target.style.cursor = elements.length ? "pointer" : "";
            },
            plugins: {
                legend: { align: "end", labels: { color: textColor, boxWidth: 12, boxHeight: 12 } },
            },
            scales: {
                x: {
                    stacked: true,
                    grid: { display: false },
                    ticks: { color: textColor, maxRotation: 0, autoSkipPadding: 24 },
                },
                y: {
                    stacked: true,
                    beginAtZero: true,
                    border: { display: false },
                    grid: { color: gridColor },
                    ticks: { color: textColor, precision: 0, maxTicksLimit: 5 },
                },
            },
        };
    }

    onClick(event) {
        const [bar] = this.chart.getElementsAtEventForMode(event, "nearest", { intersect: true }, false);
        if (bar) {
            this.props.onClickBar(this.props.buckets[bar.index], bar.datasetIndex ? "failed" : "done");
        }
    }

    formatMoment(text) {
        const moment = deserializeDateTime(text);
        const { TIME_SIMPLE } = luxon.DateTime;
        return moment.toLocaleString(
            this.props.period === "week" ? { weekday: "short", ...TIME_SIMPLE } : TIME_SIMPLE
        );
    }
}
