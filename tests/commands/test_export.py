import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from transformers import TimesformerForVideoClassification

from diveparse.commands import export
from diveparse.commands.cli import main
from diveparse.configs import Config, HeadKind, StemKind, find_config, load_config
from diveparse.datasets.dives import DIVING48
from diveparse.datasets.records import RENDERED_FILE
from diveparse.engine.export import push
from diveparse.models.classifier import DiveClassifier, build_classifier

pytestmark = pytest.mark.usefixtures("quick_training_figures")


@pytest.fixture
def run(tiny_run, tmp_path):
    return Path(shutil.copytree(tiny_run, tmp_path / "runs" / "tiny" / "joint" / "seed-0"))


@pytest.fixture
def video(tiny_root):
    return str(min((tiny_root / "rgb").iterdir()))


def answers(capsys, *arguments):
    assert main(["predict", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def assert_same_answer(answer, other):
    assert answer["number"] == other["number"]
    assert answer["probability"] == pytest.approx(other["probability"], abs=1e-5)
    for name, each in answer["attributes"].items():
        assert each["value"] == other["attributes"][name]["value"]
        assert each["probability"] == pytest.approx(other["attributes"][name]["probability"], abs=1e-5)


def test_a_folder_for_transformers_is_also_a_model_for_predict(run, video, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(run), str(out), "--format", "huggingface"]) == 0
    printed = capsys.readouterr().out
    assert printed == f"{out}: a model for transformers\n{out}: answers with 48 dives, Diving48\n"
    files = {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "video_preprocessor_config.json",
    }
    assert {path.name for path in out.iterdir()} == files
    assert_same_answer(answers(capsys, out, video), answers(capsys, run, video))


def test_a_folder_over_other_dives_answers_as_the_run_with_these(run, video, tmp_path, capsys):
    arguments = ["--format", "huggingface", "--dives", "world-aquatics"]
    assert main(["export", str(run), str(tmp_path / "out"), *arguments]) == 0
    assert "answers with 164 dives, World Aquatics (expressible)" in capsys.readouterr().out
    assert TimesformerForVideoClassification.from_pretrained(tmp_path / "out").config.id2label[0] == "101A"
    ours = answers(capsys, run, video, "--dives", "world-aquatics")
    assert_same_answer(answers(capsys, tmp_path / "out", video), ours)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "answers here with 164, of which" in card


@pytest.mark.parametrize("chosen", ["huggingface", "onnx", "torch-export"])
def test_a_flat_model_has_no_other_dives(chosen, run, tmp_path, capsys):
    cfg = load_config(run / "config.yaml", [f"head.kind={HeadKind.FLAT.value}"])
    build_classifier(cfg, DIVING48).save(tmp_path / "flat")
    out = tmp_path / f"out{export.SUFFIXES.get(chosen, '')}"
    assert main(["export", str(tmp_path / "flat"), str(out), "--format", chosen, "--dives", "world-aquatics"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: a flat head answers only with its own 48 dives of Diving48")
    assert error.count("\n") == 1
    assert not out.exists()


def test_onnx_is_read_by_predict(run, video, tmp_path, capsys):
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason="the extra `onnx` is not installed")
    path = tmp_path / "new" / "model.onnx"
    assert main(["export", str(run), str(path), "--format", "onnx"]) == 0
    assert capsys.readouterr().out == f"{path}: answers with 48 dives, Diving48\n"
    assert_same_answer(answers(capsys, path, video), answers(capsys, run, video))
    assert main(["predict", str(path), video, "--dives", "world-aquatics"]) == 1
    line = f"error: {path}: has the dives that it was exported with; export its run again with --dives\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("kind", [HeadKind.JOINT, HeadKind.FLAT], ids=lambda kind: kind.value)
def test_a_model_of_the_demos_shape_is_read_by_predict(kind, tiny_root, video, tmp_path, capsys):
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason="the extra `onnx` is not installed")
    cfg = load_config(find_config(Path("demo"), Config), [f"data.root={tiny_root}", f"head.kind={kind.value}"])
    assert (cfg.clip.num_frames, cfg.clip.image_size, cfg.backbone.depth) == (24, 64, 4)
    assert cfg.backbone.stem is StemKind.CONV
    model = build_classifier(cfg, DIVING48)
    for parameter in model.head.parameters():  # away from a start at which all dives are alike
        nn.init.normal_(parameter, 0, 0.1, generator=torch.Generator().manual_seed(0))
    model.save(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "demo.onnx"), "--format", "onnx"]) == 0
    capsys.readouterr()
    assert_same_answer(answers(capsys, tmp_path / "demo.onnx", video), answers(capsys, tmp_path / "model", video))


