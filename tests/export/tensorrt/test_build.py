"""Building plans: profiles, what is refused and how, memory that ends, and the bundle meanwhile."""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tensorrt_rtx

from eri_export.tensorrt import BuildOptions, add_plans, build_plan, publish_plans
from eri_export.tensorrt.attention import mark
from eri_export.tensorrt.build_flags import configure
from eri_export.tensorrt.build_options import check_options
from eri_export.tensorrt.build_plan import Attempt, Built, try_all
from eri_export.tensorrt.library import load_engine
from eri_export.tensorrt.profiles import make_profiles
from eri_runtime.bundle import file_record, integrity, manifest
from eri_runtime.bundle.spec import ShapeRange
from eri_runtime.commands.main import main
from eri_runtime.errors import (
    BackendError,
    DiskError,
    ExportError,
    IntegrityError,
    UnknownNameError,
    UsageError,
)

ADA = BuildOptions(capabilities=("8.9",), profiles=("best",))
ENCODER = ("text_encoder",)  # the smallest graph


@pytest.fixture
def root(flux_bundle, tmp_path):
    """A bundle that a test may do anything to."""
    return Path(shutil.copytree(flux_bundle, tmp_path / "engines" / "flux"))


def snapshot(root):
    """Every file below the folder of a bundle and beside it, with its bytes."""
    return {path: path.read_bytes() for path in root.parent.rglob("*") if path.is_file()}


def same_after(root, before):
    integrity.verify_all(manifest.read(root))
    assert snapshot(root) == before


# profiles


def one(opt):
    return ShapeRange(min=1, opt=opt, max=8)


def spec_of(root, **changes):
    return replace(manifest.read(root).components["denoiser"], **changes)


def test_dimensions_that_are_alike_are_one_profile(root):
    fixed = ShapeRange(min=4, opt=4, max=4)
    spec = spec_of(root, ranges={"batch": fixed})
    assert make_profiles(spec, {"x": ("batch", 3)}, ("best", "range")) == ({"batch": fixed},)


def test_a_graph_without_dynamic_dimensions_has_one_empty_profile(root):
    assert make_profiles(spec_of(root), {"x": (1, 3)}, ("best", "range")) == ({},)


@pytest.mark.parametrize(
    ("per_image", "batch", "conditions", "images"),
    [
        (False, (1, 2, 16), (1, 2, 2), (1, 1, 8)),
        (False, (1, 1, 8), (1, 1, 1), (1, 1, 8)),
        (False, (2, 2, 2), (2, 2, 2), (1, 1, 1)),
        (False, (3, 4, 9), (1, 2, 1), (3, 2, 9)),
        (True, (1, 2, 16), (1, 2, 2), (1, 1, 16)),
        (True, (1, 1, 8), (1, 1, 2), (1, 1, 8)),
        (True, (2, 2, 2), (1, 2, 2), (1, 1, 2)),
        (True, (3, 4, 9), (1, 2, 2), (1, 2, 9)),
        (True, (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    ],
)
def test_conditions_and_images_of_a_step_graph(root, per_image, batch, conditions, images):
    """Without rows per image, their product is the denoiser's batch."""

    def sizes(values):
        return ShapeRange(**dict(zip(("min", "opt", "max"), values, strict=True)))

    spec = spec_of(
        root,
        ranges={"batch": sizes(batch)},
        step="denoiser/step.onnx",
        step_per_image=per_image,
    )
    (profile,) = make_profiles(spec, {"mix": ("conditions", "images")}, ("range",))
    assert [profile[name] for name in ("conditions", "images")] == [
        sizes(conditions),
        sizes(images),
    ]


# options


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"capabilities": ("9.0",)}, r"got 9\.0, expected 7\.5 or"),
        ({"capabilities": ("8.9", "ada")}, "got ada"),
        ({"capabilities": ()}, "name the GPU to build for, as --compute-capability"),
        ({"level": 6}, "0 to 5"),
        ({"flags": ("faster",)}, "got 'faster'"),
        ({"profiles": ()}, "best, range"),
        ({"profiles": ("some",)}, "best, range"),
        ({"flags": ("hardware-compatible",)}, "one plan serves them all"),
        ({"timing_cache": Path("timing.cache")}, "times no kernels"),
    ],
)
def test_options_that_are_refused(changes, message, monkeypatch):
    monkeypatch.setattr("eri_export.tensorrt.build_options.compute_capability", lambda: None)
    with pytest.raises(UsageError, match=message):
        check_options(replace(ADA, **changes), load_engine("tensorrt-rtx"))


