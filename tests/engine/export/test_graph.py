import json
import sys

import pytest
import torch

from diveparse.commands.cli import main
from diveparse.configs import HeadKind, Pooling, StemKind
from diveparse.datasets.constants import PIXEL_MEAN, PIXEL_STD
from diveparse.datasets.dives import ATTRIBUTES, DIVING48, WORLD_AQUATICS
from diveparse.engine.export import graph
from diveparse.engine.export.graph import exported_program, write_onnx, write_torch_export
from diveparse.models.onnx_classifier import CLIPS, DIVES, METADATA, OnnxClassifier

OTHER_DIVES = WORLD_AQUATICS.expressible(DIVING48.values)
MODELS = {
    "joint": {},
    "flat": {"kind": HeadKind.FLAT},
    "residual, queries": {"kind": HeadKind.RESIDUAL, "pooling": Pooling.QUERIES},
    "independent, mean": {"kind": HeadKind.INDEPENDENT, "pooling": Pooling.MEAN},
    "flat, conv, queries": {"kind": HeadKind.FLAT, "stem": StemKind.CONV, "pooling": Pooling.QUERIES},
}
ENCODER_MODELS = {  # head, pooling, and the blocks that are read, few of them since each takes a moment to trace
    "timesformer": (HeadKind.FLAT, Pooling.CLASS_TOKEN, [0]),
    "videomae": (HeadKind.FLAT, Pooling.MEAN, [1]),
    "vivit": (HeadKind.JOINT, Pooling.QUERIES, [0]),
    "vjepa2": (HeadKind.JOINT, Pooling.MEAN, [0, 1]),
    "videoprism_vision_model": (HeadKind.JOINT, Pooling.MEAN, []),
}
every_model = pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)


def expected_outputs(model, clips, dive_set=DIVING48):
    with torch.no_grad():
        scores = model.calibrated_scores(clips)
        return [scores.log_probs(dive_set), *(scores.marginals(dive_set)[name] for name in ATTRIBUTES)]


def assert_same(found, expected):
    for name, each, other in zip((DIVES, *ATTRIBUTES), found, expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(each), other, rtol=0, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@every_model
def test_the_graph_is_plain_and_takes_any_batch(options, make_model, clips):
    model = make_model(**options)
    program = exported_program(model, DIVING48)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert all(name.startswith(("aten.", "<built-in function ")) for name in called), called
    for batch in (clips[:1], clips, clips.repeat(3, 1, 1, 1, 1)):
        assert_same(program.module()(batch), expected_outputs(model, batch))


def encoder_clips(num_clips):
    return torch.randn(num_clips, 4, 3, 48, 48, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("family", ENCODER_MODELS)
def test_every_encoder_of_transformers_is_a_plain_graph_for_any_batch(family, make_encoder_model):
    model = make_encoder_model(family, *ENCODER_MODELS[family])
    program = exported_program(model, DIVING48)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert all(name.startswith(("aten.", "<built-in function ")) for name in called), called
    for num_clips in (1, 3, 5):
        batch = encoder_clips(num_clips)
        expected = expected_outputs(model, batch)
        assert num_clips == 1 or expected[0].std(0).max() > 0.01  # answers differ from clip to clip
        assert_same(program.module()(batch), expected)


def test_a_saved_run_of_v_jepa_2_is_exported(make_encoder_model, tmp_path):
    model = make_encoder_model("vjepa2", *ENCODER_MODELS["vjepa2"])
    model.save(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "model.pt2"), "--format", "torch-export"]) == 0
    batch = encoder_clips(3)
    assert_same(torch.export.load(tmp_path / "model.pt2").module()(batch), expected_outputs(model, batch))


