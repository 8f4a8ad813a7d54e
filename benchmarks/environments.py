"""An environment of its own for each peer that tunewright does not install: `FOLDER/NAME`, made once, then kept."""

import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"


def python_for(peer: str, folder: Path) -> str:
    """The Python that has `peer`: this one, or that of its environment, which is made where there is none."""
    needs = REQUIREMENTS / f"{peer}.txt"
    if not needs.is_file():
        return sys.executable
    environment = folder.absolute() / peer
    python = environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    done = environment / "installed.txt"  # written last, so an install that was broken off is made again
    if not done.is_file() or done.read_text("utf-8") != needs.read_text("utf-8"):
        print(f"making an environment for {peer} in {environment}, once …", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
        pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--no-deps"]
        subprocess.run([*pip, "-r", str(needs)], check=True, stdout=sys.stderr)
        done.write_text(needs.read_text("utf-8"), encoding="utf-8")
    return str(python)
