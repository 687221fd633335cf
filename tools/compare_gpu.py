"""What `compare_pytorch.py --device cuda` does: training steps of Tilework and PyTorch on one GPU.

Tilework's step is timed as a recorded step that is replayed, and launch by launch; it also makes its
batch from the data set in the GPU's memory, which PyTorch's, on a fixed batch, does not. It is timed
before and after PyTorch, so that a GPU that gets slower meanwhile shows.

All of PyTorch's sides run in one process, since starting one takes longer than measuring; with
cudnn.benchmark:

    eager, graph       f32, TF32 off (as Tilework computes); launch by launch, and as a CUDA graph
    nhwc graph         the same in channels_last
    tf32 graph         f32 in tensor cores (10 bits of mantissa)
    amp, amp graph     bf16 autocast, channels_last, fused SGD
    amp compile        the same network by torch.compile, mode reduce-overhead

The side that is ready soonest comes first, in every network, and torch.compile last; a side that takes
longer than --box seconds, compiling included, is ended, and at the end of --budget seconds the sides
that are left are skipped. Each result is written as it is measured, so that a process that is killed
leaves what it had. A ratio compares the fastest of each in f32 with TF32 off.

`--device emulated` rehearses that without a GPU: PyTorch then runs on the CPU, without graphs, and the
times mean nothing.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True

# name: words that say how the step is made.
SIDES = {"eager": (), "graph": ("graph",), "nhwc graph": ("nhwc", "graph"), "tf32 graph": ("tf32", "graph"), "amp": ("nhwc", "amp"), "amp graph": ("nhwc", "amp", "graph"), "amp compile": ("nhwc", "amp", "compile")}
OURS = ("replayed", "launched")
F32 = ("eager", "graph", "nhwc graph")


class OutOfTime(Exception):
    """A side has used up its time."""


def make(how, device, name, batch):
    """A training step of a recipe's network, ready to be called."""
    import torch
    from torch.nn import functional as F

    import networks

    torch.manual_seed(0)
    layers, size = networks.RECIPES[name][0], networks.SIZES.get(name, 32)
    shape = (3, size, size)
    net = networks.build(layers, shape).to(device)
    with torch.no_grad():
        classes = net.eval()(torch.zeros(1, *shape, device=device)).shape[1]
    net.train()
    x, labels = torch.randn(batch, *shape, device=device), torch.randint(0, classes, (batch,), device=device)
    if "nhwc" in how:
        net, x = net.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    fused = "amp" in how and device == "cuda"
    if name in networks.ADAM:
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=fused, capturable="graph" in how)
    else:
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, fused=fused)
    if "compile" in how:
        # Nothing of an earlier network, whose other batch size would make this one's size a variable.
        torch.compiler.reset()
        net = torch.compile(net, mode="reduce-overhead", dynamic=False)

    def step():
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled="amp" in how):
            loss = F.cross_entropy(net(x), labels)
        loss.backward()
        optimizer.step()

    if "graph" not in how:
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


def timed(step, device, steps):
    """Seconds of one of so many steps in a row: on a GPU they are queued, and its own clock counts."""
    import torch

    if device != "cuda":
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


def several(step, device, limit, at_least):
    times, start = [], time.perf_counter()
    while len(times) < at_least or time.perf_counter() - start < limit:
        times.append(timed(step, device, 20 if device == "cuda" else 1))
    return times


def worker(args):
    """Prints a JSON line for each side of each job: its median seconds, or why there are none."""
    start = time.monotonic()
    say = lambda **line: print(json.dumps(line), flush=True)

    def ring(*_):
        raise OutOfTime

    signal.signal(signal.SIGALRM, ring)
    import torch

    import networks

    device = args["device"]
    torch.backends.cudnn.benchmark = True
    about = {"torch": torch.__version__}
    if device == "cuda":
        about |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    say(about=about)
    for side, how in SIDES.items():
        for name, given in args["jobs"]:
            result = {"network": name, "given": given, "batch": given or networks.RECIPES[name][1], "side": side}
            left = min(args["box"], args["budget"] - (time.monotonic() - start))
            if "graph" in how and device != "cuda":
                say(**result, failed="needs a GPU")
                continue
            if left < 1:
                say(**result, failed="skipped: the time is used up")
                continue
            began = time.monotonic()
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = "tf32" in how
            # Again and again: compilers catch what they do not expect, and go on.
            signal.setitimer(signal.ITIMER_REAL, left, 2)
            try:
                step = make(how, device, name, result["batch"])
                several(step, device, args["warm_up"], 3)
                result["seconds"] = statistics.median(several(step, device, args["seconds"], 5))
            except Exception as e:  # Whatever a side fails by must not cost the others' results.
                signal.setitimer(signal.ITIMER_REAL, 0)
                late = time.monotonic() - began >= left
                result["failed"] = f"ended after {left:.0f} s" if late else f"{type(e).__name__}: {e}".split("\n")[0]
            signal.setitimer(signal.ITIMER_REAL, 0)
            say(**result, took=round(time.monotonic() - began, 1))
            step = None
    # At once: a compiler that was ended would keep the interpreter from ending.
    os._exit(0)


