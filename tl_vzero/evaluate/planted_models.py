"""Small models of which it is known which token flows to which: weights written by hand, and tasks to train on.

A residual stream is cut into named spaces, directions that are at right angles to each other and to the vector of ones.
So a layer norm only scales it, and all that a block does (attention looks, values move, ReLU neurons read and write)
is homogeneous: scaling changes no answer. `Weights` says what heads and neurons do, and `hugging_face` writes that as
the weights of a BertForMaskedLM or a GPT2LMHeadModel, on which every method runs as on any other model.

A flow is a claim about the answer: when the value that a destination reads from a source in a layer is exchanged for
that of another input, the answer changes. `tl_vzero.evaluate.planted` checks each claim so.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

Architecture = Literal["bert", "gpt2"]
Features = Mapping[str, Tensor | int]  # of a token, by space: the index of a direction, or a vector

N_CONTENTS, N_KEYS, N_POSITIONS, N_HEADS, WIDTH = 10, 4, 12, 4, 128
SPACES = {
    "one": 1,
    "content": N_CONTENTS,
    "key": N_KEYS,
    "wanted": N_KEYS,
    "mark": 4,
    "position": N_POSITIONS,
    "previous": N_CONTENTS,
    "moved": N_CONTENTS,
    "answer": N_CONTENTS,
    "unread": N_CONTENTS,
    "junk": N_CONTENTS,
    "code": 16,
}
SIZE = 8.0  # the squared size of every embedding: all tokens alike, so that the first norm changes nothing
SHARP = 25.0  # a head's score where query and key match: what does not match gets e^-25
NOISE = 0.05  # what a head without a task moves into the unread space, beside 1.0 of one with a task
ASKING, HEAD, BAIT, SINK = range(4)  # the marks


# What a model does, in the terms of its residual stream.


@dataclass(frozen=True)
class Head:
    """Where a head looks, as pairs of maps `[width, rank]` of query and key, and what it moves, read and write."""

    looks: Sequence[tuple[Tensor, Tensor]]
    moves: Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Neurons:
    """ReLU neurons that read `[width, neuron]` plus a bias and write `[neuron, width]`."""

    reads: Tensor
    writes: Tensor
    bias: float = 0.0


@dataclass(frozen=True)
class Block:
    """The heads and neurons of one block."""

    heads: Sequence[Head]
    neurons: Sequence[Neurons] = ()


@dataclass(frozen=True)
class Weights:
    """A whole model: embeddings by token, blocks, and the directions `[width, answer]` that its logits read."""

    tokens: Float[Tensor, "token width"]
    blocks: Sequence[Block]
    unembedding: Float[Tensor, "width answer"]


def spaces_of(seed: int) -> dict[str, Float[Tensor, "width _"]]:
    """Named groups of directions, all of size 1, at right angles to each other and to the vector of ones."""
    drawn = torch.randn(WIDTH, WIDTH - 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    directions = torch.linalg.qr(drawn - drawn.mean(0)).Q.float()
    return dict(zip(SPACES, directions[:, : sum(SPACES.values())].split(list(SPACES.values()), dim=1), strict=True))


def embeddings(spaces: Mapping[str, Tensor], tokens: Sequence[Features], seed: int) -> Tensor:
    """A vector for each token from its features, filled up to one size by a code that nothing reads."""
    generator = torch.Generator().manual_seed(seed + 1)
    rows = []
    for features in tokens:
        vector = spaces["one"][:, 0].clone()
        for space, value in features.items():
            vector += spaces[space][:, value] if isinstance(value, int) else spaces[space] @ value
        code = spaces["code"] @ torch.randn(SPACES["code"], generator=generator)
        rows.append(vector + code / code.norm() * (SIZE - 1 - vector.square().sum()).sqrt())
    return torch.stack(rows)


# The same as weights of Hugging Face.


def hugging_face(architecture: Architecture, spaces: Mapping[str, Tensor], weights: Weights, seed: int) -> Any:
    """The model as a BertForMaskedLM or a GPT2LMHeadModel; heads without a task move a little noise."""
    n_tokens = max(len(weights.tokens), weights.unembedding.shape[1])  # answers are tokens, too
    model = untrained(architecture, n_tokens, len(weights.blocks), WIDTH, seed)
    blocks = [_matrices(block, spaces, seed + 10 * layer) for layer, block in enumerate(weights.blocks)]
    state = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    write = _write_bert if architecture == "bert" else _write_gpt2
    write(state, weights, blocks, spaces)
    for name in state:
        if name.endswith(("LayerNorm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight")):
            state[name] += (SIZE / WIDTH) ** 0.5  # the norm of an embedding is the embedding
    model.load_state_dict(state)
    return model.eval()


def untrained(architecture: Architecture, n_tokens: int, n_layers: int, width: int, seed: int) -> Any:
    """A random model with ReLU neurons, in evaluation mode, so without dropout."""
    from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if architecture == "bert":
            return BertForMaskedLM(
                BertConfig(
                    vocab_size=n_tokens,
                    hidden_size=width,
                    num_hidden_layers=n_layers,
                    num_attention_heads=N_HEADS,
                    intermediate_size=4 * width,
                    max_position_embeddings=N_POSITIONS,
                    hidden_act="relu",
                    tie_word_embeddings=False,
                )
            ).eval()
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=n_tokens,
                n_embd=width,
                n_layer=n_layers,
                n_head=N_HEADS,
                n_positions=N_POSITIONS,
                activation_function="relu",
                tie_word_embeddings=False,
                bos_token_id=None,
                eos_token_id=None,
            )
        ).eval()


@dataclass(frozen=True)
class _Matrices:
    """A block's matrices, `[in, out]`."""

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    reads: Tensor
    bias: Tensor
    writes: Tensor


