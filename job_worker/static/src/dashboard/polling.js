import { browser } from "@web/core/browser/browser";

import { onMounted, onWillStart, onWillUnmount, useExternalListener, useState } from "@odoo/owl";

/**
 * Loads something now, and again and again as long as somebody can see it.
 *
 * @param {() => Promise<any>} load
 * @param {number} interval milliseconds between the end of one load and the begin of the next
 * @returns {{ isStale: boolean, refresh: () => Promise<void> }} `isStale` while loading does not work
 */
export function usePolling(load, interval) {
    let timer;
    let isMounted = false;
    let latest = 0;
    const plan = () => {
        browser.clearTimeout(timer);
        if (isMounted && !document.hidden) {
            timer = browser.setTimeout(refresh, interval);
        }
    };
    const refresh = async () => {
        browser.clearTimeout(timer);
        const number = ++latest;
        let isStale = false;
        try {
            await load();
        } catch {
            // Offline, logged out, the server restarts: what is shown stays, and says that it is old.
            isStale = true;
        }
        if (number === latest) {
            polling.isStale = isStale;
            plan();
        }
    };
    const polling = useState({ isStale: false, refresh });

    onWillStart(load);
    onMounted(() => {
        isMounted = true;
        plan();
    });
    onWillUnmount(() => {
        isMounted = false;
        browser.clearTimeout(timer);
    });
    useExternalListener(document, "visibilitychange", () =>
        document.hidden ? browser.clearTimeout(timer) : refresh()
    );
    return polling;
}
