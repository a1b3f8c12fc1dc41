"""The closed form against its floor: `python tests/bench/bench_closed_form.py`.

The floor is the time of the one product nobody can avoid, pairs x d_mlp x d_model multiply-adds per layer, at the rate
of a 4096-row product measured in turn with it; pairs are T*T, or T(T+1)/2 if causal. The clean run counts as part of
our time. Repetitions of everything compared alternate within one process; ratios are of medians.
"""

import argparse
import copy
import math
import resource
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial, wraps
from importlib.metadata import version
from inspect import getattr_static
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from support.references import authors_loop  # noqa: E402
from transformers import (  # noqa: E402
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

import tl_vzero  # noqa: E402
from tl_vzero import api, clean  # noqa: E402
from tl_vzero.models.run import tf32_products  # noqa: E402
from tl_vzero.zeroing import chunks, closed_form, engine, pairs  # noqa: E402
from tl_vzero.zeroing.chunks import ROWS_ON_GPU  # noqa: E402

D_MODEL, D_MLP, LAYERS, VOCABULARY = 768, 3072, 2, 1000
PRODUCT_ROWS = 4096


def bert(layers: int = LAYERS, positions: int = 512) -> Any:
    torch.manual_seed(0)
    shape = {"num_hidden_layers": layers, "vocab_size": VOCABULARY, "max_position_embeddings": positions}
    config = BertConfig(**shape, attn_implementation="eager")
    return BertForMaskedLM(config).eval()


def gpt2(positions: int = 1024) -> Any:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=LAYERS, vocab_size=VOCABULARY, n_positions=positions, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).eval()


def bart() -> Any:
    torch.manual_seed(0)
    shape = {"d_model": D_MODEL, "encoder_ffn_dim": D_MLP, "decoder_ffn_dim": D_MLP, "encoder_attention_heads": 12}
    config = BartConfig(encoder_layers=1, decoder_layers=1, decoder_attention_heads=12, vocab_size=VOCABULARY, **shape)
    return BartForConditionalGeneration(config).eval()


def t5() -> Any:
    torch.manual_seed(0)
    return T5ForConditionalGeneration(T5Config(num_layers=1, vocab_size=VOCABULARY, decoder_start_token_id=0)).eval()


def sentences(lengths: Sequence[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, VOCABULARY, (length,), generator=generator) for length in lengths]


def padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return ids, mask


def product(n_rows: int = PRODUCT_ROWS, device: str = "cpu") -> Callable[[], object]:
    rows, matrix = torch.randn(n_rows, D_MLP, device=device), torch.randn(D_MLP, D_MODEL, device=device)
    out = torch.empty(n_rows, D_MODEL, device=device)
    return lambda: torch.mm(rows, matrix, out=out)


def done(device: str) -> None:
    """Wait until a device has done what it was given."""
    if not device.startswith("cpu"):
        getattr(torch, device.partition(":")[0]).synchronize()


def medians(calls: Sequence[Callable[[], object]], repeat: int, device: str = "cpu") -> list[float]:
    """The median time of each call, in seconds; the calls take turns."""
    taken: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(repeat):
        for call, times in zip(calls, taken, strict=True):
            done(device)
            start = time.perf_counter()
            call()
            done(device)
            times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in taken]


