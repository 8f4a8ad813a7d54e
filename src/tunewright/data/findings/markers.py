"""Whether the model knows the markers that the chat template writes: a base model's vocabulary may only hold them."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.data.findings.found import Found
from tunewright.data.template import ChatTemplate
from tunewright.models.embedding import embedding_rows
from tunewright.models.markers import explain_untrained, untrained_markers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_COMPARED = 4096  # ordinary tokens whose rows show what a trained one looks like


def look_at_markers(
    template: ChatTemplate, tokenizer: "PreTrainedTokenizerBase", folder: Path, all_trained: bool
) -> Found:
    """Compare the markers' embedding rows, in the model of `folder`, with those of added tokens and a sample of others.

    A twin outside the sample is missed; rows that were never trained are copies of each other and of added tokens.
    `all_trained` says that training moves the embedding itself, so that markers can still be learnt.
    """
    markers = template.markers
    if not markers:
        return Found("untrained_markers", "fine", "the chat template writes plain words, no markers to be learnt")
    step = max(1, len(tokenizer) // _COMPARED)
    rows = sorted({*markers, *tokenizer.added_tokens_decoder, *range(0, len(tokenizer), step)})
    table = embedding_rows(folder, rows)
    if table is None:
        return Found("untrained_markers", "note", "the model's files hold no embedding to look the markers up in")
    untrained = untrained_markers(table, [rows.index(id) for id in markers])
    names = [str(tokenizer.convert_ids_to_tokens(rows[item.id])) for item in untrained]
    if not untrained:
        known = " ".join(str(tokenizer.convert_ids_to_tokens(id)) for id in markers)
        return Found("untrained_markers", "fine", f"the model was trained on the template's markers: {known}")
    message, advice = explain_untrained(untrained, names)
    return Found("untrained_markers", "note" if all_trained else "warning", message, advice, len(untrained))
