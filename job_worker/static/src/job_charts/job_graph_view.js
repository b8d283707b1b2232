import { registry } from "@web/core/registry";
import { graphView } from "@web/views/graph/graph_view";

/** What the states look like in the other pictures: by turns, as charts do it, success would be red and failure green. */
const STATE_COLORS = {
    waiting: "#B7BCC2",
    pending: "#F4B740",
    started: "#4EA7F2",
    done: "#43C5B1",
    failed: "#EA6175",
    cancelled: "#7C7BAD",
};

export class JobGraphRenderer extends graphView.Renderer {
    get stateColors() {
        const states = this.model.metaData.fields.state.selection;
        return Object.fromEntries(states.map(([state, label]) => [label, STATE_COLORS[state]]));
    }

    getBarChartData() {
        super.getBarChartData();
        const data = this.model.data;
        for (const dataset of data.datasets) {
            dataset.backgroundColor = this.stateColors[dataset.label] || dataset.backgroundColor;
        }
        return data; // without the line over the bars: it would connect channels
    }

    getLineChartData() {
        const data = super.getLineChartData();
        for (const dataset of data.datasets) {
            dataset.borderColor = this.stateColors[dataset.label] || dataset.borderColor;
            dataset.pointBackgroundColor = dataset.hoverBackgroundColor = dataset.borderColor;
        }
        return data;
    }
}

registry.category("views").add("job_worker_graph_view", { ...graphView, Renderer: JobGraphRenderer });