def _matrices(block: Block, spaces: Mapping[str, Tensor], seed: int) -> _Matrices:
    generator = torch.Generator().manual_seed(seed + 2)
    per_head = WIDTH // N_HEADS
    query, key, value, output = torch.zeros(4, WIDTH, WIDTH)
    noise = [_noise(spaces, generator) for _ in range(N_HEADS - len(block.heads))]
    for index, head in enumerate([*block.heads, *noise]):
        columns = slice(index * per_head, (index + 1) * per_head)
        query[:, columns] = _side_by_side([query for query, _ in head.looks], per_head) * per_head**0.5
        key[:, columns] = _side_by_side([key for _, key in head.looks], per_head)
        value[:, columns] = _side_by_side([read for read, _ in head.moves], per_head)
        output[columns] = _side_by_side([written for _, written in head.moves], per_head).T
    reads, writes, bias, start = torch.zeros(WIDTH, 4 * WIDTH), torch.zeros(4 * WIDTH, WIDTH), torch.zeros(4 * WIDTH), 0
    for neurons in block.neurons:
        rows = slice(start, start := start + neurons.reads.shape[1])
        reads[:, rows], writes[rows], bias[rows] = neurons.reads, neurons.writes, neurons.bias
    return _Matrices(query, key, value, output, reads, bias, writes)


def _side_by_side(maps: Sequence[Tensor], width: int) -> Tensor:
    joined = torch.cat(list(maps), dim=1)
    return torch.cat([joined, torch.zeros(WIDTH, width - joined.shape[1])], dim=1)


def _noise(spaces: Mapping[str, Tensor], generator: torch.Generator) -> Head:
    """A head that looks anywhere and moves contents where nothing reads them."""
    written = spaces["unread"] + 0.01  # a little of the vector of ones, which every norm takes away again
    anywhere = torch.randn(N_POSITIONS, N_POSITIONS, generator=generator)
    return Head([(spaces["position"] @ anywhere, spaces["position"])], [(spaces["content"], NOISE * written)])


def _write_bert(
    state: dict[str, Tensor], weights: Weights, blocks: Sequence[_Matrices], spaces: Mapping[str, Tensor]
) -> None:
    state["bert.embeddings.word_embeddings.weight"][: len(weights.tokens)] += weights.tokens
    state["bert.embeddings.position_embeddings.weight"] += spaces["position"].T
    for layer, block in enumerate(blocks):
        at = f"bert.encoder.layer.{layer}."
        for name in ("query", "key", "value"):
            state[f"{at}attention.self.{name}.weight"] += getattr(block, name).T
        state[f"{at}attention.output.dense.weight"] += block.output.T
        state[f"{at}intermediate.dense.weight"] += block.reads.T
        state[f"{at}intermediate.dense.bias"] += block.bias
        state[f"{at}output.dense.weight"] += block.writes.T
    # The head's ReLU keeps a logit and its opposite, whose difference is the logit; its norm scales them alike.
    n_answers = weights.unembedding.shape[1]
    both = torch.cat([weights.unembedding, -weights.unembedding], dim=1)
    state["cls.predictions.transform.dense.weight"][: 2 * n_answers] += both.T
    state["cls.predictions.transform.LayerNorm.weight"] += 1 - (SIZE / WIDTH) ** 0.5
    state["cls.predictions.decoder.weight"][:n_answers, :n_answers] += torch.eye(n_answers)
    state["cls.predictions.decoder.weight"][:n_answers, n_answers : 2 * n_answers] -= torch.eye(n_answers)


