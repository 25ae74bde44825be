r"""Replay recorded bags through the pipeline, compare variants over the same frames, and report.

    semla replay out/demo-bag --out out/replay
    semla replay drive.mcap --topic /front/image_raw --truth masks/ \
      --compare base,uniform,semla,oracle:fog,frozen@12.5
    semla replay bags/ --out out/replays             # every bag below; resumes
    semla replay bags/ --out out/replays --ray auto  # the same on a Ray cluster

Reads rosbag2 (mcap and sqlite3, compressed or not) without ROS. Writes report.html, summary.json, trace.jsonl and the
masks as a new bag; the same bag and options give the same masks and trace, byte for byte.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from semla_ros.commands.options import (
    Listed,
    add_library_option,
    add_model_options,
    add_view_options,
    output_folder,
    rerun_target,
    view_settings,
)
from semla_ros.commands.tables import print_table
from semla_ros.config import InferenceConfig, SemlaConfig
from semla_ros.errors import ConfigError, counted
from semla_ros.lab.bags.frames import FrameOptions
from semla_ros.lab.bags.label_map import read_label_map
from semla_ros.lab.processes import terminate_like_interrupt
from semla_ros.lab.replay.comparison import KNOWN, parse_variants
from semla_ros.lab.replay.many import TaskResult, find_bags, make_tasks, merge, run_tasks
from semla_ros.lab.replay.run import REPORT, SUMMARY, WORKLIST, Replay, ReplayOptions, write_json
from semla_ros.lab.report.many_page import write_many_report
from semla_ros.lab.report.progress import progress
from semla_ros.lab.report.replay_page import topic_lines, variant_table, worklist_table
from semla_ros.lab.report.terminal import terminal_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("bags", nargs="+", type=Path, metavar="BAG", help="bag folder or file, or a folder of bags")
    parser.add_argument("--out", type=output_folder, default="out/replay", metavar="DIR", help="results (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")

    what = parser.add_argument_group("what is replayed")
    what.add_argument("--topic", action="append", default=[], help="image topic, repeatable; default: found by type")
    what.add_argument(
        "--truth",
        action="append",
        default=[],
        metavar="TOPIC|DIR",
        help="ground truth: a label topic per image topic, a folder of <stamp in ns>.png, 'none'; default: found",
    )
    what.add_argument("--truth-tolerance", type=float, default=0.0, metavar="MS", help="stamps may differ by (0 ms)")
    what.add_argument(
        "--label-map", type=Path, metavar="FILE", help="YAML or JSON: pixel value of the truth -> class name"
    )
    what.add_argument("--segments", default="", metavar="TOPIC", help="String topic that names stretches of the bag")
    what.add_argument("--start", type=float, default=0.0, metavar="S", help="seconds after the bag's first message")
    what.add_argument("--duration", type=float, default=0.0, metavar="S", help="seconds; default: to the end")
    what.add_argument(
        "--assume-encoding", default="", metavar="NAME", help="what images are read as whose encoding leaves it open"
    )
    what.add_argument("--bits", type=int, default=0, metavar="N", help="bits of 16-bit samples; default: found")
    what.add_argument("--stride", type=int, default=1, metavar="N", help="every n-th image of each camera")
    what.add_argument("--max-frames", type=int, default=0, metavar="N", help="stop after N frames")

    how = parser.add_argument_group("how")
    how.add_argument(
        "--compare",
        action=Listed,
        default=["base", "semla"],
        metavar="NAME",
        help=f"variants: {', '.join(KNOWN)} (base,semla)",
    )
    how.add_argument(
        "--rate",
        choices=("max", "realtime", "live"),
        default="max",
        help="max: answer every frame; realtime: arrival times and latency count, the newest frame wins; live: play "
        "the bag to the real node over DDS, which needs ROS 2 (%(default)s)",
    )
    how.add_argument(
        "--scope",
        choices=("vehicle", "camera"),
        default="vehicle",
        help="one scene estimate for all cameras, or one each (%(default)s)",
    )
    add_model_options(how)
    add_library_option(how)
    how.add_argument(
        "--classes", action=Listed, default=[], metavar="NAME", help="vocabulary; default: the model's own"
    )
    add_view_options(how)
    how.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (%(default)s)")
    how.add_argument(
        "--threads",
        type=int,
        default=1,
        metavar="N",
        help="CPU threads per variant (%(default)s): with one, masks are the same whatever the machine's cores",
    )
    how.add_argument(
        "--through-node",
        action="store_true",
        help="let the real node answer, fed frame by frame over DDS (needs ROS 2)",
    )

    results = parser.add_argument_group("results")
    results.add_argument("--no-bag", action="store_true", help="do not write the masks as a bag")
    results.add_argument("--no-report", action="store_true", help="do not write report.html")
    results.add_argument("--video", action="store_true", help="write replay.mp4")
    results.add_argument(
        "--pictures", action="store_true", help="write contact_sheet.png and timeline.png, where there is truth"
    )
    results.add_argument(
        "--rerun",
        type=rerun_target,
        default="",
        metavar="FILE.rrd",
        help="for the Rerun viewer; or 'viewer', which is started, or the address of one (needs rerun-sdk)",
    )
    results.add_argument(
        "--propose-adapter", action="store_true", help="list the stretches that no adapter covers, with example frames"
    )

    many = parser.add_argument_group("many bags")
    many.add_argument("--jobs", type=int, default=0, metavar="N", help="bags at a time; default: one per core")
    many.add_argument("--ray", default="", metavar="ADDRESS", help="run on a Ray cluster: auto, local or host:port")
    many.add_argument("--fresh", action="store_true", help="replay bags again whose results are complete")


def run(arguments: argparse.Namespace) -> int:
    """Replay; 0, 1 where some bags failed, 130 after an interrupt."""
    options = read_options(arguments)
    bags = find_bags(arguments.bags)
    terminate_like_interrupt()  # it keeps what it has
    if len(bags) > 1 or arguments.ray:
        if arguments.rerun:
            raise ConfigError("--rerun takes one bag, without --ray")
        if arguments.through_node or options.rate == "live":
            raise ConfigError("through the node one bag is replayed, without --ray")
        return _run_many(arguments, bags, options)
    return _run_one(arguments, bags[0], options)


def read_options(arguments: argparse.Namespace) -> ReplayOptions:
    """The options of the command line, checked."""
    if arguments.threads < 0 or arguments.jobs < 0:
        raise ConfigError("--threads and --jobs must be at least 0")
    if arguments.through_node and arguments.rate != "max":
        raise ConfigError("--through-node waits for each mask; to play the bag to the node, give --rate live alone")
    inference = InferenceConfig(**view_settings(arguments), device=arguments.device, threads=arguments.threads)
    return ReplayOptions(
        frames=FrameOptions(
            topics=tuple(arguments.topic),
            truth=tuple(arguments.truth) or ("auto",),
            label_map=read_label_map(arguments.label_map) if arguments.label_map else {},
            truth_tolerance_ms=arguments.truth_tolerance,
            segment_topic=arguments.segments,
            start_s=arguments.start,
            duration_s=arguments.duration,
            stride=arguments.stride,
            max_frames=arguments.max_frames,
            assume_encoding=arguments.assume_encoding,
            bits=arguments.bits,
        ),
        compare=parse_variants(",".join(arguments.compare)),
        config=SemlaConfig(
            model=arguments.model,
            model_dir=arguments.model_dir,
            library=arguments.library,
            classes=tuple(arguments.classes),
            inference=inference,
        ),
        rate=arguments.rate,
        scope=arguments.scope,
        with_bag=not arguments.no_bag,
        with_video=arguments.video,
        with_pictures=arguments.pictures,
        with_report=not arguments.no_report,
        propose_adapter=arguments.propose_adapter,
    )


def _run_one(arguments: argparse.Namespace, bag: Path, options: ReplayOptions) -> int:
    console = Console(stderr=True)
    make_runner = None
    if arguments.through_node or options.rate == "live":
        make_runner = _node_runner(bag, options, arguments.out)
    with _rerun(arguments.rerun, options) as hooks, progress(console) as bars:
        replay = Replay(bag, arguments.out, options, make_runner=make_runner, **hooks)
        task = bars.add_task(f"replaying {bag.name}", total=None)
        summary = replay.run(lambda done, total: bars.update(task, completed=done, total=total))
    if arguments.json:
        print(json.dumps(summary, ensure_ascii=False))
    else:
        _print_summary(console, summary, arguments.out)
    if summary["interrupted"]:
        console.print("interrupted; the results are those of the frames done so far", style="yellow")
        return 130
    return 0


@contextmanager
def _rerun(target: str, options: ReplayOptions) -> Iterator[dict[str, Any]]:
    """What makes a replay write a Rerun recording as well; nothing without a target."""
    if not target:
        yield {}
        return
    from semla_ros.lab.replay.rerun_watch import RerunWatch
    from semla_ros.lab.report.rerun_log import RerunLog

    with closing(RerunLog(target)) as log:
        watch = RerunWatch(log, options.compare)
        yield {"load": watch.load, "watch": watch.watch}


def _node_runner(bag: Path, options: ReplayOptions, out: Path) -> Any:
    from semla_ros.lab.replay.live_node import make_runner

    return make_runner(bag, options, out)


def _run_many(arguments: argparse.Namespace, bags: Sequence[Path], options: ReplayOptions) -> int:
    console = Console(stderr=True)
    tasks = make_tasks(bags, arguments.out, options)
    arguments.out.mkdir(parents=True, exist_ok=True)
    results: list[TaskResult] = []
    is_interrupted = False
    with progress(console) as bars:
        bar = bars.add_task(f"replaying {counted(len(tasks), 'bag')}", total=len(tasks))

        def told(done: int, total: int, latest: TaskResult | None) -> None:
            bars.update(bar, completed=done, total=total)
            if latest is not None and latest.error:
                bars.console.print(f"{latest.bag}: {latest.error}", style="red", highlight=False, soft_wrap=True)

        try:
            results = run_tasks(
                tasks, jobs=arguments.jobs, ray_address=arguments.ray, resumes=not arguments.fresh, progress=told
            )
        except KeyboardInterrupt:
            is_interrupted = True
            results = [TaskResult(task.bag) for task in tasks]
    merged = merge(tasks, results)
    write_json(arguments.out / SUMMARY, merged)
    if options.propose_adapter:
        write_json(arguments.out / WORKLIST, {"stretches": merged["worklist"]})
    if options.with_report:
        write_many_report(arguments.out / REPORT, merged)
    if arguments.json:
        print(json.dumps(merged, ensure_ascii=False))
    else:
        _print_many(console, merged, arguments.out)
    if is_interrupted:
        console.print("interrupted; the same command goes on where it stopped", style="yellow")
        return 130
    return 0 if all(not result.error for result in results) else 1


def _print_summary(console: Console, summary: Mapping[str, Any], out: Path) -> None:
    table = variant_table(summary["variants"], summary["primary"], summary["reference"], rate=summary["rate"])
    print_table(terminal_table(table, without=["frames"]), console)
    for line in topic_lines(summary):
        console.print(line, highlight=False, soft_wrap=True)
    for problem in summary["problems"]:
        console.print(f"warning: {problem}", style="yellow", highlight=False, soft_wrap=True)
    if "worklist" in summary:
        _print_worklist(console, summary["worklist"])
    time = summary["time"]
    console.print(
        f"{counted(summary['frames'], 'frame')} in {time['wall_s']:.1f} s, reading and decoding "
        f"{time['read_decode_share']:.1%} of it, peak memory {time['peak_memory_mb']:.0f} MB",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"report: {out / REPORT if (out / REPORT).is_file() else out / SUMMARY}", highlight=False, soft_wrap=True
    )


def _print_worklist(console: Console, worklist: Sequence[Mapping[str, Any]]) -> None:
    if not worklist:
        console.print("every scene lay within the library: no adapter to propose", highlight=False)
        return
    console.print(
        f"{counted(len(worklist), 'stretch', 'stretches')} without an adapter, the most to gain first:", highlight=False
    )
    print_table(terminal_table(worklist_table(worklist, most=20), without=["length"]), console)


def _print_many(console: Console, merged: Mapping[str, Any], out: Path) -> None:
    table = variant_table(merged["variants"], merged["primary"], merged["reference"])
    print_table(terminal_table(table, without=["frames"]), console)
    failed = [entry for entry in merged["bags"] if not entry["complete"]]
    warned = sum(bool(entry["problems"]) for entry in merged["bags"])
    read = Counter(
        ", ".join(f"{camera['topic']} against {camera['truth'] or 'no truth topic'}" for camera in entry["cameras"])
        for entry in merged["bags"]
        if entry["cameras"]
    )
    for topics, count in read.most_common():
        console.print(f"images of {counted(count, 'bag')}: {topics}", highlight=False, soft_wrap=True)
    for entry in merged["bags"]:
        for topic in entry["topics"]:
            if topic["lost"]:
                messages = counted(topic["counted"], "message")
                words = f"{entry['bag']}: {topic['lost']} of {messages} of {topic['topic']} lost"
                console.print(words, style="yellow", highlight=False, soft_wrap=True)
    console.print(
        f"{counted(len(merged['bags']), 'bag')}, {len(failed)} not complete, {warned} with warnings; "
        f"report: {out / REPORT}",
        highlight=False,
        soft_wrap=True,
    )
    if merged.get("worklist"):
        _print_worklist(console, merged["worklist"])