def theirs(jobs, args):
    """What the worker printed, line by line; also of one that had to be killed."""
    device = "cuda" if args.device == "cuda" else "cpu"
    about = {"jobs": jobs, "device": device, "seconds": args.seconds, "warm_up": args.warm_up, "box": args.box, "budget": args.budget}
    command = [sys.executable, __file__, json.dumps(about)]
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    # A grace beyond the budget for what no alarm can end. Its compilers' processes go with it.
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, start_new_session=True)
    lines, ended = [], ""
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(child.pid, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, args.budget + 10)
    try:
        for text in child.stdout:
            if text.startswith("{"):
                lines.append(json.loads(text))
                if "side" in lines[-1]:
                    print(describe(lines[-1]), flush=True)
    finally:
        code = child.wait()
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    if code:
        ended = f"PyTorch's process ended with status {code}"
        print(ended, flush=True)
    return lines, ended


def title(name, batch):
    return f"{name} at batch {batch}" if batch else name


def describe(line):
    what = f"{title(line['network'], line['given'])}, {line['side']}"
    return f"{what}: {line['seconds'] * 1e3:.3f} ms" if "seconds" in line else f"{what}: {line['failed']}"


def compare(jobs, measure_ours, args):
    """Measures pairs of a network and a batch size, and prints it as it comes; a batch of 0 is the recipe's.
    `measure_ours(names, batch)` gives seconds by network and side."""
    batches = {batch: [name for name, b in jobs if b == batch] for _, batch in jobs}
    entries = {title(*job): {"seconds": {}, "failed": {}} for job in jobs}
    rounds = []

    def ours():
        rounds.append({})
        for batch, names in batches.items():
            for name, seconds in measure_ours(names, batch).items():
                rounds[-1][title(name, batch)] = seconds
                best = entries[title(name, batch)]["seconds"]
                for side, value in seconds.items():
                    print(f"{title(name, batch)}, {side}: {value * 1e3:.3f} ms", flush=True)
                    # The better of the two rounds; both are in the file.
                    best[side] = min(value, best.get(side, value))

    ours()
    lines, ended = theirs(jobs, args)
    ours()
    result = {"device": args.device, "ours": rounds, "networks": entries, "ended": ended}
    for line in lines:
        result |= line.get("about", {})
        if "side" in line:
            kind, value = ("seconds", line["seconds"]) if "seconds" in line else ("failed", line["failed"])
            entries[title(line["network"], line["given"])][kind][line["side"]] = value
    for entry in entries.values():
        mine, f32 = ([entry["seconds"][side] for side in sides if side in entry["seconds"]] for sides in (OURS, F32))
        entry["ratio"] = min(f32) / min(mine) if mine and f32 else None
    return result


def report(result):
    """A table: a row for each network, ms."""
    head = ["network", *OURS, *SIDES, "f32 / ours"]
    rows = [head]
    for what, entry in result["networks"].items():
        cells = [f"{entry['seconds'][side] * 1e3:.3f}" if side in entry["seconds"] else "-" for side in head[1:-1]]
        rows.append([what, *cells, f"{entry['ratio']:.2f}" if entry["ratio"] else "-"])
    print(f"\n{result.get('gpu', 'no GPU')}, PyTorch {result.get('torch')}; ms of a step; f32 / ours: PyTorch's fastest in f32 by our faster, above 1 we are faster\n")
    return rows


if __name__ == "__main__":
    worker(json.loads(sys.argv[1]))
