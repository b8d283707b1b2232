import { loadJS } from "@web/core/assets";
import { browser } from "@web/core/browser/browser";
import { _t } from "@web/core/l10n/translation";
import { registry } from "@web/core/registry";
import { useService } from "@web/core/utils/hooks";
import { standardWidgetProps } from "@web/views/widgets/standard_widget_props";

import { fold, place } from "@job_worker/job_graph/job_graph_layout";

import { Component, onMounted, onWillDestroy, onWillStart, useRef, useState } from "@odoo/owl";

const RELOAD_MS = 3000;
const ZOOM_STEP = 1.25;
const [SMALLEST, READABLE, BIGGEST] = [0.05, 0.5, 3];
const DRAG_FROM_PIXELS = 4;
const ACTIVE = ["waiting", "pending", "started"];
const MAX_LABEL = 26;

/** Picture of the graph that a job is part of; a click on a job opens it. */
export class JobGraph extends Component {
    static template = "job_worker.JobGraph";
    static props = { ...standardWidgetProps };

    setup() {
        this.orm = useService("orm");
        this.action = useService("action");
        this.view = useRef("view");
        this.unfolded = new Set();
        this.picture = useState({ boxes: [], lines: [], width: 0, height: 0, truncated: false, folded: false });
        this.window = useState({ x: 0, y: 0, scale: 1 });
        this.states = Object.fromEntries(this.props.record.fields.state.selection);
        onWillStart(() => Promise.all([loadJS("/job_worker/static/lib/dagre/dagre.min.js"), this.load()]));
        onMounted(() => {
            this.draw();
            this.fit();
            this.plan();
        });
        onWillDestroy(() => browser.clearTimeout(this.timer));
    }

    async load() {
        this.data = await this.orm.silent.call("queue.job", "graph_data", [[this.props.record.resId]]);
    }

    plan() {
        this.timer = browser.setTimeout(async () => {
            if (!document.hidden && this.data.nodes.some((job) => ACTIVE.includes(job.state))) {
                const before = JSON.stringify(this.data);
                await this.load().catch(() => {});
                if (JSON.stringify(this.data) !== before) {
                    this.draw();
                }
            }
            this.plan();
        }, RELOAD_MS);
    }

    draw() {
        const folded = fold(this.data, this.unfolded);
        const direction = this.view.el.clientWidth < 600 ? "TB" : "LR";
        const { boxes, ...rest } = place(window.dagre, folded, direction);
        Object.assign(this.picture, rest, {
            boxes: boxes.map((box) => ({ ...box, ...this.describe(box.jobs) })),
            truncated: this.data.truncated,
            folded: boxes.some((box) => box.jobs.length > 1),
        });
    }

    describe(jobs) {
        if (!jobs.length) {
            return { junction: true };
        }
        const [job] = jobs;
        const state = this.states[job.state];
        const name = job.name || _t("A job of somebody else");
        if (jobs.length === 1) {
            const current = job.id === this.props.record.resId;
            const label = [name, state, current && _t("this job")].filter(Boolean).join(", ");
            return { state: job.state, title: shorten(name), text: state, label, current, id: job.name && job.id };
        }
        const alike = jobs.every((other) => other.method === job.method);
        const title = alike ? name.replace(/[\s#:,(]*\d[\d\s.,/-]*$/, "") || name : _t("One after the other");
        const text = _t("%(count)s × %(state)s", { count: jobs.length, state });
        return {
            state: job.state,
            title: shorten(title),
            text,
            label: _t("%(title)s, %(text)s: show them one by one", { title, text }),
            current: jobs.some((other) => other.id === this.props.record.resId),
            several: true,
        };
    }

    // --- what people do with it

    choose(box) {
        if (this.dragged) {
            return;
        }
        if (box.several) {
            box.jobs.forEach((job) => this.unfolded.add(job.id));
            this.draw();
        } else if (box.id && !box.current) {
            this.action.doAction({
                type: "ir.actions.act_window",
                res_model: "queue.job",
                res_id: box.id,
                views: [[false, "form"]],
            });
        }
    }

    onKeydown(ev, box) {
        if (["Enter", " "].includes(ev.key)) {
            ev.preventDefault();
            this.dragged = false;
            this.choose(box);
        }
    }

    unfoldAll() {
        this.data.nodes.forEach((job) => this.unfolded.add(job.id));
        this.draw();
        this.fit();
    }

    foldAll() {
        this.unfolded.clear();
        this.draw();
        this.fit();
    }

    // --- zooming and moving

    get transform() {
        const { x, y, scale } = this.window;
        return `translate(${x},${y}) scale(${scale})`;
    }

    fit() {
        const { clientWidth, clientHeight } = this.view.el;
        const { width, height } = this.picture;
        const scale = Math.max(Math.min(1, clientWidth / width, clientHeight / height), READABLE);
        const current = this.picture.boxes.find((box) => box.current);
        // what does not fit is shown around the job
        const place = (space, size, middle) =>
            size * scale <= space
                ? (space - size * scale) / 2
                : Math.min(Math.max(space / 2 - middle * scale, space - size * scale), 0);
        Object.assign(this.window, {
            scale,
            x: place(clientWidth, width, current.x + current.width / 2),
            y: place(clientHeight, height, current.y + current.height / 2),
        });
    }

    zoom(factor, x = this.view.el.clientWidth / 2, y = this.view.el.clientHeight / 2) {
        const scale = Math.min(Math.max(this.window.scale * factor, SMALLEST), BIGGEST);
        const grown = scale / this.window.scale;
        Object.assign(this.window, {
            scale,
            x: x - (x - this.window.x) * grown,
            y: y - (y - this.window.y) * grown,
        });
    }

    zoomIn() {
        this.zoom(ZOOM_STEP);
    }

    zoomOut() {
        this.zoom(1 / ZOOM_STEP);
    }

    onWheel(ev) {
        if (ev.ctrlKey || ev.metaKey) {
            ev.preventDefault();
            const { left, top } = this.view.el.getBoundingClientRect();
            this.zoom(Math.exp(-ev.deltaY / 300), ev.clientX - left, ev.clientY - top);
        }
    }

    onPointerDown(ev) {
        this.grip = { x: ev.clientX - this.window.x, y: ev.clientY - this.window.y, from: [ev.clientX, ev.clientY] };
        this.dragged = false;
    }

    onPointerMove(ev) {
        if (!this.grip) {
            return;
        }
        const [x, y] = this.grip.from;
        if (!this.dragged && Math.hypot(ev.clientX - x, ev.clientY - y) > DRAG_FROM_PIXELS) {
            this.dragged = true;
            this.view.el.setPointerCapture(ev.pointerId);
        }
        if (this.dragged) {
            Object.assign(this.window, { x: ev.clientX - this.grip.x, y: ev.clientY - this.grip.y });
        }
    }

    onPointerUp() {
        this.grip = null;
    }
}

function shorten(text) {
    return text.length > MAX_LABEL ? `${text.slice(0, MAX_LABEL - 1)}…` : text;
}

registry.category("view_widgets").add("job_worker_graph", { component: JobGraph });
