#!/usr/bin/env python3
"""Makes random mutants of the CUDA kernels and counts those that the tests kill.

    tools/mutate.py --seed 1 --count 100             a campaign
    tools/mutate.py --seed 1 --count 100 --only 7,12 some of its mutants again
    tools/mutate.py --seed 1 --count 20 --files conv2d.cu,conv2d.cuh      of these files alone

A mutant is one small change in kernels/*.cu or *.cuh: a barrier removed, a bound moved by one, an
index swapped, an accumulator not cleared, a wrong stride. The tests' executables are built once; for
each mutant the kernel files that contain the change are compiled as build.rs does, plain and checked,
and linked in front of the crate, so that their symbols win. A test that fails, crashes or hangs kills
the mutant. Not counted are mutants that no compiler accepts, and those of which the compiler makes the
same code as of the original (trivial compiler equivalence, Papadakis et al. 2015).
Needs g++ or clang++ ($CXX) and Python alone.
"""
import argparse, json, os, random, re, shutil, signal, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "kernels"
# The parts of each test, in the order in which a mutant meets them: the quickest first.
PARTS = {
    "device": ["clusters", "wgmma", "kernels", "fused", "pools", "half", "kernels_beyond", "precision", "training", "accesses"],
    "lib": ["ops"],
}
TARGETS = {"device": ["--profile", "dev", "--test", "device"], "lib": ["--profile", "test", "--lib"]}
# Where nothing looks at the output: a chain of multiply-adds that only takes time.
BLIND = {"ceiling.cu": "__global__ void __launch_bounds__(256) ceiling_multiply_add"}
# What a GPU alone compiles; the emulated device has another text of it.
GPU_ALONE = ["wgmma.cuh"]
# What is easily mistaken for each other.
PAIRS = """h w,ho wo,kh kw,sh sw,ph pw,r s,row col,row column,rows cols,rows columns,rows c,p q,x y,m n,i k,i j,
    TM TN,BM BN,m0 n0,a b,p0 p1,q0 q1,r0 s0,row0 col0,first last,lane row,inputs outputs,n c,k kk,line k,av bv,
    a_k b_k,a_line b_line,as bs,mean inv_std,gamma beta,gy gyx,b1 b2,c1 c2,c2 c3,p0 p1,k0 k1,step splits,c o,
    at bt,image h,strip width,size splits,keep take,n m2,lanes step,tile chunk,group lanes"""
PARTNERS = {}
for pair in PAIRS.split(","):
    one, other = pair.split()
    PARTNERS.setdefault(one, set()).add(other)
    PARTNERS.setdefault(other, set()).add(one)


def code_of(name, text):
    """The text with all that is no code of a kernel blanked out, positions kept."""
    blank = lambda m: re.sub(r"[^\n]", " ", m.group())
    code = re.sub(r"//[^\n]*|/\*.*?\*/|\"[^\"\n]*\"", blank, text, flags=re.S)
    # What the emulated device does not compile: what stands behind an #else, with all conditions in it.
    depth, hidden, lines = 0, 0, code.split("\n")
    for i, line in enumerate(lines):
        depth += line.startswith("#if")
        if line.startswith("#else"):
            hidden = hidden or depth
        if line.startswith("#endif"):
            hidden = 0 if hidden == depth else hidden
            depth -= 1
        elif hidden:
            lines[i] = " " * len(line)
    code = "\n".join(lines)
    code = re.sub(r"^[ \t]*#(?!define FOR_EACH)[^\n]*", blank, code, flags=re.M)
    # What the host and the driver read, not the kernel; and what changes its time alone.
    code = re.sub(r"\b(LATENCY|SPEED|STAGES|DEPTH|BLOCKS) = [^;,}]+", blank, code)
    code = re.sub(r"struct \w+Dims \{.*?\};|struct Step \{.*?\};", blank, code, flags=re.S)
    code = re.sub(r"__launch_bounds__\([^)]*\)|static_assert\([^;]*;|template <[^>]*>|typedef [^;]*;", blank, code)
    if name in BLIND:
        start = text.index(BLIND[name])
        code = code[:start] + blank(re.match(r".*", code[start:], re.S))
    return code


