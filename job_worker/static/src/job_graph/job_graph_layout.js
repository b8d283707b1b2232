/**
 * From the jobs of a graph to the boxes and lines of its picture.
 *
 * A big graph is folded first: jobs that have the same method, state and place in it become one box. What counts as the
 * same place is found by refining: jobs start out alike if method, state and depth are, and are told apart as long as
 * those before or after them are. So whatever two jobs of a box are connected with is alike as well, and folding a graph
 * without cycles makes none.
 */

const FOLD_FROM_NODES = 30;
const FOLD_FROM_ALIKE = 3;
const NODE = { width: 200, height: 48 };
const JUNCTION = { width: 6, height: 6 };

function connect(data) {
    const before = new Map(data.nodes.map(({ id }) => [String(id), []]));
    const after = new Map(data.nodes.map(({ id }) => [String(id), []]));
    const junctions = [];
    const link = (from, to) => {
        after.get(from).push(to);
        before.get(to).push(from);
    };
    for (const [parents, children] of data.edges) {
        let [sources, targets] = [parents.map(String), children.map(String)];
        if (sources.length > 1 && targets.length > 1) {
            // everybody waits for everybody: a point in between spares the lines
            const junction = `junction-${junctions.length}`;
            junctions.push(junction);
            before.set(junction, []);
            after.set(junction, []);
            sources.forEach((source) => link(source, junction));
            sources = [junction];
        }
        for (const target of targets) {
            sources.forEach((source) => link(source, target));
        }
    }
    return { before, after, junctions };
}

/** Length of the longest way that leads to each key. */
function depths(keys, before, after) {
    const missing = new Map(keys.map((key) => [key, before.get(key).length]));
    const depth = new Map(keys.map((key) => [key, 0]));
    const ready = keys.filter((key) => !missing.get(key));
    for (const key of ready) {
        for (const next of after.get(key)) {
            depth.set(next, Math.max(depth.get(next), depth.get(key) + 1));
            missing.set(next, missing.get(next) - 1);
            if (!missing.get(next)) {
                ready.push(next);
            }
        }
    }
    return depth;
}

function number(keys, describe) {
    const numbers = new Map();
    const colors = new Map();
    for (const key of keys) {
        const description = describe(key);
        if (!numbers.has(description)) {
            numbers.set(description, numbers.size);
        }
        colors.set(key, numbers.get(description));
    }
    return { colors, count: numbers.size };
}

function alike(keys, jobs, before, after) {
    const [fromStart, toEnd] = [depths(keys, before, after), depths(keys, after, before)];
    let { colors, count } = number(keys, (key) => {
        const job = jobs.get(key);
        return [job?.method, job?.state, !job, fromStart.get(key), toEnd.get(key)].join("|");
    });
    for (;;) {
        const colorsOf = (neighbours) => [...new Set(neighbours.map((key) => colors.get(key)))].sort().join();
        const refined = number(keys, (key) =>
            [colors.get(key), colorsOf(before.get(key)), colorsOf(after.get(key))].join("|")
        );
        if (refined.count === count) {
            return refined.colors;
        }
        ({ colors, count } = refined);
    }
}

/**
 * @param {{nodes: Object[], edges: Array}} data what `queue.job.graph_data()` returns
 * @param {Set<number>} unfolded ids of jobs to be shown one by one
 * @returns {{boxes: {key: string, jobs: Object[]}[], lines: [string, string][]}} a box without jobs is a junction
 */
