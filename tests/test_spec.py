"""The spec: what is shipped loads, what is wrong is named with its place, what is dumped reads back the same."""

import runpy
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml
from conftest import write_spec
from hypothesis import given
from hypothesis import strategies as st

from ift import spec as specs
from ift.errors import IftError
from ift.spec import Spec, TaskRef

HEAD = "name: x\nmodel: {source: org/model}\ntasks: [rotten_tomatoes]\n"


def load(folder: Path, text: str, *overrides: str) -> Spec:
    path = folder / "x.yaml"
    path.write_text(text, encoding="utf-8")
    return specs.load(path, overrides)


def refusal(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(IftError) as caught:
        load(folder, text, *overrides)
    return str(caught.value).replace(str(folder), "DIR")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train: {epoch: 2}\n",
            "DIR/x.yaml:4: unknown key `train.epoch`\n  wanted: one of method, adapter, epochs, global_batch, "
            "micro_batch, learning_rate, schedule, warmup, weight_decay, max_grad_norm, label_smoothing, "
            "neftune_alpha, zero_stage, offload, nvme, activation_checkpointing, attention, liger, precision, "
            "validate_steps, best_by, patience, early_stop, checkpoint_steps, checkpoint_minutes, keep_checkpoints, "
            "max_failures, hang_timeout_s\n  next:   did you mean `epochs`?",
        ),
        (
            "trian: {}\n",
            "DIR/x.yaml:4: unknown key `trian`\n  wanted: one of name, model, tasks, task_folders, mixture, data, "
            "train, evaluate, forgetting, tracking, cluster, seed\n  next:   did you mean `train`?",
        ),
        (
            "train: {epochs: two}\n",
            "DIR/x.yaml:4: `train.epochs` is 'two'\n  wanted: a whole number of 1 or more: passes over the data",
        ),
        (
            "data: {split: {train: 1.5}}\n",
            "DIR/x.yaml:4: `data.split.train`: 1.5 is neither a share (at most 1) nor a whole number of "
            "examples\n  wanted: a share below 1 or a count; all that is left if not given",
        ),
        (
            "data: {split: {train: .inf}}\n",
            "DIR/x.yaml:4: `data.split.train` is inf\n"
            "  wanted: a share below 1 or a count; all that is left if not given",
        ),
        (
            "train: {early_stop: {forgetting: 0.05}}\n",
            "DIR/x.yaml: `train.early_stop: {forgetting: …}` needs `forgetting.look_steps`, and probes to look at",
        ),
        (
            "forgetting: {on_breach: replay}\n",
            "DIR/x.yaml:4: `forgetting`: `on_breach: replay` needs `replay: {share: 0.05, tasks: [...]}`, "
            "what is mixed in\n  wanted: a mapping: max_drop, on_breach, …",
        ),
        (
            "train:\n  schedule: triangle\n",
            "DIR/x.yaml:5: `train.schedule` is 'triangle'\n  wanted: cosine, linear or constant",
        ),
        (
            "train: {learning_rate: 3}\n",
            "DIR/x.yaml:4: `train.learning_rate` is 3\n  wanted: auto (1e-5 for all weights, 1e-4 for an adapter) "
            "or a number between 0 and 1, such as 1.0e-5",
        ),
        (
            "train: {max_steps: 300}\n",
            "DIR/x.yaml:4: `train`: there is no `max_steps`: training takes whole epochs. `train.epochs` says how "
            "many, `mixture.size` how many examples one has\n  wanted: a mapping: epochs, global_batch, "
            "learning_rate, …",
        ),
        (
            "cluster: {workers: some}\n",
            "DIR/x.yaml:4: `cluster.workers` is 'some'\n"
            "  wanted: auto (one a GPU; two on CPU), a whole number of 1 or more, "
            "or [fewest, most]: goes on with what is left",
        ),
        (
            "cluster: {workers: [4, 2]}\n",
            "DIR/x.yaml:4: `cluster.workers`: [4, 2] has its larger number first\n  wanted: auto (one a GPU; two "
            "on CPU), a whole number of 1 or more, or [fewest, most]: goes on with what is left",
        ),
        (
            "train: {patience: 2}\n",
            "DIR/x.yaml:4: `train`: `patience` goes with `best_by`\n  wanted: a mapping: epochs, global_batch, "
            "learning_rate, …",
        ),
        (
            "seed: -1\n",
            "DIR/x.yaml:4: `seed` is -1\n  wanted: a whole number of 0 or more",
        ),
    ],
)
def test_wording_of_a_mistake(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(tmp_path, HEAD + text) == message


@pytest.mark.parametrize("tasks_", ["[{name: a, file: b}]", "[{}]"])
def test_a_task_has_a_name_or_a_file(tmp_path: Path, tasks_: str) -> None:
    message = refusal(tmp_path, f"name: x\nmodel: {{source: a/b}}\ntasks: {tasks_}\n")
    assert message.startswith(
        "DIR/x.yaml:3: `tasks.0`: a task is given by one of `name`, `file`, `data`, `cluster` and `mix`"
    )


def test_the_learning_rate_goes_by_what_is_trained(tmp_path: Path) -> None:
    train = load(tmp_path, HEAD).train
    assert (train.learning_rate, train.rate("full"), train.rate("lora")) == ("auto", 1e-5, 1e-4)
    assert train.rate_note("lora") is None
    given = load(tmp_path, HEAD + "train: {learning_rate: 2.0e-5}\n").train
    assert (given.rate("full"), given.rate("lora"), given.rate_note("full")) == (2e-5, 2e-5, None)
    assert "at train.learning_rate 2e-05, as for all weights" in (given.rate_note("lora") or "")
    meant = load(tmp_path, HEAD + "train: {learning_rate: 2.0e-5, method: lora}\n").train
    assert meant.rate_note("lora") is None


def test_overrides(tmp_path: Path) -> None:
    spec = load(
        tmp_path,
        HEAD + "train: {epochs: 1}\n",
        "train.epochs=2",
        "train.learning_rate=1e-5",
        "data.split.train=40",
        "evaluate.probes=[copying]",
        "name=y",
    )
    assert (spec.train.epochs, spec.train.learning_rate, spec.data.split.train) == (2, 1e-5, 40)
    assert (spec.evaluate.probes, spec.name) == (["copying"], "y")


@pytest.mark.parametrize(
    ("override", "start"),
    [
        ("train.epoch=2", "command line: unknown key `train.epoch`\n  wanted: one of method, adapter, "),
        ("train.epochs=two", "command line: `train.epochs` is 'two'\n  wanted: a whole number of 1 or more"),
        ("train=3", "command line: `train` is 3\n  wanted: a mapping"),
        ("train={epochs: 0}", "command line: `train.epochs` is 0\n"),
        ("epochs", "the override `epochs`\n  wanted: key=value, such as train.epochs=2"),
        ("=3", "the override `=3`\n  wanted: key=value"),
        (
            "seed.x=3",
            "the override `seed.x=3`\n  wanted: a key below `seed`, which is not a mapping",
        ),
    ],
)
def test_wording_of_a_wrong_override(tmp_path: Path, override: str, start: str) -> None:
    assert refusal(tmp_path, HEAD + "train: {epochs: 1}\nseed: 1\n", override).startswith(start)


def test_a_mistake_in_the_file_keeps_its_line_beside_an_override(tmp_path: Path) -> None:
    message = refusal(tmp_path, HEAD + "train:\n  epochs: 0\n", "train.micro_batch=2")
    assert message.startswith("DIR/x.yaml:5: `train.epochs` is 0")


def test_missing_file_lists_its_neighbours(tmp_path: Path) -> None:
    load(tmp_path, HEAD)
    with pytest.raises(IftError) as caught:
        specs.load(tmp_path / "y.yaml")
    assert str(caught.value) == (
        f"no file {tmp_path}/y.yaml\n  wanted: a YAML file\n  next:   there is {tmp_path}/x.yaml"
    )


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "models").mkdir()
    text = "name: x\nmodel: {{source: {}}}\ntasks: [{{file: t/a.yaml}}, {{file: ~/b.yaml}}]\n"
    spec = load(tmp_path, text.format("models"))
    assert spec.model.source == str(tmp_path / "models")
    assert [ref.file for ref in spec.tasks] == [str(tmp_path / "t/a.yaml"), str(tmp_path / "home/b.yaml")]
    assert load(tmp_path, text.format("./m")).model.source == str(tmp_path / "m")
    assert load(tmp_path, text.format("~/m")).model.source == str(tmp_path / "home" / "m")
    assert load(tmp_path, text.format("org/m")).model.source == "org/m"
    assert load(tmp_path, text.format("/a/m")).model.source == "/a/m"