def _write_gpt2(
    state: dict[str, Tensor], weights: Weights, blocks: Sequence[_Matrices], spaces: Mapping[str, Tensor]
) -> None:
    state["transformer.wte.weight"][: len(weights.tokens)] += weights.tokens
    state["transformer.wpe.weight"] += spaces["position"].T
    for layer, block in enumerate(blocks):
        at = f"transformer.h.{layer}."
        state[f"{at}attn.c_attn.weight"] += torch.cat([block.query, block.key, block.value], dim=1)
        state[f"{at}attn.c_proj.weight"] += block.output
        state[f"{at}mlp.c_fc.weight"] += block.reads
        state[f"{at}mlp.c_fc.bias"] += block.bias
        state[f"{at}mlp.c_proj.weight"] += block.writes
    state["lm_head.weight"][: weights.unembedding.shape[1]] += weights.unembedding.T


# What a model is asked, and what flows.


@dataclass(frozen=True)
class Drawn:
    """One input and what is claimed of it.

    `other` is the same layout with other contents everywhere. `answers` gives the right answer by position. `flows`
    are `(layer, dest, source, ...)`: the sources after the first are of one unit, exchanged together. `units` are
    further groups of positions that are only ever exchanged together.
    """

    ids: list[int]
    other: list[int]
    answers: dict[int, int]
    flows: Sequence[tuple[int, ...]]
    units: Sequence[tuple[int, ...]] = field(default_factory=list)


@dataclass(frozen=True)
class Task:
    """What is asked: `features` by token, `draw` for one input, `n_answers`, and in how many layers it is solved."""

    features: Sequence[Features]
    draw: Callable[[Random], Drawn]
    n_answers: int = N_CONTENTS
    n_layers: int = 1


ALPHABET = tuple({"content": c} for c in range(N_CONTENTS))
ASK: Features = {"mark": ASKING}
KEYED = tuple({"key": k, "content": c} for k in range(N_KEYS) for c in range(N_CONTENTS))
WANTED = tuple({"wanted": k, "mark": ASKING} for k in range(N_KEYS))


def _other(content: int, random: Random, among: Sequence[int] = range(N_CONTENTS)) -> int:
    return random.choice([other for other in among if other != content])


def copying() -> Task:
    """Each position answers with the token before it."""

    def draw(random: Random) -> Drawn:
        ids = [random.randrange(N_CONTENTS) for _ in range(8)]
        other = [_other(content, random) for content in ids]
        return Drawn(ids, other, {i: ids[i - 1] for i in range(1, 8)}, [(0, i, i - 1) for i in range(1, 8)])

    return Task(ALPHABET, draw)


def lookup() -> Task:
    """The last token names a key; the answer is the content of the token that has this key, among plain tokens."""
    features = [*KEYED, *ALPHABET, *WANTED]
    plain, wanted = len(KEYED), len(KEYED) + N_CONTENTS

    def draw(random: Random) -> Drawn:
        contents = [random.randrange(N_CONTENTS) for _ in range(7)]
        others = [_other(content, random) for content in contents]
        key, order = random.randrange(N_KEYS), random.sample(range(7), 7)
        offset = [index * N_CONTENTS if index < N_KEYS else plain for index in range(7)]
        ids, other = ([offset[old] + side[old] for old in order] + [wanted + key] for side in (contents, others))
        return Drawn(ids, other, {7: contents[key]}, [(0, 7, order.index(key))])

    return Task(features, draw)