export function fold(data, unfolded) {
    const jobs = new Map(data.nodes.map((job) => [String(job.id), job]));
    const { before, after, junctions } = connect(data);
    const keys = [...jobs.keys(), ...junctions];
    const boxOf = new Map(keys.map((key) => [key, key]));
    if (jobs.size > FOLD_FROM_NODES) {
        const classes = new Map();
        for (const [key, color] of alike(keys, jobs, before, after)) {
            classes.set(color, [...(classes.get(color) || []), key]);
        }
        for (const members of classes.values()) {
            if (members.length >= FOLD_FROM_ALIKE && !members.some((key) => unfolded.has(Number(key)))) {
                members.forEach((key) => boxOf.set(key, members[0]));
            }
        }
        foldDone(keys, jobs, boxOf, after, unfolded);
    }
    const boxes = new Map();
    for (const key of keys) {
        const box = boxes.get(boxOf.get(key)) || { key: boxOf.get(key), jobs: [] };
        boxes.set(box.key, box);
        if (jobs.has(key)) {
            box.jobs.push(jobs.get(key));
        }
    }
    return { boxes: [...boxes.values()], lines: boxLines(keys, boxOf, after) };
}

function boxLines(keys, boxOf, after) {
    const lines = new Map();
    for (const key of keys) {
        for (const next of after.get(key)) {
            const [from, to] = [boxOf.get(key), boxOf.get(next)];
            if (from !== to) {
                lines.set(`${from}>${to}`, [from, to]);
            }
        }
    }
    return [...lines.values()];
}

/** Folds what is done and follows each other without a branch. */
function foldDone(keys, jobs, boxOf, after, unfolded) {
    const [ways, sources] = [new Map(), new Map()];
    for (const [from, to] of boxLines(keys, boxOf, after)) {
        ways.set(from, [...(ways.get(from) || []), to]);
        sources.set(to, [...(sources.get(to) || []), from]);
    }
    const foldable = (key) => (!jobs.has(key) || jobs.get(key).state === "done") && !unfolded.has(Number(key));
    const target = new Map();
    for (const key of new Set(boxOf.values())) {
        const [next, ...others] = ways.get(key) || [];
        if (next && !others.length && sources.get(next).length === 1 && foldable(key) && foldable(next)) {
            target.set(next, key);
        }
    }
    const first = (key) => {
        while (target.has(key)) {
            key = target.get(key);
        }
        return key;
    };
    for (const key of keys) {
        boxOf.set(key, first(boxOf.get(key)));
    }
}

/**
 * @param {Object} dagre the layout library
 * @param {{boxes: Object[], lines: Array}} folded what `fold()` returns
 * @param {"TB"|"LR"} direction of time
 * @returns {{width: number, height: number, boxes: Object[], lines: {key: string, path: string}[]}}
 */
export function place(dagre, folded, direction) {
    const graph = new dagre.graphlib.Graph();
    graph.setGraph({ rankdir: direction, nodesep: 16, ranksep: 40, marginx: 12, marginy: 12 });
    graph.setDefaultEdgeLabel(() => ({}));
    for (const box of folded.boxes) {
        graph.setNode(box.key, { ...(box.jobs.length ? NODE : JUNCTION) });
    }
    for (const [from, to] of folded.lines) {
        graph.setEdge(from, to);
    }
    dagre.layout(graph);
    const { width, height } = graph.graph();
    const boxes = folded.boxes.map((box) => {
        const node = graph.node(box.key);
        return { ...box, ...node, x: node.x - node.width / 2, y: node.y - node.height / 2 };
    });
    const side = (node, sign) =>
        direction === "LR"
            ? { x: node.x + (sign * node.width) / 2, y: node.y }
            : { x: node.x, y: node.y + (sign * node.height) / 2 };
    const lines = folded.lines.map(([from, to]) => {
        const bends = graph.edge(from, to).points.slice(1, -1);
        const path = smooth([side(graph.node(from), 1), ...bends, side(graph.node(to), -1)]);
        return { key: `${from}>${to}`, path };
    });
    return { width, height, boxes, lines };
}

/** SVG path through the middles between points, bent at the points. */
function smooth(points) {
    const middle = (a, b) => `${(a.x + b.x) / 2},${(a.y + b.y) / 2}`;
    const [first, ...rest] = points;
    const last = rest.at(-1);
    const bends = rest.slice(0, -1).map((point, index) => `Q${point.x},${point.y} ${middle(point, rest[index + 1])}`);
    return `M${first.x},${first.y} ${bends.join(" ")} L${last.x},${last.y}`;
}
