"""Command: run folders -> a web page, a file with all of it, or the comparison of two runs.

python -m distill.dashboard RUNS [RUNS ...] [--port P]        # serves every run below these folders, to this machine
python -m distill.dashboard RUNS --export FILE.html           # writes one file that opens anywhere, without a server
python -m distill.dashboard --compare A B [--tolerance T]     # run B minus run A; exit status for CI
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from distill.dashboard.api import Api
from distill.dashboard.compare import check
from distill.dashboard.export import export
from distill.dashboard.server import Server

PORT = 6116


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0. Of a comparison: 0 B is not shown to be worse, 1 it is, 2 they cannot be compared. 2 also where
    there is no run, the file cannot be written, or the port is taken."""
    arguments = parse(argv)
    if arguments.compare:
        text, status = check(*arguments.compare, tolerance=arguments.tolerance)
        print(text)
        return status
    api = Api(arguments.runs)
    try:
        if missing := [str(root) for root in arguments.runs if not root.is_dir()]:
            raise ValueError(f"{', '.join(missing)} is not a folder; give the folder that holds the runs")
        if arguments.export:
            if not api.known():
                raise ValueError(f"{arguments.runs[0]} holds no run: no summary.json, metrics.jsonl or recipe.yaml")
            export(api, arguments.export, say=lambda text: print(text, file=sys.stderr))
            print(f"{arguments.export}: {arguments.export.stat().st_size / 1e6:.1f} MB")
        else:
            serve(api, arguments.port)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m distill.dashboard", description="Runs as a web page.")
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUNS", help="a folder, in which runs are looked for")
    parser.add_argument("--port", type=int, default=PORT, help=f"on the loopback interface (default {PORT}; 0: any)")
    parser.add_argument("--export", type=Path, metavar="FILE.html", help="write one file instead of serving")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"), help="two run folders; B minus A")
    parser.add_argument("--tolerance", type=float, default=0.0, help="loss in r2c that --compare lets pass (default 0)")
    arguments = parser.parse_args(argv)
    if bool(arguments.runs) == bool(arguments.compare):
        parser.error("give RUNS, or --compare A B")
    return arguments


def serve(api: Api, port: int) -> None:
    """Until it is interrupted."""
    with Server(api, port) as server:
        print(f"{len(api.known())} runs at {server.address} (end with Ctrl-C)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    sys.exit(main())
