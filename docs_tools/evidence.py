"""The evidence on the site: condensed from what `reimpl verify --json` writes, and shown class by class."""

from __future__ import annotations

import ast
import html
import inspect
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

import reimpl.nn
import reimpl.optim
from reimpl.bench.workloads import WORKLOADS
from reimpl.verify import cases
from reimpl.verify.deviations import DEVIATIONS, Finding, Shown
from reimpl.verify.judge import CLOSE_FACTOR, FUSED_FACTOR, ORACLE_ERROR
from reimpl.verify.layer_judge import LAYER_FACTOR, excess
from reimpl.verify.layers import LAYER_DTYPES, TABLES, LayerCase
from reimpl.verify.optimizers import ENGINES, OTHER_FOREACH, Case, claim
from reimpl.verify.options import DTYPES
from reimpl.verify.report import LEFT, tables
from reimpl.verify.runner import Evidence, digests, finite
from reimpl.verify.scenarios import SCENARIOS
from reimpl.verify.training import PLANS, Training
from reimpl.verify.verdict import KINDS, Verdict

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "evidence"
TIMES = ROOT / "benchmarks" / "results" / "optim-cpu.json"

REBUILT = "cpu"
"""The device whose evidence can be gathered again wherever the site is built; it must be about the code as it is."""
EVERY_ENGINE = [*ENGINES, *LAYER_DTYPES]
DEVICES = {"cpu": "CPU", "cuda": "GPU"}
ON_ONE_LINE = 11
USELESS_ERROR = 0.1
WHAT = {"kernels": "layers on torch's kernels", "first principles": "layers from first principles"}

Condensed = dict[str, Any]
Section = dict[str, Any]


class StaleError(Exception):
    """The code is no longer what was verified."""


def condense(evidence: Evidence) -> Condensed:
    """Sum up what was found, section by section."""
    sections: dict[str, list[Verdict]] = {}
    for verdict in evidence.verdicts:
        case = verdict.case
        section = f"nn.{case.layer}" if isinstance(case, LayerCase) else case.section
        sections.setdefault(section, []).append(verdict)
    runs = {section_of(training): training for training in evidence.trainings}
    layers = layers_of(evidence.trainings)
    graph = imports(ROOT)
    files = {file for section in {*sections, *runs} for file in files_of(section, graph)}
    return {
        "holds": evidence.holds,
        "summary": evidence.summary(),
        "command": command_of(evidence),
        "environment": evidence.environment,
        "seconds": round(evidence.seconds, 1),
        "factors": {"close": CLOSE_FACTOR, "fused": FUSED_FACTOR, "layer": LAYER_FACTOR},
        "code": {file: evidence.code[file] for file in sorted(files)},
        "tables": [
            {**table._asdict(), "columns": [joined(c) for c in table.columns], "note": " ".join(table.note.split())}
            for table in tables(evidence)
        ],
        "sections": {
            section: {
                "scenarios": Counter(verdict.case.scenario.name for verdict in sections.get(section, [])),
                "rows": condense_rows(sections.get(section, [])),
                "close": condense_reasons(sections.get(section, [])),
                "runs": layers.get(section, []),
                "training": condense_training(runs[section]) if section in runs else None,
            }
            for section in {**sections, **runs}
        },
    }


def condense_rows(verdicts: list[Verdict]) -> list[dict[str, Any]]:
    """Count a section's verdicts by engine and dtype, with the largest error as a multiple of torch's."""
    groups: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault((verdict.case.engine, verdict.case.dtype_name), []).append(verdict)
    return [
        {
            "engine": engine,
            "dtype": dtype,
            "cases": len(found),
            **{kind: sum(verdict.kind == kind for verdict in found) for kind in KINDS},
            "claimed_close": sum(verdict.case.claim == "close" for verdict in found),
            "failed": sum(not verdict.holds for verdict in found),
            "factor": finite(max((round(factor(v), 3) for v in found if v.kind != "exact"), default=0.0)),
            "allowed": allowed(found[0].case),
            "torch_useless": sum(map(useless_bound, found)),
        }
        for (engine, dtype), found in sorted(groups.items(), key=place)
    ]


