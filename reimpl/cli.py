"""The command `reimpl`."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import reimpl
from reimpl.bench import OPTIMIZERS, VARIANTS, WORKLOADS, bench, plot, print_results
from reimpl.bench.optimizers import ROUNDS
from reimpl.bench.report import IMAGE_FORMATS
from reimpl.read import QuoteError, changes, search, source
from reimpl.read.drift import kept
from reimpl.read.pages import beside
from reimpl.read.quote import TORCH_VERSION
from reimpl.verify import (
    CHECKS,
    SCENARIOS,
    Case,
    ContractError,
    Evidence,
    LayerCase,
    Progress,
    cases,
    comparison,
    verify,
    verify_against,
    verify_contract,
)
from reimpl.verify.deviations import DEVIATIONS
from reimpl.verify.foreign import ForeignClassError, find_class
from reimpl.verify.options import DTYPES
from reimpl.verify.report import print_report, to_html
from reimpl.verify.runner import processes_for
from reimpl.verify.training import PLANS

TRAININGS = [f"train.{name}" for name in PLANS]
PATH = re.compile(r"\w+(\.\w+)+")
PARTS = ["optim", "nn", "nn.functional", "train"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: instead of the process's own.

    Returns:
        The exit status: 1 if a claim that was to be verified does not hold, or else 0. A bad argument exits with 2.
    """
    parser = argparse.ArgumentParser("reimpl", description="PyTorch's optimizers and layers, written to be read.")
    parser.add_argument(
        "--version", action="version", version=f"reimpl {reimpl.__version__}, torch {torch.__version__}"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_verify(commands.add_parser("verify", help="prove that the results are torch's", description=VERIFY))
    add_bench(commands.add_parser("bench", help="time a step of every optimizer beside torch's", description=BENCH))
    add_read(
        commands.add_parser("read", help="find an answer, or the source of a class beside torch's", description=READ)
    )
    options = parser.parse_args(arguments)
    run = {"verify": run_verify, "bench": run_bench, "read": run_read}[options.command]
    return run(options, commands.choices[options.command])


VERIFY = """Compare every optimizer and layer with torch's, bit for bit: on a grid of options, dtypes, engines and
inputs, and on networks that learn to read digits. Or judge an optimizer of your own: mypackage.MyOptimizer runs the
contract, and with --against torch.optim.Adam the cases of Adam that its signature allows. Exit status: 0 if every claim
or check holds, 1 if one does not, 2 for a bad argument."""


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `reimpl verify`."""
    parser.add_argument(
        "what",
        nargs="*",
        metavar="SECTION",
        help="what to verify, as with --only (default: all); or one optimizer class, as mypackage.MyOptimizer",
    )
    parser.add_argument("--against", metavar="CLASS", help="compare the class with torch's, such as torch.optim.Adam")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="SECTION",
        help="such as optim, optim.SGD, nn, nn.Conv2d, nn.functional.conv2d, train or train.Adam; see --list",
    )
    parser.add_argument(
        "--dtype", action="append", choices=list(DTYPES), help="cases of this dtype only; may be repeated"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), or cuda")
    parser.add_argument(
        "--processes", type=positive, help="among how many to share the cases (default: one for each core, on the CPU)"
    )
    parser.add_argument("--quick", action="store_true", help="a seventh of the cases, none of 1,000 steps")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the evidence: every case, versions, device, date"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page to look at")
    parser.add_argument("--list", action="store_true", help="list the sections and scenarios, and stop")


def run_verify(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Carry out `reimpl verify`."""
    device = check_device(options.device, parser)
    if options.against or any(map(names_class, options.what)):
        return run_verify_class(options, parser, device)
    registered = cases(options.quick, torch.device(device).type)
    sections = select(
        [*options.what, *options.only], [*dict.fromkeys(c.section for c in registered), *TRAININGS], parser
    )
    check_folders([options.json, options.html], parser)
    dtypes = [DTYPES[name] for name in options.dtype or DTYPES]
    chosen = [case for case in registered if case.section in sections and case.dtype in dtypes]
    trainings = [name for name in TRAININGS if name in sections and torch.float32 in dtypes]
    if options.list:
        print_list(chosen, trainings)
        return 0
    if not chosen and not trainings:
        parser.error("no case has this dtype in these sections")
    totals = Counter(case.section for case in chosen) + Counter(trainings)
    try:
        with progress_bar(totals) as progress:
            names = [name.removeprefix("train.") for name in trainings]
            deviations = [deviation for deviation in DEVIATIONS if deviation.section in sections]
            processes = options.processes or processes_for(len(chosen), torch.device(device).type)
            evidence = verify(chosen, names, device, progress, deviations, processes)
        page = to_html(evidence) if options.html else ""
    except ModuleNotFoundError as error:
        parser.error(str(error))
    return report(evidence, page, options)


def report(evidence: Evidence, page: str, options: argparse.Namespace) -> int:
    """Write the files that were asked for, print the rest, and return the exit status."""
    write_json(options.json, evidence.to_json())
    if options.html:
        options.html.write_text(page, encoding="utf-8")
    print_report(evidence)
    return 0 if evidence.holds else 1


def names_class(name: str) -> bool:
    """Return whether a name means a class, not a section."""
    first, dot, _ = name.partition(".")
    return bool(dot) and first not in PARTS


def run_verify_class(options: argparse.Namespace, parser: argparse.ArgumentParser, device: str) -> int:
    """Carry out `reimpl verify mypackage.MyOptimizer`."""
    if len(options.what) != 1 or options.only or not names_class(options.what[0]):
        parser.error("an optimizer class is judged alone: reimpl verify mypackage.MyOptimizer [--against CLASS]")
    if not options.against and (options.dtype or options.quick or options.list):
        parser.error("--dtype, --quick and --list choose among cases, which a class has with --against")
    check_folders([options.json, options.html], parser)
    try:
        optimizer = find_class(options.what[0])
        if not options.against:
            with progress_bar(Counter({optimizer.__name__: len(CHECKS)})) as progress:
                evidence = verify_contract(optimizer, device, progress)
        else:
            dtypes = [DTYPES[name] for name in options.dtype or DTYPES]
            of = comparison(optimizer, find_class(options.against), dtypes, options.quick)
            if options.list:
                print_list(list(of.cases), [])
                return 0
            with progress_bar(Counter(case.section for case in of.cases)) as progress:
                evidence = verify_against(of, device, progress)
        page = to_html(evidence) if options.html else ""
    except (ForeignClassError, ContractError, ModuleNotFoundError) as error:
        parser.error(str(error))
    return report(evidence, page, options)


def select(names: list[str], sections: list[str], parser: argparse.ArgumentParser) -> list[str]:
    """Return the sections that the names mean: one of them, or all that it begins."""
    chosen: list[str] = []
    for name in names or PARTS:
        meant = [section for section in sections if section == name or section.startswith(f"{name}.")]
        if not meant:
            valid = ", ".join([*PARTS, *sections])
            parser.error(f"there is no section {name!r}; choose from {valid}")
        chosen += meant
    return chosen


def check_device(name: str, parser: argparse.ArgumentParser) -> str:
    """Refuse a device that is not here."""
    valid = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if name not in (*valid, *(["cuda"] if len(valid) > 1 else [])):
        parser.error(f"there is no device {name!r} here; choose from {', '.join(valid)}")
    return name


def check_folders(files: Sequence[Path | None], parser: argparse.ArgumentParser) -> None:
    """Refuse a file in a folder that is not there, before the work is done."""
    for file in files:
        if file is not None and not file.parent.is_dir():
            parser.error(f"there is no folder {str(file.parent)!r} to write {file.name!r} into")


def write_json(file: Path | None, evidence: dict[str, Any]) -> None:
    """Write the evidence, if a file is named."""
    if file is not None:
        file.write_text(json.dumps(evidence, indent=1) + "\n", encoding="utf-8")


def print_list(chosen: list[Case | LayerCase], trainings: list[str]) -> None:
    """Print the sections with their number of cases, and the scenarios."""
    for section, count in Counter(case.section for case in chosen).items():
        print(f"{section:34} {count:6,} cases")
    for section in trainings:
        print(f"{section:34}        a network trained on handwritten digits")
    print()
    for scenario in SCENARIOS.values():
        print(f"{scenario.name:34} {scenario.about}")


@contextlib.contextmanager
def progress_bar(totals: Counter[str]) -> Iterator[Progress]:
    """Show a bar on standard error while the cases run; nothing if `rich` is not installed."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
    except ModuleNotFoundError:
        yield lambda _: None
        return
    columns = (
        TextColumn("{task.description:33}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=totals.total())
        yield lambda section: bar.update(task, advance=1, description=section)


BENCH = """Time a step of each optimizer in one run: our engines, torch's, and torch.compile(opt.step), side by side on
the parameters of real networks; with the time that the memory needs at least, the first step, and the memory that a
step holds."""
QUICK_ROUNDS = 3
QUICK_WORKLOADS = ("resnet50", "small")


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `reimpl bench`."""
    parser.add_argument(
        "optimizer", nargs="*", metavar="OPTIMIZER", help=f"of {', '.join(OPTIMIZERS)} (default: all of them)"
    )
    titles = "; ".join(f"{workload.name}: {workload.title}" for workload in WORKLOADS.values())
    parser.add_argument(
        "--workload", action="append", metavar="NAME", help=f"{titles} (default: all of them); may be repeated"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), or cuda")
    parser.add_argument("--rounds", type=positive, help=f"how often each has its turn (default: {ROUNDS})")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile(opt.step)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure, versions, device, date")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the times, as SVG or PNG by the file's name")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{QUICK_ROUNDS} rounds, {' and '.join(QUICK_WORKLOADS)}, without torch.compile(opt.step)",
    )


