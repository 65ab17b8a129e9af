"""The table and the picture of what `curves.py` has measured."""

import html
import math
import statistics

from records import publish as write_page
from records import rounds, shown

# Key of a measurement, what it is called, and its colour if the picture has it.
KEYS = {
    "per_second": ("messages a second", None),
    "mib_per_second": ("MiB a second", None),
    "cpu_s_per_million": ("CPU s of the nodes per million", "#1f6fb2"),
    "p50_ms": ("median, ms", "#3a8f5c"),
    "p99_ms": ("99 %, ms", "#d9822b"),
    "resident_mib": ("resident, MiB, the largest node", None),
    "failed": ("failed", None),
}
WORDS = {
    "size": "bytes of a body",
    "connections": "connections",
    "topics": "topics",
    "queues": "queues",
    "backlog": "messages read from the start",
    "consumers": "consumers of each message",
    "nodes": "nodes of the group",
}


def medians(records):
    """curve → x → key → median of the rounds, by x."""
    found = {}
    for record in records:
        for key in KEYS:
            found.setdefault(record["curve"], {}).setdefault(record["x"], {}).setdefault(key, []).append(record[key])
    return {
        curve: {x: {key: statistics.median(all) for key, all in keys.items()} for x, keys in sorted(points.items())}
        for curve, points in found.items()
    }


def table(records):
    out = []
    for curve, points in medians(records).items():
        names = [name for name, _ in KEYS.values()]
        out += ["", f"| {WORDS[curve]} | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 1)]
        out += [f"| {x:,} | " + " | ".join(shown(point[key]) for key in KEYS) + " |" for x, point in points.items()]
    return out[1:]


def picture(records):
    """A panel for each curve: how many times what its first point has, both axes logarithmic."""
    curves = medians(records)
    across, width, height, margin = 2, 440, 210, 50
    rows = math.ceil(len(curves) / across)
    low, high = 0.1, 1000.0
    total_width, total_height = across * width, 40 + rows * height
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total_width} {total_height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{total_width}" height="{total_height}" fill="white"/>',
    ]
    drawn = {key: (name, colour) for key, (name, colour) in KEYS.items() if colour}
    for n, (name, colour) in enumerate(drawn.values()):
        out.append(f'<circle cx="{20 + 230 * n}" cy="18" r="4" fill="{colour}"/><text x="{30 + 230 * n}" y="22">{html.escape(name)}</text>')
    for n, (curve, points) in enumerate(curves.items()):
        left, top = n % across * width + margin, 40 + n // across * height + 20
        right, bottom = left + width - margin - 20, top + height - 60
        first, last = min(points), max(points)

        def at_x(x):
            return left + (math.log(x / first) / math.log(last / first) if last > first else 0.5) * (right - left)

        def at_y(times):
            share = math.log(min(max(times, low), high) / low) / math.log(high / low)
            return bottom - share * (bottom - top)

        for times in (0.1, 1, 10, 100, 1000):
            y, colour = at_y(times), "#888" if times == 1 else "#ddd"
            out.append(f'<line x1="{left}" y1="{y:.0f}" x2="{right}" y2="{y:.0f}" stroke="{colour}"/>')
            out.append(f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{times:g}</text>')
        for x in points:
            out.append(f'<text x="{at_x(x):.0f}" y="{bottom + 14}" text-anchor="middle">{x:,}</text>')
        out.append(f'<text x="{(left + right) / 2:.0f}" y="{bottom + 30}" text-anchor="middle">{html.escape(WORDS[curve])}</text>')
        for key, (_, colour) in drawn.items():
            line = [(at_x(x), at_y(point[key] / points[first][key])) for x, point in points.items()]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in line)
            out.append(f'<polyline points="{path}" fill="none" stroke="{colour}"/>')
            out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in line]
    return "\n".join([*out, "</svg>", ""])


def publish(records):
    words = [
        f"Written by `benches/curves.py` from its measurements: {rounds(records)}. The nodes of a group and the load",
        "share a machine. `benches/curves.py --help` tells what is measured how, [performance.md](performance.md) why a curve is",
        "as it is.",
    ]
    shows = "How many times the first point's each point is"
    write_page("curves", "What a message costs as the work grows", words, records, table(records), picture(records), shows)