def pairs_of(lengths: Sequence[int], causal: bool) -> int:
    return sum(n * (n + 1) // 2 if causal else n * n for n in lengths)


def floor_row(name: str, model: Any, lengths: Sequence[int], causal: bool, repeat: int, limit: float | None) -> float:
    """Print one row against the floor; returns our time in seconds."""
    ids, mask = padded(sentences(lengths))
    ours, one_product = medians(
        [lambda: tl_vzero.value_zeroing(model, ids, attention_mask=mask, engine="closed_form"), product()], repeat
    )
    floor = LAYERS * pairs_of(lengths, causal) / PRODUCT_ROWS * one_product
    print(f"| {name} | {1000 * floor:.0f} | {1000 * ours:.0f} | {ours / floor:.2f} | {limit or '-'} |", flush=True)
    return ours


def against_floor(quick: bool) -> None:
    print("| what | floor, ms | closed form, ms | ratio | must reach |\n|---|---|---|---|---|")
    encoder, decoder = tl_vzero.load_model(bert()), tl_vzero.load_model(gpt2())
    times = {}
    for length, repeat, limit in ((64, 9, None), (128, 9, 1.25), (256, 5, None), (512, 3, 1.25)):
        if not (quick and length > 128):
            times[length] = floor_row(f"BERT-base width, T={length}", encoder, [length], False, repeat, limit)
    for length, repeat, limit in ((64, 15, 1.55), (256, 7, 1.3)):
        if not (quick and length > 128):
            floor_row(f"GPT-2-small width, causal, T={length}", decoder, [length], True, repeat, limit)
    short = [8 + index % 7 for index in range(64)]
    floor_row("BERT-base width, 64 sentences of 8 to 14 tokens", encoder, short, False, 9, 1.75)
    if not quick:
        slope = math.log(times[512] / times[64]) / math.log(8)
        print(f"\nGrowth: log-log slope of time over T from 64 to 512 is {slope:.2f} (at most 2.1).")


def on_device(device: str, quick: bool) -> None:
    """Each precision against a floor of its own, the memory, and how far maps are from float64 on the processor."""
    rows, is_cuda = PRODUCT_ROWS if device == "cpu" else ROWS_ON_GPU, device.startswith("cuda")
    precisions = [None, "tf32"] if is_cuda and torch.cuda.get_device_capability(device) >= (8, 0) else [None]
    lengths = (64, 128) if quick else (64, 128, 512) if device == "cpu" else (64, 128, 512, 1024, 2048)
    print(f"{torch.cuda.get_device_name(device) if is_cuda else device}, floors of {rows}-row products\n")
    print("| what | products | floor, ms | closed form, ms | ratio | peak above the model, MB | off float64 at T=64 |")
    print("|---" * 7 + "|")
    for name, build, causal in (("BERT-base width", bert, False), ("GPT-2-small width, causal", gpt2, True)):
        hf_model = build(positions=max(lengths))
        exact = tl_vzero.value_zeroing(tl_vzero.load_model(copy.deepcopy(hf_model).double()), *sentences([64]))
        model = tl_vzero.load_model(hf_model, device=device)
        for length in lengths:
            ids = sentences([length])[0].to(device)
            for precision in precisions:
                within = tf32_products(model) if precision else nullcontext()
                call = partial(tl_vzero.value_zeroing, model, ids, engine="closed_form", precision=precision)
                with within:
                    (one_product,) = medians([product(rows, device)], 5, device)
                (ours,) = medians([call], 3 if device == "cpu" else 9, device)
                floor = LAYERS * pairs_of([length], causal) / rows * one_product
                off = "-"
                if length == 64:
                    both = call().normalized().values.cpu().double(), exact.normalized().values
                    off = f"{(both[0] - both[1]).abs().max():.0e}"
                row = f"{name}, T={length} | {precision or 'as torch is set'} | {1000 * floor:.1f} | {1000 * ours:.1f}"
                print(f"| {row} | {ours / floor:.2f} | {peak_on(device, call)} | {off} |", flush=True)


def peak_on(device: str, call: Callable[[], object]) -> str:
    """The megabytes of a CUDA device that a call takes beside what is there; a dash elsewhere."""
    if not device.startswith("cuda"):
        return "-"
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    return f"{(torch.cuda.max_memory_allocated(device) - before) / 2**20:.0f}"


def against_others(quick: bool) -> None:
    hf_model = bert()
    model = tl_vzero.load_model(hf_model)
    (ids,) = sentences([128])
    calls: list[Callable[[], object]] = [
        lambda: tl_vzero.value_zeroing(model, ids, engine="closed_form"),
        lambda: tl_vzero.value_zeroing(model, ids, engine="hooks"),
        lambda: authors_loop(hf_model, ids),
    ]
    ours, hooks, loop = medians(calls, 1 if quick else 3)
    print("\n| BERT-base width, T=128 | ms | times the closed form | must reach |\n|---|---|---|---|")
    print(f"| closed form | {1000 * ours:.0f} | 1 | |\n| hook engine | {1000 * hooks:.0f} | {hooks / ours:.1f} | |")
    print(f"| authors' loop | {1000 * loop:.0f} | {loop / ours:.1f} | at least 4 |")
    one = [
        lambda: tl_vzero.value_zeroing(model, ids, engine="closed_form", destinations=[64]),
        lambda: tl_vzero.value_zeroing(model, ids, engine="closed_form"),
    ]
    part, whole = medians(one, 9)
    print(f"\nOne destination of T=128, clean run included: 1/{whole / part:.1f} of the full map (at most 1/25).")
    deep = tl_vzero.load_model(bert(3 * LAYERS))
    more, few = medians([lambda: tl_vzero.value_zeroing(deep, ids), lambda: tl_vzero.value_zeroing(model, ids)], 5)
    print(f"Three times the layers take {more / few:.2f} times as long.")


def baselines(quick: bool) -> None:
    """Another vector in a value's place costs what zero costs: only what attention loses is another."""
    model = tl_vzero.load_model(bert())
    print("\n| BERT-base width | zero, ms | mean | vectors by head | by position |\n|---|---|---|---|---|")
    for length, repeat in ((12, 21), (64, 9)) if quick else ((12, 41), (64, 15), (128, 7), (256, 5)):
        (ids,) = sentences([length])
        shape = (length, model.cfg.n_heads, model.cfg.d_head)
        by_position = torch.randn(LAYERS, *shape, generator=torch.Generator().manual_seed(0))

        def call(baseline: Any, ids: Tensor = ids) -> Callable[[], object]:
            return lambda: tl_vzero.value_zeroing(model, ids, engine="closed_form", baseline=baseline)

        zero, *others = medians([call(b) for b in ("zero", "mean", by_position[:, 0], by_position)], repeat)
        ratios = " | ".join(f"{other / zero:.3f}" for other in others)
        print(f"| T={length} | {1000 * zero:.1f} | {ratios} |", flush=True)
    print("(times zero's; at most 1.05)")


def encoder_decoders(quick: bool) -> None:
    """Both sentences of 64 tokens, one layer of each stack."""
    read, written = sentences([64, 64])
    print("\n| T=64 | stack | closed form, ms | hook engine, ms | ratio | must reach |\n|---|---|---|---|---|---|")
    for name, build in (("BART-base width", bart), ("T5-small width", t5)):
        try:
            model = tl_vzero.load_model(build())
        except tl_vzero.TLVZeroError as error:
            print(f"| {name} | {error} |")
            continue
        times = []
        for stack in ("encoder", "decoder", "cross"):
            decoder = {} if stack == "encoder" else {"decoder_inputs": written}

            def call(
                engine: str, stack: str = stack, model: Any = model, decoder: Any = decoder
            ) -> Callable[[], object]:
                return lambda: tl_vzero.value_zeroing(model, read, stack=stack, engine=engine, **decoder)

            times.append((stack, *medians([call("closed_form"), call("hooks")], 1 if quick else 3)))
        times.append(("all three", sum(ours for _, ours, _ in times), sum(hooks for *_, hooks in times)))
        for stack, ours, hooks in times:
            row = f"| {name} | {stack} | {1000 * ours:.0f} | {1000 * hooks:.0f} | {hooks / ours:.1f} | at least 4 |"
            print(row, flush=True)


# Where one call spends its time: of each part, the functions whose time it is, without that of other parts within.
PARTS: dict[str, Sequence[tuple[Any, str]]] = {
    "the MLP's products, pair by pair": [(torch.Tensor, "addmm_")],
    "the clean run": [(clean, "run_to")],
    "values through W_O and W_in": [(torch, "bmm"), (torch, "mm")],
    "their rows combined, pair by pair": [(pairs.IntoMlp, "combine"), (pairs.IntoMlp, "multiply")],
    "activations": [(pairs.PairZeroing, "_hidden_change")],
    "norms": [(pairs.NormChange, "of"), (pairs.NormChange, "apply")],
    "distances": [(closed_form._Layer, "_measure")],
    "pairs laid out": [(chunks.Chunk, "of"), (closed_form, "_columns_of"), (closed_form._Layer, "_zeroed")],
    "blocks recognised": [
        (closed_form, "block_weights"),
        (closed_form, "recognise"),
        (closed_form._Layer, "_rows_of_form"),
    ],
    "the rest of each layer": [(closed_form, "_layer_maps")],
    "weights and modules checked": [
        (api, "check_contracts"),
        (api, "provenance"),
        (engine, "has_user_hooks"),
        (engine, "module_fingerprint"),
    ],
    "inputs, Scores and the rest": [(api, "value_zeroing")],
}


@contextmanager
def timers(clock: Callable[[], float], taken: Counter[str]) -> Iterator[None]:
    """Within, add up the seconds that each part takes."""
    inside: list[str] = []
    since = 0.0

    def until_now() -> None:
        nonlocal since
        now = clock()
        if inside:
            taken[inside[-1]] += now - since
        since = now

    def timed(part: str, function: Callable[..., object]) -> Callable[..., object]:
        @wraps(function)
        def timer(*arguments: Any, **options: Any) -> object:
            until_now()
            inside.append(part)
            try:
                return function(*arguments, **options)
            finally:
                until_now()
                inside.pop()

        return timer

    with ExitStack() as patches:
        for part, functions in PARTS.items():
            for owner, name in functions:
                function = getattr_static(owner, name)
                is_class_method = isinstance(function, classmethod)
                timer = timed(part, function.__func__ if is_class_method else getattr(owner, name))
                patches.enter_context(mock.patch.object(owner, name, classmethod(timer) if is_class_method else timer))
        yield


def split(threads: int, repeat: int) -> None:
    """One call's time by its parts, and the time of a product by its rows; of one thread it is processor time."""
    clock = time.process_time if threads == 1 else time.perf_counter
    encoder, decoder, small = tl_vzero.load_model(bert()), tl_vzero.load_model(gpt2()), "agreement-mini"
    sentence, lengths = "the pictures of some hat [MASK] scaring marcus.", [8 + index % 7 for index in range(64)]
    ids, mask = padded(sentences(lengths))
    cases: dict[str, tuple[Any, Any, dict[str, Any], int]] = {
        "GPT-2 width, T=64": (decoder, sentences([64])[0], {}, LAYERS * pairs_of([64], True)),
        "64 short sentences": (encoder, ids, {"attention_mask": mask}, LAYERS * pairs_of(lengths, False)),
        "one destination of T=128": (encoder, sentences([128])[0], {"destinations": [64]}, LAYERS * 128),
        "one sentence, small model": (tl_vzero.load_model(small), sentence, {}, 0),
    }
    columns = {}
    for name, (model, inputs, options, n_pairs) in cases.items():
        taken: list[Counter[str]] = []
        floor, whole = product(), []
        tl_vzero.value_zeroing(model, inputs, **options)
        for _ in range(repeat):
            taken.append(Counter())
            with timers(clock, taken[-1]):
                api.value_zeroing(model, inputs, **options)
            start = clock()
            floor()
            whole.append(n_pairs / PRODUCT_ROWS * (clock() - start))
        parts = {part: statistics.median(times[part] for times in taken) for part in PARTS}
        total = statistics.median(times.total() for times in taken)
        columns[name] = {"all": total, "the floor": statistics.median(whole)} | parts
    print(f"| ms | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for part in ("the floor", *PARTS, "all"):
        print(f"| {part} | {' | '.join(f'{1000 * column[part]:.1f}' for column in columns.values())} |")
    rows = (64, 128, 256, 512, 1024, 2048, PRODUCT_ROWS)
    times = [
        time / count for count, time in zip(rows, medians([product(count) for count in rows], repeat), strict=True)
    ]
    print(f"\n| rows of a product | {' | '.join(map(str, rows))} |\n|---|{'---|' * len(rows)}")
    print(f"| time of one, times the floor's | {' | '.join(f'{one / times[-1]:.2f}' for one in times)} |")


def peak_memory() -> None:
    """Peak resident memory above the loaded model, T=512, in a BERT-base of 12 layers."""
    model = tl_vzero.load_model(bert(12))
    (ids,) = sentences([512])
    tl_vzero.value_zeroing(model, ids[:8])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    current = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024
    tl_vzero.value_zeroing(model, ids, engine="closed_form")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    held = "" if before <= current * 1.05 else " (an upper bound: the peak before was higher than the memory in use)"
    print(f"\nPeak memory above the model, BERT-base, T=512: {(after - current) / 1024:.0f} MB (at most 600){held}.")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Closed form against its floor, the hook engine and the authors' loop."
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="short sentences only")
    parser.add_argument("--baselines", action="store_true", help="only baselines against zero")
    parser.add_argument("--stacks", action="store_true", help="only encoder-decoders against the hook engine")
    parser.add_argument("--device", help="only the closed form on a device, such as cuda; on cpu too")
    parser.add_argument("--split", action="store_true", help="only where one call's time goes, of short inputs")
    parser.add_argument("--memory", action="store_true", help="only the peak memory, in a process of its own")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    versions = f"torch {version('torch')}, TransformerLens {version('transformer-lens')}"
    print(f"{options.threads} threads, {versions}, float32, {LAYERS} layers, medians of alternating repetitions\n")
    if options.device:
        on_device(options.device, options.quick)
        return
    if options.memory:
        peak_memory()
        return
    if options.split:
        split(options.threads, 5 if options.quick else 15)
        return
    if options.stacks:
        encoder_decoders(options.quick)
        return
    if options.baselines:
        baselines(options.quick)
        return
    against_floor(options.quick)
    baselines(options.quick)
    against_others(options.quick)
    encoder_decoders(options.quick)


if __name__ == "__main__":
    main()
