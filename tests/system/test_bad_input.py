"""Every bad request is one clear line on standard error and exit status 2, and leaves no run behind."""

import pytest
import torch
from helpers.data import arguments
from helpers.runs import refused

import option
from iaa.errors import InputError
from iaa.options import scoring_options
from iaa.training.build import pick_device


def edit(path, line, text):
    lines = path.read_text().splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("name", ["path_to_images", "path_to_save_csv"])
def test_missing_folder(run, ava, name):
    refused(run, ava, "nowhere: no such folder", f"--{name}", **{name: ava / "nowhere"})


def test_missing_folders_are_named_together(run, ava):
    needs = "--dataset ava needs --path_to_images and --path_to_save_csv; prepare_data.py makes the CSVs"
    refused(run, ava, needs, path_to_images=None, path_to_save_csv=None)
    missing = {"path_to_images": ava / "no", "path_to_save_csv": ava / "nowhere"}
    problem = f"{ava}/nowhere: no such folder; --path_to_save_csv names it; {ava}/no: no such folder; "
    refused(run, ava, problem + "--path_to_images names it; prepare_data.py makes the CSVs", **missing)


def test_missing_csv(run, ava):
    (ava / "train.csv").unlink()
    refused(run, ava, "train.csv: no such file")


def test_missing_column_says_which_were_found(run, ava):
    text = (ava / "train.csv").read_text().replace("score11", "score12")
    (ava / "train.csv").write_text(text)
    refused(run, ava, "train.csv: no column score11", "found image_id, score2", "score12")


def test_csv_without_score_or_votes_says_what_was_found(run, ava):
    (ava / "test.csv").write_text("image,beauty\na.jpg,1\n")
    refused(run, ava, "needs the column 'score'", "found image, beauty", dataset="csv")


@pytest.mark.parametrize(
    ("lines", "problem"),
    [([], "test.csv: "), (["", ""], "test.csv: "), (None, "test.csv: no rows under the header image_id")],
)
def test_empty_csv(run, ava, lines, problem):
    """lines: of the file; None: the header alone."""
    lines = (ava / "test.csv").read_text().splitlines()[:1] if lines is None else lines
    (ava / "test.csv").write_text("\n".join(lines))
    refused(run, ava, problem)


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ("106,1,x,1,1,1,1,1,1,1,1", ("line 8", "score3 = 'x'", "not a number")),
        ("106,1,,1,1,1,1,1,1,1,1", ("line 8", "score3 = ''", "not a number")),
        ("106,1,nan,1,1,1,1,1,1,1,1", ("line 8", "not a number")),
        ("106,1,inf,1,1,1,1,1,1,1,1", ("line 8", "not a number")),
        ("106,1,-2,1,1,1,1,1,1,1,1", ("line 8", "score3 = '-2'", "negative")),
        ("106,0,0,0,0,0,0,0,0,0,0", ("line 8", "all votes are 0")),
        ("106,1,1", ("line 8", "not a number")),
        ("106,1,1,1,1,1,1,1,1,1,1,1,1", ("train.csv",)),
        ("105,1,1,1,1,1,1,1,1,1,1", ("line 8", "'105'", "second time")),
        ("../106,1,1,1,1,1,1,1,1,1,1", ("line 8", "'../106'", "leaves the image folder")),
        ("/etc/106,1,1,1,1,1,1,1,1,1,1", ("line 8", "leaves the image folder")),
        ("a/../../106,1,1,1,1,1,1,1,1,1,1", ("line 8", "leaves the image folder")),
        (",1,1,1,1,1,1,1,1,1,1", ("line 8", "is empty")),
    ],
)
def test_bad_rows_are_named(run, ava, row, parts):
    edit(ava / "train.csv", 8, row)
    refused(run, ava, "train.csv", *parts)


def test_lines_are_counted_over_blank_ones(run, ava):
    edit(ava / "train.csv", 3, "\n\n101,1,x,1,1,1,1,1,1,1,1")
    refused(run, ava, "line 5", "score3 = 'x'")


@pytest.mark.parametrize("value", ["10.5", "-1", "abc"])
def test_score_out_of_range(run, scored, value):
    edit(scored / "train.csv", 4, f"train2.jpg,{value}")
    refused(run, scored, "train.csv, line 4", f"score = '{value}'", dataset="tad66k")