def place(group: tuple[tuple[str, str], list[Verdict]]) -> tuple[int, int]:
    """Return where an engine's and dtype's cases stand among the others."""
    engine, dtype = group[0]
    return EVERY_ENGINE.index(engine), list(DTYPES).index(dtype)


def factor(verdict: Verdict) -> float:
    """Return an error as the multiple of torch's that is judged."""
    if isinstance(verdict.case, LayerCase):
        return excess(verdict)
    in_double = verdict.case.engine == "fused" and verdict.case.dtype == torch.float64
    reference = max(verdict.reference_error, ORACLE_ERROR if in_double else 0.0)
    if verdict.error == 0:
        return 0.0
    return verdict.error / reference if reference else math.inf


def useless_bound(verdict: Verdict) -> bool:
    """Return whether torch's error is as large as a tenth of the values, and ours not nearly."""
    error = verdict.reference_error
    return verdict.kind != "exact" and error >= USELESS_ERROR and error >= 10 * verdict.error


def allowed(case: Case | LayerCase) -> float:
    """Return the largest multiple of torch's error that is close."""
    if isinstance(case, LayerCase):
        return LAYER_FACTOR
    return FUSED_FACTOR if case.engine == "fused" else CLOSE_FACTOR


def condense_reasons(verdicts: list[Verdict]) -> list[dict[str, Any]]:
    """Return why no more than close is claimed of some of a section's cases, and of which."""
    groups: dict[str, list[Case | LayerCase]] = {}
    for verdict in verdicts:
        if verdict.case.claim == "close":
            groups.setdefault(why_close(verdict.case), []).append(verdict.case)
    return [
        {
            "why": why,
            "cases": len(found),
            "engines": list(dict.fromkeys(case.engine for case in found)),
            "dtypes": list(dict.fromkeys(case.dtype_name for case in found)),
        }
        for why, found in groups.items()
    ]


def why_close(case: Case | LayerCase) -> str:
    """Return the registry's reason for not claiming every bit of a case."""
    if isinstance(case, LayerCase):
        return inspect.getdoc(LayerCase.claim) or ""
    fused, decay, negated, foreach, quotient, promoted = reasons()
    if case.engine == "fused":
        return fused
    if case.engine == "loop" and case.dtype.is_complex:
        return negated if case.optimizer == "Rprop" else decay
    if case.engine == "foreach" and case.optimizer in (*OTHER_FOREACH, "Adamax"):
        return quotient if case.optimizer == "Adamax" else foreach
    return promoted


@cache
def reasons() -> list[str]:
    """Return the items of the registry's list of reasons."""
    items = re.split(r"^- ", inspect.getdoc(claim) or "", flags=re.M)[1:]
    return [" ".join(item.split()) for item in items]


def section_of(training: Training) -> str:
    """Return whose real run it is: an optimizer's, or a layer's."""
    return f"{'optim' if hasattr(reimpl.optim, training.name) else 'nn'}.{training.name}"


def layers_of(trainings: Iterable[Training]) -> dict[str, list[str]]:
    """Return the real runs by the layers that are in their networks."""
    found: dict[str, list[str]] = {}
    with torch.random.fork_rng():
        for training in trainings:
            network = PLANS[training.name].network(reimpl.nn)
            for name in sorted({type(module).__name__ for module in network.modules()} & TABLES.keys()):
                found.setdefault(f"nn.{name}", []).append(training.name)
    return found


def condense_training(training: Training) -> dict[str, Any]:
    """Return a real run without the loss of each step."""
    fields = {name: value for name, value in training.to_json().items() if not isinstance(value, list)}
    return fields | {"steps": len(training.losses), "last_loss": training.losses[-1]}


def command_of(evidence: Evidence) -> str:
    """Return the command that makes such evidence: of everything, or of some sections."""
    device = evidence.environment["device"]
    tried = {verdict.case.name for verdict in evidence.verdicts}
    known = cases(device=device)
    sections = list(dict.fromkeys(case.section for case in known if case.name in tried))
    sections += [f"train.{training.name}" for training in evidence.trainings]
    words = ["reimpl verify", *([] if device == "cpu" else [f"--device {device}"])]
    if tried and len(tried) < sum(case.section in sections for case in known):
        words.append("--quick")
    if len(sections) < len({case.section for case in known}) + len(PLANS):
        words += sections
    return " ".join(words)


