"""What importing the runtime costs, and that its exported names exist."""

from __future__ import annotations

import subprocess
import sys

import eri_runtime

HEAVY = {"torch", "onnxruntime", "diffusers", "transformers", "tokenizers", "PIL", "rich", "onnx"}


def loaded_by(code):
    """The top-level modules a fresh interpreter has loaded after `code`."""
    program = f"{code}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.check_output([sys.executable, "-c", program], text=True).split())


def test_importing_the_runtime_loads_numpy_and_nothing_heavy():
    loaded = loaded_by("import eri_runtime; eri_runtime.load")
    assert "numpy" in loaded
    assert not HEAVY & loaded


def test_the_command_line_parses_without_anything_heavy():
    code = "from eri_runtime.commands.main import make_parser; make_parser()"
    assert not HEAVY & loaded_by(code)


BLOCKED = (*HEAVY - {"onnxruntime", "tokenizers", "PIL", "rich"}, "onnxscript", "onnx_ir", "peft")


def test_a_bundle_runs_where_nothing_of_the_exporter_is_installed(sd35_bundle, tmp_path):
    """What `pip install eri-diffusion[cpu]` brings is enough: the rest cannot be imported here."""
    target = tmp_path / "x.png"
    arguments = ["generate", str(sd35_bundle), "a red heart", "--steps", "1", "-o", str(target)]
    code = f"import sys; sys.modules |= dict.fromkeys({BLOCKED!r})\n"
    code += f"from eri_runtime.commands.main import main; assert main({arguments!r}) == 0"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert target.stat().st_size > 100


def test_exported_names_exist():
    assert len(set(eri_runtime.__all__)) == len(eri_runtime.__all__) > 0
    for name in eri_runtime.__all__:
        assert getattr(eri_runtime, name) is not None
