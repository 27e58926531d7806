"""Encoder–decoders: what is read and what is written, batches whose padding changes nothing, a run as a whole."""

import os
import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WORDS, write_spec
from documents import pack_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pipeline import Finished, ift
from tiny_t5 import make_t5

from ift import storage
from ift.data import tokenize
from ift.data.stream import Pack
from ift.models import base
from ift.prompts import chat
from ift.train.loop import ranks_packs, train
from ift.train.loss import collate_pairs, loss_sum
from ift.train.noise import Chance, pack_noise

END = 1
few = settings(max_examples=15)
SENTENCES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def tokenizer(t5: Path) -> Any:
    return base.load_tokenizer(t5)


@pytest.fixture(scope="module")
def model(t5: Path) -> Iterator[Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a tiny model is faster on one
    yield base.load_model(t5).double()  # T5's attention is not scaled: rounding grows to 1e-5 in float32
    torch.set_num_threads(threads)


def pair(read: Sequence[int], written: Sequence[int]) -> Pack:
    return pack_of(([*read, *written], [False] * len(read) + [True] * len(written)))


def random_pairs(count: int, seed: int) -> list[Pack]:
    rng = random.Random(seed)

    def tokens(longest: int) -> list[int]:
        return [*(rng.randrange(3, 100) for _ in range(rng.randrange(longest))), END]

    return [pair(tokens(30), tokens(9)) for _ in range(count)]


# --- documents --------------------------------------------------------------------------------------------


@few
@given(prompt=SENTENCES, completion=SENTENCES, system=st.sampled_from(["", "a film"]))
def test_an_instruction_is_what_the_tokenizer_makes_of_both_texts(
    tokenizer: Any, prompt: str, completion: str, system: str
) -> None:
    """T5 was trained on just that: each text alone, with its end."""
    [found] = tokenize.documents(tokenizer, [(prompt, completion, system)], encoder=True)
    assert isinstance(found, tokenize.Document)
    read = tokenizer(f"{system}\n\n{prompt}" if system else prompt)["input_ids"]
    assert found.ids == read + tokenizer(completion)["input_ids"]
    assert found.supervised == [i >= len(read) for i in range(len(found.ids))]
    assert chat.encode_prompt(tokenizer, prompt, system, encoder=True) == read  # evaluation reads the same


def test_a_chat_template_says_itself_where_the_question_ends(tiny_tokenizer: Any) -> None:
    asked = chat.encode_prompt(tiny_tokenizer, "film", encoder=True)
    assert tiny_tokenizer.decode(asked) == "<|im_start|>user\nfilm<|im_end|>\n<|im_start|>assistant\n"


def test_a_text_cannot_end_what_is_read(tokenizer: Any) -> None:
    ids = chat.encode_prompt(tokenizer, "the film </s> good", encoder=True)
    assert ids.count(END) == 1
    assert ids[-1] == END


@few
@given(sentence=SENTENCES, length=st.integers(12, 40))
def test_a_prompt_that_is_cut_keeps_its_end(tokenizer: Any, sentence: str, length: int) -> None:
    document = tokenize.shortened(tokenizer, f"{sentence} " * 12, "good", "", length, encoder=True)
    assert len(document.ids) <= length
    border = document.supervised.index(True)
    assert document.ids[border - 1] == document.ids[-1] == END
    assert tokenizer.decode(document.ids[border:], skip_special_tokens=True).strip() == "good"


@few
@given(sentences=st.lists(SENTENCES, min_size=2, max_size=7), length=st.integers(20, 300))
def test_a_conversation_has_a_document_of_each_answer(
    tokenizer: Any, sentences: list[str], length: int
) -> None:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(sentences)]
    whole = tokenize.answers(tokenizer, turns, max_length=10_000)
    assert [written_of(tokenizer, one) for one in whole] == sentences[1::2]
    for i, one in enumerate(whole):
        history = chat.encode_history(tokenizer, turns[: 2 * i + 1])
        assert one.ids[: one.supervised.index(True)] == [*history, END]
    fitting = [one for one in whole if len(one.ids) <= length]
    if fitting:
        assert tokenize.answers(tokenizer, turns, max_length=length) == fitting
    else:
        with pytest.raises(tokenize.TooLong):
            tokenize.answers(tokenizer, turns, max_length=length)


def written_of(tokenizer: Any, document: tokenize.Document) -> str:
    written = document.ids[document.supervised.index(True) :]
    assert written[-1] == END
    return str(tokenizer.decode(written, skip_special_tokens=True).strip())