def read(full: dict[str, Any]) -> Evidence:
    """Return what `reimpl verify --json` has written, with the cases of the registry.

    Raises:
        ValueError: if the registry has not these cases any more, or the numbers do not come to the summary's.
    """
    known = {case.name: case for case in cases(device=full["environment"]["device"])}
    strange = [found["name"] for found in full["cases"] if found["name"] not in known]
    if strange:
        raise ValueError(f"the registry has no case {strange[0]!r}: verify again")
    deviations = {(deviation.optimizer, deviation.where): deviation for deviation in DEVIATIONS}
    evidence = Evidence(
        verdicts=[
            Verdict(
                known[found["name"]],
                found["verdict"],
                found["reference"],
                found["ulp"],
                float(found["error"]),
                float(found["reference_error"]),
            )
            for found in full["cases"]
        ],
        trainings=[
            Training(**{name: value for name, value in found.items() if name != "holds"}) for found in full["trainings"]
        ],
        deviations=[
            Shown(deviations[found["optimizer"], found["where"]], Finding(**found["ours"]), Finding(**found["theirs"]))
            for found in full["deviations"]
        ],
        environment=full["environment"],
        code=full["code"],
        seconds=full["seconds"],
    )
    if evidence.summary() != full["summary"]:
        raise ValueError(f"the cases come to {evidence.summary()!r}, the summary is {full['summary']!r}")
    return evidence


def imports(root: Path) -> dict[str, set[str]]:
    """Return which files of `reimpl.optim` and `reimpl.nn` each of them imports."""
    files = {
        file.relative_to(root).as_posix(): file.read_text(encoding="utf-8")
        for part in ("optim", "nn")
        for file in sorted((root / "reimpl" / part).rglob("*.py"))
    }
    return {name: {file_of(module, files) for module in imported(text)} & files.keys() for name, text in files.items()}


@cache
def imported(source: str) -> list[str]:
    """Return the modules, and names of modules, that a file imports from."""
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and node.module]
    return [name for node in found for name in (str(node.module), *(f"{node.module}.{x.name}" for x in node.names))]


def file_of(module: str, files: Iterable[str]) -> str:
    """Return a module's file."""
    path = module.replace(".", "/")
    package = f"{path}/__init__.py"
    return package if package in files else f"{path}.py"


def files_of(section: str, graph: dict[str, set[str]]) -> list[str]:
    """Return the files of a class, its functions and all that they import.

    Raises:
        ValueError: if there is no such section.
    """
    part, _, name = section.rpartition(".")
    layers = [layer for layer, (function, _) in TABLES.items() if name in (layer, function)]
    if part == "optim" and hasattr(reimpl.optim, name):
        todo = [getattr(reimpl.optim, name).__module__]
    elif part in ("nn", "nn.functional") and layers:
        todo = [getattr(reimpl.nn, layer).__module__ for layer in layers]
        functions = {TABLES[layer][0] for layer in layers}
        todo += [getattr(reimpl.nn.functional, function).__module__ for function in functions if function]
    else:
        raise ValueError(f"there is no section {section!r}")
    found: set[str] = set()
    waiting = {file_of(module, graph) for module in todo}
    while waiting:
        found |= waiting
        waiting = {file for name in waiting for file in graph.get(name, set())} - found
    return sorted(found)


@cache
def digests_of(root: Path, _: tuple[float, ...]) -> dict[str, str]:
    """Return the digests of a package's files, which are read again only if one has changed."""
    return digests(root)


def stale(evidence: Condensed, root: Path = ROOT) -> dict[str, list[str]]:
    """Return the sections whose code is no longer what was verified, each with the files that have changed.

    Args:
        evidence: condensed.
        root: of the repository.
    """
    package = root / "reimpl"
    now = digests_of(package, tuple(file.stat().st_mtime for file in sorted(package.rglob("*.py"))))
    changed = {file for file, digest in now.items() if evidence["code"].get(file) != digest}
    graph = imports(root)
    found = {section: sorted(changed.intersection(files_of(section, graph))) for section in evidence["sections"]}
    return {section: files for section, files in found.items() if files}