def positive(text: str) -> int:
    """Return a number of rounds or processes."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, 1 or more")
    return int(text)


def run_bench(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Carry out `reimpl bench`."""
    device = check_device(options.device, parser)
    optimizers = choose("optimizer", options.optimizer or list(OPTIMIZERS), list(OPTIMIZERS), parser)
    names = options.workload or (QUICK_WORKLOADS if options.quick else list(WORKLOADS))
    workloads = [WORKLOADS[name] for name in choose("workload", names, list(WORKLOADS), parser)]
    check_folders([options.json, options.plot], parser)
    if options.plot is not None:
        if options.plot.suffix not in IMAGE_FORMATS:
            parser.error(f"--plot cannot write {options.plot.name!r}; choose a name in {' or '.join(IMAGE_FORMATS)}")
        if importlib.util.find_spec("matplotlib") is None:
            parser.error("--plot draws with matplotlib: pip install 'reimpl[bench]'")
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    variants = [v for v in VARIANTS if v.engine != "compile" or not (options.no_compile or options.quick)]
    found = bench(
        optimizers,
        workloads,
        device,
        rounds,
        variants,
        # No bar that moves: it would take its share of the processor.
        lambda result: print(f"{result.workload.title}, {result.title} …", file=sys.stderr, flush=True),
    )
    write_json(options.json, found.to_json())
    if options.plot is not None:
        plot(found, options.plot)
    print_results(found)
    return 0