def cue(
    n_cues: int = 1,
    n_contents: int = N_CONTENTS,
    baits: Sequence[Sequence[Features]] = (),
) -> Task:
    """The answer is the content of the marked token, or of several that always agree, among plain tokens.

    Each of `baits` is one more position: the tokens that may stand there, one for each content or one for all. Baits
    always agree in their content, too.
    """
    features: list[Features] = [*ALPHABET, *({"content": c, "mark": HEAD} for c in range(N_CONTENTS))]
    ask, starts = len(features), []
    features.append(ASK)
    for tokens in baits:
        starts.append(len(features))
        features += tokens
    varied = any(len(tokens) > 1 for tokens in baits)

    def draw(random: Random) -> Drawn:
        right, bait = random.randrange(n_contents), random.randrange(N_CONTENTS)
        pair = [(right, _other(right, random, range(n_contents))), (bait, _other(bait, random))]
        places = [tuple(N_CONTENTS + content for content in pair[0])] * n_cues
        places += [
            tuple(start + content % len(tokens) for content in pair[1])
            for start, tokens in zip(starts, baits, strict=True)
        ]
        while len(places) < 8:
            content = random.randrange(N_CONTENTS)
            places.append((content, _other(content, random)))
        order = random.sample(range(8), 8)
        at = [order.index(old) for old in range(n_cues + len(baits))]
        ids, other = ([places[old][side] for old in order] + [ask] for side in (0, 1))
        units = [tuple(at[n_cues:])] if varied and len(baits) > 1 else []
        return Drawn(ids, other, {8: right}, [(0, 8, *at[:n_cues])], units)

    return Task(features, draw, n_answers=n_contents)


def own() -> Task:
    """The last token answers with its own content."""
    features = [*ALPHABET, *({"content": c, "mark": ASKING} for c in range(N_CONTENTS))]

    def draw(random: Random) -> Drawn:
        contents = [random.randrange(N_CONTENTS) for _ in range(9)]
        others = [_other(content, random) for content in contents]
        ids, other = ([*side[:8], N_CONTENTS + side[8]] for side in (contents, others))
        return Drawn(ids, other, {8: contents[8]}, [(0, 8, 8)])

    return Task(features, draw)


def induction() -> Task:
    """The last token was there before; the answer is the token that followed it."""

    def draw(random: Random) -> Drawn:
        contents = random.sample(range(N_CONTENTS), N_CONTENTS)
        written, spare = contents[:7], contents[7:]
        earlier = random.randrange(6)
        other = [random.choice(spare) for _ in range(8)]
        flows = [(0, earlier + 1, earlier), (1, 7, earlier + 1)]
        return Drawn([*written, written[earlier]], other, {7: written[earlier + 1]}, flows)

    return Task(ALPHABET, draw, n_layers=2)


def agreement() -> Task:
    """The answer is the number of the marked head noun; one or two nouns between are attractors."""
    nouns = [
        {"content": number, "key": kind} | ({"mark": HEAD} if is_head else {})
        for is_head in (False, True)
        for number in (0, 1)
        for kind in range(N_KEYS)
    ]
    features = [*nouns, *({"content": c} for c in range(2, N_CONTENTS)), ASK]
    plain = len(nouns)

    def draw(random: Random) -> Drawn:
        def noun(is_head: bool, number: int) -> int:
            return 8 * is_head + 4 * number + random.randrange(N_KEYS)

        number = random.randrange(2)
        places = [(noun(True, number), noun(True, 1 - number))]
        for attractor in [1 - number, random.randrange(2)][: random.randint(1, 2)]:
            places.append((noun(False, attractor), noun(False, 1 - attractor)))
        while len(places) < 8:
            content = random.randrange(8)
            places.append((plain + content, plain + _other(content, random, range(8))))
        order = random.sample(range(8), 8)
        ids, other = ([places[old][side] for old in order] + [len(features) - 1] for side in (0, 1))
        return Drawn(ids, other, {8: number}, [(0, 8, order.index(0))])

    return Task(features, draw, n_answers=2)


def counting() -> Task:
    """The answer is how many of five marked tokens have the first content; other tokens are not counted."""
    features = [{"mark": HEAD, "content": c} for c in range(2)] + [{"content": c} for c in range(2)] + [ASK]

    def draw(random: Random) -> Drawn:
        contents = [random.randrange(2) for _ in range(8)]
        order = random.sample(range(8), 8)
        offset = [0 if index < 5 else 2 for index in range(8)]
        ids = [offset[old] + contents[old] for old in order] + [4]
        other = [offset[old] + 1 - contents[old] for old in order] + [4]
        flows = [(0, 8, order.index(old)) for old in range(5)]
        return Drawn(ids, other, {8: contents[:5].count(0)}, flows)

    return Task(features, draw, n_answers=6)


