import { registry } from "@web/core/registry";

const CURRENT = (state) => `.o_form_view .o_statusbar_status [data-value=${state}].o_arrow_button_current`;
const CONFIRM = { trigger: ".modal .modal-footer .btn-primary", run: "click" };
const OPEN_ROW = (text) => [
    { trigger: `.o_list_view .o_data_row:contains(${text}) td[name=name]`, run: "click" },
    { trigger: `.o_form_view h1:contains(${text})` },
];
const searchFor = (text, label) => [
    { trigger: ".o_list_view .o_searchview_input", run: `edit ${text}` },
    { trigger: `.o_searchview_autocomplete .o-dropdown-item:contains(${label})`, run: "click" },
    { trigger: `.o_searchview_facet:contains(${text})` },
];

registry.category("web_tour.tours").add("job_worker_requeue_failed_job", {
    steps: () => [
        ...searchFor("warehouse is closed", "Error"),
        ...OPEN_ROW("Export to the warehouse"),
        { trigger: CURRENT("failed") },
        { trigger: ".o_job_standing:contains(Failed after 6 attempts)" },
        { trigger: ".o_job_reason:contains(ValueError: the warehouse is closed)" },
        { trigger: ".o_job_traceback summary:contains(Traceback)", run: "click" },
        { trigger: ".o_job_traceback details[open] pre:contains(in job_export)" },
        { trigger: ".nav-link:contains(Attempts)", run: "click" },
        { trigger: ".o_job_timeline li:contains(1. Failed):contains(the warehouse is closed)" },
        { trigger: "button[name=button_requeue]", run: "click" },
        { trigger: CURRENT("done"), timeout: 30000 },
        { trigger: ".o_job_standing:contains(Done after)" },
    ],
});

const VIEWS = {
    kanban: ".o_kanban_group:contains(Pending) .o_kanban_record:contains(Count the stock)",
    pivot: ".o_pivot td:contains(1)",
    graph: ".o_graph_canvas_container canvas",
    calendar: ".o_calendar_renderer .fc-view",
    list: ".o_data_row:contains(Count the stock)",
};

registry.category("web_tour.tours").add("job_worker_views", {
    steps: () =>
        Object.entries(VIEWS).flatMap(([view, content]) => [
            { trigger: `.o_switch_view.o_${view}`, run: "click" },
            { trigger: `.o_switch_view.o_${view}.active` },
            { trigger: content },
        ]),
});

registry.category("web_tour.tours").add("job_worker_own_jobs_only", {
    steps: () => [
        { trigger: ".o_data_row:contains(My export)" },
        { trigger: ".o_list_view:not(:contains(Somebody else's))" },
        { trigger: ".o_menu_sections:contains(Errors):not(:contains(Channels)):not(:contains(Workers))" },
        ...OPEN_ROW("My export"),
        { trigger: "button[name=button_requeue]", run: "click" },
        { trigger: CURRENT("pending") },
    ],
});

registry.category("web_tour.tours").add("job_worker_cancel_running_job", {
    steps: () => [
        ...OPEN_ROW("Count every grain"),
        { trigger: CURRENT("started"), timeout: 30000 },
        { trigger: ".o_job_standing:contains(Attempt 1 of 6, running for)" },
        { trigger: "button[name=button_cancelled]:contains(Stop)", run: "click" },
        { trigger: ".modal:contains(what it has written so far is undone)" },
        CONFIRM,
        { trigger: CURRENT("cancelled"), timeout: 30000 },
        { trigger: ".o_job_reason:contains(Cancelled while it was running)" },
    ],
});