def test_what_a_second_run_replays_is_relative_to_the_file_too(tmp_path: Path) -> None:
    replay = "replay: {share: 0.05, tasks: [{file: my/t.yaml}]}"
    spec = load(tmp_path, HEAD + f"mixture: {{{replay}}}\nforgetting: {{on_breach: replay, {replay}}}\n")
    assert spec.mixture.replay
    assert spec.second_mixture
    assert spec.second_mixture.replay
    for found in (spec.mixture.replay, spec.second_mixture.replay):
        assert found.tasks[0].file == str(tmp_path / "my/t.yaml")


def test_never_is_written_down_and_read_back(tmp_path: Path) -> None:
    spec = load(tmp_path, HEAD + "train: {checkpoint_minutes: null}\n")
    again = load(tmp_path, specs.dump(spec))
    assert (spec.train.checkpoint_minutes, again.train.checkpoint_minutes) == (None, None)
    assert again == spec
    assert load(tmp_path, specs.moved(spec, str)) == spec


def test_data_in_s3_is_sent_to_a_task_file(tmp_path: Path) -> None:
    text = HEAD.replace("rotten_tomatoes", "{data: 's3://b/x.jsonl'}")
    assert refusal(tmp_path, text).startswith(
        "DIR/x.yaml:3: `tasks.0`: `data` is a path, and s3://b/x.jsonl is none: what is in S3 is named by "
        "`source: {files: …}` of a task file"
    )