def sorting() -> Task:
    """Two slots at the end answer with the smallest and the largest token."""
    features = [*ALPHABET, {"wanted": 0}, {"wanted": 1}]

    def draw(random: Random) -> Drawn:
        contents = random.sample(range(N_CONTENTS), N_CONTENTS)
        used, spare = contents[:7], contents[7:]
        smallest, largest = min(used), max(used)
        flows = [(0, 7, used.index(smallest)), (0, 8, used.index(largest))]
        other = [random.choice(spare) for _ in used]
        return Drawn([*used, 10, 11], [*other, 10, 11], {7: smallest, 8: largest}, flows)

    return Task(features, draw)


# Weights that solve the tasks.


def _shift(spaces: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Query and key of a head that looks at the position before."""
    before = torch.diag(torch.ones(N_POSITIONS - 1), 1)  # row p - 1 has its one in column p
    return SHARP * spaces["position"] @ before.T, spaces["position"]


def _matching(spaces: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    return SHARP * spaces["wanted"], spaces["key"]


def _asks_for(spaces: Mapping[str, Tensor], mark: int, score: float = SHARP) -> tuple[Tensor, Tensor]:
    """Query and key of a head by which the token that asks looks at tokens with a mark."""
    return score * spaces["mark"][:, [ASKING]], spaces["mark"][:, [mark]]


def _moves(spaces: Mapping[str, Tensor], to: str, by: float = 1.0) -> tuple[Tensor, Tensor]:
    return spaces["content"], by * spaces[to]


def _erases(spaces: Mapping[str, Tensor], space: str) -> Neurons:
    """Neurons that take a space out of the residual stream, exactly where they read the stream itself."""
    both = torch.cat([spaces[space], -spaces[space]], dim=1)
    return Neurons(both, -both.T)


def _ranks(spaces: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Query and key of a head by which two slots look at the smallest and the largest content."""
    up = torch.arange(1.0, N_CONTENTS + 1)
    return SHARP / 4 * spaces["wanted"][:, :2], spaces["content"] @ torch.stack([N_CONTENTS + 1 - up, up], dim=1)


Solution = Callable[[Mapping[str, Tensor]], tuple[list[Block], Tensor]]


def _one_head(look: Callable[[Mapping[str, Tensor]], tuple[Tensor, Tensor]], n_answers: int = N_CONTENTS) -> Solution:
    """One head that moves the content it looks at to the answer."""

    def solve(spaces: Mapping[str, Tensor]) -> tuple[list[Block], Tensor]:
        return [Block([Head([look(spaces)], [_moves(spaces, "answer")])])], spaces["answer"][:, :n_answers]

    return solve


def _by_induction(spaces: Mapping[str, Tensor]) -> tuple[list[Block], Tensor]:
    before = Head([_shift(spaces)], [_moves(spaces, "previous")])
    after = Head([(SHARP * spaces["content"], spaces["previous"])], [_moves(spaces, "answer")])
    return [Block([before]), Block([after])], spaces["answer"]


def _by_counting(spaces: Mapping[str, Tensor]) -> tuple[list[Block], Tensor]:
    """The head moves the share of the first content; the logit of n is 2 (n/5) share - (n/5)^2, largest at n/5."""
    head = Head([_asks_for(spaces, HEAD)], [(spaces["content"][:, [0]], spaces["moved"][:, [0]])])
    shares = torch.arange(6.0) / 5
    return [Block([head])], spaces["moved"][:, [0]] * 2 * shares - spaces["one"] * shares.square()


def _with_bait(
    move: Callable[[Mapping[str, Tensor]], tuple[Tensor, Tensor]], *erased: str, mark: int = BAIT
) -> Solution:
    """One head moves the cue to the answer, another one moves something of the bait."""

    def solve(spaces: Mapping[str, Tensor]) -> tuple[list[Block], Tensor]:
        heads = [
            Head([_asks_for(spaces, HEAD)], [_moves(spaces, "answer")]),
            Head([_asks_for(spaces, mark)], [move(spaces)]),
        ]
        return [Block(heads, [_erases(spaces, space) for space in erased])], spaces["answer"]

    return solve


def _with_sink(spaces: Mapping[str, Tensor]) -> tuple[list[Block], Tensor]:
    looks = [_asks_for(spaces, HEAD), _asks_for(spaces, SINK, SHARP + 2.2)]  # e^2.2: nine tenths on the sink
    return [Block([Head(looks, [_moves(spaces, "answer")])])], spaces["answer"]


def _with_threshold(spaces: Mapping[str, Tensor]) -> tuple[list[Block], Tensor]:
    """A neuron that is at its limit from a quarter of a cue on: two cues of one half each do no more than one."""
    head = Head([_asks_for(spaces, HEAD)], [_moves(spaces, "moved")])
    limit = Neurons(
        torch.cat([spaces["moved"], spaces["moved"] - spaces["one"] / 4], dim=1),
        torch.cat([2 * spaces["answer"].T, -2 * spaces["answer"].T]),
    )
    return [Block([head], [limit, _erases(spaces, "moved")])], spaces["answer"]


def _by_the_norm(spaces: Mapping[str, Tensor]) -> tuple[list[Block], Tensor]:
    """A large vector makes all else small in the norm, so that a neuron does not fire; then the vector is erased."""
    head = Head([_asks_for(spaces, HEAD)], [(spaces["content"][:, [1]], 4 * spaces["junk"][:, [0]])])
    small = Neurons(spaces["one"], 4 * spaces["answer"][:, [0]].T, bias=-0.75)
    logits = torch.cat([spaces["answer"][:, [0]], 0.3 * spaces["one"]], dim=1)
    return [Block([head], [small, _erases(spaces, "junk")])], logits


def _from_itself(spaces: Mapping[str, Tensor]) -> tuple[list[Block], Tensor]:
    everywhere = (torch.zeros(WIDTH, 1), torch.zeros(WIDTH, 1))
    return [Block([Head([everywhere], [_moves(spaces, "unread")])])], spaces["content"]


# The models.


@dataclass(frozen=True)
class Planted:
    """A model whose flows are known: its name and story, what it is asked, and the weights if written by hand.

    `trap` says that something invites a wrong score.
    """

    name: str
    architecture: Architecture
    story: str
    task: Task
    solution: Solution | None = None
    trap: bool = False

    @property
    def kind(self) -> str:
        """Trained, trap or hand-written."""
        return "trained" if self.solution is None else ("trap" if self.trap else "hand-written")

    @property
    def title(self) -> str:
        """Name, architecture, and whether it is trained."""
        return title_of(self.name, self.architecture, self.kind)

    @property
    def n_layers(self) -> int:
        """The blocks of the model; one by hand has two at least, the first one idle where one is enough.

        So a score of a block's input, which methods give as that of the output below, is there to be judged.
        """
        return self.task.n_layers if self.solution is None else 2

    def drawn(self, random: Random) -> Drawn:
        """One input of the task, its flows in the layers of this model."""
        one, idle = self.task.draw(random), self.n_layers - self.task.n_layers
        return replace(one, flows=[(layer + idle, *ends) for layer, *ends in one.flows])

    def built(self, seed: int = 0) -> Any:
        """The Hugging Face model; one without a solution is trained on its task."""
        spaces = spaces_of(seed)
        if self.solution is None:
            return _trained(self, seed)
        blocks, unembedding = self.solution(spaces)
        tokens = embeddings(spaces, self.task.features, seed)
        blocks = [Block([])] * (self.n_layers - len(blocks)) + blocks
        return hugging_face(self.architecture, spaces, Weights(tokens, blocks, unembedding), seed)


def title_of(name: str, architecture: str, kind: str) -> str:
    """What a model is called in tables."""
    return ", ".join([name, {"bert": "BERT", "gpt2": "GPT-2"}[architecture], *(["trained"] * (kind == "trained"))])


BAITS = tuple({"content": c, "mark": BAIT} for c in range(N_CONTENTS))
AGAINST: Sequence[Features] = tuple({"content": -torch.eye(N_CONTENTS)[c], "mark": BAIT} for c in range(N_CONTENTS))
CONSTANT = ({"mark": SINK},)

TASKS: tuple[tuple[str, Callable[[], Task], Solution], ...] = (
    ("copying", copying, _one_head(_shift)),
    ("lookup", lookup, _one_head(_matching)),
    ("induction", induction, _by_induction),
    ("agreement", agreement, _one_head(lambda spaces: _asks_for(spaces, HEAD), 2)),
    ("counting", counting, _by_counting),
    ("sorting", sorting, _one_head(_ranks)),
)
TRAPS: tuple[tuple[str, str, Task, Solution], ...] = (
    (
        "sink",
        "The head gives nine tenths of its attention to a token whose value is nothing, one tenth to the cue.",
        cue(baits=[CONSTANT]),
        _with_sink,
    ),
    (
        "cancelled by W_O",
        "A second head reads a large value from the bait, and the output matrix turns it into nothing.",
        cue(baits=[BAITS]),
        _with_bait(lambda spaces: (5 * spaces["content"], torch.zeros(WIDTH, N_CONTENTS))),
    ),
    (
        "cancelling pair",
        "Two baits that always agree bring opposite vectors: each alone would change the answer, both together are "
        "nothing, and no input has one without the other.",
        cue(baits=[BAITS, AGAINST]),
        _with_bait(lambda spaces: _moves(spaces, "answer", 3.0)),
    ),
    (
        "redundant cues",
        "Two cues always agree, and a neuron is at its limit with one of them: without either nothing changes, and "
        "without both the answer is lost.",
        cue(n_cues=2),
        _with_threshold,
    ),
    (
        "norm only",
        "The cue brings a vector without meaning that makes all else small in the norm; a neuron notices, and the "
        "vector is erased.",
        cue(n_contents=2),
        _by_the_norm,
    ),
    (
        "erased by the MLP",
        "A second head brings a large vector from the bait, and the MLP of the same block takes it away.",
        cue(baits=[BAITS]),
        _with_bait(lambda spaces: _moves(spaces, "junk", 3.0), "junk"),
    ),
    (
        "own token",
        "The answer is the destination's own content, in the residual stream; the head brings other contents, which "
        "nothing reads.",
        own(),
        _from_itself,
    ),
    (
        "nobody reads it",
        "A second head brings a large vector from the bait into a space that nothing reads.",
        cue(baits=[BAITS]),
        _with_bait(lambda spaces: _moves(spaces, "unread", 3.0)),
    ),
    (
        "always the same",
        "A second head brings a large vector from a token that is the same in every input: it tells nothing.",
        cue(baits=[CONSTANT]),
        _with_bait(lambda spaces: (spaces["mark"][:, [SINK]], 5 * spaces["junk"][:, [0]]), mark=SINK),
    ),
)
ERASED = ("redundant cues", "norm only", "erased by the MLP")  # exactly so, as BERT's MLP reads the stream itself


def planted_models() -> tuple[Planted, ...]:
    """All models: the tasks and the traps by hand in both architectures, and the tasks again, trained."""
    models = []
    for architecture in ("bert", "gpt2"):
        for name, task, solution in TASKS:
            models.append(Planted(name, architecture, task.__doc__ or "", task(), solution))
        for name, story, of_trap, solution in TRAPS:
            if architecture == "bert" or name not in ERASED:
                models.append(Planted(name, architecture, story, of_trap, solution, trap=True))
        for name, task, _ in TASKS:
            if (name, architecture) != ("induction", "bert"):  # both directions leave several ways to solve it
                models.append(Planted(name, architecture, task.__doc__ or "", task()))
    return tuple(models)


# Training.

MOST_STEPS, BATCH, FRESH = 6000, 64, 256
ENOUGH = 0.995  # of fresh answers are right


def _trained(planted: Planted, seed: int) -> Any:
    """A random model trained on fresh inputs of its task until it answers nearly all of the next ones."""
    task, random = planted.task, Random(seed)
    model = untrained(planted.architecture, max(len(task.features), task.n_answers), task.n_layers, WIDTH // 2, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(MOST_STEPS):
        drawn = [task.draw(random) for _ in range(BATCH if step % 100 else FRESH)]
        ids = torch.tensor([one.ids for one in drawn])
        rows, positions, answers = torch.tensor(
            [(row, *answer) for row, one in enumerate(drawn) for answer in one.answers.items()]
        ).unbind(1)
        logits = model(input_ids=ids).logits[rows, positions]
        if step % 100 == 0 and (logits.argmax(-1) == answers).float().mean() >= ENOUGH:
            break
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, answers).backward()
        optimizer.step()
    return model.requires_grad_(False).eval()