def check(root: Path = ROOT) -> None:
    """Refuse evidence that can be gathered again here, and is not about the code as it is.

    Args:
        root: of the repository.

    Raises:
        StaleError: if a file has changed.
    """
    file = root / FOLDER.relative_to(ROOT) / f"{REBUILT}.json"
    changed = {name for names in stale(load(file), root).values() for name in names}
    if changed:
        names = ", ".join(sorted(changed))
        have = "has" if len(changed) == 1 else "have"
        written = file.relative_to(root).as_posix()
        raise StaleError(f"{names} {have} changed since {written} was written: run `make evidence`")


def load(file: Path) -> Condensed:
    """Return condensed evidence."""
    found: Condensed = json.loads(file.read_text(encoding="utf-8"))
    return found


def every_device() -> dict[str, Condensed]:
    """Return the evidence that there is, by device."""
    files = {device: FOLDER / f"{device}.json" for device in DEVICES}
    return {device: load(file) for device, file in files.items() if file.is_file()}


def rows(section: str, up: str = "../") -> str:
    """Return a class's or a function's rows of the evidence, as Markdown with tables in HTML.

    Args:
        section: such as `optim.SGD`, `nn.Conv2d` or `nn.functional.conv2d`.
        up: from the page to the folder of the page of all evidence.

    Raises:
        ValueError: if no such section has been verified.
    """
    parts: list[str] = []
    for device, evidence in every_device().items():
        found = select(section, evidence)
        if found is not None:
            parts += section_parts(section, found, device, evidence)
    if not parts:
        raise ValueError(f"there is no evidence of {section!r}")
    missing = [name for device, name in DEVICES.items() if device not in every_device()]
    parts.append(
        f"[All evidence, and what exact and close mean]({up}evidence.md)"
        + "".join(f"; no {name} has run this yet" for name in missing)
        + "."
    )
    return "\n\n".join(parts)


def select(section: str, evidence: Condensed) -> Section | None:
    """Return what was found of a class; of a function, what was found from first principles of its layers."""
    sections: dict[str, Section] = evidence["sections"]
    function = section.removeprefix("nn.functional.")
    layers = [name for name, (its, _) in TABLES.items() if its == function and f"nn.{name}" in sections]
    if section in sections or not section.startswith("nn.functional.") or not layers:
        return sections.get(section)
    merged: list[dict[str, Any]] = []
    for layer in layers:
        found = [row for row in sections[f"nn.{layer}"]["rows"] if row["engine"] == "first principles"]
        merged += [{**row, "engine": f"{layer}, first principles"} for row in found]
    reasons = [reason for layer in layers for reason in sections[f"nn.{layer}"]["close"]][:1]
    count = sum(row["claimed_close"] for row in merged)
    return {
        "scenarios": {},
        "rows": merged,
        "close": [{**reason, "cases": count} for reason in reasons],
        "runs": [],
        "training": None,
    }


def section_parts(section: str, found: Section, device: str, evidence: Condensed) -> Iterator[str]:
    """Yield the parts of what is shown of a section on a device."""
    if found["rows"]:
        yield grid(f"{section} on the {DEVICES[device]}", *by_dtype(found))
        yield claims(found)
    if found["training"]:
        yield training_text(found["training"])
    if found["runs"]:
        yield runs_text(found["runs"], evidence)
    for table in evidence["tables"]:
        mine = [row[1:] for row in table["rows"] if f"optim.{row[0]}" == section]
        if table["title"] == "Deliberate deviations" and mine:
            yield grid(f"Where {section} differs from torch on the {DEVICES[device]}", table["columns"][1:], mine)
            yield table["note"]
    if found["scenarios"]:
        yield scenarios_list(found["scenarios"])
    yield f"{provenance(evidence)} Repeat it: `{repeat(section, found, device)}`."
    if section in stale_of(device, evidence):
        yield stale_text(evidence)


def by_dtype(found: Section) -> tuple[list[str], list[list[str]]]:
    """Return the verdicts of a section as a table of engines by dtypes."""
    cells = {(row["engine"], row["dtype"]): cell(row) for row in found["rows"]}
    dtypes = [dtype for dtype in DTYPES if any(dtype == seen for _, seen in cells)]
    engines = dict.fromkeys(engine for engine, _ in cells)
    return ["engine", *dtypes], [[engine, *(cells.get((engine, dtype), "–") for dtype in dtypes)] for engine in engines]


