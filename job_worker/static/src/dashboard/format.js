import { _t } from "@web/core/l10n/translation";
import { formatFloat, formatInteger } from "@web/views/fields/formatters";

const MINUTE = 60;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

/**
 * A length of time as people say it, in its two largest units at most.
 *
 * @param {number|null|false} seconds
 * @returns {string}
 */
export function formatDuration(seconds) {
    if (seconds === null || seconds === undefined || seconds === false) {
        return "–";
    }
    if (seconds < 1) {
        return _t("%s ms", Math.round(seconds * 1000));
    }
    if (seconds < 10) {
        return _t("%s s", formatFloat(seconds, { digits: [16, 1] }));
    }
    if (seconds < MINUTE) {
        return _t("%s s", Math.floor(seconds));
    }
    if (seconds < HOUR) {
        return _t("%(minutes)s min %(seconds)s s", {
            minutes: Math.floor(seconds / MINUTE),
            seconds: Math.floor(seconds % MINUTE),
        });
    }
    if (seconds < DAY) {
        return _t("%(hours)s h %(minutes)s min", {
            hours: Math.floor(seconds / HOUR),
            minutes: Math.floor((seconds % HOUR) / MINUTE),
        });
    }
    return _t("%(days)s d %(hours)s h", {
        days: Math.floor(seconds / DAY),
        hours: Math.floor((seconds % DAY) / HOUR),
    });
}

/**
 * @param {number} count
 * @param {boolean} [more] whether there may be more
 * @returns {string}
 */
export function formatCount(count, more = false) {
    return more ? _t("%s+", formatInteger(count)) : formatInteger(count);
}

/**
 * @param {number} part
 * @param {number} whole
 * @returns {string} like "2.5 %", or "–" if there is no whole
 */
export function formatShare(part, whole) {
    return whole ? _t("%s %%", formatFloat((100 * part) / whole, { digits: [16, part ? 1 : 0] })) : "–";
}
