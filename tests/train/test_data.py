"""Which rows a run trains and is evaluated on: splits, mixtures, rows held out, streams."""

import json

import pytest
import yaml

from profit_sft.cli.app import run_app
from profit_sft.data.prepare import prepare_dataset
from profit_sft.data.settings import DataSettings
from tiny import chat_tokenizer, save_tiny_chat_model

# A tiny random model gives every token p near 1/320, under any threshold a person would set.
pytestmark = pytest.mark.filterwarnings("ignore:.*so it teaches nothing:UserWarning")


def rows(letter, count):
    return [{"question": f"{letter}{number}?", "answer": f"{letter} is {number}."} for number in range(count)]


@pytest.fixture
def folder(tmp_path):
    """Three files of a data set: 16 rows to train on, 4 to test on, and in a second folder 8 of another kind."""
    for name, letter, count in (("one/train", "a", 16), ("one/test", "b", 4), ("two/rows", "c", 8)):
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(letter, count)))
    return tmp_path


@pytest.fixture
def train(tiny_folder, tmp_path, capsys):
    def run(*flags, status=0, steps="2", **settings):
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
        arguments = [
            *("train", "--config", str(tmp_path / "c.yaml"), "--model_name_or_path", tiny_folder, "--use_cpu", "True"),
            *("--output_dir", str(tmp_path / "run"), "--threshold", "0.0001", "--logging_steps", "1"),
            *("--max_steps", steps, "--save_strategy", "no"),
        ]
        assert run_app([*arguments, *flags]) == status
        _, err = capsys.readouterr()
        assert "Traceback" not in err
        if status:
            return err
        logs = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        return json.loads((tmp_path / "run" / "data.json").read_text()), logs, err

    return run


def test_a_folder_is_trained_on_its_train_split_and_evaluated_on_its_test_split(folder, train):
    data, logs, err = train("--dataset_name", str(folder / "one"), "--eval_strategy", "steps", "--eval_steps", "2")
    assert data["rows_used"] == 16
    assert [log["step"] for log in logs if "eval_loss" in log] == [2]
    assert f"evaluation {folder / 'one'}" in err
    other, *_ = train("--dataset_name", str(folder / "one"), "--dataset_train_split", "test", "--overwrite_output_dir")
    assert other["rows_used"] == 4


@pytest.mark.parametrize(("size", "used"), [("0.25", 12), ("3", 13)])
def test_rows_held_out_are_evaluated_on_and_not_trained_on(folder, train, size, used):
    name = str(folder / "one/train.jsonl")
    data, logs, err = train("--dataset_name", name, "--test_split_size", size, "--eval_strategy", "epoch", steps="-1")
    assert data["rows_used"] == used
    assert any("eval_loss" in log for log in logs)
    assert "all but" in err
    settings = DataSettings(dataset_name=name, test_split_size=float(size))
    trained, held_out = (
        prepare_dataset(DataSettings(dataset_name=name, test_split_size=float(size), held_out=part), chat_tokenizer())
        for part in (False, True)
    )
    assert prepare_dataset(settings, chat_tokenizer()).report.fingerprint == data["fingerprint"]
    assert sorted([*trained.dataset["row"], *held_out.dataset["row"]]) == list(range(1, 17))


def test_a_mixture_is_trained_as_trl_spells_it(folder, train):
    parts = [{"path": str(folder / "one"), "split": "train"}, {"path": str(folder / "two/rows.jsonl")}]
    data, *_ = train(datasets=parts)
    assert data["rows_used"] == 24
    assert data["dataset_name"] == f"mixture of {folder / 'one'}, {folder / 'two/rows.jsonl'}"
    written = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    assert written["datasets"] == parts
    scored = prepare_dataset(DataSettings(dataset_name=str(folder / "c.yaml")), chat_tokenizer())
    assert scored.report.fingerprint == data["fingerprint"]
    half, *_ = train("--overwrite_output_dir", datasets=[{**part, "fraction": 0.5} for part in parts])
    assert half["rows_used"] == 16


def streamed_losses(logs):
    return [log["nll"] for log in logs if "loss" in log]