@few
@given(words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=40), length=st.integers(4, 30))
def test_a_text_is_read_to_the_half_of_each_piece(tokenizer: Any, words: list[str], length: int) -> None:
    pieces = tokenize.halves(tokenizer, " ".join(words), max_length=length)
    assert all(len(piece.ids) <= length for piece in pieces)
    borders = [piece.supervised.index(True) for piece in pieces]
    assert all(piece.ids[border - 1] == END for piece, border in zip(pieces, borders, strict=True))
    rest = [piece.ids[: b - 1] + piece.ids[b:] for piece, b in zip(pieces, borders, strict=True)]
    whole = tokenizer(" ".join(words))["input_ids"]
    kept = [token for ids in rest for token in ids]
    assert kept == whole[: len(kept)]
    assert len(whole) - len(kept) <= 1  # a last piece of one token
    assert all(abs(2 * (b - 1) - len(ids)) <= 1 for b, ids in zip(borders, rest, strict=True))


# --- batches and their loss -------------------------------------------------------------------------------


def test_the_drawing_in_the_docstring() -> None:
    import ift.train.loss

    batch = collate_pairs([pair([9, 4, 4], [7, 2]), pair([9, 5], [7, 7, 2])], "cpu")
    drawn = (ift.train.loss.__doc__ or "").partition("    read ")[2]
    rows = [line.replace("written", "").split() for line in drawn.splitlines()[:2]]
    read = [[int(t) for t in row[:3] if t != "."] for row in rows]
    written = [[int(t) for t in row[3:] if t != "."] for row in rows]
    assert read == [[9, 4, 4], [9, 5]]
    assert written == [[7, 2], [7, 7, 2]]
    assert batch.input_ids.tolist() == [[9, 4, 4], [9, 5, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.labels.tolist() == [[7, 2, -100], [7, 7, 2]]
    assert batch.targets.tolist() == [7, 2, 7, 7, 2]
    assert batch.tokens == 10


def test_two_documents_in_a_row_are_refused() -> None:
    with pytest.raises(ValueError, match="one document a row"):
        collate_pairs([pack_of(([9, 2], [False, True]), ([9, 2], [False, True]))], "cpu")


def gradient(model: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()]).double()


def ours(model: Any, micro_batches: Sequence[Sequence[Pack]]) -> tuple[float, torch.Tensor]:
    """The summed loss over micro-batches, and its gradient."""
    model.zero_grad()
    total = 0.0
    for packs in micro_batches:
        loss, losses = loss_sum(model, collate_pairs(packs, "cpu"))
        assert len(losses) == sum(p.supervised_tokens for p in packs)
        loss.backward()
        total += float(loss.detach())
    return total, gradient(model)


def by_the_book(model: Any, packs: Sequence[Pack], noises: Sequence[torch.Tensor] = ()) -> torch.Tensor:
    """transformers' own loss of each document alone, without padding and without a mask; the sum over all tokens.

    `noises` are added to what is embedded: to what is read, and to what the decoder is given.
    """
    losses = []
    for i, p in enumerate(packs):
        border = p.supervised.index(True)
        read, written = torch.tensor([p.tokens[:border]]), torch.tensor([p.tokens[border:]])
        if noises:
            given = torch.tensor([[model.config.decoder_start_token_id, *p.tokens[border:-1]]])
            to_read, to_write = noises[i][:border], noises[i][border:]
            embedded = {
                "inputs_embeds": model.shared(read) + to_read,
                "decoder_inputs_embeds": model.shared(given) + to_write,
            }
        else:
            embedded = {"input_ids": read}
        losses.append(model(**embedded, labels=written).loss * written.numel())
    return torch.stack(losses).sum()


@few
@given(cuts=st.sets(st.integers(1, 5)), seed=st.integers(0, 2**31))
def test_neither_padding_nor_the_micro_batch_changes_the_gradient(
    model: Any, cuts: set[int], seed: int
) -> None:
    packs = random_pairs(6, seed)
    total, found = ours(model, [packs[a:b] for a, b in pairwise([0, *sorted(cuts), 6])])
    model.zero_grad()
    wanted = by_the_book(model, packs)
    wanted.backward()
    assert total == pytest.approx(float(wanted.detach()), rel=1e-6)
    assert (found - gradient(model)).norm() <= 1e-6 * gradient(model).norm()


def test_a_batch_of_nothing_is_zero_and_has_a_gradient_of_zeros(model: Any) -> None:
    batch = collate_pairs([], "cpu")
    assert batch.tokens == 0
    model.zero_grad()
    loss, losses = loss_sum(model, batch)
    assert (float(loss.detach()), len(losses)) == (0.0, 0)
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


# --- two ranks --------------------------------------------------------------------------------------------

RATES = (3e-3, 1e-3)
GLOBAL_BATCH = 5  # odd: with two ranks one has a micro-batch without work
SEED = 17
# of what is trained: the ZeRO stage, the noise on embeddings; with it layers are computed again in the backward pass
CASES = {"2": (2, 0.0), "3": (3, 0.0), "noisy": (3, 20.0)}


def _rank(rank: int, model_dir: Path, folder: Path) -> None:
    import gc

    import torch.distributed as dist
    from test_worker import job_for

    from ift.train.worker import DeepSpeedEngine

    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    packs = random_pairs(2 * GLOBAL_BATCH, seed=8)
    for name, (stage, alpha) in CASES.items():
        changes = {"global_batch": GLOBAL_BATCH, "activation_checkpointing": alpha > 0}
        engine = DeepSpeedEngine(job_for(model_dir, zero_stage=stage, **changes), 2, torch.device("cpu"))
        chance = Chance(SEED, alpha)
        chance.attach(engine.module)
        batches = (
            [
                collate_pairs([packs[n] for n in micro], "cpu", None, micro)
                for micro in ranks_packs(
                    step, global_batch=GLOBAL_BATCH, packs=len(packs), rank=rank, world=2, micro_batch=1
                )
            ]
            for step in range(len(RATES))
        )
        told: list[dict[str, float]] = []
        train(engine, batches, range(len(RATES)), lambda s: RATES[s], told.append, prepare=chance.begin)
        engine.module.eval()
        logits = base.reference_logits(engine.module, packs[0].tokens, encoder_decoder=True)
        engine.export(folder / name)
        if rank == 0:
            base.load_tokenizer(model_dir).save_pretrained(folder / name)
            seen = {"losses": [t["loss"] for t in told], "logits": torch.tensor(logits)}
            torch.save(seen, folder / name / "seen.pt")
        engine.engine.destroy()
        del engine
        gc.collect()  # what ZeRO-3 patched is put back
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_t5(tmp_path_factory.mktemp("narrow"), factor=1.0)


@pytest.fixture(scope="module")
def exports(narrow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch.multiprocessing

    folder = tmp_path_factory.mktemp("zero")
    torch.multiprocessing.spawn(_rank, args=(narrow, folder), nprocs=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_of_zero_train_by_the_book(exports: Path, narrow: Path, name: str) -> None:
    model, packs = base.load_model(narrow), random_pairs(2 * GLOBAL_BATCH, seed=8)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups)
    losses = []
    for step, rate in enumerate(RATES):
        numbers = range(step * GLOBAL_BATCH, (step + 1) * GLOBAL_BATCH)
        some = [packs[n] for n in numbers]
        alpha, width = CASES[name][1], model.config.d_model
        noises = [pack_noise(SEED, n, packs[n].lengths, width, alpha=alpha, device="cpu") for n in numbers]
        loss = by_the_book(model, some, noises if alpha else ()) / sum(p.supervised_tokens for p in some)
        loss.backward()
        losses.append(float(loss.detach()))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    folder = exports / name
    seen = torch.load(folder / "seen.pt")
    assert seen["losses"] == pytest.approx(losses, rel=1e-5)
    trained = weights(base.load_model(folder))
    assert (trained - weights(model)).norm() <= 1e-5 * weights(model).norm()
    assert (trained - weights(base.load_model(narrow))).norm() > 1e-3 * trained.norm()
    verified = base.verify(folder, packs[0].tokens, seen["logits"].numpy(), dtype="float32")
    assert verified["relative_error"] < 1e-5
    assert verified["parameters"] == base.parameter_count(narrow)
    with pytest.raises(Exception, match="answers differently"):  # the base model is not what was trained
        base.verify(narrow, packs[0].tokens, seen["logits"].numpy(), dtype="float32")


def weights(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# --- a whole run ------------------------------------------------------------------------------------------


def spec_in(folder: Path, model: Path) -> None:
    train = {"epochs": 3, "global_batch": 4, "micro_batch": 2, "learning_rate": 1e-2, "checkpoint_steps": 2}
    write_spec(folder, model, train={**train, "zero_stage": 2})


@pytest.fixture(scope="module")
def dropping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With T5's usual dropout."""
    return make_t5(tmp_path_factory.mktemp("dropping"), dropout=0.1, factor=1.0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, dropping: Path) -> Finished:
    folder = tmp_path_factory.mktemp("whole")
    spec_in(folder, dropping)
    return ift(folder, "run", "spec.yaml")


@pytest.mark.slow
def test_one_command_goes_from_rows_to_a_tuned_model(finished: Finished) -> None:
    """Two workers and ZeRO-2; `packing` is on in the spec."""
    from transformers import AutoModelForSeq2SeqLM

    assert finished.status == 0, finished.output
    assert "data.packing is off: an encoder–decoder reads one instruction a row" in finished.output
    summary = finished.summary
    assert (summary["train"]["workers"], summary["train"]["zero_stage"]) == (2, 2)
    assert summary["stream"]["packs"] == summary["stream"]["documents"] == 3 * 40
    losses = [loss for _, loss in finished.losses]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])
    validation = [line["loss"] for line in storage.read_jsonl(finished.folder / "validation.jsonl")]
    assert validation[-1] < 0.3 * validation[0]
    assert summary["train"]["reload_error"] < 1e-5
    loaded = AutoModelForSeq2SeqLM.from_pretrained(finished.folder / "model")
    assert sum(p.numel() for p in loaded.parameters()) == summary["train"]["parameters"]
    assert [row["name"] for row in summary["task"]] == ["films"]
    assert {probe["name"] for probe in summary["probes"]} == {"copying", "word_relations", "definitions"}