def choose(kind: str, names: Sequence[str], valid: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """Return the names, each once, or refuse one that does not exist."""
    for name in names:
        if name not in valid:
            parser.error(f"there is no {kind} {name!r}; choose from {', '.join(valid)}")
    return list(dict.fromkeys(names))


READ = """Print the answer to a question: reimpl read "what does dampening do". Or a class's source beside torch's, step
by step: reimpl read optim.SGD. Or which of torch's functions have changed since the documentation was written: reimpl
read drift (exit status 1 if one has)."""


def add_read(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `reimpl read`."""
    parser.add_argument("what", nargs="+", metavar="WORD", help="a question, a class such as optim.SGD, or: drift")


def run_read(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Carry out `reimpl read`."""
    try:
        from reimpl.read import show
    except ModuleNotFoundError as error:
        parser.error(f"what is read is shown by rich: pip install 'reimpl[cli]' ({error})")
    what = " ".join(options.what)
    if what == "drift":
        found = list(changes())
        show.print_changes(found, TORCH_VERSION, kept()["torch"])
        return 1 if found else 0
    steps = beside(what)
    if steps:
        show.print_steps(what, steps)
        return 0
    if PATH.fullmatch(what):
        try:
            show.print_source(source(what if what.startswith(("reimpl.", "torch.")) else f"reimpl.{what}"))
            return 0
        except QuoteError as error:
            parser.error(f"there is no class or function {what!r}: {error}")
    answers = search(what)
    if not answers:
        parser.error(f"no question has the words of {what!r}")
    show.print_question(answers)
    return 0