@pytest.mark.parametrize("flag", ["--streaming", "--dataset_streaming"])
def test_streamed_rows_are_those_that_are_prepared(folder, train, flag):
    common = ("--dataset_name", str(folder / "one"), "--train_sampling_strategy", "sequential")
    _, logs, _ = train(*common)
    data, streamed, err = train(*common, flag, "True", "--overwrite_output_dir")
    assert streamed_losses(streamed) == streamed_losses(logs)
    assert (data["rows_used"], data["notes"]) == (0, ["streamed, so that nothing is counted"])
    assert ", streamed" in err


@pytest.mark.parametrize(
    ("flags", "settings", "message"),
    [
        (["--streaming", "True", "--max_steps", "-1"], {}, "streaming: nobody knows how many rows there are"),
        (["--streaming", "True", "--test_split_size", "2"], {}, "to hold rows out they must be counted"),
        (["--streaming", "True", "--dry-run"], {}, "a dry run counts rows and tokens"),
        (["--test_split_size", "16"], {}, "has 16 rows, of which test_split_size=16.0 holds out 16, so none is left"),
        (["--test_split_size", "1.5"], {}, "test_split_size must be a share of the rows in (0, 1), or their number"),
        (
            ["--test_split_size", "2", "--eval_dataset_name", "x", "--eval_strategy", "epoch"],
            {},
            "Leave one of the two",
        ),
        ([], {"datasets": ["x"]}, "only one can be trained on. Leave one out, or make the first a part"),
        (["--dataset_train_split", "tset"], {}, "has no split 'tset'; it has train, test"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(folder, train, flags, settings, message):
    name = "one" if "tset" in flags else "one/train.jsonl"
    is_about_data = "rows, of" in message or "tset" in message
    err = train("--dataset_name", str(folder / name), *flags, status=1 if is_about_data else 2, **settings)
    assert message in err
    assert not (folder / "run").exists()


FLAGS = {
    "assistant_only_loss": ["--assistant_only_loss", "True"],
    "completion_only_loss": ["--completion_only_loss", "True"],
    "padding_free": ["--padding_free", "True"],
    "dataset_num_proc": ["--dataset_num_proc", "2"],
    "shuffle_dataset": ["--shuffle_dataset", "True"],
}


@pytest.mark.parametrize("case", FLAGS)
def test_flags_of_trl_that_ended_in_a_traceback_or_did_nothing(folder, train, case):
    _, logs, _ = train("--dataset_name", str(folder / "one"))
    _, found, _ = train("--dataset_name", str(folder / "one"), *FLAGS[case], "--overwrite_output_dir")
    assert streamed_losses(found) == pytest.approx(streamed_losses(logs), rel=1e-5) or case == "shuffle_dataset"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--use_peft", "--lora_target_modules", ".*lm_head"],
            "(Applying a PEFT adapter to `lm_head` is not sup",
        ),
        (["--router_aux_loss_coef", "0.1"], "is not a Mixture-of-Experts model"),
    ],
)
def test_what_the_trainer_refuses_is_one_line(folder, train, flags, message):
    err = train("--dataset_name", str(folder / "one"), *flags, status=2)
    assert "error: the trainer does not take these settings for this model" in err
    assert message in err


def test_rows_that_are_cut_or_left_out_are_said_with_their_share(folder, train):
    name = str(folder / "one")
    _, _, err = train("--dataset_name", name, "--max_length", "21")
    assert "cut        6 rows (37.5%) lost their end to max_length" in err
    data, _, err = train("--dataset_name", name, "--max_length", "21", "--drop_long_rows", "--overwrite_output_dir")
    assert (data["rows_too_long"], data["rows_used"]) == (6, 10)
    assert "left out   6 rows (37.5%) are longer than max_length" in err


def test_a_token_that_the_embedding_has_not_got_is_refused_before_the_first_step(folder, train, tiny_folder, tmp_path):
    tokenizer = chat_tokenizer()
    tokenizer.add_tokens(["a is"])
    other = tmp_path / "other"
    save_tiny_chat_model(other)
    tokenizer.save_pretrained(other)
    err = train("--dataset_name", str(folder / "one"), "--model_name_or_path", str(other), status=2)
    assert "has token 293 ('a is'), but the model's embedding has only 293 rows. The tokenizer is not this" in err
