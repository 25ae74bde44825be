"""Write down what TensorRT's own bindings say of the calls that this package makes: test/engines/tensorrt_api.json.

    pip download --no-deps -d wheels tensorrt-cu12-bindings==10.3.0      # and every other version
    python -m tools.tensorrt_api wheels/*.whl

The bindings are imported over empty libraries that a C compiler makes, so neither TensorRT nor a GPU is needed. Names
are those in the file: for another call, add its name with {} and run this again.
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from functools import reduce
from pathlib import Path
from typing import Any

RECORD = Path(__file__).resolve().parents[1] / "test" / "engines" / "tensorrt_api.json"
MODULE = "tensorrt_bindings"


def main() -> None:
    """Record every wheel, each in a process of its own."""
    names = sorted(json.loads(RECORD.read_text()))
    record: dict[str, dict[str, str]] = {name: {} for name in names}
    for wheel in sys.argv[1:]:
        answer = subprocess.run(
            [sys.executable, "-c", "from tools.tensorrt_api import one; one()", wheel, *names],
            capture_output=True,
            text=True,
            check=True,
        )
        found = json.loads(answer.stdout)
        version = found.pop("__version__")
        for name, signature in found.items():
            record[name][signature] = f"{record[name].get(signature, '')} {version}".lstrip()
    lines = (f"{json.dumps(name)}: {json.dumps(signatures)}" for name, signatures in record.items())
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def one() -> None:
    """Print what one version has of the names; the arguments are its wheel and them."""
    wheel, *names = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(wheel).extractall(folder)
        _load_empty_libraries(Path(folder))
        sys.path.insert(0, folder)
        module = __import__(MODULE)
        signatures = {name: _signature(module, name) for name in names}
    print(json.dumps({"__version__": module.__version__, **{name: item for name, item in signatures.items() if item}}))


def _load_empty_libraries(folder: Path) -> None:
    """Libraries of the names, and with the functions, that the bindings are linked with."""
    bindings = str(folder / MODULE / "tensorrt.so")
    needed = re.findall(r"\[(libnv\w+\.so\.\d+)\]", _output("readelf", "-d", bindings))
    undefined = _output("nm", "-D", "--undefined-only", bindings)
    symbols = re.findall(r" U (\w*(?:_INTERNAL|PluginRegistry|NvOnnxParserVersion|InferPlugins))\n", undefined)
    source = folder / "empty.c"
    source.write_text("".join(f"int {symbol}(void) {{ return 0; }}\n" for symbol in symbols))
    for name in needed:
        _output("cc", "-shared", "-fPIC", "-o", str(folder / name), f"-Wl,-soname,{name}", str(source))
        ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _signature(module: Any, name: str) -> str:
    """Its overloads, one a line; "class of" its base; "value"; empty where it is missing."""
    try:
        item: Any = reduce(getattr, name.split("."), module)
    except AttributeError:
        return ""
    if isinstance(item, type):
        return f"class of {item.__bases__[0].__name__}"
    if not callable(item):
        return "value"
    lines = re.findall(rf"^(?:\d+\. )?{item.__name__}(\(self: .*\) -> .*)$", item.__doc__, re.MULTILINE)
    # What versions call differently: where a name is defined, and numbers and bytes.
    for text, plain in ((r"\w+\.tensorrt\.", ""), (r"typing\.SupportsInt", "int"), (r"typing_extensions\.B", "b")):
        lines = [re.sub(text, plain, line) for line in lines]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
