import { rpc } from "@web/core/network/rpc";
import { registry } from "@web/core/registry";

/** What somebody else does meanwhile: the page is not touched. */
const elsewhere = (method, ...args) =>
    rpc(`/web/dataset/call_kw/queue.channel/${method}`, {
        model: "queue.channel",
        method,
        args,
        kwargs: {},
    });
const tile = (key, value) => `[data-tile=${key}] .o_job_worker_value:text(${value})`;
const row = (rest) => `tr[data-channel='tour'] ${rest}`;

registry.category("web_tour.tours").add("job_worker_watch_a_job", {
    steps: () => [
        { trigger: `.o_job_worker_dashboard ${tile("pending", 1)}` },
        { trigger: "[data-attention=paused]" },
        { trigger: `.o_job_worker_channels ${row("th:contains(Paused)")}` },
        { trigger: tile("running", 0), run: () => elsewhere("resume", "tour") },
        { trigger: tile("running", 1) },
        { trigger: ".o_job_worker_running [data-job]:contains(Watch me)" },
        { trigger: tile("pending", 0), run: () => elsewhere("set_limit", "tour.release", 1) },
        { trigger: tile("done", 1) },
        { trigger: tile("running", 0) },
        { trigger: ".o_job_worker_running:contains(No job is running)" },
        { trigger: "[data-tile=done]", run: "click" },
        { trigger: ".o_list_view .o_data_row:contains(Watch me)" },
    ],
});

registry.category("web_tour.tours").add("job_worker_no_worker", {
    steps: () => [
        { trigger: ".o_job_worker_no_worker:contains(No worker is running)" },
        { trigger: "[data-period=week]", run: "click" },
        { trigger: "[data-period=week][aria-pressed=true]" },
        { trigger: "[data-tile=done]:contains(Last week)" },
        { trigger: "canvas[role=img][aria-label*='Last week']" },
    ],
});

registry.category("web_tour.tours").add("job_worker_settle_copy", {
    steps: () => [
        { trigger: tile("pending", 1) },
        { trigger: ".o_job_worker_held button[name=copied]", run: "click" },
        { trigger: ".modal button:contains(Cancel the jobs)", run: "click" },
        { trigger: tile("pending", 0) },
        { trigger: ".o_job_worker_dashboard:not(:has(.o_job_worker_held))" },
    ],
});

registry.category("web_tour.tours").add("job_worker_pause_channel", {
    steps: () => [
        { trigger: row("input[name=limit]:value(3)") },
        { trigger: row("button[name=pause]"), run: "click" },
        { trigger: row("th:contains(Paused)") },
        { trigger: row("input[name=limit]:value(0)") },
    ],
});

registry.category("web_tour.tours").add("job_worker_resume_channel", {
    steps: () => [
        { trigger: row("button[name=pending]:text(1)") },
        { trigger: row("button[name=resume]"), run: "click" },
        { trigger: row("input[name=limit]:value(3)") },
        { trigger: row("button[name=pending]:text(0)") },
        { trigger: row("input[name=limit]"), run: "edit 5 && press Enter" },
        { trigger: row("button[name=running]:contains(/ 5)") },
        { trigger: "tr[data-channel='tour.unlimited'] input[name=rate_limit]", run: "edit 7 && press Enter" },
        { trigger: "tr[data-channel='tour.unlimited'] button[name=pause]", run: "click" },
        { trigger: "tr[data-channel='tour.unlimited'] th:contains(Paused)" },
    ],
});

registry.category("web_tour.tours").add("job_worker_requeue_error_group", {
    steps: () => [
        { trigger: "[data-attention=failed]:contains(3)", run: "click" },
        { trigger: ".o_list_view .o_data_row:contains(ValueError):contains(job_ledger) [name=jobs]:contains(2)" },
        { trigger: ".o_data_row:contains(KeyError)" },
        { trigger: ".o_data_row:contains(ValueError) button[name=button_requeue]", run: "click" },
        { trigger: ".modal .modal-footer .btn-primary", run: "click" },
        { trigger: ".o_list_view:not(:has(.o_data_row:contains(ValueError))) .o_data_row:contains(KeyError)" },
        { trigger: ".o_data_row:contains(KeyError) [name=error_name]", run: "click" },
        { trigger: ".o_list_view .o_data_row:contains(Another failure)" },
    ],
});