def test_the_gpu_that_is_here_is_built_for_if_none_is_named(monkeypatch):
    monkeypatch.setattr("eri_export.tensorrt.build_options.compute_capability", lambda: "8.6")
    engine = load_engine("tensorrt-rtx")
    assert check_options(replace(ADA, capabilities=()), engine) == ("8.6",)
    both = replace(ADA, capabilities=("8.9", "8.6", "8.9"))
    assert check_options(both, engine) == ("8.6", "8.9")


def test_an_engine_that_is_none_or_not_installed(monkeypatch):
    with pytest.raises(UnknownNameError, match="expected tensorrt or tensorrt-rtx"):
        load_engine("cutlass")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match="pip install tensorrt"):
        load_engine("tensorrt")


# what the builder refuses


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flags": ("refit",)}, "on the machine with the GPU"),
        ({"flags": ("stripped",)}, "on the machine with the GPU"),
        ({"flags": ("version-compatible",)}, "build without --version-compatible"),
        ({"workspace": 1024}, "more --workspace"),
    ],
)
def test_a_refusal_is_a_typed_error_and_leaves_the_bundle_as_it_was(root, changes, message):
    before = snapshot(root)
    with pytest.raises(BackendError, match=message):
        add_plans(root, replace(ADA, **changes), components=ENCODER)
    same_after(root, before)


def test_a_graph_that_does_not_parse_is_named(root):
    bundle = manifest.read(root)
    graph = bundle.path("text_encoder/model.onnx")
    graph.write_bytes(b"not a graph")
    files = {**bundle.files, "text_encoder/model.onnx": file_record(graph)}
    (root / "manifest.json").write_text(manifest.dump(replace(bundle, files=files)))
    with pytest.raises(BackendError, match=r"model\.onnx.*a graph that tensorrt-rtx"):
        add_plans(root, ADA, components=ENCODER)


def test_a_component_that_is_none(root):
    with pytest.raises(UnknownNameError, match="got 'unet', expected"):
        add_plans(root, ADA, components=("unet",))


def test_weights_that_changed_are_not_built_from(root):
    weights = root / "text_encoder" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"weights\.safetensors"):
        add_plans(root, ADA, components=ENCODER)
    assert not (root / "plans").exists()


# attempts


def attempts(options, *said, capturable=False):
    """The attempts of a builder that says `said`, one list of errors a time, and then gives one."""
    errors, made, left = [], [], list(said)

    def once(attempt):
        made.append(attempt)
        if not left:
            return Built(b"plan", (), (), attempt)
        errors[:] = left.pop(0)
        return None

    try:
        return made, try_all("graph", options, once, errors, capturable=capturable)
    except BackendError as error:
        return made, error


OUT = ["createInferBuilder: Error Code 2: OutOfMemory (Requested size was 12 bytes.)"]


def test_out_of_memory_is_tried_again_with_less():
    made, built = attempts(replace(ADA, workspace=1 << 30), OUT, OUT)
    assert made == [Attempt(3, 1 << 30), Attempt(2, 1 << 29), Attempt(1, 1 << 28)]
    assert built.attempt == made[-1]