def matching(code, start):
    """The position after the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(code)):
        depth += (code[i] == "(") - (code[i] == ")")
        if depth == 0:
            return i + 1
    return None


def sites(code, text):
    """All mutations of a file, by operator: (start, end, replacement)."""
    out = {}

    def add(operator, start, end, new):
        if text[start:end] != new:
            out.setdefault(operator, []).append((start, end, new))

    def each(operator, pattern, *news):
        for m in re.finditer(pattern, code):
            for new in news:
                new = new(m) if callable(new) else new
                for one in new if isinstance(new, (list, tuple)) else [new]:
                    add(operator, *m.span(), one)

    each("barrier removed", r"__syncthreads\(\);", ";")
    moved = {"<": "<=", ">": ">=", "<=": "<", ">=": ">", "==": "!=", "!=": "=="}
    each("comparison", r"(?<= )(<=|>=|<|>|==|!=)(?= )", lambda m: moved[m.group()])
    for m in re.finditer(r"(?<= )(?:<|<=|>=|>) ([^;,&|?{}]+?)(?=;| &&| \|\||\)+ |\) *$| \?)", code, re.M):
        start, end = m.span(1)
        if code[start:end].count("(") == code[start:end].count(")"):
            add("bound moved by one", start, end, f"({m.group(1)} - 1)")
            add("bound moved by one", start, end, f"({m.group(1)} + 1)")
    each("number off by one", r"(?<![\w.])\d+(?![\w.])", lambda m: [str(int(m.group()) + 1), str(int(m.group()) - 1)])
    each("name swapped", r"\b[A-Za-z_]\w*\b(?! \w|\()", lambda m: sorted(PARTNERS.get(m.group(), ())))
    start_value = r"(?<=[\w\])]) = (0\.0f|0\.0|0|\{\})(?=[;,])"
    each("start value", start_value, lambda m: [""] if m[1] == "{}" else [" = 1" + m[1][1:]] + ["", ' = nanf("")'] * ("." in m[1]))
    each("operator", r"(?<= )[*/%+-](?= )", lambda m: {"*": "+", "/": "*", "%": "/", "+": "-", "-": "+"}[m.group()])
    fields = sorted({f for m in re.finditer(r"\bd\.(\w+)", code) for f in [m[1]]})
    each("other size", r"(?<=\bd\.)\w+\b(?!\()", lambda m: [f for f in fields if f != m.group()])
    each("stride", r"\b(blockDim|gridDim)\.[xyz]", lambda m: [f"({m.group()} - 1)", f"({m.group()} + 1)"])
    each("assignment", r"(?<= )[+*/-]=(?= )", lambda m: {"+=": ["=", "-="]}.get(m.group(), ["="]))
    each("and for or", r"&&|\|\|", lambda m: {"&&": "||", "||": "&&"}[m.group()])
    each("min for max", r"\b(f?)(min|max)(f?)(?=\()", lambda m: m[1] + {"min": "max", "max": "min"}[m[2]] + m[3])
    for m in re.finditer(r"\bif (?:constexpr )?(?=\()", code):
        end = matching(code, m.end())
        if end:
            add("condition negated", m.end(), end, f"(!{text[m.end():end]})")
            guard = re.match(r" (return|continue)\b[^;]*;", code[end:])
            if guard:
                add("guard removed", m.start(), end + guard.end(), ";")
    return out


def draw(seed, count, files):
    """The mutants of a campaign: (file, operator, start, end, replacement). A file's share is that of its code."""
    rng = random.Random(seed)
    texts = {p.name: p.read_text() for p in sorted(KERNELS.glob("*.cu*"))}
    codes = {n: code_of(n, t) for n, t in texts.items()}
    table = {n: sites(codes[n], texts[n]) for n in texts}
    names = [n for n in texts if table[n] and n not in GPU_ALONE and (not files or n in files)]
    weights = [len(re.sub(r"\s", "", codes[n])) for n in names]
    seen, drawn = set(), []
    while len(drawn) < count:
        name = rng.choices(names, weights)[0]
        operators = sorted(table[name])
        # Barriers and the like are few, and matter: the operator is drawn before the place.
        operator = rng.choices(operators, [min(len(table[name][o]), 12) for o in operators])[0]
        mutant = (name, operator, *rng.choice(table[name][operator]))
        if mutant not in seen:
            seen.add(mutant)
            drawn.append(mutant)
    return texts, drawn


LINKER = """#!/usr/bin/env python3
import json, os, shutil, sys
folder = os.environ["MUTATE_LINK"]
kept = []
for i, arg in enumerate(sys.argv[1:]):
    # The test's own objects are gone after the link.
    if os.path.isfile(arg) and not arg.endswith((".rlib", ".so")):
        arg = shutil.copy(arg, os.path.join(folder, f"{i}_" + os.path.basename(arg)))
    kept.append(arg)
json.dump(kept, open(os.path.join(folder, "args.json"), "w"))
os.execvp("cc", ["cc"] + sys.argv[1:])
"""


