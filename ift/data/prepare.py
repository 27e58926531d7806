"""The prepare stage: rows -> instructions -> tokens -> packs -> the stream on disk.

In:  tasks, a tokenizer's folder, and the numbers of the spec.
Out: a folder with everything that the rest of the run reads:

    stream/          the packs to train on, every epoch, in order
    validation/      the packs whose loss is watched
    items.jsonl      the frozen test and probe items, the same before and after tuning
    validation_items.jsonl  the like of the validation split, for the choice of the best checkpoint by a metric
    quarantine.jsonl bad rows: file, line, reason
    dropped.jsonl    good rows that are not trained on: duplicates, and what a test set or a probe holds

and the manifest, which the pipeline writes last: counts, hashes.

`gather.py` has read and checked the rows before any cluster starts, `draws.py` decides what is seen when and in which
words, `pack.py` what stands together. Here Ray Data does the work on every node and decides nothing: its tasks word
and tokenize what the cache lacks, and its tasks write the shards. What is in memory here is a few numbers a document.
"""

import gc
import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ift import storage
from ift.data import account, stream, tokens
from ift.data import cache as caches
from ift.data.draws import Draws, Requests, planned, repeats, train_requests, validation_requests
from ift.data.examples import Lookup
from ift.data.gather import Gathered
from ift.data.items import items_of
from ift.data.layout import Documents, Layout, Packs, documents_of, shards, write_shard
from ift.data.quarantine import Quarantine, Tally
from ift.data.sources import Progress
from ift.data.tokens import Tokens
from ift.data.wording import Limits, Words, worded
from ift.errors import IftError
from ift.prompts.chat import Tokenizer
from ift.tasks.probes import Probe

_REASONS = 20  # that the manifest counts
_VALIDATION_ITEMS = 100  # a task: answers are written for these in the middle of training
_REQUESTS_A_BLOCK = 2000  # small enough that progress is seen, and that no block is large in memory
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".ot")
_UNPACKED = ("data.packing is off: an encoder–decoder reads one instruction a row",)


