"""The stages of a run: what each does, and what it leaves in the run's folder.

In:  a `Spec`, the run's folder, a `Terminal`.
Out: a folder a stage with its artefacts and, last of all, a manifest.

    job = Job(spec, folder, terminal)
    with cluster.connect(None, workers=2) as resources:
        job.prepare(resources); job.plan(resources); job.baseline(resources); job.train(resources)

A stage returns at once where its manifest is there; what it needs of earlier ones it reads from their folders.
"""

import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import ift
from ift import cluster, stopping, storage
from ift import spec as specs
from ift.console import Stage, Terminal
from ift.errors import IftError
from ift.memory import PeakMemory
from ift.models.adapters import Adapter
from ift.spec import Spec
from ift.summary import (
    beside,
    done,
    means,
    numbers_of,
    predictions_of,
    shots_left,
    shown,
    stage_numbers,
    tags_of,
)

Manifest = dict[str, Any]
_CHOSEN = (
    "zero_stage",
    "offload",
    "activation_checkpointing",
    "micro_batch",
)  # of a plan's choice, and of a job
FITTING = (*_CHOSEN, "nvme")  # what of `train` a run may go on with otherwise than it began
VERSION = "register/version.json"  # in a run's folder: what its version in the registry is to be
_SYSTEM_EVERY_S = 10.0  # between samples of the machine, as MLflow's own monitor has them
_LARGE = 10**9  # parameters that a CPU is slow with
_SHOWN_ITEMS = 50  # of a task or probe, in the table of predictions


