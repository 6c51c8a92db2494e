"""Write the locks: the version and the hashes of every package that is installed (``make lock``).

    .ci/lock.py [--upgrade | --upgrade-package NAME ...]

Versions stay as they are unless an option of ``uv pip compile`` says otherwise. They are resolved for Python 3.11
on Linux, and a version's hashes are those of all its files, so other Pythons and macOS install the same versions.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

LOCK, TESTS, CPU, CUDA, VLLM = map(
    Path,
    (
        "requirements.lock",
        "requirements-tests.lock",
        "requirements-cpu.lock",
        "requirements-cuda.lock",
        "tests/vllm-requirements.txt",
    ),
)
TITLES = {
    LOCK: "# What `make setup` installs, by version and hash, besides torch; written by `make lock`.\n",
    TESTS: "# What `make test` installs besides; written by `make lock`.\n",
    CPU: "# torch for CPUs, which PyPI has not: for Python 3.11 on Linux; written by `make lock`.\n",
    CUDA: "# PyPI's torch, and CUDA's libraries that it loads on Linux; written by `make lock`.\n",
}
CUDA_NAMES = re.compile(r"(nvidia|cuda)-|(torch|triton)$")
TORCH_CPU = {"2.13.0": "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"}


def entries(text: str) -> dict[str, str]:
    """Return the requirements of a lock by name, each with its hashes."""
    return {entry.split("==")[0]: entry for entry in re.findall(r"^[^#\s][^\n]*(?:\n +--hash[^\n]*)*", text, re.M)}


def resolved(source: Path, old: str, *options: str) -> dict[str, str]:
    """Return what the requirements of a file lead to, close to the versions of an older lock."""
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder, "lock")
        lock.write_text(old)
        words = ["--generate-hashes", "--no-annotate", "--no-header", "--quiet", "--python-platform", "linux"]
        chosen = ["--no-emit-package", "pip", *options, *sys.argv[1:]]
        subprocess.run(["uv", "pip", "compile", source, "--output-file", lock, *words, *chosen], check=True)
        return entries(lock.read_text())


def write(path: Path, found: dict[str, str]) -> None:
    """Write a lock."""
    path.write_text(TITLES[path] + "".join(f"{entry}\n" for entry in found.values()))


def main() -> None:
    """Write all locks."""
    project = Path("pyproject.toml")
    old = "".join(path.read_text() for path in TITLES if path.exists() and path != CPU)
    base = resolved(project, old, "--extra=dev", "--python-version=3.11")
    everything = resolved(project, old, "--extra=dev", "--extra=tests", "--python-version=3.11.5")
    if changed := [name for name in base if everything[name] != base[name]]:
        sys.exit(f"error: the tests want other versions of {', '.join(changed)}; adapt pyproject.toml")
    cuda = {name: entry for name, entry in base.items() if CUDA_NAMES.match(name)}
    torch = cuda["torch"].split()[0]
    write(LOCK, {name: entry for name, entry in base.items() if name not in cuda})
    write(TESTS, {name: entry for name, entry in everything.items() if name not in base})
    write(CPU, {"torch": f"{torch}+cpu \\\n    --hash=sha256:{TORCH_CPU[torch.removeprefix('torch==')]}"})
    on_linux = {name: entry.replace(" ", " ; sys_platform == 'linux' ", 1) for name, entry in cuda.items()}
    write(CUDA, {**on_linux, "torch": cuda["torch"]})
    said = VLLM.read_text()
    title = "".join(line for line in said.splitlines(keepends=True) if line.startswith("#"))
    vllm = resolved(VLLM, said, "--no-deps", "--python-version=3.11")
    VLLM.write_text(title + "".join(f"{entry}\n" for entry in vllm.values()))


if __name__ == "__main__":
    main()