def test_a_missing_onnx_file_is_one_line(video, tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    assert main(["predict", str(tmp_path / "no.onnx"), video]) == 1
    assert capsys.readouterr().err.startswith(
        f"error: {tmp_path / 'no.onnx'}: no such file; expected one that `divepar"
    )


def test_torch_export_is_one_file(run, tmp_path):
    assert main(["export", str(run), str(tmp_path / "model.pt2"), "--format", "torch-export"]) == 0
    program = torch.export.load(tmp_path / "model.pt2")
    clips = torch.randn(3, 4, 3, 32, 32)
    with torch.no_grad():
        expected = DiveClassifier.load(run).calibrated_scores(clips).log_probs()
    torch.testing.assert_close(program.module()(clips)[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("out", "chosen", "complaint"),
    [
        ("model.bin", "onnx", "expected the name of a file that ends in .onnx for --format onnx"),
        ("model.onnx", "torch-export", "expected the name of a file that ends in .pt2 for --format torch-export"),
        ("full", "huggingface", "already exists; remove it, or choose another name"),
        ("full/file.onnx", "onnx", "already exists; remove it, or choose another name"),
        ("full/file.onnx", "huggingface", "already exists; remove it, or choose another name"),
    ],
)
def test_an_output_that_cannot_be_is_refused_first(out, chosen, complaint, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file.onnx").write_text("kept")
    assert main(["export", str(tmp_path / "no run"), str(tmp_path / out), "--format", chosen]) == 1
    assert complaint in capsys.readouterr().err
    assert (tmp_path / "full" / "file.onnx").read_text() == "kept"


def test_a_card_has_data_protocol_accuracy_with_its_interval_calibration_limits_and_licence(run, tmp_path, capsys):
    assert main(["test", str(run)]) == 0
    assert main(["export", str(run), str(tmp_path / "out"), "--format", "huggingface"]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    card = (tmp_path / "out" / "README.md").read_text()
    _, header, text = card.split("---\n", 2)
    assert yaml.safe_load(header)["license"] == "apache-2.0"
    assert yaml.safe_load(header)["pipeline_tag"] == "video-classification"
    assert re.search(rf"\| top-1 +\| +{metrics['top1']:.3f} +\| \d\.\d{{3}} to \d\.\d{{3}}", text)
    assert (
        f"expected calibration error is {metrics['ece_calibrated']:.3f} with it and {metrics['ece']:.3f} without"
        in text
    )
    assert "Tested on the 12 test clips" in text
    sections = ["Use", "Model", "Data and protocol", "Accuracy", "Calibration", "Intended use and limits", "Licence"]
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == sections
    assert "rendered" not in text.lower()


def test_rendered_dives_are_never_presented_as_diving48(run, tiny_root, tmp_path):
    root = Path(shutil.copytree(tiny_root, tmp_path / "drawn"))
    (root / RENDERED_FILE).write_text("{}")
    assert main(["test", str(run), f"data.root={root}"]) == 0
    assert main(["export", str(run), str(tmp_path / "out"), "--format", "huggingface"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "**The dives are rendered**" in card
    assert "no number here is a Diving48 number" in card
    assert card.index("rendered") < card.index("Accuracy")
    assert card.count("Diving48") == card.count("not Diving48") + 1  # the one that is quoted above


def test_a_card_says_that_data_which_are_gone_may_be_rendered(run, tmp_path):
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub("root: .*", "root: /gone/mine", config))
    assert main(["export", str(run), str(tmp_path / "out"), "--format", "huggingface"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Trained on `mine`" in card
    assert "so that its dives may be rendered ones" in card


def test_a_card_of_a_model_without_a_run_claims_nothing(run, tmp_path):
    assert main(["export", str(run / "model"), str(tmp_path / "out"), "--format", "huggingface"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Not recorded beside the model that was exported." in card
    assert "Not tested: no metrics" in card


def test_a_push_uploads_the_folder_that_was_written(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(push, "require_account", lambda hub_id: None)
    monkeypatch.setattr(push, "push", lambda folder, hub_id: f"{hub_id} {sorted(p.name for p in folder.iterdir())[-1]}")
    assert main(["export", str(run), str(tmp_path / "out"), "--format", "huggingface", "--push", "me/dives"]) == 0
    assert capsys.readouterr().out.endswith("uploaded to me/dives video_preprocessor_config.json\n")


def test_without_an_account_nothing_is_exported(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: None)
    assert main(["export", str(run), str(tmp_path / "out"), "--format", "huggingface", "--push", "me/dives"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: cannot upload to me/dives: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_one_file_is_not_pushed(run, tmp_path, capsys):
    assert main(["export", str(run), str(tmp_path / "x.onnx"), "--format", "onnx", "--push", "me/dives"]) == 1
    assert "it needs --format huggingface, not onnx" in capsys.readouterr().err