def cell(row: dict[str, Any]) -> str:
    """Say what came out of the cases of an engine and dtype."""
    if row["exact"] == row["cases"]:
        return f"all {row['cases']:,} exact"
    parts = [f"exact: {row['exact']:,}"] if row["exact"] else []
    if row["close"]:
        error = f"at most {row['factor']:.2f} times torch's error ({row['allowed']:g} allowed)"
        parts.append(f"close: {row['close']:,}, {error}")
    if row["differs"]:
        parts.append(f"differs: {row['differs']:,}")
    if row["failed"] > row["differs"]:
        parts.append(f"claimed exact, and not: {row['failed'] - row['differs']:,}")
    return "; ".join(parts)


def claims(found: Section) -> str:
    """Say of how many cases which claim is made, and why of some no more than close."""
    total, close = (sum(row[key] for row in found["rows"]) for key in ("cases", "claimed_close"))
    failed = sum(row["failed"] for row in found["rows"])
    verdict = "every claim is met" if not failed else f"**{failed:,} claims are not met**"
    text = f"Claimed: every bit of {total - close:,} cases, no more than close of {close:,}; {verdict}."
    reasons = [
        f"- {', '.join(reason['engines'])}; {', '.join(reason['dtypes'])} ({reason['cases']:,} cases): {reason['why']}"
        for reason in found["close"]
    ]
    useless = [
        f"{row['engine']}, {row['dtype']}: {row['torch_useless']:,}" for row in found["rows"] if row["torch_useless"]
    ]
    if useless:
        reasons.append(
            "- In some of the close cases torch's own error is a tenth of the values or more, and ten times ours "
            f"or more, so that a multiple of it says little ({'; '.join(useless)})."
        )
    return "\n".join([text, "", *reasons]) if reasons else text


def training_text(training: dict[str, Any]) -> str:
    """Say what came of a real run."""
    equal = training["first_different_loss"] is None and training["same_end"]
    resumed = training["resumed_by_ours"] and training["resumed_by_torch"]
    text = (
        f"Real run: a network learns to read digits, in {training['steps']:,} steps with "
        f"{', '.join(f'`{name}={value!r}`' for name, value in training['options'].items())}. "
        f"The loss of every step and all weights, buffers and state at the end "
        f"{'have' if equal else '**do not have**'} torch's bits; from the other side's checkpoint of mid-training "
        f"each {'comes' if resumed else '**does not come**'} to the same end. Of the held-out digits it reads "
        f"{training['accuracy']:.1%}, torch's {training['reference_accuracy']:.1%}"
    )
    if training["principles_accuracy"] is not None:
        text += f", from first principles {training['principles_accuracy']:.1%}"
    if training["fused_distance"] is not None:
        text += (
            f". With `fused=True`, the losses are {training['fused_distance']:.0e} in the mean from those of torch's "
            f"for-loop; torch's own are as far as {training['reference_fused_distance']:.0e}"
        )
    return f"{text}."


def runs_text(runs: list[str], evidence: Condensed) -> str:
    """Say in which real runs a layer takes part."""
    trainings = {
        found["training"]["name"]: found["training"] for found in evidence["sections"].values() if found["training"]
    }
    failed = [run for run in runs if not trainings[run]["holds"]]
    every = "each has torch's bits" if not failed else f"**not as claimed: {', '.join(failed)}**"
    return f"It is in the network of {len(runs)} real runs ({', '.join(runs)}); {every}."


def scenarios_list(scenarios: dict[str, int]) -> str:
    """Return the list of what was tried, folded."""
    items = [
        f"<li><strong>{escape(name)}</strong> ({count:,} cases)"
        + (f": {escape(SCENARIOS[name].about)}" if name in SCENARIOS else "")
        + "</li>"
        for name, count in scenarios.items()
    ]
    return f"<details><summary>What was tried</summary><ul>{''.join(items)}</ul></details>"