def test_splits_with_different_votes(run, ava):
    for name, count in (("train", 5), ("val", 5), ("test", 6)):
        columns = ",".join(str(level) for level in range(1, count + 1))
        (ava / f"{name}.csv").write_text(f"image,{columns}\n100.jpg{',1' * count}\n")
    refused(run, ava, "train.csv: its label columns differ from those of test.csv", dataset="csv")


def test_missing_images_are_counted_and_the_first_ten_named(run, ava):
    for number in range(100, 111):
        (ava / "images" / f"{number}.jpg").unlink()
    refused(run, ava, "train.csv: 11 of 12 images", "100.jpg", "109.jpg, ...", "--skip_missing")


def test_no_image_at_all_is_not_skipped(run, ava):
    (ava / "empty").mkdir()
    refused(run, ava, "none of them is there", path_to_images=ava / "empty", skip_missing=True)


@pytest.mark.slow
@pytest.mark.parametrize(("content", "workers"), [(b"", 0), (b"no picture", 0), (None, 1)])
def test_an_image_that_does_not_decode_is_named_when_it_is_met(run, ava, content, workers):
    path = ava / "images" / "103.jpg"
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    status, _, err = run(arguments(ava, num_workers=workers))
    assert status == 2
    assert "103.jpg: does not decode" in err
    assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_wrong_weights(run, ava):
    refused(run, ava, "nowhere.pth: no such weights file", path_to_model_weight=ava / "nowhere.pth")
    torch.save({"layer.weight": torch.zeros(3), "ref_point14": torch.zeros(1)}, ava / "other.pth")
    other = {"path_to_model_weight": ava / "other.pth"}
    refused(run, ava, "other.pth does not fit this network", **other)
    (ava / "text.pth").write_text("hello")
    refused(run, ava, "text.pth", path_to_model_weight=ava / "text.pth")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"eval": True}, "--eval needs --path_to_model_weight"),
        ({"resume": True, "overwrite": True}, "no run to resume"),
        ({"dataset": "csv", "released_protocol": True}, "--released_protocol: csv has none; ava and tad66k"),
        (
            {"dataset": "tad66k", "loss": "emd"},
            "--loss emd needs vote distributions; tad66k has scores: use mse",
        ),
        (
            {"dataset": "tad66k", "loss": "0.5*plcc+emd"},
            "--loss 0.5*plcc+emd needs vote distributions; tad66k has scores: use mse instead of emd",
        ),
        ({"loss": "emd+0.5*plc"}, "--loss emd+0.5*plc: choose from emd, nima_r1"),
        ({"loss": "plcc", "batch_size": 1}, "--loss plcc compares the images of a batch: --batch_size and"),
        ({"loss": "emd+rank", "eval_batch_size": 1}, "--eval_batch_size must be at least 2"),
        ({"warmup_epochs": 3}, "--warmup_epochs 3 exceeds --num_epoch 1"),
        ({"score_max": 7}, "--score_max belongs to --dataset csv"),
        ({"dataset": "csv", "score_min": 2}, "--score_min 2 is not below --score_max 1"),
        ({"schedule": "cosine", "decay_every": 3}, "--decay_every belongs to --schedule step"),
        ({"path_to_images": None}, "--dataset ava needs --path_to_images"),
        ({"explore_share": 1.5}, "--explore_share 1.5 must be between 0 and 1"),
        ({"explore_share": -0.1}, "--explore_share -0.1 must be between 0 and 1"),
        ({"explore_same": -1}, "--explore_same -1 must be at least 0"),
        ({"explore_other": -0.5}, "--explore_other -0.5 must be at least 0"),
        ({"explore_same": 0.5}, "--explore_same belongs to --refinement scheduled, not released"),
        ({"eval_refinement": "exploitation"}, "--eval_refinement belongs to --refinement scheduled"),
        ({"handover": "jump"}, "--handover jump: choose from linear, step"),
        ({"interest_points": "median"}, "--interest_points median: choose from batch, image, grid"),
        ({"cuda_graph": "on"}, "--cuda_graph on: the device is cpu; leave it out"),
        ({"amp": "fp8"}, "--amp fp8: choose from auto, bf16"),
        ({"save_minutes": -1}, "--save_minutes -1 must be at least 0"),
        ({"max_bad_steps": -1}, "--max_bad_steps -1 must be at least 0"),
        ({"batch_size": 0}, "--batch_size 0 must be at least 1"),
        ({"layer_decay": 1.5}, "--layer_decay 1.5 must be between 0 and 1"),
        ({"ema_decay": 1}, "--ema_decay 1 must be between 0 and 0.99999"),
        ({"init_lr": -1}, "--init_lr -1 must be greater than 0"),
        ({"init_lr": "nan"}, "--init_lr nan is not a finite number"),
        ({"num_epoch": 1.5}, "--num_epoch 1.5 is not a whole number"),
        ({"dataset": "imagenet"}, "--dataset imagenet: choose from demo, ava"),
        ({"path_to_model_weight": ""}, "--path_to_model_weight is empty"),
        ({"path_to_images": "x" * 300}, "File name too long"),
        ({"experiment_dir_name": __file__}, "test_bad_input.py: File exists"),
    ],
)
def test_impossible_options(run, ava, options, problem):
    refused(run, ava, problem, **options)


