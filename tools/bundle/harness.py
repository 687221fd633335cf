"""What the stages of run.py share: commands with a time limit and a log, the tables, and the one file."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HEAD = ["stage", "what", "", "seconds", "result"]
BAD = ("FAILED", "CUT")
# What of a run's folder goes into the archive; checkpoints are too large.
OF_A_RUN = ("config.toml", "metrics.csv", "steps.csv")


class Done:
    """A command that has ended, or was ended."""

    def __init__(self, code, seconds, log, cut):
        self.code, self.seconds, self.log, self.cut = code, seconds, log, cut
        self.text = log.read_text(errors="replace")

    @property
    def status(self):
        return "CUT" if self.cut else "ok" if self.code == 0 else "FAILED"

    def last_line(self):
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        # An error is more telling than what came after it.
        return next((line for line in lines if line.startswith("error")), lines[-1] if lines else "no output")

    def short(self):
        """Why it is not ok, for the table."""
        if self.cut:
            return f"cut after {self.seconds:.0f} s, see {self.log.name}"
        return f"exit status {self.code}: {self.last_line()[:160]} (see {self.log.name})"


class Stage:
    """What belongs together: runs commands within a time limit, and keeps their results."""

    def __init__(self, report, name, limit, prefix):
        self.report, self.name, self.prefix = report, name, prefix
        self.rows, self.seconds = [], None
        self.began = report.seconds()
        self.until = self.began + limit
        say(f"{'' if prefix else chr(10)}== [{clock(self.began)}] {name} (at most {limit:.0f} s)")

    @property
    def out(self):
        return self.report.out

    @property
    def more(self):
        """What is measured beside the rows, by stage or by what it is."""
        return self.report.more

    def left(self):
        """Seconds that the stage, and the whole, have left."""
        return min(self.until, self.report.total) - self.report.seconds()

    def command(self, what, argv, limit=None, env=None, cwd=None):
        """Runs a command with its output in a log; `None` if there is no time left for it."""
        limit = min(limit or self.left(), self.left())
        if limit < 1 or self.report.interrupted:
            self.row(what, "skipped", result="interrupted" if self.report.interrupted else "the time is used up")
            return None
        name = "".join(c if c.isalnum() or c in "-_." else "_" for c in f"{self.name}-{what}")
        log = self.out / "logs" / f"{name}.log"
        say(f"   [{clock(self.report.seconds())}] {self.prefix}{what} > {log.name}")
        start, cut = time.monotonic(), False
        with log.open("w") as file:
            print("$", *argv, file=file, flush=True)
            try:
                # A session of its own, so that a limit ends what the command has started too.
                child = subprocess.Popen([*map(str, argv)], stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})}, cwd=cwd or self.out, start_new_session=True)
            except OSError as e:
                print(f"error: {e}", file=file)
                code = 127
            else:
                self.report.running.add(child)
                try:
                    code = child.wait(timeout=limit)
                except subprocess.TimeoutExpired:
                    cut, code = True, end(child)
                finally:
                    self.report.running.discard(child)
        return Done(code, time.monotonic() - start, log, cut or self.report.interrupted)

    def row(self, what, status, seconds=None, result="", **numbers):
        self.rows.append({"stage": self.name, "what": what, "status": status, "seconds": seconds, "result": result, **numbers})
        say(f"   {status}: {self.prefix}{what}{f': {result}' if result else ''}")


class Report:
    """The stages and their results, and the files they are written to."""

    def __init__(self, out, about, total):
        self.out, self.about, self.total = out, about, total
        self.start = time.monotonic()
        self.stages, self.more = [], {}
        # Commands that run now; some run side by side.
        self.running, self.interrupted = set(), False
        self.writing = threading.Lock()
        (out / "logs").mkdir(parents=True, exist_ok=True)

    def seconds(self):
        return time.monotonic() - self.start

    def run(self, name, limit, work, side_by_side=False):
        """A stage, all of whose commands together may take so many seconds; `work` gets it."""
        stage = Stage(self, name, limit, f"{name}: " if side_by_side else "")
        self.stages.append(stage)
        try:
            work(stage)
        except Exception as e:  # A fault of a stage, whatever it is, must not cost the others' results.
            stage.row("the stage itself", "FAILED", result=f"{type(e).__name__}: {e}")
        if self.interrupted:
            stage.row("interrupted", "CUT", result="by Ctrl-C: the stages after it did not run")
        stage.seconds = round(self.seconds() - stage.began, 1)
        self.write()

    def side_by_side(self, at_once, work, items):
        """Does `work` for each item, so many at once. Ctrl-C, which no command gets by itself, ends them."""
        pool = ThreadPoolExecutor(at_once)
        try:
            list(pool.map(work, items))
        except KeyboardInterrupt:
            self.interrupted = True
            pool.shutdown(wait=False, cancel_futures=True)
            for child in list(self.running):
                end(child)
        pool.shutdown()

    @property
    def rows(self):
        return [row for stage in self.stages for row in stage.rows]

    def failures(self):
        return sum(row["status"] in BAD for row in self.rows)

    def table(self):
        """All rows as Markdown."""
        return aligned(HEAD, [[r["stage"], r["what"], r["status"], "" if r["seconds"] is None else f"{r['seconds']:.1f}", r["result"]] for r in self.rows], 3)

    def summary(self):
        """A row for each stage: how many results are what, and the first that is bad, or else the first."""
        rows = []
        for stage in (s for s in self.stages if s.seconds is not None):
            mine = stage.rows
            count = lambda status: sum(r["status"] == status for r in mine)
            counts = [f"{count(status)} {status}" for status in ("ok", "FAILED", "CUT", "skipped") if count(status)]
            told = next((r for r in mine if r["status"] in BAD), mine[0] if mine else {"what": "", "result": "nothing was done"})
            rows.append([stage.name, ", ".join(counts), f"{stage.seconds:.1f}", f"{told['what']}: {told['result']}"[:110]])
        return aligned(["stage", "results", "seconds", "the first that is bad, or the first"], rows, 2)

    def write(self):
        """results.json and results.md, and with all logs results.tar.gz: one file to take away. After each
        stage, so that what ends early leaves what it has."""
        with self.writing:
            self._write()

    def _write(self):
        whole = {**self.about, "run_seconds": round(self.seconds(), 1), "failures": self.failures(), "stages": {stage.name: stage.seconds for stage in self.stages}, "rows": self.rows, **self.more}
        (self.out / "results.json").write_text(json.dumps(whole, indent=1) + "\n")
        about = "\n".join(f"- {key}: {value}" for key, value in self.about.items())
        text = f"# Tilework on this machine\n\n{about}\n\n{self.summary()}\n\n{self.table()}\n\n{self.verdict()}\n"
        (self.out / "results.md").write_text(text)
        runs = [path for path in (self.out / "runs").rglob("*") if path.name in OF_A_RUN]
        new = self.out / "results.tar.gz.new"
        with tarfile.open(new, "w:gz") as archive:
            for path in [*sorted(self.out.glob("*.json")), self.out / "results.md", self.out / "logs", *runs]:
                archive.add(path, Path("results", path.relative_to(self.out)))
        new.rename(self.out / "results.tar.gz")

    def verdict(self):
        bad = self.failures()
        return f"{len(self.rows)} results in {clock(self.seconds())}: " + (f"{bad} FAILED or CUT" if bad else "nothing failed")


def aligned(head, rows, right):
    """Markdown that is a table on a terminal too; the column `right` holds numbers."""
    # results.json has what is cut here.
    cut = lambda text: text if len(text) <= 200 else text[:199] + "…"
    cells = [[cut(cell.replace("|", "/").replace("\n", " ")) for cell in row] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    line = lambda row: "| " + " | ".join(c.rjust(w) if i == right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip() + " |"
    rule = "|" + "|".join("-" * (w + 1) + (":" if i == right else "-") for i, w in enumerate(widths)) + "|"
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def end(child):
    """Ends a command and what it has started; gives its exit status."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, sign)
        except ProcessLookupError:
            pass
        try:
            return child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            continue
    return child.wait()


def say(line):
    """Prints a line at once, so that those of commands side by side do not mix."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def clock(seconds):
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f}"


def which(name, *places):
    """A program of the CUDA toolkit, in the path or where toolkits usually are; `None` if it is nowhere."""
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        if folder and os.access(Path(folder, name), os.X_OK):
            return Path(folder, name)
    found = [path for place in places for path in sorted(Path("/").glob(place.lstrip("/"))) if os.access(path, os.X_OK)]
    return found[-1] if found else None


def stop(problem):
    sys.exit(f"error: {problem}")
