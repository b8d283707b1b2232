import { useService } from "@web/core/utils/hooks";

/**
 * @returns {(name: string, domain: Array, context?: Object) => void} opens the list of the jobs behind a number
 */
export function useOpenJobs() {
    const action = useService("action");
    return (name, domain, context = {}) =>
        action.doAction({
            type: "ir.actions.act_window",
            name,
            res_model: "queue.job",
            views: [
                [false, "list"],
                [false, "form"],
            ],
            domain,
            context,
        });
}