registry.category("web_tour.tours").add("job_worker_watch_progress", {
    steps: () => [
        { trigger: ".o_data_row:contains(Weigh every grain) .o_job_progress_text:contains(of 4,000 · step)", timeout: 30000 },
        ...OPEN_ROW("Weigh every grain"),
        { trigger: ".o_job_standing .o_job_progress_text:contains(of 4,000 · step)" },
        {
            trigger: ".o_job_standing .progress[aria-valuenow]",
            async run({ anchor, waitUntil }) {
                const before = Number(anchor.getAttribute("aria-valuenow"));
                await waitUntil(() => Number(anchor.getAttribute("aria-valuenow")) > before, { timeout: 20000 });
            },
        },
        { trigger: "button[name=button_cancelled]:contains(Stop)", run: "click" },
        CONFIRM,
        { trigger: CURRENT("cancelled"), timeout: 30000 },
    ],
});

registry.category("web_tour.tours").add("job_worker_graph", {
    steps: () => [
        ...OPEN_ROW("Collect the orders"),
        { trigger: ".o_job_graph_box:count(4)" },
        { trigger: ".o_job_graph_line:count(4)" },
        { trigger: ".o_job_graph_box.o_job_current:contains(Collect the orders)" },
        { trigger: ".o_job_graph_box.o_job_pending[aria-label*='this job']" },
        { trigger: ".o_job_graph button[title='Zoom in']", run: "click" },
        { trigger: ".o_job_graph button[title='Show everything']", run: "click" },
        { trigger: ".o_job_graph_box:contains(Print the labels)", run: "click" },
        { trigger: ".o_form_view h1:contains(Print the labels)" },
        { trigger: ".o_job_graph_box.o_job_current:contains(Print the labels)" },
        { trigger: ".o_job_graph_box:contains(Tell the manager)", run: "click" },
        { trigger: ".o_form_view h1:contains(Tell the manager)" },
        { trigger: ".o_job_standing:contains(Waits for 2 jobs to be done)" },
        { trigger: ".o_breadcrumb .o_back_button, .o_breadcrumb a:contains(Print the labels)", run: "click" },
        { trigger: ".o_form_view h1:contains(Print the labels)" },
    ],
});

registry.category("web_tour.tours").add("job_worker_big_graph", {
    steps: () => [
        { trigger: ".o_job_graph_box:count(3)" },
        { trigger: ".o_job_graph_box.o_job_several.o_job_waiting:contains(10 × Waiting)" },
        { trigger: ".o_job_graph_box.o_job_several.o_job_pending:contains(40 × Pending)", run: "click" },
        { trigger: ".o_job_graph_box:count(42)" },
        { trigger: ".o_job_graph_box.o_job_several:count(1)" },
        { trigger: ".o_job_graph button:contains(Show every job)", run: "click" },
        { trigger: ".o_job_graph_box:count(51)" },
        { trigger: ".o_job_graph button:contains(Fold what is alike)", run: "click" },
        { trigger: ".o_job_graph_box:count(3)" },
    ],
});

registry.category("web_tour.tours").add("job_worker_bulk_requeue", {
    steps: () => [
        { trigger: ".o_searchview_dropdown_toggler", run: "click" },
        { trigger: ".o_filter_menu .o-dropdown-item:contains(Cancelled)", run: "click" },
        { trigger: ".o_searchview_dropdown_toggler", run: "click" },
        { trigger: ".o_data_row:contains(Bulk):count(3)" },
        { trigger: ".o_list_renderer thead .o_list_record_selector input", run: "click" },
        { trigger: ".o_control_panel button[name=button_requeue]", run: "click" },
        CONFIRM,
        { trigger: ".o_notification:contains(2 jobs requeued. Skipped: 1 whose identity key another job has.)" },
        { trigger: ".o_list_view:not(:has(.o_data_row:contains(Bulk 1)))" },
    ],
});

registry.category("web_tour.tours").add("job_worker_record_button", {
    steps: () => [
        { trigger: ".o_record_jobs:contains(1 failed)", run: "click" },
        ...OPEN_ROW("Export to the warehouse"),
        { trigger: "button[name=open_related_action]", run: "click" },
        { trigger: ".o_form_view:not(:has(.o_job_standing)) .o_field_widget[name=name] input:value(A record with jobs)" },
    ],
});
