"""Times training steps of Tilework and PyTorch side by side on this machine's CPU or GPU.

Install and run:

    pip install torch
    python tools/compare_pytorch.py                                 # a1-lenet and b1-bn-cnn
    python tools/compare_pytorch.py --networks all --rounds 3 --json compare.json
    python tools/compare_pytorch.py --device cuda                   # on the GPU
    python tools/compare_pytorch.py --device cuda --batch 256

A step is the same on both sides: gradients cleared, forward, cross-entropy, backward, one SGD update
with momentum 0.9, on one batch that stays in memory. Tilework is timed by its criterion bench
`train_step`; PyTorch twice, with images and weights in NCHW and in channels_last.

The sides take turns, one process per measurement, so that what else happens on the machine hits all
three alike; a measurement is the median of what fits in its seconds, and the table shows the median
of the rounds. A measurement during which other processes used the CPU is marked "!" and left out of
the median while there are others. Where all of a side's are disturbed, its median is marked too, and
the ratio means nothing: PyTorch's threads wait for each other at every op and lose far more than
their share when one of them is held up.

On a GPU, Tilework's step is timed as a recorded step that is replayed, and launch by launch; it also
makes its batch from the data set in the GPU's memory, which PyTorch's, on a fixed batch, does not.
PyTorch is timed in both layouts, launch by launch and as a CUDA graph, each with TF32 off (as
Tilework computes: in f32) and on (tensor cores, 10 bits of mantissa), with cudnn.benchmark. A ratio
compares the fastest of each with TF32 off. `--device emulated` rehearses that without a GPU: PyTorch
then runs on the CPU, and the times mean nothing.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True

ROOT = Path(__file__).resolve().parent.parent
LAYOUTS = {"nchw": "PyTorch NCHW", "channels_last": "PyTorch channels_last"}
CPU_SIDES = {"ours": "Tilework", **LAYOUTS}
WAYS = {"": "", "+graph": " graph", "+tf32": " TF32", "+graph+tf32": " graph TF32"}
CUDA_SIDES = {
    "replayed": "Tilework",
    "launched": "Tilework launched",
    **{layout + way: name + text for way, text in WAYS.items() for layout, name in LAYOUTS.items()},
}
OURS = ("ours", "replayed", "launched")
NAMES = ["a1-lenet", "b1-bn-cnn", "c1-fully-connected", "c2-conv", "c3-conv-padded", "c4-conv-bn", "c5-deep-conv-bn"]
BUSY = 0.1  # cores that others may use before a measurement counts as disturbed


def worker(args):
    """Prints the median seconds of PyTorch's training step for each side; runs in a process of its own."""
    import torch
    from torch.nn import functional as F

    import networks

    device, threads = torch.device(args["device"]), args["threads"]
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True
    layers, batch = networks.RECIPES[args["name"]]
    batch, shape = args["batch"] or batch, (3, 32, 32)

    def make(side):
        """A step of that side, ready to be called."""
        layout, *ways = side.split("+")
        torch.manual_seed(0)
        net = networks.build(layers, shape).to(device)
        x, labels = torch.randn(batch, *shape, device=device), torch.randint(0, 10, (batch,), device=device)
        if layout == "channels_last":
            net, x = net.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)

        def step():
            optimizer.zero_grad()
            F.cross_entropy(net(x), labels).backward()
            optimizer.step()

        if "graph" not in ways:
            return step
        # As PyTorch's notes on graphs have it: a few steps on another stream, then the capture.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay

    def timed(step, steps):
        """Seconds of one of so many steps in a row: on a GPU they are queued, and its own clock counts."""
        if device.type != "cuda":
            start = time.perf_counter()
            for _ in range(steps):
                step()
            return (time.perf_counter() - start) / steps
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(steps):
            step()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / steps * 1e-3

    def several(step, limit, at_least):
        times, start = [], time.perf_counter()
        while len(times) < at_least or time.perf_counter() - start < limit:
            times.append(timed(step, 20 if device.type == "cuda" else 1))
        return times

    seconds, failed = {}, {}
    for side in args["sides"]:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = side.endswith("+tf32")
        try:
            step = make(side)
            several(step, args["warm_up"], 3)
            seconds[side] = statistics.median(several(step, args["seconds"], 5))
        except RuntimeError as e:
            failed[side] = f"{e}".split("\n")[0]
    result = {"seconds": seconds, "failed": failed, "torch": torch.__version__}
    if device.type == "cuda":
        result |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    print(json.dumps(result))


