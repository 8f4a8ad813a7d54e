"""An environment of its own for each peer that tunewright does not install: `FOLDER/NAME`, made once, then kept."""

import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"


def python_for(peer: str, folder: Path) -> str:
    """The Python that has `peer`: this one, or that of its environment, which is made where there is none.

    `requirements/PEER.txt` says what is in it, and `PEER.alone.txt` what is added without what it asks for.
    """
    files = [path for path in (REQUIREMENTS / f"{peer}.txt", REQUIREMENTS / f"{peer}.alone.txt") if path.is_file()]
    if not files:
        return sys.executable
    environment = folder.absolute() / peer
    python = environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    wanted = "".join(path.read_text("utf-8") for path in files)
    done = environment / "installed.txt"  # written last, so an install that was broken off is made again
    if not done.is_file() or done.read_text("utf-8") != wanted:
        print(f"making an environment for {peer} in {environment}, once …", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
        for path in files:
            alone = ["--no-deps"] if path.name.endswith(".alone.txt") else []
            pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", *alone]
            subprocess.run([*pip, "-r", str(path)], check=True, stdout=sys.stderr)
        done.write_text(wanted, encoding="utf-8")
    return str(python)