def provenance(evidence: Condensed) -> str:
    """Say when, where and with what."""
    where = evidence["environment"]
    threads = counted(where["threads"], "thread")
    if where.get("processes", 1) > 1:
        threads = f"{where['processes']} processes of 1 thread"
    return (
        f"Verified on {where['date'][:10]}: reimpl {where['reimpl']} against torch {where['torch']}, "
        f"Python {where['python']}, {where['device_name']} ({where['cpu_capability']}), {threads}."
    )


def counted(count: int, thing: str) -> str:
    """Return a number of things."""
    return f"{count:,} {thing}{'s' * (count != 1)}"


def repeat(section: str, found: Section, device: str) -> str:
    """Return the command that verifies a section again."""
    part, _, name = section.rpartition(".")
    words = ["reimpl verify", section] if found["rows"] else ["reimpl verify"]
    function = TABLES[name][0] if part == "nn" and name in TABLES else None
    words += [f"nn.functional.{function}"] if function else []
    words += [f"train.{found['training']['name']}"] if found["training"] else []
    words += [] if device == "cpu" else [f"--device {device}"]
    return " ".join(words)


def stale_of(device: str, evidence: Condensed) -> dict[str, list[str]]:
    """Return the stale sections of a device on which evidence is not gathered in passing."""
    return {} if device == REBUILT else stale(evidence)


def stale_text(evidence: Condensed) -> str:
    """Say that the code has changed."""
    date = evidence["environment"]["date"][:10]
    return f"**The code has changed since {date}; on this device it has not been verified again.**"


def summary() -> str:
    """Return one table of all cases on each device."""
    parts: list[str] = []
    for device, evidence in every_device().items():
        counts: dict[str, Counter[str]] = {}
        for found in evidence["sections"].values():
            for row in found["rows"]:
                name = WHAT.get(row["engine"], f"optimizers, {row['engine']} engine")
                counts.setdefault(name, Counter()).update({key: row[key] for key in ("cases", *KINDS)})
        counts["all"] = sum(counts.values(), Counter())
        lines = [[name, *(f"{found[key]:,}" for key in ("cases", *KINDS))] for name, found in counts.items()]
        trainings = [found["training"] for found in evidence["sections"].values() if found["training"]]
        learned = sum(training["holds"] for training in trainings)
        parts.append(grid(f"Evidence on the {DEVICES[device]}", ["what", "cases", *KINDS], lines))
        parts.append(
            f"{learned} of {counted(len(trainings), 'real run')}, networks that learn to read digits, are as claimed. "
            f"{provenance(evidence)}"
        )
        if stale_of(device, evidence):
            parts.append(stale_text(evidence))
    return "\n\n".join(parts)


def page() -> str:
    """Return all tables of all devices, as Markdown with tables in HTML."""
    found = every_device()
    factors = next(iter(found.values()))["factors"]
    parts = [
        "**Exact**: every bit that can be observed is torch's, after every step of an optimizer and every pass through "
        "a layer. No tolerance is involved.",
        "**Close**: the error against a float64 run of the same inputs is at most a stated multiple of torch's own: "
        f"{factors['close']:g} times, of a fused step {factors['fused']:g} times in the mean, of a layer from first "
        f"principles {factors['layer']:g} times.",
        'Where which of the two is claimed, and why: [What "equal" means](design.md#what-equal-means).',
    ]
    for device, evidence in found.items():
        parts += device_parts(device, evidence)
    for device in DEVICES.keys() - found.keys():
        parts += [
            f"## {DEVICES[device]}",
            f"No {DEVICES[device]} has run the cases yet. On a machine that has one:",
            f"```console\n$ reimpl verify --device {device} --json full.json\n"
            f"$ python -m docs_tools.evidence condense full.json docs/evidence/{device}.json\n```",
        ]
    return "\n\n".join(parts)