def build(
    folder: Path,
    gathered: Gathered,
    probes: Sequence[Probe],
    *,
    cache: Path,
    model_dir: Path,
    limits: Limits,
    packing: bool,
    epochs: int,
    seed: int,
    test_limit: int | None,
    draws: Draws | None = None,
    allow_code: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Word, tokenize and pack everything; write the folder; return its manifest. Ray has to be up.

    Raises `IftError` where too many instructions cannot be trained on.
    """
    draws = draws or Draws()
    counts = planned(gathered, draws)
    requests = [
        *validation_requests(gathered, counts),
        *(
            some
            for epoch in range(epochs)
            for some in train_requests(gathered, counts, draws, seed=seed, epoch=epoch)
        ),
    ]
    work = _Work(cache, model_dir, limits, gathered)
    fresh = work.tokenize(requests, progress)
    found = {name: work.tokens(name) for name in {some.task for some in requests}}
    documents = [documents_of(some, found[some.task], work.keys(some)) for some in requests]
    items, bad = items_of(gathered, probes, limit=test_limit, options=draws.options, allow_code=allow_code)
    aside = _set_aside(folder / "quarantine.jsonl", gathered, documents, bad, test_limit)
    storage.write_jsonl(folder / "dropped.jsonl", account.dropped(gathered))
    storage.write_jsonl(folder / "items.jsonl", items)
    held_out, _ = items_of(
        gathered,
        (),
        limit=_VALIDATION_ITEMS,
        options=draws.options,
        split="validation",
        allow_code=allow_code,
    )
    storage.write_jsonl(folder / "validation_items.jsonl", [i for i in held_out if i["suite"] == "task"])

    layout, trained = Layout(found), [d for d in documents if d.split == "train"]
    capacity = limits.max_length if packing and not limits.encoder_decoder else None
    train = [layout.packs([d for d in trained if d.epoch == e], e, seed, capacity) for e in range(epochs)]
    validation = layout.packs([d for d in documents if d.split == "validation"], 0, seed, capacity)
    too_long = account.too_long(documents)
    if not any(map(len, train)):
        raise IftError(
            f"no instruction is left to train on: {sum(too_long.values()):,} of "
            f"{sum(len(d.rows) - len(d.used) for d in documents):,} are over data.max_length {limits.max_length:,}",
            hint=f"raise data.max_length; the reasons, one a row, are in {folder / 'quarantine.jsonl'}",
        )
    written = _write(folder / "stream", train, layout)
    return {
        **written,
        "max_length": limits.max_length,
        "fill": written["tokens"] / (written["packs"] * limits.max_length),
        "epoch_ends": np.cumsum(
            [len(packs) for packs in train]
        ).tolist(),  # packs seen at the end of each epoch
        "examples": account.examples(trained),
        "mixture": account.realised(gathered, counts, trained, epochs),
        "tasks": account.by_task(trained),
        "templates": account.by_template(trained),
        "validation": _write(folder / "validation", [validation], layout),
        "items": dict(Counter(item["name"] for item in items)),
        "rows": gathered.rows,
        "duplicates": sum(len(examples.twins) for examples in gathered.examples.values()),
        "dropped": account.dropped_counts(gathered),
        "quarantined": aside.count,
        "reasons": dict(aside.reasons.most_common(_REASONS)),
        "too_long": sum(too_long.values()),
        "cut": sum(int(d.tokens.cut[d.rows].sum()) for d in trained),
        "fresh": fresh,  # instructions that the cache did not have
        "notes": [
            *gathered.notes,
            *repeats(gathered, counts, draws, epochs),
            *account.notes_on_length(too_long, account.asked(requests), limits.max_length),
            *(_UNPACKED if packing and limits.encoder_decoder else ()),
        ],
        "commits": gathered.commits,
        "inputs": {
            name: {"files": list(examples.inputs), "rows": examples.total, "bad": examples.bad.count}
            for name, examples in gathered.examples.items()
        },
        "licenses": {name: task.license for name, task in gathered.tasks.items()},
    }


# ── tokens ──


class _Work:
    """What is worded and tokenized where, and how to have more of it made."""

    def __init__(self, cache: Path, model_dir: Path, limits: Limits, gathered: Gathered) -> None:
        self.gathered, self.limits, self.model_dir = gathered, limits, model_dir
        tokenizer = [[path.name, caches.digest_of(path)] for path in tokenizer_files(model_dir)]
        rows = {name: examples.lookup.folder.name for name, examples in gathered.examples.items()}
        self.folders = {
            name: caches.address(cache, "tokens", name, task.identity, rows[name], tokenizer, vars(limits))
            for name, task in gathered.tasks.items()
        }
        for folder in self.folders.values():
            # before anybody looks: an NFS client remembers for a while that there was no such folder, and would not
            # find what the other nodes have written there since
            folder.mkdir(parents=True, exist_ok=True)

    def tokens(self, task: str) -> Tokens:
        return Tokens(self.folders[task])

    def keys(self, some: Requests) -> NDArray[np.uint64]:
        return tokens.keys_of(some, self.gathered.examples[some.task].ids)

    def tokenize(self, requests: Sequence[Requests], progress: Progress | None) -> int:
        """Have Ray Data word and tokenize the requests that the cache lacks; return how many those were."""
        lacking = list(self._lacking(requests))
        total = sum(map(len, lacking))
        if not lacking:
            return 0
        words = {some.task: Words.of(self.gathered.tasks[some.task]) for some in lacking}
        examples = {name: self.gathered.examples[name].lookup for name in words}
        settings = {
            "words": words,
            "examples": examples,
            "folders": {name: str(self.folders[name]) for name in words},
            "model_dir": str(self.model_dir),
            "limits": self.limits,
        }
        done = 0
        for count in _mapped(_word_and_tokenize, lacking, settings, [len(some) for some in lacking]):
            done += count
            if progress:
                progress(done, total)
        return total

    def _lacking(self, requests: Sequence[Requests]) -> Iterator[Requests]:
        """What is not in the cache, each once, in pieces for a task of Ray."""
        known: dict[str, NDArray[np.uint64]] = {}
        for some in requests:
            keys = self.keys(some)
            if some.task not in known:
                known[some.task] = self.tokens(some.task).key
            _, first = np.unique(keys, return_index=True)
            new = np.zeros(len(keys), dtype=np.bool_)
            new[first] = True
            new &= ~np.isin(keys, known[some.task])
            known[some.task] = np.concatenate([known[some.task], keys[new]])
            lacking = some.some(np.flatnonzero(new))
            for start in range(0, len(lacking), _REQUESTS_A_BLOCK):
                yield lacking.some(np.arange(start, min(start + _REQUESTS_A_BLOCK, len(lacking))))


def tokenizer_files(model_dir: Path) -> list[Path]:
    """The files that may say how a model tokenizes: all of the folder that has its tokenizer, but for weights."""
    from ift.models.base import tokenizer_folder

    files = tokenizer_folder(model_dir).iterdir()
    return sorted(path for path in files if path.is_file() and path.suffix not in _WEIGHTS)


def _word_and_tokenize(
    some: Requests,
    *,
    words: Mapping[str, Words],
    examples: Mapping[str, Lookup],
    folders: Mapping[str, str],
    model_dir: str,
    limits: Limits,
) -> int:
    name, reader = some.task, examples[some.task]
    made = worded(_tokenizer(model_dir), words[name], some, reader, limits)
    tokens.write(Path(folders[name]), tokens.keys_of(some, reader.ids), made)
    return len(some)


@lru_cache(maxsize=2)
def _tokenizer(model_dir: str) -> Tokenizer:
    from ift.models.base import load_tokenizer

    tokenizer = load_tokenizer(Path(model_dir))
    model: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if hasattr(model, "_resize_cache"):  # words it remembers; with its usual 10,000 it is a third slower
        model._resize_cache(1 << 18)
    gc.freeze()  # what the libraries hold stays: looking through it again and again took a tenth of the time
    return tokenizer


def _mapped(
    work: Callable[..., Any], parts: Sequence[Any], settings: Mapping[str, Any], sizes: Sequence[int]
) -> Iterator[Any]:
    """`work(part, **settings)` of every part, by Ray Data on whichever node has room; results in the order given.

    Small parts share a task of Ray, so that hundreds of small ones cost no more than one large.
    """
    import pyarrow as pa
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    tables: list[Any] = []
    rows: list[bytes] = []
    size = 0
    for i, (part, n) in enumerate(zip(parts, sizes, strict=True)):
        rows.append(pickle.dumps(part))
        size += n
        if size >= _REQUESTS_A_BLOCK or i == len(parts) - 1:
            tables.append(pa.table({"part": pa.array(rows, pa.large_binary())}))
            rows, size = [], 0
    shared = ray.put((work, dict(settings)))
    dataset = ray.data.from_arrow(tables).map_batches(
        _work_on, batch_format="pyarrow", batch_size=None, fn_kwargs={"shared": [shared]}
    )
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for result in batch.column("result").to_pylist():
            yield pickle.loads(result)  # what `_work_on` has just made


def _work_on(batch: Any, *, shared: Sequence[Any]) -> Any:
    import pyarrow as pa
    import ray

    work, settings = ray.get(shared[0])
    results = [pickle.dumps(work(pickle.loads(part.as_py()), **settings)) for part in batch.column("part")]
    return pa.table({"result": pa.array(results, pa.large_binary())})


def _write(folder: Path, epochs: Sequence[Packs], layout: Layout) -> dict[str, Any]:
    """A stream of all the epochs' packs, each shard written by a task of Ray."""
    stream.cleared(folder)
    parts = list(shards(epochs))
    sizes = [_REQUESTS_A_BLOCK] * len(parts)
    return stream.summed(_mapped(write_shard, parts, {"folder": str(folder), **layout.settings}, sizes))


def _set_aside(
    where: Path,
    gathered: Gathered,
    documents: Sequence[Documents],
    untested: Sequence[tuple[str, int, str]],
    test_limit: int | None,
) -> Tally:
    """Write down every row that could not be used, once, and count them; `untested` are test examples.

    Raises `IftError` where they are too many. Those that are too long are no bad rows: they are counted apart.
    """
    trained = {name: Tally() for name in gathered.tasks}
    tested = {name: Tally() for name in gathered.tasks}
    with Quarantine(where) as quarantine:

        def add(task: str, place: int, reason: str) -> dict[str, Any]:
            examples = gathered.examples[task]
            text = examples.lookup.line(place).decode()
            return quarantine.add(**examples.where(place), reason=reason, text=text)

        for examples in gathered.examples.values():
            quarantine.take(examples.lookup.folder / "quarantine.jsonl")
        for task, place, reason in untested:
            tested[task].add(add(task, place, reason))
        written: set[tuple[str, int]] = set()
        for d in documents:
            for row, place in zip(d.rows[~d.good].tolist(), d.places[~d.good].tolist(), strict=True):
                if (d.task, row) in written:  # an epoch asked it before, in the same words
                    continue
                written.add((d.task, row))
                entry = add(d.task, place, d.tokens.reasons[row])
                if not d.tokens.too_long[row]:
                    trained[d.task].add(entry)
    for name, splits in gathered.splits.items():
        rows = [d.rows for d in documents if d.task == name]
        asked = len(np.unique(np.concatenate(rows))) if rows else 0
        trained[name].refuse(name, asked, gathered.max_bad_rows, where=where)
        tested[name].refuse(name, len(splits["test"][:test_limit]), gathered.max_bad_rows, where=where)
    return quarantine.tally
