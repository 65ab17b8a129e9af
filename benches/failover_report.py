"""The tables and the picture of what `failover.py` has measured."""

import html
import math
import statistics

from cluster import ROOT
from records import conditions

FIELDS = ("send_gap_ms", "consume_gap_ms", "living_lag_ms", "struck_lag_ms", "keys_waiting")


def spread(field, records):
    values = [record[field] for record in records]
    if not values:
        return "-"
    if min(values) == max(values):
        return f"{values[0]:,.0f}"
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} - {unended(field, records)}{max(values):,.0f})"


def unended(field, records):
    """A sign before the largest value of a silence that was not over when the watch ended."""
    longest = max(records, key=lambda record: record[field])
    return "≥ " if field.endswith("_gap_ms") and longest[field] > 1000 * longest["seconds"] - 500 else ""


def in_order(records):
    """How many attempts of ordered sends failed. Records made before ordered sends in flight were told apart have those too."""
    return sum(record.get("ordered_failed", record.get("key_retries", 0)) for record in records)


def summary(records):
    """The lines of a table, one a fault and setup: the worst of all clients."""
    faults = {}
    for record in records:
        if "total" not in record:
            faults.setdefault((record["fault"], record["setup"]), []).append(record)
    out = [
        "| fault | setup | faults | failed sends | failed attempts of ordered sends | keys that waited for more than 1.5 s, of 48 | no send for, at most | nothing consumed for, at most |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (fault, setup), found in sorted(faults.items()):
        failed, sends = (sum(r[key] for r in found) for key in ("failed", "sends"))
        share = f" ({100 * failed / sends:.2g} %)" if failed else ""
        longest = [f"{unended(field, found)}{max(r[field] for r in found) / 1000:,.2f} s" for field in ("send_gap_ms", "consume_gap_ms")]
        count, keys = 1 + max(r["number"] for r in found), max(r["keys_waiting"] for r in found)
        out.append(f"| {fault} | {setup} | {count} | {failed:,} of {sends:,}{share} | {in_order(found):,} | {keys} | " + " | ".join(longest) + " |")
    return out


def table(records):
    """The lines of a table, one a setup, fault and client in the order of the records."""
    rows, totals = {}, {}
    for record in records:
        if "total" in record:
            totals.setdefault((record["setup"], record["client"]), []).append(record["total"])
        else:
            rows.setdefault((record["fault"], record["setup"], record["client"]), []).append(record)
    out = [
        "| fault | setup | client | faults | failed sends | of one thread, at most | slowest send, ms | sends a second | in flight: failed, slowest, ms | no send for, ms | nothing consumed for, ms "
        "| latest message of a queue read from a living node, ms | from the struck node, ms | of 48 keys waited > 1.5 s | failed attempts of ordered sends | stored twice / delivered again / out of order |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (fault, setup, client), faults in sorted(rows.items()):
        failed, sends, seconds = (sum(r[key] for r in faults) for key in ("failed", "sends", "seconds"))
        flying = f"{sum(r['in_flight_failed'] for r in faults)} of {sum(r['in_flight'] for r in faults)}, {max(r['in_flight_ms'] for r in faults):,.0f}"
        of_thread = max(r["failed_of_thread"] for r in faults)
        slowest = f"{max(r['slowest_ms'] for r in faults):,.0f}"
        seen = {field: faults for field in FIELDS}
        seen["struck_lag_ms"] = [r for r in faults if r["struck_queues"]]
        values = [spread(field, records) for field, records in seen.items()]
        ends = " / ".join(str(sum(r[key] for r in faults)) for key in ("stored_twice", "redelivered", "out_of_order"))
        cells = [fault, setup, client, str(len(faults)), f"{failed:,} of {sends:,}", str(of_thread), slowest, f"{sends / seconds:,.0f}", flying, *values, f"{in_order(faults):,}", ends]
        out.append("| " + " | ".join(cells) + " |")
    out += [
        "", "| setup | client | runs | acknowledged | of these lost | stored twice | delivered again | out of order | failed, and stored yet |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (setup, client), ended in sorted(totals.items()):
        sums = (sum(total[key] for total in ended) for key in ("acknowledged", "lost", "stored_twice", "redelivered", "out_of_order", "failed_yet_stored"))
        out.append(f"| {setup} | {client} | {len(ended)} | " + " | ".join(f"{value:,}" for value in sums) + " |")
    return out


def picture(records):
    """Each fault a dot, on a logarithmic scale: how long nobody's send was acknowledged, and nothing consumed."""
    faults = [r for r in records if "total" not in r]
    groups = {}
    for record in faults:
        groups.setdefault((record["fault"], record["setup"]), []).append(record)
    width, left, right, height, top = 900, 190, 20, 30, 60
    low, high = 1.0, 5.0

    def x(ms):
        at = min(max(math.log10(max(ms, 1)), low), high)
        return left + (at - low) / (high - low) * (width - left - right)

    out = []
    for power in range(int(low), int(high) + 1):
        at = x(10**power)
        label = {1: "10 ms", 2: "100 ms", 3: "1 s", 4: "10 s", 5: "100 s"}[power]
        bottom = top + height * len(groups)
        out.append(f'<line x1="{at:.0f}" y1="{top - 8}" x2="{at:.0f}" y2="{bottom}" stroke="#ddd"/><text x="{at:.0f}" y="{top - 14}" text-anchor="middle">{label}</text>')
    for n, ((fault, setup), members) in enumerate(sorted(groups.items())):
        y = top + height * n + height / 2
        out.append(f'<text x="{left - 10}" y="{y + 4:.0f}" text-anchor="end">{html.escape(fault)}, {html.escape(setup)}</text>')
        for field, shift, colour in (("send_gap_ms", -5, "#1f6fb2"), ("consume_gap_ms", 5, "#d9822b")):
            for record in members:
                out.append(f'<circle cx="{x(record[field]):.1f}" cy="{y + shift:.0f}" r="3.5" fill="{colour}" fill-opacity="0.6"/>')
    total = top + height * len(groups) + 15
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" font-family="sans-serif" font-size="12">'
        f'<rect width="{width}" height="{total}" fill="white"/>'
        '<circle cx="200" cy="18" r="4" fill="#1f6fb2"/><text x="210" y="22">no send acknowledged</text>'
        '<circle cx="370" cy="18" r="4" fill="#d9822b"/><text x="380" y="22">nothing consumed (each dot a fault as one client saw it)</text>'
    )
    return "\n".join([head, *out, "</svg>", ""])


def publish(records, beside=None):
    """Puts the picture beside docs/failover.md and the tables into it, with how they were made."""
    if not records:
        raise SystemExit("nothing was measured")
    with open(f"{ROOT}/docs/failover.svg", "w") as f:
        f.write(picture(records))
    begin, end = "<!-- failover.py begins -->\n", "<!-- failover.py ends -->\n"
    with open(f"{ROOT}/docs/failover.md") as f:
        before, rest = f.read().split(begin)
    after = rest.split(end)[1]
    with open(f"{ROOT}/docs/failover.md", "w") as f:
        f.write(before + begin + "\n".join([conditions(records, beside), "", "The worst of all clients:", "", *summary(records), "", "Each client, medians and ranges:", "", *table(records), ""]) + end + after)
