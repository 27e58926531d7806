"""The main job: prepare -> baseline -> train -> evaluate -> register.

In:  a `Spec`, a run folder, a `Terminal`.
Out: `summary.json` in the run folder, and everything that it names.

    run(spec.load(Path("jobs/quickstart.yaml")), Path("runs/quickstart"), terminal)

Each stage writes its artefacts and, last of all, a manifest. Run again, the job goes on with the first stage
that has none; what a stage needs of earlier ones it reads from their folders.

    runs/quickstart/
      spec.yaml            the spec with every default filled in
      prepare/ baseline/ train/ evaluate/ register/     a stage each, with its manifest.json
      model/               the tuned model, an ordinary Hugging Face folder
      metrics.jsonl        a line a training step;  validation.jsonl  a line an epoch
      summary.json         the result in numbers;   report.html       the result in pictures
      run.log              everything that libraries had to say
"""

import os
import platform
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import ift
from ift import cluster, storage
from ift import spec as specs
from ift.console import Stage, Terminal
from ift.errors import IftError
from ift.memory import PeakMemory
from ift.models.adapters import Adapter
from ift.spec import Spec

STAGES = ("prepare", "baseline", "train", "evaluate", "register")
Manifest = dict[str, Any]
_CHOSEN = (
    "zero_stage",
    "offload",
    "activation_checkpointing",
    "micro_batch",
)  # of a plan's choice, and of a job


def run(spec: Spec, folder: Path, terminal: Terminal) -> Manifest:
    """Do what is left to do of `spec` in `folder`; return the summary.

    Raises `IftError` for anything that the user can mend, most of it before any Ray process starts.
    """
    claim(folder, spec)
    if all(_done(folder, stage) for stage in STAGES):
        summary = storage.read_json(folder / "summary.json") or {}
        terminal.say(f"{spec.name} is finished already in {folder}; nothing to do. Its result:")
        terminal.summary(summary)
        return summary
    from ift.tracking.run import Tracker

    tracker = Tracker(folder, spec.tracking.uri, spec.experiment, spec.name, notify=terminal.note)
    job = Job(spec, folder, terminal, tracker)
    ready = job.gather()  # what is wrong is found here, before a cluster or a run in MLflow exists
    params = dict(specs.flatten(spec.model_dump(by_alias=True, mode="json")))
    tracker.start(params, {"ift.version": ift.__version__, "ift.folder": str(folder)})
    status = "FAILED"
    try:
        if not all(_done(folder, stage) for stage in STAGES[:-1]):
            with cluster.connect(spec.cluster.address, workers=job.workers_asked) as resources:
                job.prepare(ready, resources)
                job.plan(resources)
                job.baseline(resources)
                job.train(resources)
                job.evaluate(resources)
        summary = job.register()
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if status != "FINISHED":
            tracker.close(status, timeout=10)
    terminal.summary(summary)
    return summary


def prepare(spec: Spec, folder: Path, terminal: Terminal) -> Manifest:
    """The first stage alone: the stream that `run` would train on, in `folder`, where `run` goes on from it."""
    claim(folder, spec)
    job = Job(spec, folder, terminal, tracker=None)
    ready = job.gather()
    if not _done(folder, "prepare"):
        with cluster.connect(spec.cluster.address, workers=None) as resources:
            job.prepare(ready, resources)
    manifest = _done(folder, "prepare") or {}
    terminal.mixture(manifest)
    return manifest


def claim(folder: Path, spec: Spec) -> None:
    """Make `folder` this spec's; refuse one that holds a run of another.

    The sections `tracking` and `cluster` may differ: they say where a run happens, not what it is.
    """
    path = folder / "spec.yaml"
    if path.exists() and any(_done(folder, stage) for stage in STAGES):
        old = dict(specs.flatten(specs.load(path).model_dump(by_alias=True, mode="json")))
        new = dict(specs.flatten(spec.model_dump(by_alias=True, mode="json")))
        where = ("tracking.", "cluster.")
        changed = [k for k in {**old, **new} if old.get(k) != new.get(k) and not k.startswith(where)]
        if changed:
            raise IftError(
                f"{folder} holds a run of another spec; it differs in "
                + "; ".join(f"`{k}`: {old.get(k)!r} there, {new.get(k)!r} here" for k in changed[:5]),
                wanted="the same spec, to go on with that run",
                hint="choose another folder with --output DIR, or another `name`",
            )
    storage.write_text(path, specs.dump(_shown(spec)))


