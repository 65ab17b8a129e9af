"""The table and the picture of what `versus.py` has measured."""

import html
import math
import statistics

from cluster import JavaDledger, JavaPair, Nats, Rmq
from records import publish as write_page
from records import rounds, shown

TARGETS = [Rmq.name, JavaDledger.name, JavaPair.name, Nats.name]
# Key of a measurement, its unit, and whether more of it is better.
UNITS = {
    "per_second": ("messages a second", True),
    "cpu_s_per_million": ("CPU s of the brokers per million", False),
    "p50_ms": ("median, ms", False),
    "p99_ms": ("99 %, ms", False),
    "p999_ms": ("99.9 %, ms", False),
    "ms": ("until a send is acknowledged, ms", False),
    "route_ms": ("until routes have another one, ms", False),
    "route_worst_ms": ("the same, the worst, ms", False),
    "s": ("s", False),
    "lost": ("acknowledged messages missing", False),
    "resident_mib": ("MiB, all nodes", False),
    "cpu_percent": ("% of a core, all nodes", False),
    "log_bytes_beyond_body": ("log bytes a message beside its body", False),
}


def medians(records):
    """(what, key) → target → the median of its rounds, with the least and the most."""
    values = {}
    for record in records:
        for key in UNITS:
            if record.get(key) is not None:
                # A group of one stands in the column of rmq, in a row of its own.
                alone = record["target"] == "rmq-alone"
                what = record["what"] + (", group of one" if alone else "")
                target = Rmq.name if alone else record["target"]
                values.setdefault((what, key), {}).setdefault(target, []).append(record[key])
    return {
        row: {target: (statistics.median(all), min(all), max(all)) for target, all in targets.items()}
        for row, targets in values.items()
    }


def cell(found):
    if found is None:
        return "-"
    middle, least, most = found
    return shown(middle) if least == most else f"{shown(middle)} ({shown(least)} - {shown(most)})"


def factor(ours, theirs, more_is_better):
    """How many times better the first is; `None` where that says nothing."""
    if ours is None or theirs is None or not ours[0] or not theirs[0]:
        return None
    return ours[0] / theirs[0] if more_is_better else theirs[0] / ours[0]


def table(records):
    out = [
        "| measurement | unit | " + " | ".join(TARGETS) + " | rmq better by, beside the others |",
        "|" + "---|" * (len(TARGETS) + 3),
    ]
    for (what, key), found in medians(records).items():
        unit, more = UNITS[key]
        factors = [factor(found.get(Rmq.name), found.get(target), more) for target in TARGETS[1:]]
        better = " / ".join("-" if f is None else f"{f:.2f}" for f in factors)
        out.append(f"| {what} | {unit} | " + " | ".join(cell(found.get(target)) for target in TARGETS) + f" | {better} |")
    return out


def picture(records):
    """A row for each measurement that another system has too, a dot for each of these: how many times better rmq is."""
    rows = []
    for (what, key), found in medians(records).items():
        unit, more = UNITS[key]
        dots = {target: factor(found.get(Rmq.name), found.get(target), more) for target in TARGETS[1:]}
        dots = {target: at for target, at in dots.items() if at}
        if dots:
            rows.append((f"{what}: {unit}", dots))
    colours = dict(zip(TARGETS[1:], ("#1f6fb2", "#d9822b", "#3a8f5c")))
    width, left, right, height, top = 960, 430, 30, 22, 60
    low, high = math.log10(0.1), math.log10(300)

    def x(times):
        return left + (min(max(math.log10(times), low), high) - low) / (high - low) * (width - left - right)

    bottom = top + height * len(rows)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + 15}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{bottom + 15}" fill="white"/>',
    ]
    for n, (target, colour) in enumerate(colours.items()):
        at = 20 + 230 * n
        out.append(f'<circle cx="{at}" cy="18" r="4" fill="{colour}"/><text x="{at + 10}" y="22">beside {html.escape(target)}</text>')
    for times in (0.1, 0.3, 1, 3, 10, 30, 100, 300):
        colour = "#888" if times == 1 else "#ddd"
        at = x(times)
        out.append(f'<line x1="{at:.0f}" y1="{top - 8}" x2="{at:.0f}" y2="{bottom}" stroke="{colour}"/>')
        out.append(f'<text x="{at:.0f}" y="{top - 14}" text-anchor="middle">{times:g} times</text>')
    for n, (label, dots) in enumerate(rows):
        y = top + height * n + height / 2
        out.append(f'<text x="{left - 10}" y="{y + 4:.0f}" text-anchor="end">{html.escape(label)}</text>')
        for target, times in dots.items():
            out.append(f'<circle cx="{x(times):.1f}" cy="{y:.0f}" r="4" fill="{colours[target]}" fill-opacity="0.75"/>')
    return "\n".join([*out, "</svg>", ""])


def publish(records):
    words = [
        f"Written by `benches/versus.py` from its measurements: {rounds(records)}, in brackets the least and the most.",
        "The nodes of a cluster and the load share a machine. Machines differ and are noisy: believe ratios. The Java pair has two",
        "nodes, the others three; `benches/versus.py --help` tells what is measured how.",
    ]
    shows = "How many times better rmq is"
    write_page("versus", "rmq beside others", words, records, table(records), picture(records), shows)