def busy_seconds():
    """CPU seconds that all processes have used since boot; None where /proc does not tell."""
    try:
        fields = [int(f) for f in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    except (OSError, ValueError):
        return None
    idle = fields[3] + fields[4]
    return (sum(fields[:8]) - idle) / os.sysconf("SC_CLK_TCK")


def watched(command, env):
    """Runs a command; gives its output and how many cores other processes kept busy meanwhile."""
    own = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    cpu, used, start = busy_seconds(), own(), time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    if cpu is None:
        return done.stdout, 0.0
    others = busy_seconds() - cpu - (own() - used)
    return done.stdout, max(0.0, others / (time.monotonic() - start))


def wait_for_quiet(limit):
    """Returns when the machine has idled for a second, or after `limit` seconds."""
    start, quiet = time.monotonic(), 0
    while quiet < 4 and time.monotonic() - start < limit:
        before = busy_seconds()
        time.sleep(0.25)
        quiet = quiet + 1 if before is None or busy_seconds() - before <= 0.25 * BUSY else 0


def build_bench():
    """Builds the bench and gives the path of its executable."""
    command = ["cargo", "bench", "--bench", "train_step", "--no-run", "--message-format=json"]
    print("building:", " ".join(command), file=sys.stderr)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit("the bench does not build; see cargo's message above")
    for line in done.stdout.splitlines():
        message = json.loads(line) if line.startswith("{") else {}
        if message.get("reason") == "compiler-artifact" and message["target"]["name"] == "train_step" and message.get("executable"):
            return message["executable"]
    sys.exit("cargo built no executable for the bench train_step")


def available(bench, args):
    """Names of the networks that the bench times."""
    env = {**os.environ, "TILEWORK_DEVICE": args.device}
    done = subprocess.run([bench, "--bench", "--list"], cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"the bench does not run:\n{done.stdout}{done.stderr}")
    lines = [line.removesuffix(": benchmark") for line in done.stdout.splitlines()]
    return {line.removeprefix(group(args)).split("/")[0] for line in lines if line.startswith(group(args))}


def group(args):
    """What the ids of the bench's measurements begin with."""
    return "train_step/" if args.device == "cpu" else f"{args.device}/train_step/"


def measure_ours(bench, name, sides, args):
    """Seconds by side, and the cores that others kept busy meanwhile."""
    ids = {side: name if side == "ours" else f"{name}/{side}" for side in sides}
    with tempfile.TemporaryDirectory(prefix="compare_pytorch.") as home:
        options = ["--warm-up-time", args.warm_up, "--measurement-time", args.seconds, "--sample-size", 20, "--noplot"]
        env = {"CRITERION_HOME": home, "RAYON_NUM_THREADS": str(args.threads), "TILEWORK_DEVICE": args.device}
        if args.batch:
            env["TILEWORK_BATCH_SIZE"] = str(args.batch)
        pattern = f"^{group(args)}({'|'.join(ids.values())})$"
        _, others = watched([bench, "--bench", pattern, *map(str, options)], env)
        seconds = {}
        for side, id in ids.items():
            # Criterion turns the slashes of the group's name into underscores.
            estimates = Path(home, group(args)[:-1].replace("/", "_"), id, "new", "estimates.json")
            if not estimates.exists():
                sys.exit(f"the bench left no {estimates.relative_to(home)}: does it still time {group(args)}{id}?")
            seconds[side] = json.loads(estimates.read_text())["median"]["point_estimate"] * 1e-9
        return seconds, others


def measure_theirs(sides, name, args):
    about = {"name": name, "sides": sides, "device": "cuda" if args.device == "cuda" else "cpu"}
    about |= {key: getattr(args, key) for key in ("batch", "seconds", "warm_up", "threads")}
    command = [sys.executable, __file__, "--worker", json.dumps(about)]
    out, others = watched(command, {"OMP_NUM_THREADS": str(args.threads)})
    return json.loads(out.splitlines()[-1]), others


def turns(sides, number):
    """Who is measured together, in this round's order: on a CPU each side in a process of its own; on a
    GPU, where starting a process takes longer than measuring, all of PyTorch's in one."""
    order = sides[number % len(sides) :] + sides[: number % len(sides)]
    if "ours" in order or len(order) <= 2:
        return [[side] for side in order]
    ours, theirs = [s for s in order if s in OURS], [s for s in order if s not in OURS]
    return [t for t in ([ours, theirs] if number % 2 else [theirs, ours]) if t]


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(rows):
    """Left-aligned first column, right-aligned others."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))]) for row in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", default="a1-lenet,b1-bn-cnn", help=f"comma-separated, or all: {', '.join(NAMES)}")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each side (default 5)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(), help="threads for both (default: the cores)")
    parser.add_argument("--device", choices=["cpu", "cuda", "emulated"], default="cpu", help="where both compute (default cpu)")
    parser.add_argument("--batch", type=int, metavar="N", help="images per step (default: the recipe's); on a CUDA device")
    parser.add_argument("--bench", type=Path, metavar="FILE", help="the bench train_step, built already (default: built by cargo)")
    parser.add_argument("--seconds", type=float, help="length of a measurement (default 3, on a GPU 1)")
    parser.add_argument("--warm-up", type=float, help="seconds before each measurement (default 1, on a GPU 0.5)")
    parser.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="wait up to so long before each measurement until the machine is idle (default 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to FILE")
    args = parser.parse_args()
    if args.rounds < 1 or args.threads < 1:
        parser.error("--rounds and --threads must be at least 1")
    if args.batch is not None and (args.batch < 1 or args.device == "cpu"):
        parser.error("--batch must be at least 1, and needs --device cuda")
    seconds, warm_up = (3.0, 1.0) if args.device == "cpu" else (1.0, 0.5)
    args.seconds = args.seconds or seconds
    args.warm_up = args.warm_up or warm_up
    names = NAMES if args.networks == "all" else args.networks.split(",")
    if unknown := [n for n in names if n not in NAMES]:
        parser.error(f"unknown network {', '.join(unknown)}; there are {', '.join(NAMES)}")

    bench = args.bench.resolve() if args.bench else build_bench()
    timed = available(bench, args)
    all_sides = CPU_SIDES if args.device == "cpu" else CUDA_SIDES if args.device == "cuda" else {s: CUDA_SIDES[s] for s in ("replayed", "launched", *LAYOUTS)}
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"warning: the load average is {load:.2f}: something else is running (or just was: the build); the times may not hold")

    result = {"device": args.device, "processor": processor(), "threads": args.threads, "seconds": args.seconds, "batch": args.batch, "load_at_start": load, "networks": {}}
    disturbed, failed = 0, {}
    for name in names:
        sides = [s for s in all_sides if s not in OURS or name in timed]
        rounds = []
        for number in range(args.rounds):
            row = {}
            for turn in turns(sides, number):
                wait_for_quiet(args.wait)
                if turn[0] in OURS:
                    seconds, others = measure_ours(bench, name, turn, args)
                else:
                    theirs, others = measure_theirs(turn, name, args)
                    seconds, failed = theirs.pop("seconds"), failed | theirs.pop("failed")
                    result |= theirs
                row |= {side: {"seconds": s, "others": others} for side, s in seconds.items()}
                disturbed += others > BUSY
            rounds.append(row)
            cells = [f"{all_sides[s]} {row[s]['seconds'] * 1e3:.3f}{'!' if row[s]['others'] > BUSY else ''}" for s in sides if s in row]
            print(f"{name} round {number + 1}: {', '.join(cells)} ms", flush=True)
        median, doubtful = {}, []
        for side in sides:
            there = [r[side] for r in rounds if side in r]
            calm = [m["seconds"] for m in there if m["others"] <= BUSY]
            if there:
                median[side] = statistics.median(calm or [m["seconds"] for m in there])
                doubtful += [] if calm else [side]
        result["networks"][name] = {"rounds": rounds, "median": median, "doubtful": doubtful}

    rows = [["network", "batch", *all_sides.values(), "PyTorch's fastest / ours"]]
    import networks

    for name, entry in result["networks"].items():
        median, mark = entry["median"], {s: "!" if s in entry["doubtful"] else "" for s in all_sides}
        ours = [median[s] for s in OURS if s in median]
        theirs = [seconds for s, seconds in median.items() if s not in OURS and "tf32" not in s]
        entry["ratio"] = min(theirs) / min(ours) if ours and theirs else None
        cells = [f"{median[s] * 1e3:.3f} ms{mark[s]}" if s in median else "failed" if s in failed else "not in the bench" for s in all_sides]
        ratio = f"{entry['ratio']:.2f}{'!' * bool(entry['doubtful'])}" if entry["ratio"] else "-"
        rows.append([name, str(args.batch or networks.RECIPES[name][1]), *cells, ratio])
    place = result.get("gpu", f"{result['processor']}, {args.threads} threads")
    print(f"\n{place}, PyTorch {result.get('torch')}; step time, median of {args.rounds} rounds; above 1 we are faster\n")
    if args.device != "cpu":
        # More columns than a terminal has.
        rows = [list(row) for row in zip(*rows)]
    print(table(rows))
    for side, why in failed.items():
        print(f"\n{all_sides[side]} failed: {why}")
    result["failed"] = failed
    if disturbed:
        print(f"\nwarning: {disturbed} measurements (!) while other processes used the CPU: run again on a quiet machine before quoting")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(json.loads(sys.argv[2]))
    else:
        main()