def test_names_default_to_the_runs(tmp_path: Path) -> None:
    spec = load(tmp_path, HEAD)
    assert (spec.experiment, spec.registered_name) == ("x", "x")
    spec = load(tmp_path, HEAD + "tracking: {experiment: e, register: r}\n")
    assert (spec.experiment, spec.registered_name) == ("e", "r")


def test_frozen(tmp_path: Path) -> None:
    spec = load(tmp_path, HEAD)
    with pytest.raises(pydantic.ValidationError):
        spec.seed = 3
    with pytest.raises(pydantic.ValidationError):
        spec.train.epochs = 3


def test_every_default_is_written_down(tmp_path: Path) -> None:
    model = tmp_path / "model"
    dumped = yaml.safe_load(specs.dump(specs.load(write_spec(tmp_path, model))))
    written = {key for key, _ in specs.flatten(dumped)}
    for section, kind in Spec.model_fields.items():
        fields = getattr(kind.annotation, "model_fields", {})
        for name, field in fields.items():
            if field.default is not None and name not in ("split", "adapter"):
                assert f"{section}.{field.alias or name}" in written


counts = st.integers(1, 10**6)
shares = st.floats(0, 1, exclude_min=True, exclude_max=True)
# without control characters: PyYAML writes U+0085 so that it reads back as a space
names = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=8)
replays = st.sampled_from(
    [
        specs.Replay(share=0.05, tasks=(TaskRef(name="alpaca"),)),
        specs.Replay(
            share=0.1,
            rule="fixed",
            tasks=(
                TaskRef(file="/tasks/c.yaml", weight=2),
                TaskRef(mix="m", tasks=(TaskRef(name="dolly"),), weight=1),
            ),
        ),
    ]
)
sections = st.fixed_dictionaries(
    {},
    optional={
        "data": st.fixed_dictionaries(
            {},
            optional={
                "max_length": st.integers(16, 10**6),
                "packing": st.booleans(),
                "balanced": st.booleans(),
                "max_bad_rows": st.floats(0, 1),
                "split": st.fixed_dictionaries(
                    {},
                    optional={"train": shares | counts, "validation": shares | counts, "test": st.just(0)},
                ),
            },
        ),
        "train": st.fixed_dictionaries(
            {},
            optional={
                "epochs": counts,
                "learning_rate": st.floats(0, 1, exclude_min=True, exclude_max=True),
                "weight_decay": st.floats(0, allow_nan=False, allow_infinity=False),
                "schedule": st.sampled_from(["cosine", "linear", "constant"]),
                "zero_stage": st.integers(0, 3),
                "checkpoint_steps": st.none() | counts,
                "checkpoint_minutes": st.none() | st.floats(1, 100),
            },
        ),
        "evaluate": st.fixed_dictionaries(
            {"probes": st.sampled_from(["default", "none"]) | st.lists(names, max_size=2)}
        ),
        "tracking": st.fixed_dictionaries({"uri": names, "register": st.none() | names}),
        "cluster": st.fixed_dictionaries({"workers": st.just("auto") | counts}),
        "forgetting": st.fixed_dictionaries({"on_breach": st.just("replay"), "replay": replays}),
        "seed": st.integers(0, 2**32 - 1),
    },
)


@given(sections)
def test_dumped_spec_reads_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, sections: dict[str, Any]
) -> None:
    spec = Spec(
        name="x",
        model=specs.ModelSpec(source="/models/a"),
        tasks=(TaskRef(name="rotten_tomatoes"), TaskRef(file="/tasks/b.yaml")),
        **{
            key: Spec.model_fields[key].annotation(**value) if isinstance(value, dict) else value  # type: ignore[misc]
            for key, value in sections.items()
        },
    )
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(specs.dump(spec), encoding="utf-8")
    assert specs.load(path) == spec


def test_flatten() -> None:
    assert list(specs.flatten({"a": {"b": 1, "c": [2]}, "d": None})) == [
        ("a.b", 1),
        ("a.c", [2]),
        ("d", None),
    ]


def test_defaults_are_what_the_user_left_out(tmp_path: Path) -> None:
    spec = load(tmp_path, HEAD + "train: {epochs: 1}\n", "train.zero_stage=1")
    filled = specs.defaults(spec)
    assert filled["train.micro_batch"] == "auto"
    assert filled["seed"] == 17
    assert not {"name", "train.epochs", "train.zero_stage", "model.source"} & set(filled)


def test_the_page_of_all_keys_is_up_to_date() -> None:
    docs = Path(__file__).parents[1] / "docs"
    page = runpy.run_path(str(docs / "spec.py"))["page"]()
    assert (docs / "spec.md").read_text(encoding="utf-8") == page, "python docs/spec.py > docs/spec.md"
