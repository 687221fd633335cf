#!/usr/bin/env python3
"""Does what src/ops/README.md says, in a copy of the tree, and runs the tests that it names.

    tools/page.py

The page's blocks of code are marked by the comment before them: `<!-- new FILE -->` for a new file,
`<!-- FILE, before: TEXT -->` for lines of a file, `<!-- run -->` for what to run. The copy is built beside the
project's own build, whose dependencies it shares. Needs git, cargo, and what the tests need.
"""
import os, re, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"<!-- (.*?) -->\n```[^\n]*\n(.*?)^```", re.S | re.M)


def main():
    page = (ROOT / "src/ops/README.md").read_text()
    with tempfile.TemporaryDirectory(prefix="tilework-page-") as folder:
        copy = Path(folder)
        files = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, check=True, stdout=subprocess.PIPE)
        for name in filter(None, files.stdout.decode().split("\0")):
            if (ROOT / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                (copy / name).write_bytes((ROOT / name).read_bytes())
        commands = []
        for mark, code in BLOCK.findall(page):
            if mark == "run":
                commands += code.splitlines()
            elif mark.startswith("new "):
                (copy / mark[4:]).write_text(code)
            else:
                name, before = mark.split(", before: ")
                text = (copy / name).read_text()
                if text.count(before) != 1:
                    sys.exit(f"src/ops/README.md: `{before}` is not in {name} once")
                (copy / name).write_text(text.replace(before, code.strip("\n") + "\n" + before))
        if not commands:
            sys.exit("src/ops/README.md: there is nothing to run")
        target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
        for command in commands:
            print(f"$ {command}", flush=True)
            subprocess.run(command, shell=True, cwd=copy, check=True, env={**os.environ, "CARGO_TARGET_DIR": str(target)})


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as e:
        sys.exit(f"src/ops/README.md: {e.cmd} failed with {e.returncode}")