def _shown(spec: Spec) -> Spec:
    """`spec` as it may be written down: a password in the tracking URI is left out."""
    from ift.tracking.run import without_secrets

    tracking = spec.tracking.model_copy(update={"uri": without_secrets(spec.tracking.uri)})
    return spec.model_copy(update={"tracking": tracking})


def _done(folder: Path, stage: str) -> Manifest | None:
    return storage.read_json(folder / stage / "manifest.json")


class Job:
    """The stages of one run. Each returns at once where its manifest is there."""

    def __init__(self, spec: Spec, folder: Path, terminal: Terminal, tracker: Any) -> None:
        from ift.data import selection
        from ift.tasks import probes

        self.spec, self.folder, self.terminal, self.tracker = spec, folder, terminal, tracker
        self.cache = storage.cache_dir()
        self.selection = selection.select(spec.tasks, spec.mixture, folders=spec.task_folders)
        self.probes = probes.asked(spec.evaluate.probes)
        self.memory = PeakMemory()
        terminal.header(
            [
                ("ift", f"{ift.__version__}, run {spec.name} in {folder}"),
                ("model", spec.model.source),
                ("tasks", _few(list(self.selection.tasks))),
                *([("held out", _few(self.selection.held_out))] if self.selection.held_out else []),
                ("probes", ", ".join(p.name for p in self.probes) or "none: forgetting is not measured"),
                ("spec", str(folder / "spec.yaml")),
                ("defaults", ", ".join(f"{key} {value}" for key, value in specs.defaults(spec).items())),
                ("log", str(folder / "run.log")),
            ]
        )
        self.model_dir = self._model()

    @property
    def workers_asked(self) -> int | None:
        asked = self.spec.cluster.workers
        return None if asked == "auto" else asked if isinstance(asked, int) else asked[1]

    def _model(self) -> Path:
        from ift.models import base

        model = self.spec.model
        with self.terminal.stage("model") as stage:
            folder = base.resolve(
                model.source,
                cache=self.cache,
                revision=model.revision,
                sha256=model.sha256,
                progress=_megabytes(stage),
                notify=stage.status,
            )
            if base.is_adapter(folder):
                raise IftError(
                    f"the model source {model.source} is an adapter",
                    wanted="an ordinary model",
                    hint=f"`ift merge {model.source} FOLDER` makes one of it and its base",
                )
            self.parameters = base.parameter_count(folder)
            stage.result(f"{self.parameters / 1e6:,.1f} M parameters in {folder}")
        return folder

    def gather(self) -> Any:
        """Rows read and split, room on disk: what can be refused before a cluster starts."""
        from ift.data.gather import gather
        from ift.models import adapters
        from ift.train import checkpoint

        spec = self.spec
        if not _done(self.folder, "train"):
            # the export and MLflow's copy of it; the checkpoints that are kept, the best, and one on its way
            checkpoints = (
                spec.train.keep_checkpoints + 2 * bool(spec.train.best_by) + 1
            ) * checkpoint.bytes_needed(self.parameters)
            elsewhere = spec.cluster.storage is not None or spec.train.method == "lora"
            storage.require_room(
                self.folder,
                8 * self.parameters + (0 if elsewhere else checkpoints),
                "training, with its checkpoints and the exported model,",
            )
            if spec.train.method == "lora":
                asked = spec.train.zero_stage
                adapters.check(self._adapter(), zero_stage=0 if asked == "auto" else asked)
                adapters.check_targets(self._adapter(), self.model_dir)
        if spec.train.best_by and not spec.data.split.validation:
            raise IftError(
                f"`train.best_by` is {spec.train.best_by}, and `data.split.validation` is 0",
                wanted="validation examples to tell the best weights by",
                hint="give data.split.validation a share or a count, or leave train.best_by out",
            )
        if _done(self.folder, "prepare"):
            return None
        with self.terminal.stage("rows") as stage:
            split = spec.data.split
            gathered = gather(
                self.selection,
                cache=self.cache,
                train=split.train,
                validation=split.validation,
                test=split.test,
                balanced=spec.data.balanced,
                max_bad_rows=spec.data.max_bad_rows,
                seed=spec.seed,
                deduplicate=spec.data.deduplicate,
                decontaminate=spec.data.decontaminate,
                probes=self.probes,
                progress=_megabytes(stage),
                counting=lambda done, total: stage.progress(done, total, "rows"),
            )
            counts = {
                part: sum(len(splits[part]) for splits in gathered.splits.values())
                for part in ("train", "validation", "test")
            }
            bad = f"; {gathered.bad:,} bad rows set aside" if gathered.bad else ""
            stage.result(
                f"{gathered.rows:,} rows: " + ", ".join(f"{n:,} {part}" for part, n in counts.items()) + bad
            )
        return gathered

    def prepare(self, gathered: Any, resources: cluster.Resources) -> None:
        from ift.data import prepare
        from ift.data.draws import draws_of
        from ift.data.wording import limits_of
        from ift.models import base

        spec = self.spec

        def work(stage: Stage) -> Manifest:
            manifest = prepare.build(
                self.folder / "prepare",
                gathered,
                self.probes,
                cache=self.cache,
                model_dir=self.model_dir,
                limits=limits_of(spec, encoder_decoder=base.is_encoder_decoder(self.model_dir)),
                packing=spec.data.packing,
                epochs=spec.train.epochs,
                seed=spec.seed,
                test_limit=spec.evaluate.limit,
                draws=draws_of(spec.mixture),
                progress=lambda done, total: stage.progress(done, total, "instructions"),
            )
            for note in manifest["notes"]:
                stage.note(note)
            for note in _left_out(manifest, self.folder / "prepare"):
                stage.note(note)
            return manifest

        def words(m: Manifest) -> str:
            return (
                f"{m['documents']:,} instructions in {m['packs']:,} packs of {m['max_length']:,} tokens, "
                f"{m['fill']:.0%} full; {m['supervised_tokens']:,} of {m['tokens']:,} tokens supervised"
            )

        self._stage("prepare", work, words)

    def baseline(self, resources: cluster.Resources) -> None:
        self._stage(
            "baseline",
            lambda stage: self._evaluate("baseline", self.model_dir, resources, stage),
            _scores_in_words,
        )

    def train(self, resources: cluster.Resources) -> None:
        from ift.train import checkpoint

        self._stage(
            "train",
            lambda stage: self._train(resources, stage),
            lambda m: (
                f"{m['steps']:,} steps, loss {m['final_loss']:.3f}, {m['tokens_per_second']:,.0f} tokens/s; "
                f"reloaded with the same logits (error {m['reload_error']:.0e})"
            ),
        )
        # the model is exported and the manifest written: nothing will go on from here any more
        checkpoint.remove(self._checkpoints())

    def evaluate(self, resources: cluster.Resources) -> None:
        self._stage(
            "evaluate",
            lambda stage: self._evaluate("evaluate", self.folder / "model", resources, stage),
            _scores_in_words,
        )

    def _stage(self, name: str, work: Callable[[Stage], Manifest], words: Callable[[Manifest], str]) -> None:
        """Do `work` unless it is done; its manifest, written last, says that it is."""
        manifest = _done(self.folder, name)
        if manifest:
            self.terminal.say(f"✓ {name:<9} done before: {words(manifest)}")
            return
        with self.terminal.stage(name) as stage:
            started = time.monotonic()
            manifest = work(stage)
            manifest["seconds"] = time.monotonic() - started
            manifest["peak_memory_bytes"] = self.memory.take()
            storage.write_json(self.folder / name / "manifest.json", manifest)
            stage.result(words(manifest))

    def _evaluate(self, name: str, model_dir: Path, resources: cluster.Resources, stage: Stage) -> Manifest:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from ift.evaluate.evaluator import evaluate

        items = storage.read_jsonl(self.folder / "prepare" / "items.jsonl")
        cores = os.cpu_count() or 1
        actors = resources.gpus or min(2, cores)
        stage.status("loading the model")
        predictions = evaluate(
            model_dir,
            items,
            actors=actors,
            gpus=resources.gpus,
            threads=max(1, cores // actors),
            batch_tokens=self.spec.evaluate.batch_tokens,
            dtype=self._precision(resources)[1],
            base=None if name == "baseline" else self._predictions("baseline"),
            progress=lambda done, total: stage.progress(done, total, "items"),
        )
        path = self.folder / name / "predictions.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(predictions), path)
        means = _means(predictions)
        self.tracker.log_metrics({f"{name}/{key}": value for key, value in means.items()})
        return {"scores": means, "items": len(items)}

    def _precision(self, resources: cluster.Resources) -> tuple[str, str]:
        asked = self.spec.train.precision
        precision = ("bf16" if resources.gpus else "fp32") if asked == "auto" else asked
        return precision, {"fp32": "float32", "bf16": "bfloat16"}[precision]

    def _train(self, resources: cluster.Resources, stage: Stage) -> Manifest:
        import ray

        from ift.models import base
        from ift.train import trainer
        from ift.train.follower import Follower

        spec, folder = self.spec, self.folder / "train"
        fewest, most = cluster.workers_of(spec.cluster.workers, resources, spec.train.global_batch)
        for left in ("scratch", "candidates"):
            shutil.rmtree(folder / left, ignore_errors=True)
        job = self._training_job(resources, most)
        follower = Follower(self.folder, steps=job.steps, stage=stage, wake=self.tracker.wake)
        stage.status(f"starting {most} workers")
        result = trainer.fit(
            job,
            fewest=fewest,
            most=most,
            gpus=resources.gpus,
            scratch=folder / "scratch",
            max_failures=spec.train.max_failures,
            hang_timeout_s=spec.train.hang_timeout_s,
            on_event=follower,
            smaller=lambda job: self._smaller(job, resources),
            score=lambda model: self._validation_score(model, spare_gpu=resources.gpus > most),
        )
        stage.status("reloading the exported model")
        verify = ray.remote(num_cpus=1)(base.verify)
        verified = ray.get(
            verify.remote(job.export_dir, result["ids"], result["logits"], dtype=result["dtype"])
        )
        target = self.folder / "model"
        shutil.rmtree(target, ignore_errors=True)
        os.replace(job.export_dir, target)
        for left in ("scratch", "candidates"):
            shutil.rmtree(folder / left, ignore_errors=True)
        chosen = self._choice()  # memory may have been short for what it was at first
        gpu = {"gpu_peak_memory_gib": result["peak_gpu_bytes"] / storage.GIB} if resources.gpus else {}
        return {
            **follower.totals(),
            "parameters": verified["parameters"],
            "method": "lora" if chosen["adapter"] else "full",
            **({"adapter": asdict(chosen["adapter"])} if chosen["adapter"] else {}),
            **{key: chosen[key] for key in _CHOSEN},
            "precision": job.precision,
            "attention": result["attention"],
            "workers": result["world"],
            "planned_memory_gib": self._planned_bytes() / storage.GIB,
            "worker_peak_memory_gib": result["peak_memory_bytes"] / storage.GIB,
            **gpu,
            "resumed_at_step": result["resumed_at"],
            "stopped_early": result["steps"] < job.steps,
            "best_step": result["best_step"],
            "reload_error": verified["relative_error"],
        }

    def _training_job(self, resources: cluster.Resources, workers: int) -> Any:
        """The spec's values, the plan's choice and what was prepared, as the workers take them."""
        from ift.train.job import Job as TrainingJob

        spec, train, prepared = self.spec, self.spec.train, _done(self.folder, "prepare") or {}
        return TrainingJob(
            model_dir=self.model_dir,
            stream_dir=self.folder / "prepare" / "stream",
            validation_dir=self.folder / "prepare" / "validation",
            packs=prepared["packs"],
            validation_packs=prepared["validation"]["packs"],
            epoch_ends=tuple(prepared["epoch_ends"]),
            export_dir=self.folder / "train" / "export",
            checkpoints=self._checkpoints(),
            candidates_dir=self.folder / "train" / "candidates",
            global_batch=train.global_batch,
            learning_rate=train.learning_rate,
            schedule=train.schedule,
            warmup=train.warmup,
            weight_decay=train.weight_decay,
            max_grad_norm=train.max_grad_norm,
            seed=spec.seed,
            precision=self._precision(resources)[0],
            threads=max(1, (os.cpu_count() or 1) // workers) if resources.nodes == 1 else 0,
            nvme=Path(train.nvme) if train.nvme else None,
            attention=train.attention,
            liger=train.liger,
            label_smoothing=train.label_smoothing,
            neftune_alpha=train.neftune_alpha,
            loss_weights={
                name: self.selection.loss_weights.get(name, 1.0) for name in self.selection.trained
            },
            validate_steps=train.validate_steps,
            best_by=train.best_by,
            patience=train.patience,
            checkpoint_steps=train.checkpoint_steps,
            checkpoint_minutes=train.checkpoint_minutes,
            keep_checkpoints=train.keep_checkpoints,
            lineage={"stream": prepared["hash"], "global_batch": train.global_batch, "seed": spec.seed},
            **self._choice(),
        )

    def _checkpoints(self) -> str:
        """Where this run's checkpoints go: its folder, or a place of its own in `cluster.storage`."""
        asked = self.spec.cluster.storage
        if asked is None:
            return str(self.folder / "train" / "checkpoints")
        path = self.folder / "train" / "place.json"
        place = storage.read_json(path)
        if place is None:
            place = {"name": f"{self.spec.name}-{uuid.uuid4().hex[:8]}"}
            storage.write_json(path, place)
        return f"{asked.rstrip('/')}/{place['name']}/checkpoints"

    def _adapter(self) -> Adapter:
        return Adapter(**self.spec.train.adapter.model_dump())

    def plan(self, resources: cluster.Resources) -> None:
        """Settle how to train, before anything costs time. A run that goes on keeps to what was settled."""
        if _done(self.folder, "train") or self._planned():
            return
        from ift.models import plan as plans

        with self.terminal.stage("plan") as stage:
            found = self._plan(resources)
            if found.choice is None:
                raise plans.refusal(found)
            if found.choice.method == "lora" and found.asked.method is None:
                stage.note(found.why)
            storage.write_json(self.folder / "train" / "plan.json", found.as_json())
            stage.result(f"{found.choice}: {found.why}")

    def _planned(self) -> Manifest | None:
        return storage.read_json(self.folder / "train" / "plan.json")

    def _plan(self, resources: cluster.Resources) -> Any:
        from ift import planning

        spec, train = self.spec, self.spec.train
        workers = planning.workers_of(spec.cluster.workers, gpu=bool(resources.gpus))
        machine = planning.this_machine if resources.nodes == 1 else planning.cluster_machine
        sizes = planning.sizes_of(_done(self.folder, "prepare"), spec.data.max_length)
        found, _ = planning.decide(
            str(self.model_dir),
            machine=machine(workers, train.global_batch),
            length=sizes.length,
            global_batch=train.global_batch,
            supervised_share=sizes.share,
            asked=planning.asked_of(train),
            adapter=self._adapter(),
            precision=self._precision(resources)[0],
            attention=train.attention,
            nvme=train.nvme is not None,
        )
        return found

    def _choice(self) -> dict[str, Any]:
        """What the plan settled, as the job's fields."""
        choice = (self._planned() or {})["choice"]
        adapter = self._adapter() if choice["method"] == "lora" else None
        return {**{key: choice[key] for key in _CHOSEN}, "adapter": adapter}

    def _planned_bytes(self) -> int:
        """What the plan counts for a worker: of its GPU, or of its process where there is none."""
        planned = self._planned() or {}
        (found,) = (c for c in planned["considered"] if c["choice"] == planned["choice"])
        return sum(found["memory"]["worker"].values())

    def _smaller(self, job: Any, resources: cluster.Resources) -> tuple[Any, str] | None:
        """The job as the plan would have it next where memory was short, and what it is in words."""
        from ift.models import plan as plans
        from ift.train import checkpoint

        method = "lora" if job.adapter else "full"
        found = self._plan(resources)
        after = plans.Choice(method=method, **{key: getattr(job, key) for key in _CHOSEN})
        choice = plans.next_choice(found, after=after)
        if choice is None or (choice.method != method and checkpoint.latest(job.checkpoints)):
            return None  # nothing less, or something that could not go on from the checkpoint
        storage.write_json(self.folder / "train" / "plan.json", replace(found, choice=choice).as_json())
        return replace(job, **self._choice()), str(choice)

    def _validation_score(self, model_dir: Path, *, spare_gpu: bool) -> float:
        """The mean over tasks of their metric on the validation items: what `train.best_by: metric` goes by.

        While the workers train on: on a GPU that they leave, else on CPUs.
        """
        from ift.evaluate.evaluator import evaluate

        items = storage.read_jsonl(self.folder / "prepare" / "validation_items.jsonl")
        cores = os.cpu_count() or 1
        predictions = evaluate(
            model_dir,
            items,
            actors=1,
            gpus=int(spare_gpu),
            threads=max(1, cores // 2),
            batch_tokens=self.spec.evaluate.batch_tokens,
            dtype="bfloat16" if spare_gpu else "float32",
        )
        means = _means(predictions).values()
        return sum(means) / len(means)

    def register(self) -> Manifest:
        """The gate, the card, MLflow, the report. Without MLflow the run is whole all the same."""
        from ift.evaluate import forgetting
        from ift.models import adapters
        from ift.tracking import registry, report

        spec, summary = self.spec, self._summary()
        with self.terminal.stage("register") as stage:
            started = time.monotonic()
            mlflow: dict[str, Any] = {
                "tracking_uri": _shown(spec).tracking.uri,
                "experiment": spec.experiment,
                "model_name": spec.registered_name,
            }
            card = registry.describe({**summary, "mlflow": mlflow})
            storage.write_text(self.folder / "model" / "README.md", registry.front_matter(summary) + card)
            if summary["train"]["method"] == "lora":
                adapters.name_base(self.folder / "model", spec.model.source, spec.model.revision)
            storage.write_json(self.folder / "model" / "ift.json", summary)
            self.tracker.log_metrics(_numbers_of(summary))
            stage.status("uploading the model to MLflow")
            try:
                mlflow["run_id"] = _wait_for_run(self.tracker)
                mlflow["model_version"] = registry.register(
                    mlflow["run_id"],
                    self.folder / "model",
                    spec.registered_name,
                    uri=spec.tracking.uri,
                    description=card,
                    tags=self._tags(summary),
                )
                stage.result(f"{spec.registered_name} version {mlflow['model_version']}, alias candidate")
            except IftError as error:
                mlflow["error"] = error.what
                stage.result("left out: MLflow does not take it")
            summary["mlflow"] = mlflow
            summary["timings"]["register"] = time.monotonic() - started
            summary["timings"]["total"] = sum(summary["timings"].values())
            storage.write_json(self.folder / "summary.json", summary)
            report.write_report(
                self.folder / "report.html",
                summary,
                storage.read_jsonl(self.folder / "metrics.jsonl"),
                storage.read_jsonl(self.folder / "validation.jsonl"),
                forgetting.side_by_side(self._predictions("baseline"), self._predictions("evaluate")),
                specs.dump(_shown(spec)),
            )
            for name in ("report.html", "summary.json", "spec.yaml"):
                self.tracker.log_artifact(self.folder / name)
            stage.status("waiting for MLflow")
            arrived = self.tracker.close("FINISHED", timeout=5 if "error" in mlflow else 120)
            if arrived and "error" not in mlflow:
                storage.write_json(self.folder / "register" / "manifest.json", mlflow)
        return summary

    def _predictions(self, stage: str) -> list[dict[str, Any]]:
        import pyarrow.parquet as pq

        rows: list[dict[str, Any]] = pq.read_table(self.folder / stage / "predictions.parquet").to_pylist()
        return rows

    def _summary(self) -> Manifest:
        from ift.evaluate import forgetting
        from ift.models import base
        from ift.tracking import gate

        stages = {stage: _done(self.folder, stage) or {} for stage in STAGES[:-1]}
        prepared, trained = stages["prepare"], stages["train"]
        tasks, probes = forgetting.compare(self._predictions("baseline"), self._predictions("evaluate"))
        peak = max(stage.get("peak_memory_bytes", 0) for stage in stages.values())
        dropped = (
            "shards",
            "seconds",
            "peak_memory_bytes",
            "templates",
            "licenses",
            "validation",
            "items",
            "epoch_ends",
            "inputs",
            "dropped",
            "reasons",
        )
        left_out = sum(sum(kinds.values()) for kinds in prepared["dropped"].values())
        encoder = base.is_encoder_decoder(self.folder / "model")
        return {
            "name": self.spec.name,
            "status": "finished",
            "run_dir": str(self.folder),
            "model_dir": str(self.folder / "model"),
            "report": str(self.folder / "report.html"),
            "model": self.spec.model.model_dump(exclude_none=True),
            "model_class": "AutoModelForSeq2SeqLM" if encoder else "AutoModelForCausalLM",
            "stream": {
                **{key: value for key, value in prepared.items() if key not in dropped},
                "not_trained_on": left_out,
            },
            "train": {key: value for key, value in trained.items() if key not in dropped},
            "task": tasks,
            "probes": probes,
            "gate": gate.decide(tasks, probes, max_drop=self.spec.forgetting.max_drop),
            "licenses": prepared["licenses"],
            "timings": {name: stage["seconds"] for name, stage in stages.items()},
            "peak_memory_gib": peak / storage.GIB,
            "versions": _versions(),
        }

    def _tags(self, summary: Manifest) -> dict[str, str]:
        return {
            "ift.version": ift.__version__,
            "ift.base_model": self.spec.model.source,
            "ift.base_pin": self.spec.model.revision or self.spec.model.sha256 or "",
            "ift.stream": summary["stream"]["hash"],
            "ift.gate": summary["gate"]["verdict"],
            "ift.run_fingerprint": f"{summary['stream']['hash']}/{summary['train']['finished']}",
        }


def _means(predictions: list[Manifest]) -> dict[str, float]:
    """The mean score of each task and probe."""
    scores: dict[str, list[float]] = {}
    for prediction in predictions:
        scores.setdefault(prediction["name"], []).append(prediction["score"])
    return {name: sum(values) / len(values) for name, values in scores.items()}


def _few(names: list[str], count: int = 8) -> str:
    """`names`, or the first of them where they are many."""
    more = f" and {len(names) - count:,} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def _megabytes(stage: Stage) -> Callable[[int, int | None], None]:
    return lambda done, total: stage.progress(done >> 20, total and total >> 20, "MiB")


def _left_out(manifest: Manifest, folder: Path) -> list[str]:
    """What was not trained on, and where each of these rows is named with its reason."""
    notes = []
    if count := manifest["quarantined"]:
        reasons = "; ".join(f"{reason} ({n:,})" for reason, n in list(manifest["reasons"].items())[:3])
        more = "; and others" if len(manifest["reasons"]) > 3 else ""
        notes.append(
            f"{count:,} row{'s are' if count > 1 else ' is'} set aside: {reasons}{more}. "
            f"Each with file, line and reason: {folder / 'quarantine.jsonl'}"
        )
    kinds: Counter[str] = Counter()
    for of_task in manifest["dropped"].values():
        kinds.update(of_task)
    if kinds:
        count = kinds.total()
        shown = ", ".join(
            f"{n:,} {kind}{'s' * (n > 1 and kind.endswith('duplicate'))}" for kind, n in kinds.items()
        )
        notes.append(
            f"{count:,} good row{'s are' if count > 1 else ' is'} not trained on: {shown}. "
            f"Each with the reason: {folder / 'dropped.jsonl'}"
        )
    if manifest["cut"]:
        notes.append(f"{manifest['cut']:,} prompts over data.max_length lost their beginning (data.too_long)")
    return notes


def _scores_in_words(manifest: Manifest) -> str:
    shown = list(manifest["scores"].items())
    return f"{manifest['items']:,} items: " + _few([f"{name} {value:.2f}" for name, value in shown], 16)


def _numbers_of(summary: Manifest) -> dict[str, float]:
    """The summary's results as MLflow metrics: the same numbers under their dotted names."""
    found: dict[str, float] = {}
    for row in summary["task"]:
        found |= {f"task/{row['name']}/{key}": row[key]["value"] for key in ("base", "tuned", "gain")}
    for row in summary["probes"]:
        found |= {f"probe/{row['name']}/{key}": row[key]["value"] for key in ("base", "tuned", "drop")}
    for key in ("mean_drop", "worst_drop"):
        if summary["gate"].get(key) is not None:
            found[f"forgetting/{key}"] = summary["gate"][key]
    found["train/tokens_per_second"] = summary["train"]["tokens_per_second"]
    found["train/final_loss"] = summary["train"]["final_loss"]
    return found


def _versions() -> dict[str, str]:
    packages = ("torch", "ray", "deepspeed", "transformers", "mlflow")
    return {"python": platform.python_version(), "ift": ift.__version__} | {
        p: metadata.version(p) for p in packages
    }


def _wait_for_run(tracker: Any, timeout: float = 60) -> str:
    """The id of the run in MLflow, once the tracker has it. Raises `IftError` where MLflow does not answer."""
    deadline = time.monotonic() + timeout
    while not tracker.run_id:
        if tracker.error or time.monotonic() > deadline:
            raise IftError(f"MLflow does not answer: {tracker.error or 'no run after a minute'}")
        time.sleep(0.1)
    return str(tracker.run_id)