def build(work, target):
    """Builds a test, keeping how it is linked: the link line, and where build.rs left its files."""
    linker = work / "cc"
    linker.write_text(LINKER)
    linker.chmod(0o755)
    folder = work / f"link-{target}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    command = ["cargo", "rustc", "--quiet", *TARGETS[target], "--message-format=json", "--"]
    # The extra number makes cargo link again although nothing has changed.
    command += ["-C", f"linker={linker}", "-C", f"metadata=mutate{os.getpid()}"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "MUTATE_LINK": str(folder)}, stdout=subprocess.PIPE)
    if done.returncode != 0:
        sys.exit("the tests do not build")
    out = None
    for line in done.stdout.decode().splitlines():
        message = json.loads(line)
        folder_out = Path(message.get("out_dir") or "/")
        if message["reason"] == "build-script-executed" and list(folder_out.glob("conv2d_checked_*.cpp")):
            out = folder_out
    return json.loads((folder / "args.json").read_text()), out


class Bench:
    """Compiles, links and runs mutants."""

    def __init__(self, work, timeout):
        self.work, self.timeout = work, timeout
        built = {target: build(work, target) for target in TARGETS}
        self.lines, self.out = {target: line for target, (line, _) in built.items()}, built["device"][1]
        self.copy = work / "kernels"
        self.originals = {}
        cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        # As in build.rs, but for the columns of lines, which would tell equal codes apart.
        shim = ROOT / "src/device/emulator"
        self.flags = ["-O2", "-ffunction-sections", "-fdata-sections", "-fPIC", "-m64", "-std=c++17", "-w", "-g1", "-gno-column-info"]
        self.flags += ["-fno-strict-aliasing", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
        self.flags += ["-Werror=frame-larger-than=16384", "-DTILEWORK_EMULATED"]
        self.flags += [f"-I{shim}", f"-I{self.copy}"] + (["-mavx2", "-mfma"] if " fma" in cpu else [])
        self.checked = ["-O1", "-fsanitize=thread,alignment,bounds-strict", "--param=tsan-instrument-func-entry-exit=0"]
        self.compiler = os.environ.get("CXX", "g++")
        if "clang" in self.compiler:
            self.checked[1:] = ["-fsanitize=thread,alignment,bounds", "-mllvm", "-tsan-instrument-func-entry-exit=0"]
            strict = [self.compiler, "-fstrict-flex-arrays=3"]  # from version 16 on
            if subprocess.run([*strict, "-fsyntax-only", "-x", "c++", os.devnull], capture_output=True).returncode == 0:
                self.checked += strict[1:]

    def affected(self, name, texts):
        """The kernel files that a file is part of."""
        includes = {n: set(re.findall(r'#include "(\w+\.cuh)"', t)) for n, t in texts.items()}
        users = {name}
        while True:
            more = {n for n, i in includes.items() if i & users} | users
            if more == users:
                return sorted(n for n in users if n.endswith(".cu"))
            users = more

    def write(self, texts):
        """Writes the copy of the kernels."""
        shutil.rmtree(self.copy, ignore_errors=True)
        self.copy.mkdir()
        for name, text in texts.items():
            (self.copy / name).write_text(text)

    def objects(self, files):
        """Compiles kernel files of the copy, plain and checked; None if the compiler refuses."""

        def compiled(job):
            stem, kind = job
            cpp, obj = self.work / f"{stem}_{kind}.cpp", self.work / f"{stem}_{kind}.o"
            source = next(p for p in self.out.glob(f"{stem}_{kind}_*.cpp") if len(p.stem) == len(stem) + len(kind) + 18)
            cpp.write_text(source.read_text().replace(str(KERNELS), str(self.copy)))
            flags = self.flags + (self.checked if kind == "checked" else [])
            done = subprocess.run([self.compiler, *flags, "-c", str(cpp), "-o", str(obj)], capture_output=True)
            return obj if done.returncode == 0 else None

        jobs = [(name[:-3], kind) for name in files for kind in ["plain", "checked"]]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            made = list(pool.map(compiled, jobs))
        return None if None in made else made

    def remember(self, files, texts):
        """Compiles kernel files as they are, for comparison; each once."""
        if files := [f for f in files if f not in self.originals]:
            self.write(texts)
            codes = [obj.read_bytes() for obj in self.objects(files)]
            self.originals.update(zip(files, zip(codes[::2], codes[1::2])))

    def link(self, target, objects):
        """A test, linked with some objects in front."""
        program, args = self.work / f"run-{target}", list(self.lines[target])
        args[args.index("-o") + 1] = str(program)
        subprocess.run(["cc", *objects, *args], check=True, capture_output=True)
        return program

    def run(self, program, part):
        """Runs a part of the test; what went wrong, or None."""
        child = subprocess.Popen([program, f"{part}::"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                 start_new_session=True, env={**os.environ, "TILEWORK_REQUIRE": "emulator"})
        try:
            said = child.communicate(timeout=self.timeout)[0].decode(errors="replace")
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
            return f"{part}: hangs"
        failed = re.findall(r"^test (\S+) \.\.\. FAILED", said, re.M)
        return None if child.returncode == 0 else f"{part}: {', '.join(failed) or 'crashes'}"

    def judge(self, texts, mutant):
        """What becomes of a mutant: 'refused', 'same code', 'survived', or which test kills it."""
        name, operator, start, end, new = mutant
        files, text = self.affected(name, texts), texts[name]
        self.remember(files, texts)
        self.write({**texts, name: text[:start] + new + text[end:]})
        objects = self.objects(files)
        if objects is None:
            return "refused"
        if operator and [obj.read_bytes() for obj in objects] == [code for f in files for code in self.originals[f]]:
            return "same code"
        for target, parts in PARTS.items():
            program = self.link(target, objects)
            if fate := next(filter(None, (self.run(program, part) for part in parts)), None):
                return fate
        return "survived"


def show(texts, mutant):
    """The mutant as a difference of lines."""
    name, operator, start, end, new = mutant
    text = texts[name]
    a, z = text.rfind("\n", 0, start) + 1, text.find("\n", end)
    place = f"kernels/{name}:{1 + text[:start].count(chr(10))}: {operator}"
    return f"{place}\n      - {text[a:z].strip()}\n      + {(text[a:start] + new + text[end:z]).strip()}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100, help="mutants to draw")
    parser.add_argument("--only", help="the numbers of those to run, with commas")
    parser.add_argument("--files", metavar="NAME,…", help="only mutants of these files")
    parser.add_argument("--timeout", type=float, default=60, help="seconds after which a test hangs")
    parser.add_argument("--list", action="store_true", help="only print the mutants")
    parser.add_argument("--work", type=Path, default=ROOT / "target/mutate", help="folder for what is built")
    options = parser.parse_args()
    files = options.files.split(",") if options.files else []
    if unknown := [name for name in files if not (KERNELS / name).exists()]:
        sys.exit(f"there is no kernels/{unknown[0]}")
    texts, drawn = draw(options.seed, options.count, files)
    chosen = [int(n) for n in options.only.split(",")] if options.only else range(options.count)
    if options.list:
        for number in chosen:
            print(f"{number:4} {show(texts, drawn[number])}")
        return
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.work, options.timeout)
    # The sources as they are must pass, and a kernel that is plainly wrong must not.
    text = texts["add.cu"]
    at = text.index("a + b; }")
    for what, mutant, good in [("unchanged", ("add.cu", "", 0, 0, ""), True), ("wrong", ("add.cu", "", at, at + 5, "a - b"), False)]:
        fate = bench.judge(texts, mutant)
        if (fate == "survived") != good:
            sys.exit(f"the {what} kernels: {fate}")
    counts = {}
    for number in chosen:
        mutant, begun = drawn[number], time.time()
        fate = bench.judge(texts, mutant)
        made, killed = counts.get(mutant[0], (0, 0))
        if fate not in ("refused", "same code"):
            counts[mutant[0]] = (made + 1, killed + (fate != "survived"))
        print(f"{number:4} {time.time() - begun:3.0f} s {fate.upper() if fate == 'survived' else fate}: "
              f"{show(texts, mutant)}", flush=True)
    print(f"\nseed {options.seed}\n{'file':24} {'made':>5} {'killed':>7} {'survived':>9}")
    counts["together"] = tuple(map(sum, zip(*counts.values()))) if counts else (0, 0)
    for name, (made, killed) in counts.items():
        print(f"{name:24} {made:5} {killed:7} {made - killed:9}")
    made, killed = counts["together"]
    print(f"{100 * killed / max(made, 1):.1f} % of {made} mutants killed")


if __name__ == "__main__":
    main()
