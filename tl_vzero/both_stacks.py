"""The rollout through both stacks of an encoder-decoder."""

from dataclasses import replace

from tl_vzero.errors import InputTypeError, ScoresError
from tl_vzero.rollout import roll_out_jointly
from tl_vzero.scores import Scores

# What must have been asked for alike, for a row of both maps to have one sum.
SAME_MEASURE = ("distance", "heads", "final_norm")


def joint_rollout(encoder: Scores, decoder: Scores, cross: Scores) -> Scores:
    """What each decoder position draws on, through both stacks: decoder positions first, then the encoder's.

    Takes the raw maps of one sentence pair, `stack="encoder"`, "decoder" and "cross" of one method. `values` are
    `[decoder layer, decoder position, decoder position + encoder position]`, stage "rollout", and
    `metadata["encoder_from"]` is the first column of the encoder.

    Both maps of a decoder block are distances of the same output, so a row of them has one sum, S_l + C_l = 1. With
    the encoder's rollout E at its last layer, R_l = S_l @ R_{l-1} + C_l @ [0 | E], R_0 = [1 | 0]; rows sum to one.

    Raises InputTypeError for what is no Scores, ScoresError for maps that are not whole, raw and of one sentence pair.
    Source: Mohebbi et al. 2023 (maps), Ferrando et al. 2022, "Towards Opening the Black Box of Neural Machine
    Translation", section 3 (through both stacks).

    >>> import torch, tl_vzero
    >>> def even(stack, dests, sources):
    ...     labels = (tuple(dests), tuple(sources), (0, 1), (0, 1), 2, 2)
    ...     return tl_vzero.Scores(torch.ones(2, 2, 2), "any", (0, 1), *labels, metadata={"stack": stack})
    >>> encoder, decoder, cross = even("encoder", "ab", "ab"), even("decoder", "xy", "xy"), even("cross", "xy", "ab")
    >>> joint = tl_vzero.joint_rollout(encoder, decoder, cross)
    >>> joint.src_tokens, joint.values[-1, 0].tolist()
    (('x', 'y', 'a', 'b'), [0.125, 0.125, 0.375, 0.375])
    """
    maps = {"encoder": encoder, "decoder": decoder, "cross": cross}
    for stack, scores in maps.items():
        _check_whole(stack, scores)
    _check_alike(maps)
    n_dest, n_src = cross.values.shape[-2:]
    rolled = roll_out_jointly(
        decoder.values, cross.values, encoder.rollout().values[-1].to(decoder.values), identity=decoder.identity
    )
    return replace(
        decoder,
        values=rolled,
        src_tokens=decoder.dest_tokens + cross.src_tokens,
        src_positions=tuple(range(n_dest + n_src)),
        n_src_positions=n_dest + n_src,
        src_word_ids=_words_of_both(decoder, encoder),
        stage="rollout",
        metadata={**decoder.metadata, "stack": "joint", "encoder_from": n_dest},
    )


def _check_whole(stack: str, scores: object) -> None:
    if not isinstance(scores, Scores):
        raise InputTypeError(
            f"{stack} is {type(scores).__name__}: expected the Scores of one sentence pair with stack={stack!r}"
        )
    given = scores.metadata.get("stack")
    if given != stack:
        raise ScoresError(f"{stack} holds a map of stack={given!r}: expected the Scores of stack={stack!r}")
    reason = None
    if scores.stage != "raw":
        reason = f"it is {scores.stage}, and raw maps are needed: a row is divided by the sum of both its maps"
    elif scores.heads is not None:
        reason = "it has a map a head; compute it without per_head"
    elif scores.unit != "token":
        reason = "its pieces are joined to words; call words() on the joint rollout"
    elif scores.partial or scores.layers != tuple(range(scores.n_layers)):
        reason = "it is a part of a map; compute it with all layers, destinations and sources"
    if reason is not None:
        raise ScoresError(f"joint_rollout is undefined for this {stack} map: {reason}")


def _check_alike(maps: dict[str, Scores]) -> None:
    encoder, decoder, cross = maps["encoder"], maps["decoder"], maps["cross"]
    weights = {scores.metadata.get("weights_sha256") for scores in maps.values()}
    if len({scores.method for scores in maps.values()}) > 1 or len(weights) > 1:
        raise ScoresError("the maps are of several methods or models: expected one method of one model")
    asked = [scores.metadata.get("options", {}) for scores in (decoder, cross)]
    for option in SAME_MEASURE:
        if asked[0].get(option) != asked[1].get(option):
            raise ScoresError(
                f"decoder map with {option}={asked[0].get(option)!r}, cross map with {asked[1].get(option)!r}: "
                "expected the same, as their rows are summed together"
            )
    read = decoder.metadata.get("encoder_tokens", list(cross.src_tokens))
    same_rows = decoder.dest_tokens == cross.dest_tokens and decoder.n_layers == cross.n_layers
    if not same_rows or encoder.src_tokens != cross.src_tokens or list(read) != list(cross.src_tokens):
        raise ScoresError(
            f"the maps are of different sentences: encoder {list(encoder.src_tokens)}, decoder "
            f"{list(decoder.dest_tokens)} beside {list(read)}, cross {list(cross.dest_tokens)} on "
            f"{list(cross.src_tokens)}; expected one sentence pair"
        )


def _words_of_both(decoder: Scores, encoder: Scores) -> tuple[int | None, ...] | None:
    if decoder.word_ids is None or encoder.word_ids is None:
        return None
    first = 1 + max((word for word in decoder.word_ids if word is not None), default=-1)
    return decoder.word_ids + tuple(None if word is None else first + word for word in encoder.word_ids)