class Job:
    """The stages of one run. Each returns at once where its manifest is there."""

    def __init__(self, spec: Spec, folder: Path, terminal: Terminal, *, header: bool = True) -> None:
        from ift.data import selection
        from ift.tasks import probes
        from ift.tracking.run import Tracker

        self.spec, self.folder, self.terminal = spec, folder, terminal
        self.tracker = Tracker(
            folder,
            spec.tracking.uri,
            spec.experiment,
            spec.name,
            notify=terminal.note,
            system_every=_SYSTEM_EVERY_S,
        )
        self.cache = storage.cache_dir()
        self.selection = selection.select(spec.tasks, spec.mixture, folders=spec.task_folders)
        if spec.second_mixture:  # a mistake in what it replays is not to come out behind the first training
            selection.select(spec.tasks, spec.second_mixture, folders=spec.task_folders)
        self.probes = probes.asked(spec.evaluate.probes)
        self.memory = PeakMemory()
        if header:
            self._tell()
        self.model_dir = self._model()

    def _tell(self) -> None:
        """What is about to be done."""
        from ift.tracking.client import elsewhere

        spec = self.spec
        self.terminal.header(
            [
                ("ift", f"{ift.__version__}, run {spec.name} in {self.folder}"),
                ("model", spec.model.source),
                ("tasks", _few(list(self.selection.tasks))),
                *([("held out", _few(self.selection.held_out))] if self.selection.held_out else []),
                ("probes", ", ".join(p.name for p in self.probes) or "none: forgetting is not measured"),
                ("spec", str(self.folder / "spec.yaml")),
                *_by_section(specs.defaults(spec)),
                ("log", str(self.folder / "run.log")),
            ]
        )
        if named := elsewhere(spec.tracking.uri):
            self.terminal.note(
                f"MLFLOW_TRACKING_URI is {named}, and a run goes where its spec says: tracking.uri is "
                f"{spec.tracking.uri}"
            )

    @property
    def workers_asked(self) -> int | None:
        asked = self.spec.cluster.workers
        return None if asked == "auto" else asked if isinstance(asked, int) else asked[1]

    def _model(self) -> Path:
        from ift import fetching
        from ift.models import base

        spec = self.spec
        with self.terminal.stage("model") as stage:
            folder = fetching.fetch_model(
                spec.model,
                uri=spec.tracking.uri,
                progress=_megabytes(stage),
                notify=stage.status,
                note=stage.note,
                to_train=True,
            )
            if base.is_adapter(folder):
                raise IftError(
                    f"the model source {spec.model.source} is an adapter",
                    wanted="an ordinary model",
                    hint=f"`ift merge {spec.model.source} FOLDER` makes one of it and its base",
                )
            self.parameters = base.parameter_count(folder)
            stage.result(f"{self.parameters / 1e6:,.1f} M parameters in {folder}")
        return folder

    def check(self) -> None:
        """What can be refused before a cluster starts: room on disk, settings that do not go together, the rows."""
        from ift.models import adapters
        from ift.train import checkpoint

        spec = self.spec
        if not done(self.folder, "train"):
            # the export and MLflow's copy of it; the checkpoints that are kept, the best, and one on its way;
            # an adapter has few parameters, and so have its checkpoints
            lora = spec.train.method == "lora"
            checkpoints = (
                spec.train.keep_checkpoints + 2 * bool(spec.train.best_by) + 1
            ) * checkpoint.bytes_needed(self.parameters)
            storage.require_room(
                self.folder,
                storage.GIB if lora else 8 * self.parameters + (0 if spec.cluster.storage else checkpoints),
                "training, with its checkpoints and the exported model,",
            )
            if lora:
                asked = spec.train.zero_stage
                adapters.check(self._adapter(), zero_stage=0 if asked == "auto" else asked)
            given = spec.train.method == "auto" and "adapter" in spec.train.model_fields_set
            if lora or given:  # where it is not given, its targets are known to be there
                adapters.check_targets(self._adapter(), self.model_dir)
        if spec.train.best_by and not spec.data.split.validation:
            raise IftError(
                f"`train.best_by` is {spec.train.best_by}, and `data.split.validation` is 0",
                wanted="validation examples to tell the best weights by",
                hint="give data.split.validation a share or a count, or leave train.best_by out",
            )
        if spec.evaluate.harness:
            from ift.evaluate import harness

            named = {*self.selection.tasks, *(probe.name for probe in self.probes)}
            if twice := sorted(named & set(spec.evaluate.harness)):
                raise IftError(
                    f"`evaluate.harness` names {', '.join(twice)}, and so is a task or a probe of this run called",
                    wanted="a name for each: their scores would be taken for one",
                    hint="leave it out of evaluate.harness: the run measures it already",
                )
            harness.check(spec.evaluate.harness)
        if spec.evaluate.engine == "vllm":
            from ift.evaluate import with_vllm
            from ift.models import base

            # whether there are GPUs, the cluster knows
            with_vllm.check(gpus=1, encoder_decoder=base.is_encoder_decoder(self.model_dir))
        allowed = spec.evaluate.allow_code
        if any(t.metric == "code" or (allowed and t.tests) for t in self.selection.tasks.values()):
            from ift.tasks import code

            code.make_sure(allow_code=allowed)
        if not done(self.folder, "prepare") or self._shots_left():
            assert self.gathered.rows

    def check_cluster(self) -> None:
        """What can be refused once the nodes are known, before any of them works: room, and places they all see.

        A run that has trained before waits for its nodes instead: they may be on their way back.
        """
        if not done(self.folder, "train") and not self._planned() and not cluster.grows():
            cluster.require_room(self.spec.cluster.workers, cluster.nodes_now())
        places: dict[str, str | Path] = {
            "the run's folder (--output)": self.folder,
            "the models and data that were fetched (IFT_CACHE)": self.cache,
        }
        if self.spec.cluster.storage:
            places["cluster.storage"] = self.spec.cluster.storage
        cluster.require_shared(places, files={"the model (HF_HOME)": self.model_dir / "config.json"})

    @cached_property
    def gathered(self) -> Any:
        """Every task's rows, read and split."""
        from ift.data.gather import gather, settings_of

        with self.terminal.stage("rows") as stage:
            gathered = gather(
                self.selection,
                cache=self.cache,
                **settings_of(self.spec),
                probes=self.probes,
                progress=_megabytes(stage),
                counting=lambda done, total: stage.progress(done, total, "rows"),
                status=stage.status,
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

    def prepare(self, resources: cluster.Resources) -> None:
        from ift.data import prepare
        from ift.data.draws import draws_of
        from ift.data.wording import limits_of
        from ift.models import base
        from ift.prompts.chat import begun_otherwise

        spec = self.spec

        def work(stage: Stage) -> Manifest:
            manifest = prepare.build(
                self.folder / "prepare",
                self.gathered,
                self.probes,
                cache=self.cache,
                model_dir=self.model_dir,
                limits=limits_of(spec, encoder_decoder=base.is_encoder_decoder(self.model_dir)),
                packing=spec.data.packing,
                epochs=spec.train.epochs,
                seed=spec.seed,
                test_limit=spec.evaluate.limit,
                draws=draws_of(spec.mixture),
                allow_code=spec.evaluate.allow_code,
                progress=lambda done, total: stage.progress(done, total, "instructions"),
            )
            for note in manifest["notes"]:
                stage.note(note)
            if otherwise := begun_otherwise(base.load_tokenizer(self.model_dir)):
                stage.note(
                    f"the chat template: {otherwise}. Answers are trained right behind the prompt; for a model that "
                    "reasons, model.chat_template_options={enable_thinking: false} may make the two alike"
                )
            for note in _left_out(manifest, self.folder / "prepare"):
                stage.note(note)
            self._tell_of_data(manifest)
            stated = base.license_of(self.model_dir)
            return {
                **manifest,
                "licenses": {**({base.BASE: stated} if stated else {}), **manifest["licenses"]},
            }

        def words(m: Manifest) -> str:
            return (
                f"{m['documents']:,} instructions in {m['packs']:,} packs of {m['max_length']:,} tokens, "
                f"{m['fill']:.0%} full; {m['supervised_tokens']:,} of {m['tokens']:,} tokens supervised"
            )

        self._stage("prepare", work, words)

    def _tell_of_data(self, manifest: Manifest) -> None:
        """The data sets, the stream and the mixture that came out, for MLflow."""
        from ift.tracking import lineage

        tasks, rows = self.selection.tasks, manifest["mixture"]
        self.tracker.log_inputs(lineage.datasets(tasks, manifest, trained=self.selection.trained))
        self.tracker.log_tags(
            {"ift.stream": manifest["hash"], "ift.templates": lineage.all_templates_digest(tasks)}
        )
        self.tracker.log_table("mixture", rows)
        tokens = sum(row["tokens"] for row in rows) or 1
        for row in rows:
            of = {"tokens": row["tokens"] / tokens, "seen_each": row["seen_each"]}
            self.tracker.log_metrics({f"mixture/{row['task']}/{key}": value for key, value in of.items()})

    def _quantize(self, model_dir: Path) -> str:
        """How the weights in `model_dir` are held to be evaluated: of the base as the adapter has it under it."""
        settled = (self._planned() or {}).get("choice") or {}
        beneath = model_dir == self.model_dir and settled.get("method") == "lora"
        return self.spec.train.adapter.quantize if beneath else "none"

    def baseline(self, resources: cluster.Resources) -> None:
        self._stage(
            "baseline",
            lambda stage: self._evaluate("baseline", self.model_dir, resources, stage),
            _scores_in_words,
        )

    def train(self, resources: cluster.Resources) -> None:
        from ift.train import checkpoint

        with stopping.finished_first():
            self._stage("train", lambda stage: self._train(resources, stage), trained_in_words)
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
        manifest = done(self.folder, name)
        if manifest:
            self.terminal.say(f"✓ {name:<9} done before: {words(manifest)}")
            return
        with self.terminal.stage(name) as stage, self.tracker.stage(name):
            started = time.monotonic()
            manifest = work(stage)
            manifest["seconds"] = time.monotonic() - started
            manifest["peak_memory_bytes"] = self.memory.take()
            storage.write_json(self.folder / name / "manifest.json", manifest)
            self._tell_of_stage(name, manifest)
            stage.result(words(manifest))

    def _tell_of_stage(self, name: str, manifest: Manifest) -> None:
        """A stage's numbers, for its child run in MLflow, and its manifest."""
        self.tracker.log_metrics(stage_numbers(manifest), stage=name.partition("/")[0])
        self.tracker.log_artifact(self.folder / name / "manifest.json", name)

    def _evaluate(self, name: str, model_dir: Path, resources: cluster.Resources, stage: Stage) -> Manifest:
        from ift.data.items import first_of_each
        from ift.evaluate.evaluator import write

        items = storage.read_jsonl(self.folder / "prepare" / "items.jsonl")
        base = None if name == "baseline" else self.predictions("baseline")[: len(items)]
        predictions, seconds = self.predict(model_dir, items, resources, stage, base)
        if self.spec.evaluate.harness:
            stage.status("asking the harness's tasks")
            more = self._harness(model_dir, resources)
            predictions, seconds = predictions + more, seconds + [0.0] * len(more)
        took = write(self.folder / name / "predictions.parquet", predictions, seconds)
        scores = means(predictions)
        self.tracker.log_metrics({f"{name}/{key}": value for key, value in scores.items()})
        self.tracker.log_artifact(self.folder / name / "predictions.parquet", name)
        if name == "evaluate":
            both = beside(self.predictions("baseline"), predictions)
            self.tracker.log_table("predictions", first_of_each(both, _SHOWN_ITEMS))
        return {"scores": scores, "items": len(items), "seconds_an_item": took}

    def predict(
        self,
        model_dir: Path,
        items: Sequence[Manifest],
        resources: cluster.Resources,
        stage: Stage,
        base: list[Manifest] | None = None,
    ) -> tuple[list[Manifest], list[float]]:
        """Predictions of `items`, and the seconds that each took."""
        from ift.evaluate.evaluator import timed

        stage.status("loading the model")
        predictions, seconds = timed(
            model_dir,
            items,
            gpus=resources.gpus,
            dtype=self.precision(resources)[1],
            quantize=self._quantize(model_dir),
            cache=self.cache,
            batch_tokens=self.spec.evaluate.batch_tokens,
            ranking=self.spec.evaluate.ranking,
            engine=self.spec.evaluate.engine,
            allow_code=self.spec.evaluate.allow_code,
            base=base,
            progress=lambda done, total: stage.progress(done, total, "items"),
        )
        if cut := sum(prediction["cut"] for prediction in predictions):
            stage.note(f"{cut:,} prompts are longer than the model's context and lost their beginning")
        if ended := _ran_out(items, predictions):
            shown = _few([f"{name} {count:,}" for name, count in ended.most_common()])
            stage.note(
                f"{ended.total():,} answers were cut off where their task's max_new_tokens ends: {shown}"
            )
        return predictions, seconds

    def _harness(self, model_dir: Path, resources: cluster.Resources) -> list[Manifest]:
        """What the model answers to the harness's tasks, in a process of its own."""
        import ray

        from ift.evaluate.evaluator import gpus_a_copy, place, store_of
        from ift.evaluate.harness import kept_predictions

        dtype, quantize = self.precision(resources)[1], self._quantize(model_dir)
        gpus = gpus_a_copy(model_dir, dtype, quantize) if resources.gpus else 0
        ask = ray.remote(num_cpus=1, num_gpus=gpus)(kept_predictions)
        found: list[Manifest] = ray.get(
            ask.remote(
                store_of(self.cache, model_dir, gpus=resources.gpus, dtype=dtype, quantize=quantize),
                model_dir,
                self.spec.evaluate.harness,
                limit=self.spec.evaluate.harness_limit,
                dtype=dtype,
                device=place(gpus),
                quantize=quantize,
            )
        )
        return found

    def prompting(self, resources: cluster.Resources) -> None:
        """What the base model answers behind solved examples, a folder for each number of `evaluate.shots`."""
        left = self._shots_left()
        if not left:
            return
        from ift.evaluate.evaluator import write

        with self.terminal.stage("prompting") as stage, self.tracker.stage("prompting"):
            started = time.monotonic()
            by_shots = {n: self._shot_items(n, stage) for n in left}
            items = [item for of_n in by_shots.values() for item in of_n]
            predictions, seconds = self.predict(self.model_dir, items, resources, stage)
            at, words = 0, []
            for n, of_n in by_shots.items():
                these = slice(at, at := at + len(of_n))
                folder = self.folder / "prompting" / str(n)
                took = write(folder / "predictions.parquet", predictions[these], seconds[these])
                scores = means(predictions[these])
                manifest = {
                    "scores": scores,
                    "items": len(of_n),
                    "draws": self.spec.evaluate.draws,
                    "seconds_an_item": took,
                    "seconds": (time.monotonic() - started) / len(left),
                    "peak_memory_bytes": self.memory.take(),
                }
                storage.write_json(folder / "manifest.json", manifest)
                self.tracker.log_metrics({f"prompting/{n}/{key}": value for key, value in scores.items()})
                self.tracker.log_artifact(folder / "predictions.parquet", f"prompting/{n}")
                self.tracker.log_metrics(
                    {f"{n}/{key}": value for key, value in stage_numbers(manifest).items()}, stage="prompting"
                )
                shown = _few([f"{name} {value:.2f}" for name, value in scores.items()])
                words.append(f"{n} shot{'s' * (n > 1)}: {shown}")
            stage.result("; ".join(words))

    def _shots_left(self) -> list[int]:
        return shots_left(self.spec, self.folder)

    def _shot_items(self, shots: int, stage: Stage) -> list[Manifest]:
        from ift.data.shots import shot_items
        from ift.models import base

        tokenizer = base.load_tokenizer(self.model_dir)

        @lru_cache(maxsize=100_000)
        def count(text: str) -> int:
            return len(tokenizer(text, add_special_tokens=False)["input_ids"])

        stage.status("wording the solved examples")
        items = shot_items(
            self.gathered,
            shots=shots,
            draws=self.spec.evaluate.draws,
            limit=self.spec.evaluate.limit,
            context=base.context_length(self.model_dir),
            count=count,
            options=self.spec.mixture.options,
        )
        if fewer := sum(item["shots"] < item["asked_shots"] for item in items):
            stage.note(
                f"{fewer:,} of {len(items):,} prompts have fewer than {shots} solved examples: "
                "the model's context has no room for more"
            )
        return items

    def precision(self, resources: cluster.Resources) -> tuple[str, str]:
        asked = self.spec.train.precision
        precision = ("bf16" if resources.gpus else "fp32") if asked == "auto" else asked
        return precision, {"fp32": "float32", "bf16": "bfloat16"}[precision]

    def _train(self, resources: cluster.Resources, stage: Stage) -> Manifest:
        import ray

        from ift.evaluate.evaluator import gpus_a_copy, place
        from ift.models import base
        from ift.train import trainer
        from ift.train.follower import Follower

        spec, folder = self.spec, self.folder / "train"
        fewest, most = cluster.workers_of(spec.cluster.workers, resources, spec.train.global_batch)
        shutil.rmtree(folder / "scratch", ignore_errors=True)  # candidates stay: one may wait for its score
        job = self._training_job(resources, most)
        follower = Follower(
            self.folder, steps=job.steps, stage=stage, wake=self.tracker.wake, work=self._operations(job)
        )
        beside, note = self._beside(resources, most)
        if note is not None:
            stage.note(note)
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
            score=lambda model: self._validation_score(model, gpus=beside),
            look=lambda step, model: self._look(step, model, gpus=beside),
        )
        stage.status("reloading the exported model")
        gpus = gpus_a_copy(job.export_dir, result["dtype"]) if resources.gpus else 0
        verify = ray.remote(num_cpus=1, num_gpus=gpus)(base.verify)
        verified = ray.get(
            verify.remote(
                job.export_dir, result["ids"], result["logits"], dtype=result["dtype"], device=place(gpus)
            )
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
            "learning_rate": chosen["learning_rate"],
            **({"adapter": asdict(chosen["adapter"])} if chosen["adapter"] else {}),
            **{key: chosen[key] for key in _CHOSEN},
            "precision": job.precision,
            "attention": result["attention"],
            "workers": result["world"],
            "planned_memory_gib": self._planned_bytes() / storage.GIB,
            "worker_peak_memory_gib": result["peak_memory_bytes"] / storage.GIB,
            **gpu,
            "resumed_at_step": result["resumed_at"],
            # each was seen once: the workers have counted
            "packs": min(result["steps"] * job.global_batch, job.packs),
            "stopped_early": result["steps"] < job.steps,
            "best_step": result["best_step"],
            "reload_error": verified["relative_error"],
        }

    def _beside(self, resources: cluster.Resources, workers: int) -> tuple[int, str | None]:
        """How many GPUs of one node a model is graded on while the workers train, 0 for CPUs; and what to say of it.

        Raises `IftError` where neither the GPUs that they leave nor a node's memory hold it.
        """
        from ift.evaluate.evaluator import gpus_a_copy

        asked = self._asked_beside()
        if not asked or not resources.gpus:
            return 0, None
        spare, each = resources.gpus - workers, 1
        if spare > 0 or self.parameters > _LARGE:
            try:
                each = gpus_a_copy(self.model_dir, "bfloat16", self._quantize(self.model_dir))
            except IftError:  # no node has as many
                each = resources.gpus + 1
        if each <= spare:
            return each, None
        leaves = "a GPU" if each == 1 else f"{each} GPUs"
        fewer = resources.gpus - each
        move = f"cluster.workers={fewer} leaves {leaves}" if fewer > 0 else None
        self._require_room_beside(move)
        if self.parameters <= _LARGE:
            return 0, None
        taken = "the workers take all GPUs" if spare <= 0 else f"a copy takes {each} GPUs of one node"
        move = move or ("a second GPU would do it" if each == 1 else "a larger node would do it")
        return 0, (
            f"{taken}, so what {asked} asks for is computed on CPUs in fp32, and "
            f"{self.parameters / 1e9:.1f} B parameters take long there; {move}"
        )

    def _asked_beside(self) -> str:
        """What of the spec has models graded while the workers train; "" for nothing."""
        metric, looks = self.spec.train.best_by == "metric", self.spec.forgetting.look_steps
        return " and ".join(["train.best_by=metric"] * metric + ["forgetting.look_steps"] * bool(looks))

    def _require_room_beside(self, move: str | None) -> None:
        """Raise `IftError` where a node's memory does not hold the model in fp32."""
        memory = (self._planned() or {}).get("machine", {}).get("host_bytes_per_node")
        if memory is None or 4 * self.parameters <= memory:
            return
        asked = self._asked_beside()
        raise IftError(
            f"what {asked} asks for is computed while the workers train, and there is no room for it: the GPUs that "
            f"they leave are too few, and {self.parameters / 1e9:.1f} B parameters in fp32 take "
            f"{4 * self.parameters / storage.GIB:,.0f} GiB of a node's {memory / storage.GIB:,.0f}",
            wanted="GPUs of one node without a worker, or a node with more memory",
            hint=f"{move}; or leave {asked} out" if move else f"leave {asked} out",
        )

    def _operations(self, job: Any) -> Callable[[int, int], float] | None:
        """What a step of so many tokens and supervised tokens takes; None where no peak is known to hold it against."""
        if job.precision != "bf16":
            return None
        from ift.models import shape as shapes
        from ift.models import speed

        config, _ = shapes.config_of(str(self.model_dir), cache=self.cache)
        shape, full = shapes.shape_of(config, self.spec.model.source), job.adapter is None
        return lambda tokens, supervised: speed.operations(
            shape, tokens=tokens, supervised=supervised, full=full
        )

    def _training_job(self, resources: cluster.Resources, workers: int) -> Any:
        """The spec's values, the plan's choice and what was prepared, as the workers take them."""
        from ift.train.job import Job as TrainingJob

        spec, train, prepared = self.spec, self.spec.train, done(self.folder, "prepare") or {}
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
            schedule=train.schedule,
            warmup=train.warmup,
            weight_decay=train.weight_decay,
            max_grad_norm=train.max_grad_norm,
            seed=spec.seed,
            precision=self.precision(resources)[0],
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
            look_steps=spec.forgetting.look_steps,
            forgetting_budget=train.early_stop.forgetting if train.early_stop else None,
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
        """Settle how to train, before anything costs time.

        A run that goes on keeps to what was settled, unless the spec now asks for something else; all weights stay
        all weights, and an adapter an adapter.
        """
        settled = (self._planned() or {}).get("choice")
        if done(self.folder, "train") or (settled and self._within(settled)):
            return
        from ift.models import adapters
        from ift.models import plan as plans

        with self.terminal.stage("plan") as stage:
            found = self._plan(resources, method=settled and settled["method"])
            if found.choice is None:
                raise plans.refusal(found)
            if found.choice.method == "lora" and found.asked.method is None:
                stage.note(found.why)
                adapters.check(self._adapter(), zero_stage=found.choice.zero_stage)
            if note := self.spec.train.rate_note(found.choice.method):
                stage.note(note)
            self._settle(found)
            rate = self.spec.train.rate(found.choice.method)
            stage.result(f"{found.choice}, learning rate {rate:g}: {found.why}")

    def _settle(self, plan: Any) -> None:
        storage.write_json(self.folder / "train" / "plan.json", plan.as_json())
        self.tracker.log_artifact(self.folder / "train" / "plan.json", "train")
        self.tracker.log_tags({"ift.plan": f"{plan.choice}"})

    def _planned(self) -> Manifest | None:
        return storage.read_json(self.folder / "train" / "plan.json")

    def _within(self, choice: Manifest) -> bool:
        """Whether the spec leaves it at this choice."""
        asked = {key: getattr(self.spec.train, key) for key in _CHOSEN}
        return all(value in ("auto", choice[key]) for key, value in asked.items())

    def _plan(self, resources: cluster.Resources, method: str | None = None) -> Any:
        """`method` is what it has to be, where that is settled."""
        from ift import planning
        from ift.models import attention

        spec, train = self.spec, self.spec.train
        if not resources.gpus:
            attention.check(train.attention, train.liger)
        asked = planning.asked_of(train)
        workers = planning.workers_of(spec.cluster.workers, gpu=bool(resources.gpus))
        machine = planning.this_machine if resources.nodes == 1 else planning.cluster_machine
        sizes = planning.sizes_of(done(self.folder, "prepare"), spec.data.max_length)
        found, _ = planning.decide(
            str(self.model_dir),
            machine=machine(workers, train.global_batch),
            length=sizes.length,
            global_batch=train.global_batch,
            supervised_share=sizes.share,
            asked=replace(asked, method=method or asked.method),
            adapter=self._adapter(),
            precision=self.precision(resources)[0],
            attention=train.attention,
            nvme=train.nvme is not None,
        )
        return found

    def _choice(self) -> dict[str, Any]:
        """What the plan settled, as the job's fields."""
        planned = self._planned() or {}
        choice = planned["choice"]
        method = choice["method"]
        adapter = self._adapter() if method == "lora" else None
        rate = self.spec.train.rate(method)
        more = {"adapter": adapter, "learning_rate": rate, "largest_tensor": planned["shape"]["largest"]}
        return {**{key: choice[key] for key in _CHOSEN}, **more}

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
        self._settle(replace(found, choice=choice))
        return replace(job, **self._choice()), str(choice)

    def _validation_score(self, model_dir: Path, *, gpus: int) -> float:
        """The mean over tasks of their metric on the validation items: what `train.best_by: metric` goes by."""
        items = storage.read_jsonl(self.folder / "prepare" / "validation_items.jsonl")
        scores = means(self._aside(model_dir, items, gpus=self._still_free(gpus))).values()
        return sum(scores) / len(scores)

    def _look(self, step: int, model_dir: Path, *, gpus: int) -> float:
        """The mean drop of the probes behind `step`, from a few items of each; a line of `looks.jsonl`.

        With it the gain of the tasks, on validation items. What is in the file is not asked again.
        """
        from ift.data.items import first_of_each
        from ift.evaluate import forgetting

        path = self.folder / "looks.jsonl"
        for line in storage.read_jsonl(path):
            if line["step"] == step:
                return float(line["mean_drop"])
        most = self.spec.forgetting.look_items
        items = first_of_each(
            [i for i in storage.read_jsonl(self.folder / "prepare" / "items.jsonl") if i["suite"] == "probe"]
            + storage.read_jsonl(self.folder / "prepare" / "validation_items.jsonl"),
            most,
        )
        gpus = self._still_free(gpus)
        before = self._aside(self.model_dir, items, gpus=gpus)
        after = self._aside(model_dir, items, before, gpus=gpus)
        tasks, probes = forgetting.compare(before, after)
        drop = forgetting.mean_drop(before, after)["value"]
        line = {
            "step": step,
            "mean_drop": drop,
            **{f"drop/{row['name']}": row["drop"]["value"] for row in probes},
            **{f"gain/{row['name']}": row["gain"]["value"] for row in tasks},
            "time": time.time(),
        }
        storage.drop_half_line(path)
        with path.open("a", encoding="utf-8") as file:
            file.write(storage.json_line(line))
        self.tracker.wake()
        shutil.rmtree(model_dir, ignore_errors=True)
        return float("nan") if drop is None else float(drop)

    def _still_free(self, gpus: int) -> int:
        """So many GPUs where one node has them free; else 0, for CPUs: what the workers leave may lie on several."""
        if not gpus or cluster.free_gpus() >= gpus:
            return gpus
        self._require_room_beside(None)
        return 0

    def _aside(
        self,
        model_dir: Path,
        items: Sequence[Manifest],
        base: list[Manifest] | None = None,
        *,
        gpus: int,
    ) -> list[Manifest]:
        """Predictions while the workers train on: by one copy of the model on `gpus` that they leave, 0 for CPUs."""
        from ift.evaluate.evaluator import evaluate, store_of

        dtype, quantize = "bfloat16" if gpus else "float32", self._quantize(model_dir)
        return evaluate(
            model_dir,
            items,
            actors=1,
            gpus=gpus,
            gpus_a_copy=max(1, gpus),
            threads=max(1, (os.cpu_count() or 1) // 2),
            batch_tokens=self.spec.evaluate.batch_tokens,
            dtype=dtype,
            quantize=quantize,
            ranking=self.spec.evaluate.ranking,
            allow_code=self.spec.evaluate.allow_code,
            base=base,
            store=store_of(self.cache, model_dir, gpus=gpus, dtype=dtype, quantize=quantize),
        )

    def register(self, into: Path, summary: Manifest) -> Manifest:
        """The gate, the card, MLflow, the report; the `summary` of this run goes to the folder `into`, completed.

        Without MLflow the run is whole all the same.
        """
        from ift.models import adapters
        from ift.tracking import card as cards
        from ift.tracking import gate, lineage, registry

        spec, summary = self.spec, {**summary, "report": str(into / "report.html")}
        promotable = spec.forgetting.on_breach == "warn" or not gate.breached(summary["gate"])
        alias = "candidate" if promotable else None
        with self.terminal.stage("register") as stage:
            started = time.monotonic()
            mlflow: Manifest = {
                "tracking_uri": shown(spec).tracking.uri,
                "experiment": spec.experiment,
                "model_name": spec.registered_name,
                "alias": alias,
            }
            card = cards.describe({**summary, "mlflow": mlflow})
            storage.write_text(self.folder / "model" / "README.md", cards.front_matter(summary) + card)
            if summary["train"]["method"] == "lora":
                adapters.name_base(self.folder / "model", spec.model.source, spec.model.revision)
            summary["files"] = _sizes(self.folder / "model")
            storage.write_json(self.folder / "model" / "ift.json", summary)
            self.tracker.log_metrics(numbers_of(summary))
            self.tracker.log_tags({"ift.gate": summary["gate"]["verdict"], "mlflow.note.content": card})
            stage.status("uploading the model to MLflow")
            templates = lineage.all_templates_digest(self.selection.tasks)
            version: Manifest = {
                "name": spec.registered_name,
                "description": card,
                "tags": {**tags_of(spec, summary), "ift.templates": templates},
                "alias": alias,
            }
            # for `ift sync`, where MLflow is not there now
            asked = {**version, "into": os.path.relpath(into, self.folder)}
            storage.write_json(self.folder / VERSION, asked)
            try:
                with self.tracker.stage("register"):
                    mlflow["run_id"] = _wait_for_run(self.tracker)
                    mlflow["model_version"] = registry.register(
                        mlflow["run_id"],
                        self.folder / "model",
                        uri=spec.tracking.uri,
                        status=stage.status,
                        **version,
                    )
                named = f", alias {alias}" if alias else ", no candidate: it forgot too much"
                stage.result(f"{spec.registered_name} version {mlflow['model_version']}{named}")
            except IftError as error:
                mlflow["error"] = error.what
                stage.result("left out: MLflow does not take it")
            summary["mlflow"] = mlflow
            summary["timings"]["register"] = time.monotonic() - started
            self.tracker.log_metrics({"seconds": summary["timings"]["register"]}, stage="register")
            summary["timings"]["total"] = sum(summary["timings"].values())
            storage.write_json(into / "summary.json", summary)
            self.write_report(into, summary)
            self.tracker.log_artifact(self.folder / "prepare" / "items.jsonl", "prepare")
            for name in ("report.html", "summary.json"):
                self.tracker.log_artifact(into / name)
            stage.status("waiting for MLflow")
            arrived = self.tracker.close("FINISHED", timeout=5 if "error" in mlflow else 120)
            if arrived and "error" not in mlflow:
                storage.write_json(into / "register" / "manifest.json", mlflow)
        return summary

    def tell_of_other(self, folder: Path, summary: Manifest) -> None:
        """On this run's page in MLflow, what came of another that was chosen in its place."""
        from ift.tracking import card as cards

        words = f"{summary['name']} was chosen in its place: this run forgot too much.\n\n"
        self.tracker.log_tags({"mlflow.note.content": words + cards.describe(summary)})
        for name in ("report.html", "summary.json"):
            self.tracker.log_artifact(folder / name)

    def write_report(self, into: Path, summary: Manifest) -> None:
        """The run in pictures, in the folder `into`."""
        from ift import reporting
        from ift.tracking.report import write_report

        write_report(into / "report.html", reporting.record_of(self.spec, self.folder, summary))

    def predictions(self, stage: str) -> list[Manifest]:
        return predictions_of(self.folder, stage)


def trained_in_words(m: Manifest) -> str:
    """`45 steps, 89 packs each seen once, loss 0.257, 151 tokens/s; reloaded …`, and where it ended early, that."""
    early = ", ended early" if m["stopped_early"] else ""
    older = m["best_step"] is not None and m["best_step"] != m["steps"]
    result = f"the weights of step {m['best_step']:,} are the result; " if older else ""
    return (
        f"{m['steps']:,} steps, {m['packs']:,} packs each seen once{early}, loss {m['final_loss']:.3f}, "
        f"{m['tokens_per_second']:,.0f} tokens/s; {result}reloaded with the same logits (error {m['reload_error']:.0e})"
    )


def _by_section(defaults: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The values that were filled in, a line a section of the spec."""
    lines: dict[str, list[str]] = {}
    for key, value in defaults.items():
        section, _, name = key.rpartition(".") if "." in key else ("", "", key)
        lines.setdefault(section, []).append(f"{name} {value}")
    words = [
        f"{section}: {', '.join(values)}" if section else ", ".join(values)
        for section, values in lines.items()
    ]
    return [("" if i else "defaults", text) for i, text in enumerate(words)]


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
        notes.append(
            f"{manifest['cut']:,} instructions over data.max_length were shortened: of a prompt the beginning is lost "
            "(data.too_long), of a conversation the end"
        )
    return notes


def _ran_out(items: Sequence[Manifest], predictions: Sequence[Manifest]) -> Counter[str]:
    """How many answers of each task took all the tokens that they might have: most of them had more to say."""
    return Counter(
        item["name"]
        for item, prediction in zip(items, predictions, strict=True)
        if item["suite"] == "task"
        and item["kind"] == "generation"
        and prediction["new_tokens"] >= item["max_new_tokens"]
    )


def _scores_in_words(manifest: Manifest) -> str:
    shown = list(manifest["scores"].items())
    return f"{manifest['items']:,} items: " + _few([f"{name} {value:.2f}" for name, value in shown], 16)


def _sizes(folder: Path) -> dict[str, int]:
    """The bytes of each file in it; of `ift.json` none, which holds these numbers itself."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "ift.json")
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def _wait_for_run(tracker: Any, timeout: float = 60) -> str:
    """The id of the run in MLflow, once the tracker has it. Raises `IftError` where MLflow does not answer."""
    deadline = time.monotonic() + timeout
    while not tracker.run_id:
        if tracker.error or time.monotonic() > deadline:
            raise IftError(f"MLflow does not answer: {tracker.error or 'no run after a minute'}")
        time.sleep(0.1)
    return str(tracker.run_id)
