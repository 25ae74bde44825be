"""Measure fusion, frames, stalls, retrieval, memory, start, node and transport, against peers or floors in one run.

    semla bench                           # all, each at its usual size: long
    semla bench fusion stall --size tiny  # some of them, at one size
    semla bench frame --size b            # one B-size image: a minute or more
    semla bench start --against ../old    # that of another checkout, too
    semla bench engines                   # not in "all": all runtimes there are
    semla bench soak --frames 100000      # not in "all": endurance, resumes
    semla bench gpu                       # alone, on a GPU: see docs/gpu.md
    semla bench gpu --only parity stall   # some phases of it again

Models have random weights, except in engines, node, soak, start and stall at tiny size, which run the embedded
default: no weights need to be fetched. Writes summary.json, which keeps what earlier runs measured of other benchmarks,
and prints a table with the goals. Run it on a machine that does nothing else; the load before the run is in the table.

The soak is run in parts, raw and compressed images in turn. soak.json in the same folder has those that are done;
called again with the same settings after an interruption, it goes on with the next one.

Exit status: 0 whether or not a goal is met, except for the soak: 1 where the node did not hold, and for gpu: 1 where a
phase did not end or a goal is missed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from semla_ros.commands.options import Listed, add_library_option, output_folder
from semla_ros.errors import ConfigError, known_names
from semla_ros.resources import share_folder

NAMES = ("fusion", "frame", "stall", "retrieval", "memory", "start", "node", "transport")
NOT_IN_ALL = ("engines", "soak", "gpu")
_KNOWN = ", ".join((*NAMES, *NOT_IN_ALL))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `semla bench`."""
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all (default), or any of: {_KNOWN}")
    parser.add_argument("--size", choices=("toy", "tiny", "b", "l"), help="default: what each is usually measured at")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="of frames in stall, node and transport; default: %(default)g"
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="timed runs in fusion, frame, engines, start; default: %(default)s"
    )
    parser.add_argument("--compiled", action="store_true", help="in frame, also torch.compile; a minute or more")
    parser.add_argument("--adapters", type=int, default=10000, help="most adapters in retrieval; default: %(default)s")
    parser.add_argument("--frames", type=int, default=10000, help="images in soak; default: %(default)s")
    parser.add_argument("--part", type=int, default=5000, help="images in each part of soak; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of soak; default: %(default)s")
    parser.add_argument("--model", default="semla-tiny", help="for start, node and soak; default: %(default)s")
    add_library_option(parser)
    parser.add_argument("--against", type=Path, metavar="DIR", help="in start, another checkout to compare with")
    parser.add_argument("--dry", action="store_true", help="in gpu, try the phases out on the CPU at toy size")
    parser.add_argument("--only", action=Listed, metavar="PHASE", default=(), help="in gpu, run these phases again")
    parser.add_argument("--out", type=output_folder, default="out/bench", metavar="DIR", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print summary.json instead of tables")


def run(arguments: argparse.Namespace) -> int:
    """Run the benchmarks; see the module for the exit status."""
    names = _chosen(arguments.names)
    _import_bench()
    if "gpu" in names:
        if len(names) > 1:
            raise ConfigError("'gpu' has the GPU to itself: run the other benchmarks by a command of their own")
        from bench.gpu import run_acceptance

        return run_acceptance(arguments.out, is_dry=arguments.dry, only=tuple(arguments.only), is_json=arguments.json)
    from bench.run import run_benchmarks

    return run_benchmarks(names, arguments)


def _chosen(names: list[str]) -> tuple[str, ...]:
    unknown = [name for name in names if name not in (*NAMES, *NOT_IN_ALL, "all")]
    if unknown:
        raise ConfigError(f"unknown benchmark '{unknown[0]}'; {known_names(unknown[0], ('all', *NAMES, *NOT_IN_ALL))}")
    wanted = names or ["all"]
    return tuple(dict.fromkeys((*(NAMES if "all" in wanted else ()), *(name for name in wanted if name != "all"))))


def _import_bench() -> None:
    """Make the source tree's `bench` package importable; it is not part of the installed package."""
    folder = share_folder()
    if not (folder / "bench" / "__init__.py").is_file():
        raise ConfigError(f"the benchmarks are part of the source tree, and {folder} has none; run it from a checkout")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