def test_a_step_graph_out_of_memory_is_first_built_without_cuda_graphs():
    made, built = attempts(ADA, OUT, OUT, capturable=True)
    assert made == [Attempt(3, None, capturable=True), Attempt(3, None), Attempt(2, 8 << 30)]
    assert built.attempt == made[-1]


@pytest.mark.parametrize(("graph", "there"), [("step", True), ("model", False)])
def test_only_step_graphs_are_built_for_cuda_graphs(graph, there, monkeypatch):
    made = []
    monkeypatch.setattr(build_plan, "_once", lambda *given: made.append(given[4]) or "plan")
    spec = SimpleNamespace(step="denoiser/step.onnx")
    build_plan.build(load_engine("tensorrt-rtx"), Path(f"/b/denoiser/{graph}.onnx"), spec, ADA)
    assert [attempt.capturable for attempt in made] == [there]


def test_without_a_limit_one_is_set():
    made, _ = attempts(ADA, OUT)
    assert made == [Attempt(3, None), Attempt(2, 8 << 30)]


def test_memory_that_does_not_suffice_is_an_error_in_the_end():
    made, error = attempts(replace(ADA, workspace=1 << 30, level=1), *[OUT] * 5)
    assert [(each.level, each.workspace) for each in made] == [
        (1, 1 << 30),
        (0, 1 << 29),
        (0, 1 << 28),
        (0, 1 << 27),
        (0, 1 << 26),
    ]
    assert "OutOfMemory" in str(error)
    assert "a machine with more memory" in str(error)


def test_attention_that_does_not_fuse_after_all_may_be_decomposed():
    refused = ["Attention operation was not supported by a dedicated kernel."]
    made, built = attempts(ADA, refused)
    assert made == [Attempt(3, None), Attempt(3, None, decompose=True)]
    assert built.attempt.decompose
    made, error = attempts(ADA, refused, refused)
    assert len(made) == 2
    assert "dedicated kernel" in str(error)


def test_another_refusal_is_not_tried_again():
    made, error = attempts(ADA, ["Error Code 4: something else"])
    assert len(made) == 1
    assert "something else" in str(error)


def attention_network(dtype, heads, head_size, dedicated):
    """A network of one attention layer; whether it builds, its layers marked by our rule or not."""
    engine = load_engine("tensorrt-rtx")
    module = engine.module
    builder = module.Builder(engine.logger)
    network = builder.create_network(0)
    shape = (1, heads, 32, head_size)
    q, k, v = (network.add_input(name, dtype, shape) for name in "qkv")
    softmax = module.AttentionNormalizationOp.SOFTMAX
    layer = network.add_attention_v2(q, k, v, softmax, module.CausalMaskKind.NONE)
    network.mark_output(layer.get_output(0))
    (marked,) = mark(module, network)
    layer.decomposable = not dedicated
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(module.ComputeCapability.SM89, 0)
    return marked, builder.build_serialized_network(network, config) is not None


@pytest.mark.parametrize(
    "dtype", [tensorrt_rtx.float16, tensorrt_rtx.bfloat16, tensorrt_rtx.float32]
)
@pytest.mark.parametrize("head_size", [8, 16, 64, 256, 264])
def test_the_rule_for_attention_is_the_builders_own(dtype, head_size):
    marked, fuses = attention_network(dtype, 2, head_size, dedicated=True)
    assert marked.decomposable is not fuses
    assert attention_network(dtype, 2, head_size, dedicated=False)[1]


# the bundle meanwhile


def test_plans_for_two_gpus_apart_and_together(root):
    for capabilities in (("8.6",), ("8.9",), ("8.6", "8.9")):
        add_plans(root, replace(ADA, capabilities=capabilities), components=ENCODER)
    bundle = manifest.read(root)
    integrity.verify_all(bundle)
    assert [plan.capabilities for plan in bundle.plans.values()] == [
        ("8.6",),
        ("8.9",),
        ("8.6", "8.9"),
    ]
    assert len({bundle.files[file].sha256 for file in bundle.plans}) == 3
    assert not [path for path in root.parent.iterdir() if path != root]