@pytest.mark.parametrize("family", ["videomae", "vjepa2"])
def test_onnx_runtime_answers_as_an_encoder_of_transformers_does(family, make_encoder_model, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    model = make_encoder_model(family, *ENCODER_MODELS[family])
    write_onnx(model, DIVING48, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert session.get_inputs()[0].shape == ["batch", 4, 3, 48, 48]
    read = OnnxClassifier(tmp_path / "model.onnx")
    assert (read.clip_config.num_frames, read.clip_config.image_size) == (4, 48)
    for num_clips in (1, 3):
        batch = encoder_clips(num_clips)
        assert_same(session.run(None, {CLIPS: batch.numpy()}), expected_outputs(model, batch))
        scores = read.calibrated_scores(batch)
        found = [scores.log_probs(), *(scores.marginals()[name] for name in ATTRIBUTES)]
        assert_same(found, expected_outputs(model, batch))


def test_more_rows_than_a_chunk_of_the_mlp_are_no_other_graph(make_model, monkeypatch, clips):
    monkeypatch.setattr("diveparse.models.linear.CHUNK_ROWS", 2)
    model = make_model()
    assert_same(exported_program(model, DIVING48).module()(clips), expected_outputs(model, clips))


def test_a_file_of_torch_export_has_the_graph_and_its_metadata(make_model, clips, tmp_path):
    model = make_model()
    write_torch_export(model, OTHER_DIVES, tmp_path / "model.pt2")
    extra = {METADATA: ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    assert_same(program.module()(clips), expected_outputs(model, clips, OTHER_DIVES))
    about = json.loads(extra[METADATA])
    assert json.loads(about["dives"])["numbers"] == list(OTHER_DIVES.numbers)
    assert json.loads(about["preprocessing"])["pixel_mean"] == list(PIXEL_MEAN)


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory, make_model):
    """One exported file for all tests that only read it, since each export takes seconds."""
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason="the extra `onnx` is not installed")
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    write_onnx(make_model(), OTHER_DIVES, path)
    return path


@every_model
def test_onnx_runtime_gives_the_log_probabilities_and_marginals(options, make_model, clips, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    model = make_model(**options)
    write_onnx(model, DIVING48, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert [output.name for output in session.get_outputs()] == [DIVES, *ATTRIBUTES]
    assert session.get_inputs()[0].shape == ["batch", 4, 3, 16, 16]
    for batch in (clips[:1], clips):
        assert_same(session.run(None, {CLIPS: batch.numpy()}), expected_outputs(model, batch))
    with torch.no_grad():
        scores, own = OnnxClassifier(tmp_path / "model.onnx").calibrated_scores(clips), model.calibrated_scores(clips)
    assert torch.equal(scores.argmax(), own.argmax())  # of independent heads INVALID, where they spell no dive
    assert_same([scores.log_probs(), *(scores.marginals()[a] for a in ATTRIBUTES)], expected_outputs(model, clips))


def test_an_onnx_file_says_what_it_is(onnx_file):
    import onnx

    proto = onnx.load(onnx_file)
    assert [(each.domain, each.version) for each in proto.opset_import] == [("", graph.OPSET)]
    about = {each.key: json.loads(each.value) for each in proto.metadata_props}
    assert about["dives"] == {"name": "World Aquatics (expressible)", "numbers": list(OTHER_DIVES.numbers)}
    assert about["attributes"] == {name: list(values) for name, values in OTHER_DIVES.value_names.items()}
    assert about["temperature"] == 0.7
    assert about["preprocessing"]["num_frames"] == 4
    assert about["preprocessing"]["pixel_std"] == list(PIXEL_STD)
    model = OnnxClassifier(onnx_file)
    assert (model.dive_set, model.clip_config.image_size) == (OTHER_DIVES, 16)


def test_onnx_over_other_dives_answers_as_the_model_with_these(onnx_file, make_model, clips):
    scores = OnnxClassifier(onnx_file).calibrated_scores(clips)
    expected = expected_outputs(make_model(), clips, OTHER_DIVES)
    assert_same([scores.log_probs(), *(scores.marginals()[name] for name in ATTRIBUTES)], expected)


def test_a_session_that_answers_otherwise_is_noticed(onnx_file, make_model):
    session = OnnxClassifier(onnx_file).session
    graph.require_same(graph.ClassifierGraph(make_model(), OTHER_DIVES), session)
    with pytest.raises(RuntimeError, match="ONNX Runtime gives other dives than the model: they differ by"):
        graph.require_same(graph.ClassifierGraph(make_model(HeadKind.PAIRWISE), OTHER_DIVES), session)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("dives", '{"name": "x", "numbers": ["9"]}', "dive number '9'"),
        ("dives", "[]", "list indices must be integers"),
        ("head", '"round"', "'round' is not a valid HeadKind"),
        ("preprocessing", "[", "Expecting value"),
        ("preprocessing", '{"pixel_mean": [0, 0, 0]}', "pixel_mean must be (0."),
        ("format", None, "KeyError('format')"),
    ],
    ids=["dives", "no dives", "head", "preprocessing", "pixels", "format"],
)
def test_other_metadata_are_refused(key, value, reason, onnx_file, tmp_path):
    import onnx

    proto = onnx.load(onnx_file)
    props = {each.key: each.value for each in proto.metadata_props} | {key: value}
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, {name: text for name, text in props.items() if text is not None})
    onnx.save(proto, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match="its metadata are not those of `diveparse export`") as caught:
        OnnxClassifier(tmp_path / "other.onnx")
    assert reason in str(caught.value)


def test_a_damaged_onnx_file_is_refused(tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ValueError, match=r"model.onnx: not a whole ONNX file: ") as caught:
        OnnxClassifier(tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)


def test_weights_beyond_one_onnx_file_are_refused(make_model, monkeypatch, tmp_path):
    for name in ("onnx", "onnxruntime", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, graph)  # they are not asked for anything
    monkeypatch.setattr(graph, "MAX_ONNX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"model.onnx: an ONNX file holds at most 2.1 GB, and the weights have 0.0"):
        write_onnx(make_model(), DIVING48, tmp_path / "model.onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_without_the_extra_the_command_to_install_it_is_named(package, make_model, monkeypatch, tmp_path):
    for name in ("onnx", "onnxruntime", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None if name == package else graph)
    with pytest.raises(ValueError, match=rf"exporting needs the package {package}: pip install 'diveparse\[onnx\]'"):
        write_onnx(make_model(), DIVING48, tmp_path / "model.onnx")
    if package == "onnxruntime":
        with pytest.raises(ValueError, match=r"reading it needs ONNX Runtime: pip install 'diveparse\[onnx\]'"):
            OnnxClassifier(tmp_path / "model.onnx")
