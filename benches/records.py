"""Records of measurements, a JSON line each, and how they were made."""

import json
import os
import statistics
import subprocess
import sys

from cluster import ROOT

SOURCES = (":/src", ":/crates", ":/Cargo.toml", ":/Cargo.lock")
# Directories that Cargo names after its profiles.
BUILDS = {"release": "a release build", "debug": "an unoptimised build"}


def made_with(binary, options):
    """What is alike in all records that may be put together: the commit of the work tree in which an rmq executable lies,
    with a + where its sources are changed, the directory that it is in, which Cargo names after the kind of build, and
    the options of the measurement."""
    directory = os.path.dirname(binary)

    def git(*command):
        command = ["git", "-C", directory, *command, "--", *SOURCES]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    # That of the sources, so that a commit of what was measured makes nothing out of date.
    commit = git("log", "-1", "--abbrev=10", "--format=%h")
    changed = "+" if commit and git("status", "--porcelain") else ""
    return {"commit": commit + changed, "build": os.path.basename(directory), "options": options}


def read(*paths):
    records = []
    for path in paths:
        with open(path) as f:
            records += map(json.loads, f)
    return records


def read_alike(path, made):
    """The records of a file, if there is one, that were made like this."""
    records = read(path) if path and os.path.exists(path) else []
    found = [record for record in records if made.items() <= record.items()]
    if len(found) < len(records):
        print(f"{path}: left out, made by another build or with other options: {len(records) - len(found)}", file=sys.stderr)
    return found


def processor_times():
    with open("/proc/stat") as f:
        return [int(value) for value in f.readline().split()[1:9]]


last_times = processor_times()


def stolen_percent():
    """The share of the processors' time since the last call, or the start, in which they had work and the hypervisor ran
    something else."""
    global last_times
    now = processor_times()
    spent = [after - before for before, after in zip(last_times, now)]
    last_times = now
    return round(100 * spent[7] / max(1, sum(spent)), 1)


def add(record, path):
    """Prints a record and adds it to a file, if one is given, with the state of the machine."""
    record = {
        **record, "cores": os.cpu_count(), "load": record.get("load", round(os.getloadavg()[0], 1)), "stolen_percent": stolen_percent(),
    }
    line = json.dumps(record)
    print(line, flush=True)
    if path:
        with open(path, "a") as f:
            f.write(line + "\n")
    return record


def conditions(records, beside=None):
    """Which build these records are of, and what else the machine did, in words. `beside` says what ran there at idle
    priority, which yields to all that is measured and is counted in the load."""
    builds = sorted({(record.get("build", ""), record.get("commit", "")) for record in records})
    named = [f"{BUILDS.get(build, 'a build of unknown kind')} of commit {commit or 'unknown'}" for build, commit in builds]
    cores = max((record["cores"] for record in records if "cores" in record), default=os.cpu_count())
    loads = [record["load"] for record in records if "load" in record]
    middle = statistics.median(loads)
    load = f"{min(loads):.0f} to {max(loads):.0f}, median {middle:.0f}"
    if beside:
        load += f", most of it {beside} at idle priority."
    else:
        load += ", so times are long and only comparisons mean something." if middle > 2 * cores else "."
    said = f"Measured with {' and '.join(named)}. Load of the machine ({cores} cores): {load}"
    if stolen := [record["stolen_percent"] for record in records if "stolen_percent" in record]:
        middle = statistics.median(stolen)
        said += f" Its hypervisor kept {min(stolen):.0f} to {max(stolen):.0f} % of its processors' time, median {middle:.0f} %."
    return said


def shown(value):
    """A figure of a table, of three digits or to the unit."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def rounds(records):
    """How many of each there are, in words."""
    count = 1 + max(record["round"] for record in records)
    return f"medians of up to {count} rounds" if count > 1 else "one round"


def publish(name, title, words, records, table, picture, shows):
    """Writes docs/NAME.md, with these words and how the records were made before the table, and the picture beside it."""
    page = [
        f"# {title}", "", *words, "", conditions(records), "", f"![{shows}]({name}.svg)", "", *table, "",
    ]
    with open(f"{ROOT}/docs/{name}.md", "w") as f:
        f.write("\n".join(page))
    with open(f"{ROOT}/docs/{name}.svg", "w") as f:
        f.write(picture)