def test_a_plan_is_built_anew_in_its_place(root):
    add_plans(root, ADA, components=ENCODER)
    (file,) = manifest.read(root).plans
    old = manifest.read(root).files[file]
    add_plans(root, replace(ADA, profiles=("best", "range")), components=ENCODER)
    bundle = manifest.read(root)
    assert [*bundle.plans] == [file]
    assert bundle.files[file] != old
    integrity.verify_all(bundle)


def test_no_byte_of_the_weights_is_copied(root):
    weights = root / "denoiser" / "weights.safetensors"
    before = weights.stat().st_ino
    add_plans(root, ADA, components=ENCODER)
    assert weights.stat().st_ino == before


def test_a_disk_without_room_is_an_error_and_leaves_the_bundle_as_it_was(root, monkeypatch):
    before = snapshot(root)
    monkeypatch.setattr("eri_export.disk.free_space", lambda _: 1000)
    with pytest.raises(DiskError, match="free"):
        add_plans(root, ADA, components=ENCODER)
    same_after(root, before)


def test_a_disk_that_fills_up_is_an_error_and_leaves_the_bundle_as_it_was(root):
    before = snapshot(root)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # less than a plan
    try:
        with pytest.raises(DiskError, match="nothing was published"):
            add_plans(root, ADA, components=ENCODER)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    same_after(root, before)


def test_an_export_during_the_build_is_not_undone(root, monkeypatch):
    built = publish_plans._build

    def meanwhile(*arguments):
        plan = built(*arguments)
        weights = root / "text_encoder" / "weights.safetensors"
        weights.unlink()
        weights.write_bytes(b"others")
        bundle = manifest.read(root)
        files = {**bundle.files, "text_encoder/weights.safetensors": file_record(weights)}
        (root / "manifest.json").write_text(manifest.dump(replace(bundle, files=files)))
        return plan

    monkeypatch.setattr(publish_plans, "_build", meanwhile)
    with pytest.raises(ExportError, match="exported anew"):
        add_plans(root, ADA, components=ENCODER)
    assert (root / "text_encoder" / "weights.safetensors").read_bytes() == b"others"
    assert not (root / "plans").exists()


def test_a_build_during_another_is_kept(root, monkeypatch):
    built, other = publish_plans._build, iter([("text_encoder_2",)])

    def meanwhile(*arguments):
        for components in other:
            add_plans(root, ADA, components=components)
        return built(*arguments)

    monkeypatch.setattr(publish_plans, "_build", meanwhile)
    add_plans(root, ADA, components=ENCODER)
    bundle = manifest.read(root)
    integrity.verify_all(bundle)
    assert {plan.component for plan in bundle.plans.values()} == {"text_encoder", "text_encoder_2"}
    assert [*root.parent.iterdir()] == [root]


def test_two_builds_at_once_keep_each_others_plans(root):
    names = ("text_encoder", "text_encoder_2")
    commands = [
        [sys.executable, "-c", BUILD.replace("text_encoder", name), str(root)] for name in names
    ]
    children = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
    assert [child.wait() for child in children] == [0, 0]
    bundle = manifest.read(root)
    integrity.verify_all(bundle)
    assert {plan.component for plan in bundle.plans.values()} == {*names}


STOPPED = """
import signal, sys
from eri_export.tensorrt import BuildOptions, add_plans

steps = []

def interrupt(event):
    if event.stage == "build":
        steps.append(event)
        if len(steps) == 40:  # well inside
            signal.raise_signal(signal.SIGTERM)

options = BuildOptions(capabilities=("8.9",), profiles=("best",))
try:
    add_plans(sys.argv[1], options, components=["text_encoder"], progress=interrupt)
except KeyboardInterrupt as error:
    print(error, len(steps))
"""