@pytest.mark.parametrize("gpu", ["99", "-1", "0,1", "gpu"])
def test_a_gpu_that_is_not_there(run, ava, gpu):
    refused(run, ava, f"--gpu_id {gpu}: no such GPU", gpu_id=gpu)


def test_several_processes_are_not_put_on_one_gpu(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="torchrun gives each process a GPU of its own"):
        pick_device("0")
    assert pick_device("cpu").type == "cpu"


def test_unknown_option_is_one_line(run):
    status, _, err = run(["--no_such_option"])
    assert status == 2
    assert err.splitlines() == ["main_nni.py: unrecognized arguments: --no_such_option (see --help)"]


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--lr", "--init_lr"),
        ("--init-lr=1", "--init_lr"),
        ("--epochs", "--num_epoch"),
        ("--weights", "--path_to_model_weight"),
        ("--optimiser", "--optimizer"),
        ("--warmup", "--warmup_epochs"),
        ("\u2013-lr", "--init_lr"),
        ("--fp16", "--amp"),
    ],
)
def test_a_misspelt_or_foreign_option_is_answered_with_the_nearest(run, word, meant):
    problem = f"unrecognized arguments: {word} 3; did you mean {meant}? (see --help)"
    assert run([word, "3"])[2] == f"main_nni.py: {problem}\n"


def test_a_word_that_belongs_to_no_option_is_told(run):
    problem = "unrecognized arguments: true; --eval takes no value (see --help)"
    assert run(["--eval", "true"])[2] == f"main_nni.py: {problem}\n"
    assert "unrecognized arguments: train (see" in run(["train", "--eval"])[2]


def test_a_misspelt_option_of_a_file_or_a_tuner_is_answered_with_the_nearest(run, ava):
    (ava / "o.json").write_text('{"lr": 0.1}')
    assert "unknown option 'lr'; did you mean init_lr? --help" in run(["--options", ava / "o.json"])[2]
    with pytest.raises(InputError, match=r"'epochs'; did you mean num_epoch\? the search may set"):
        option.check_tuned({"epochs": 3})


def test_an_output_folder_is_made(tmp_path):
    out = tmp_path / "new" / "deeper" / "scores.csv"
    scoring_options.check(scoring_options.parse(["x.jpg", "--weights", "w.pth", "--out", str(out)]))
    assert out.parent.is_dir()


def test_a_folder_that_cannot_be_made(run, ava):
    refused(run, ava, "run: Not a directory", experiment_dir_name=ava / "train.csv" / "run")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"learning_rate": 0.1}, "unknown parameter 'learning_rate'"),
        ({"path_to_images": "/"}, "unknown parameter 'path_to_images'"),
        ({"batch_size": "many"}, "batch_size = 'many' is not a whole number"),
        ({"batch_size": "16"}, "batch_size = '16' is not a whole number"),
        ({"batch_size": 16.5}, "batch_size = 16.5 is not a whole number"),
        ({"init_lr": None}, "init_lr = None is not a number"),
        ({"init_lr": True}, "init_lr = True is not a number"),
        ({"optimizer": 3}, "optimizer = 3 is not a text"),
        ({"loss": "hinge"}, "loss = 'hinge': choose from"),
    ],
)
def test_tuners_bad_parameters(parameters, message):
    with pytest.raises(InputError, match="tuner") as error:
        option.check_tuned(parameters)
    assert message in str(error.value)


def test_tuners_good_parameters_take_the_options_types():
    assert option.check_tuned({"batch_size": 24.0, "init_lr": 1}) == {"batch_size": 24, "init_lr": 1.0}