def device_parts(device: str, evidence: Condensed) -> Iterator[str]:
    """Yield the tables of a device, and what is found of each class, folded."""
    name = DEVICES[device]
    yield f"## {name}"
    yield (
        f"{provenance(evidence)} Made by `{evidence['command']}` in {evidence['seconds']:,.0f} s; "
        f"[as data](evidence/{device}.json)."
    )
    old = stale_of(device, evidence)
    if old:
        yield f"{stale_text(evidence)} That is so of {', '.join(f'`{section}`' for section in old)}."
    for table in evidence["tables"]:
        yield f"### {table['title']}"
        yield grid(f"{table['title']} on the {name}", table["columns"], table["rows"])
        yield f'<p class="note">{escape(table["note"])}</p>'
    yield "### By engine and dtype"
    for section, section_found in evidence["sections"].items():
        if section_found["rows"]:
            inner = grid(f"{section} on the {name}, by engine and dtype", *by_dtype(section_found))
            yield f"<details data-search-exclude><summary>{section}</summary>{inner}</details>"


def bench_rows(optimizer: str) -> str:
    """Return the times of an optimizer's steps beside the best of torch's own, workload by workload.

    Args:
        optimizer: its name.

    Raises:
        ValueError: if it was not timed.
    """
    found = load(TIMES)
    mine = [result for result in found["results"] if result["optimizer"] == optimizer]
    if not mine:
        timed = ", ".join(dict.fromkeys(result["optimizer"] for result in found["results"]))
        raise ValueError(f"there are no times of {optimizer!r}; there are of {timed}")
    engines = [name for name in mine[0]["seconds"] if name.startswith("ours ")]
    columns = ["workload", "torch's best, ms", *(name.removeprefix("ours ") for name in engines)]
    lines = []
    for result in mine:
        best = result["best_of_torch"]
        times = result["seconds"]
        size = f"{counted(result['tensors'], 'tensor')}, {result['elements'] / 1e6:.1f} M elements"
        lines.append(
            [
                f"{WORKLOADS[result['workload']].title} ({size})",
                f"{1e3 * times[best]:.2f} ({best.removeprefix('torch ')})",
                *(f"{times[name] / times[best]:.2f}" for name in engines),
            ]
        )
    where = found["environment"]
    options = ", ".join(f"`{name}={value!r}`" for name, value in mine[0]["options"].items())
    note = (
        f"A step of `{optimizer}`{' with ' + options if options else ''} in each engine, as a multiple of the time of "
        f"the fastest of torch's own three; medians of {found['rounds']} rounds. Measured on {where['date'][:10]} with "
        f"torch {where['torch']} on {where['device_name']} ({where['cpu_capability']}), "
        f"{counted(where['threads'], 'thread')}. Repeat it: `reimpl bench {optimizer}`."
    )
    return f"{grid(f'Times of {optimizer}', columns, lines)}\n\n{note}"


def grid(label: str, columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table that scrolls by itself where it is wider than the page."""
    left = [column in LEFT or column in DTYPES or column == "what" for column in columns]
    kinds = ["" if is_left else ' class="number"' for is_left in left]
    head = "".join(f'<th scope="col"{kind}>{escape(column)}</th>' for column, kind in zip(columns, kinds, strict=True))
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td{kind}>{escape(value)}</td>" for value, kind in zip(others, kinds[1:], strict=True))
        + "</tr>\n"
        for first, *others in lines
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(label)}">'
        f'<table class="evidence">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>'
    )


def escape(text: str) -> str:
    """Return text as HTML, with what stands in backquotes as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def joined(text: str) -> str:
    """Return a heading of several lines as one."""
    return text.replace("-\n", "").replace("\n", " ")


def compact(value: Any, indent: int = 0) -> str:
    """Return JSON in which a short list or object that holds no further one stands on one line."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    if len(parts) <= ON_ONE_LINE and not any(isinstance(part, dict | list | tuple) and part for part in parts):
        return json.dumps(value, ensure_ascii=False)
    inside = [compact(part, indent + 1) for part in parts]
    if isinstance(value, dict):
        inside = [f"{json.dumps(key)}: {text}" for key, text in zip(value, inside, strict=True)]
    pad = "\n" + " " * indent
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}{pad} {f',{pad} '.join(inside)}{pad}{closing}"


def main(arguments: Sequence[str]) -> None:
    """Write condensed evidence: `condense FULL.json OUT.json`."""
    if len(arguments) != 3 or arguments[0] != "condense":
        sys.exit("usage: python -m docs_tools.evidence condense FULL.json docs/evidence/cpu.json")
    found = condense(read(load(Path(arguments[1]))))
    Path(arguments[2]).write_text(f"{compact(found)}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