def test_a_signal_stops_a_build_and_leaves_the_bundle_as_it_was(root):
    """In a process of its own, which the signal would end if nothing caught it."""
    before = snapshot(root)
    command = [sys.executable, "-c", STOPPED, str(root)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "SIGTERM 40\n"), ran.stderr
    same_after(root, before)


BUILD = """
import sys
from eri_export.tensorrt import BuildOptions, add_plans

def tell(event):
    print(event.component, event.stage, event.done, flush=True)

options = BuildOptions(capabilities=("8.9",), profiles=("best",))
add_plans(sys.argv[1], options, components=["text_encoder"], progress=tell)
"""


@pytest.mark.parametrize("lines", [2, 60, 200])
def test_a_killed_build_leaves_the_bundle_and_the_next_cleans_up(root, lines):
    before = snapshot(root)
    command = [sys.executable, "-c", BUILD, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        for _ in range(lines):
            assert child.stdout.readline()
        child.kill()
    assert child.returncode == -signal.SIGKILL
    after = snapshot(root)
    assert {path: data for path, data in after.items() if root in path.parents} == before
    add_plans(root, ADA, components=ENCODER)
    integrity.verify_all(manifest.read(root))
    assert [*root.parent.iterdir()] == [root]


# the command


def test_the_command_builds_and_inspect_lists_it(root, capsys, monkeypatch):
    configs = []

    def spy(engine, config, flags):
        configure(engine, config, flags)
        configs.append(config.flags)

    monkeypatch.setattr(build_plan, "configure", spy)
    words = ["build", str(root), "--engine", "tensorrt-rtx", "--compute-capability", "8.9"]
    words += ["--component", "text_encoder", "--profile", "best", "--streaming"]
    assert main([*words, "--workspace", "4GB", "--level", "2"]) == 0
    flags, line = capsys.readouterr().out.splitlines()
    assert flags.startswith(f"tensorrt-rtx {tensorrt_rtx.__version__} sets NetworkDef")
    assert flags.endswith("ProfilingVerbosity.DETAILED, BuilderFlag.WEIGHT_STREAMING")
    (bits,) = configs
    for flag, there in (("REQUIRE_USER_ALLOCATION", False), ("WEIGHT_STREAMING", True)):
        assert bool(bits >> int(getattr(tensorrt_rtx.BuilderFlag, flag)) & 1) == there
    start = "plans/text_encoder-sm89-rtx"
    assert line.startswith(start)
    assert "(streaming), compute capability 8.9" in line
    assert "1 profile, 0 of 3 attention layers fused" in line
    (plan,) = manifest.read(root).plans.values()
    assert (plan.level, plan.workspace, plan.flags) == (2, 4 * 10**9, ("streaming",))
    assert main(["inspect", str(root)]) == 0
    assert [each for each in capsys.readouterr().out.splitlines() if each.startswith(start)]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ([], 2, "--engine: got none"),
        (["--engine", "cutlass"], 2, "got 'cutlass'"),
        (["--engine", "tensorrt-rtx", "--compute-capability", "9.0"], 2, r"got 9\.0"),
        (["--engine", "tensorrt-rtx", "--workspace", "lots"], 2, "workspace: got 'lots'"),
    ],
)
def test_the_command_says_in_a_line_what_is_wrong(flux_bundle, words, status, message, capsys):
    assert main(["build", str(flux_bundle), *words]) == status
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert message.replace("\\", "") in captured.err


def test_export_refuses_an_engine_before_it_begins(flux_checkpoint, tmp_path, capsys):
    words = ["export", str(flux_checkpoint), "-o", str(tmp_path / "new")]
    assert main([*words, "--engine", "cutlass"]) == 2
    assert main([*words, "--compute-capability", "8.9"]) == 2
    assert capsys.readouterr().err.count("\n") == 2
    assert not (tmp_path / "new").exists()
