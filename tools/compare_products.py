"""Sets PyTorch's time of each matrix product of the recipes' networks, by cuDNN and cuBLAS, beside Tilework's on one GPU.

    TILEWORK_DEVICE=cuda cargo bench --bench products -- --noplot > products.log
    python tools/compare_products.py products.log --json products.json

The log's lines name the products: pass, sizes and type. PyTorch computes each in channels_last with cudnn.benchmark and
without TF32, one pass alone: a convolution's gradients by aten::convolution_backward with a mask of outputs. As on our side
the operands are as many copies as leave the L2 behind, the passes over all of them are one CUDA graph, and its replays are
timed by the GPU's clock. Each result is printed as it is measured; at the end of --budget seconds the rest is skipped.

`--device cpu` rehearses that without a GPU; the times mean nothing.
"""

import argparse
import json
import math
import re
import statistics
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True

LINE = re.compile(r"^ +(?:ok: )?=? ?(?:cuda|emulated)/products/(\w+)/(\w+) ((conv2d|linear) .+?): ([\d.]+) µs", re.M)
CONV = re.compile(r"conv2d \[(\d+), (\d+), (\d+), (\d+)\] to (\d+), (\d+)x(\d+), stride (\d+)x(\d+), pad (\d+)x(\d+)")
LINEAR = re.compile(r"linear \[(\d+), (\d+)\] to (\d+)")
MOST_SETS = 512
WORDS = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def measured(text):
    """What the bench's log says: type, pass, product and microseconds."""
    return [{"dtype": dtype, "pass": way, "product": product, "ours": float(us)} for dtype, way, product, _, us in LINE.findall(text)]


def passes(product, way, dtype, device):
    """Bytes of an operand set, and what makes a set: a function without arguments that computes the pass on numbers of its own."""
    import torch
    from torch.nn import functional as F

    like = {"device": device, "dtype": getattr(torch, WORDS[dtype])}
    if found := CONV.fullmatch(product):
        n, h, w, c, o, kh, kw, sh, sw, ph, pw = map(int, found.groups())
        ho, wo = (h + 2 * ph - kh) // sh + 1, (w + 2 * pw - kw) // sw + 1
        sizes = [(n, c, h, w), (o, c, kh, kw), (n, o, ho, wo)]
        mask = [way == "bwd_x", way == "bwd_w", False]

        def new():
            x, weights, gy = (torch.randn(size, **like).contiguous(memory_format=torch.channels_last) for size in sizes)
            if way == "fwd":
                return lambda: F.conv2d(x, weights, None, (sh, sw), (ph, pw))
            return lambda: torch.ops.aten.convolution_backward(gy, x, weights, None, (sh, sw), (ph, pw), (1, 1), False, (0, 0), 1, mask)
    else:
        n, inputs, outputs = map(int, LINEAR.fullmatch(product).groups())
        sizes = [(n, inputs), (outputs, inputs), (n, outputs)]

        def new():
            x, weights, gy = (torch.randn(size, **like) for size in sizes)
            ways = {"fwd": lambda: F.linear(x, weights), "bwd_x": lambda: gy @ weights, "bwd_w": lambda: gy.t() @ x}
            return ways[way]

    return sum(math.prod(size) for size in sizes) * torch.empty((), **like).element_size(), new


def microseconds(product, way, dtype, device, seconds):
    """The median time of the pass."""
    import torch

    size, new = passes(product, way, dtype, device)
    cache = torch.cuda.get_device_properties(0).L2_cache_size if device == "cuda" else 0
    sets = [new() for _ in range(min(max(math.ceil(2 * cache / size), 2), MOST_SETS))]
    kept = [one() for one in sets]  # the algorithm is chosen here
    del kept
    if device != "cuda":
        times = []
        for one in sets:
            start = time.perf_counter()
            one()
            times.append(time.perf_counter() - start)
        return statistics.median(times) * 1e6
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for one in sets[:3]:
            one()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for one in sets:
            one()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    graph.replay()
    times, start = [], time.perf_counter()
    while len(times) < 5 or time.perf_counter() - start < seconds:
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / len(sets) * 1e3)
    return statistics.median(times)


def summary(results):
    """For each type and pass how many products, in how many ours is at least as fast, and the mean ratio."""
    lines = []
    for dtype in WORDS:
        for way in ("fwd", "bwd_x", "bwd_w"):
            ratios = [r["theirs"] / r["ours"] for r in results if (r["dtype"], r["pass"]) == (dtype, way) and "theirs" in r]
            if ratios:
                mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
                lines.append({"what": f"{dtype} {way}", "products": len(ratios), "as_fast": sum(r >= 1 for r in ratios), "mean": mean, "least": min(ratios)})
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("log", type=Path, help="what the bench `products` printed")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a rehearsal")
    parser.add_argument("--seconds", type=float, default=0.05, help="of each measurement (default 0.05)")
    parser.add_argument("--budget", type=float, default=1e9, metavar="SECONDS", help="for all of them")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to FILE, as it comes")
    args = parser.parse_args()
    if not args.log.is_file():
        sys.exit(f"{args.log} is not there: redirect the bench's output to it")
    results = measured(args.log.read_text(errors="replace"))
    if not results:
        sys.exit(f"{args.log} has no line of the bench `products`, such as `= cuda/products/f16/fwd linear [4, 400] to 120: 2.10 µs`")
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} finds no GPU: --device cpu rehearses without one")
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    about = {"torch": torch.__version__}
    if args.device == "cuda":
        about |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    start = time.monotonic()
    for i, result in enumerate(results):
        if time.monotonic() - start > args.budget:
            print(f"skipped: {len(results) - i} products, as the time is used up", flush=True)
            break
        what = f"{result['dtype']} {result['pass']} {result['product']}"
        try:
            result["theirs"] = microseconds(result["product"], result["pass"], result["dtype"], args.device, args.seconds)
        except Exception as e:  # What PyTorch cannot do must not cost the others.
            result["failed"] = f"{type(e).__name__}: {e}".split("\n")[0]
            print(f"{what}: {result['failed']}", flush=True)
            continue
        print(f"{what}: {result['ours']:.2f} µs, PyTorch {result['theirs']:.2f}: {result['theirs'] / result['ours']:.2f}", flush=True)
        if args.json:
            args.json.write_text(json.dumps({**about, "products": results}, indent=1) + "\n")
    print("\nPyTorch's time / ours, geometric means; above 1 we are faster\n")
    for line in summary(results):
        print(f"{line['what']:10}  {line['products']:3} products, {line['as_fast']:3} at least as fast, mean {line['mean']:.2f}, least {line['least']:.2f}")
    if args.json:
        args.json.write_text(json.dumps({**about, "products": results, "summary": summary(results)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
